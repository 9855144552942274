"""Sending messages over real HTTP, kept in a real Postgres: every answer the REST API promises."""

import asyncio
import json
from typing import Any

import httpx
import pytest

from tests.integration.agent_runtime.harness import (
    NAMESPACE,
    Database,
    Talk,
    agent_id,
    echo,
    events_of,
    manifest,
    scripted,
    serving,
    until,
)

PROBLEM = "application/problem+json"


def problem_of(response: httpx.Response, status: int, kind: str) -> dict[str, Any]:
    """Check that an answer is this problem, and return it."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == PROBLEM
    body = response.json()
    assert body["type"] == f"https://abide.dev/problems/{kind}"
    assert body["status"] == status
    assert body["title"]
    return dict(body)


async def test_a_message_gets_its_reply_and_the_next_one_knows_it(postgres_url: str) -> None:
    async with serving(postgres_url, manifest("a")) as served:
        talk = served.talk("a")
        response = await talk.post("hello")
        body = response.json()
        assert response.status_code == 200
        assert set(body) == {"turn", "reply"}
        assert body["reply"] == {"content": "hello [1]"}
        assert {name: body["turn"][name] for name in ("status", "model", "error", "attempts")} == {
            "status": "completed",
            "model": "echo/echo",
            "error": None,
            "attempts": 1,
        }
        assert await talk.say("again") == "again [2]"
        assert await talk.say("other", "t") == "other [1]"


async def test_the_wait_is_bounded_and_the_turn_goes_on_without_it(postgres_url: str) -> None:
    async with serving(postgres_url, manifest("a", echo(0.4))) as served:
        talk = served.talk("a")
        response = await talk.post("slow", wait=0.05)
        assert response.status_code == 202
        body = response.json()
        assert body["turn"]["status"] == "running"
        assert body["reply"] is None
        assert response.headers["location"] == f"/v1/agents/{NAMESPACE}/a/turns/{body['turn']['id']}"
        followed = await served.http.get(served.base + response.headers["location"])
        assert followed.json()["turn"]["id"] == body["turn"]["id"]
        done = await talk.outcome(body["turn"]["id"])
        assert done["reply"] == {"content": "slow [1]"}


async def test_respond_async_is_acknowledged_at_once(postgres_url: str) -> None:
    async with serving(postgres_url, manifest("a", echo(0.3))) as served:
        talk = served.talk("a")
        response = await talk.post("later", Prefer="respond-async")
        assert response.status_code == 202
        assert response.headers["preference-applied"] == "respond-async"
        assert (await talk.outcome(response.json()["turn"]["id"]))["turn"]["status"] == "completed"
        impatient = await talk.post("later", Prefer="wait=0")
        assert impatient.status_code == 202


async def test_a_client_that_goes_away_loses_nothing(postgres_url: str) -> None:
    async with serving(postgres_url, manifest("a", echo(0.3))) as served:
        talk = served.talk("a")
        with pytest.raises(httpx.ReadTimeout):
            await served.http.post(
                f"{talk.path}/sessions/s/messages", json={"content": "gone"}, timeout=httpx.Timeout(5, read=0.1)
            )

        async def answered() -> bool:
            return [one["content"] for one in await talk.messages()] == ["gone", "gone [1]"]

        await until(answered, "the reply is kept")


async def test_events_tell_the_whole_turn_and_can_be_resumed(postgres_url: str) -> None:
    script = scripted({"content": "one two three", "delaySeconds": 0.1})
    async with serving(postgres_url, manifest("a", script)) as served:
        talk = served.talk("a")
        response = await talk.post("go", Accept="text/event-stream")
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        events = events_of(response.text)
        assert [event["event"] for event in events] == ["accepted", "delta", "delta", "delta", "completed"]
        turn_id = events[0]["data"]["turn"]["id"]
        assert [event["id"] for event in events] == [
            f"{turn_id}:{tail}" for tail in ("0:0", "1:1", "1:2", "1:3", "1:4")
        ]
        assert "".join(event["data"]["text"] for event in events[1:4]) == "one two three"
        assert events[-1]["data"]["reply"] == {"content": "one two three"}
        resumed = await talk.request("GET", f"/turns/{turn_id}/events", headers={"Last-Event-ID": events[2]["id"]})
        assert events_of(resumed.text) == events[3:]
        again = await talk.request("GET", f"/turns/{turn_id}/events", headers={"Last-Event-ID": events[-1]["id"]})
        assert events_of(again.text) == events[-1:]
        whole = await talk.request("GET", f"/turns/{turn_id}/events")
        assert [event["event"] for event in events_of(whole.text)] == [event["event"] for event in events]


async def test_a_stream_that_is_joined_while_the_turn_runs(postgres_url: str) -> None:
    async with serving(postgres_url, manifest("a", echo(0.3))) as served:
        talk = served.talk("a")
        turn_id = (await talk.post("hi", wait=0)).json()["turn"]["id"]
        response = await talk.request("GET", f"/turns/{turn_id}/events")
        events = events_of(response.text)
        assert [event["event"] for event in events] == ["accepted", "delta", "delta", "completed"]


async def test_a_fallback_model_answers_and_the_turn_says_which(postgres_url: str, database: Database) -> None:
    async with serving(postgres_url, manifest("a", scripted({"error": 401}, name="first"), echo())) as served:
        body = (await served.talk("a").post("hello")).json()
        assert body["reply"] == {"content": "hello [1]"}
        assert (body["turn"]["status"], body["turn"]["model"], body["turn"]["error"]) == (
            "completed",
            "echo/echo",
            None,
        )

        async def recorded() -> Any:
            return await database.rows("SELECT * FROM abide.agent_errors WHERE agent_id = $1", agent_id("a"))

        (row,) = await until(recorded, "the failing model is recorded")
        assert row["error_type"] == "ModelAuthFailed"
        assert "scripted/scripted answered 401" in row["message"]


async def test_when_all_models_fail_users_read_the_fallback_and_the_turn_tells_the_truth(
    postgres_url: str, database: Database
) -> None:
    agent = manifest("a", scripted({"error": 503}), messages={"fallback": "Please come back."})
    async with serving(postgres_url, agent) as served:
        talk = served.talk("a")
        response = await talk.post("hello")
        assert response.status_code == 200
        body = response.json()
        assert body["reply"] == {"content": "Please come back."}
        assert (body["turn"]["status"], body["turn"]["model"]) == ("fallback", None)
        assert body["turn"]["error"]["type"] == "ModelUnreachable"
        assert "503" in body["turn"]["error"]["message"]
        assert [one["content"] for one in await talk.messages()] == ["hello", "Please come back."]

        async def recorded() -> Any:
            return await database.rows(
                "SELECT * FROM abide.agent_errors WHERE context::text LIKE '%' || $1 || '%'", body["turn"]["id"]
            )

        assert (await until(recorded, "the failure is recorded"))[0]["error_type"] == "ModelUnreachable"


async def test_a_turn_that_takes_too_long_fails_with_the_text_users_should_read(postgres_url: str) -> None:
    agent = manifest("a", echo(30), limits={"turnSeconds": 1}, messages={"fallback": "Sorry."})
    async with serving(postgres_url, agent) as served:
        response = await served.talk("a").post("hello")
        body = response.json()
        assert response.status_code == 200
        assert (body["turn"]["status"], body["turn"]["error"]["type"]) == ("failed", "TurnTimeout")
        assert body["reply"] == {"content": "Sorry."}


async def test_a_model_without_a_first_token_in_time_is_left_for_the_next(postgres_url: str) -> None:
    async with serving(
        postgres_url, manifest("a", echo(30, name="slow", timeoutSeconds=1), scripted("fast"))
    ) as served:
        body = (await served.talk("a").post("hello")).json()
        assert (body["turn"]["model"], body["reply"]["content"]) == ("scripted/scripted", "fast")


async def test_tool_calls_get_an_error_result_and_the_loop_goes_on(postgres_url: str) -> None:
    script = scripted({"toolCalls": [{"name": "search", "arguments": {"q": "x"}}]}, "I have no tools", "third")
    async with serving(postgres_url, manifest("a", script)) as served:
        talk = served.talk("a")
        assert await talk.say("find it") == "I have no tools"
        lines = await talk.messages()
        assert [line["role"] for line in lines] == ["user", "assistant", "tool", "assistant"]
        assert "unknown tool 'search'" in lines[2]["content"]
        assert [line["seq"] for line in lines] == [1, 2, 3, 4]
        assert await talk.say("next") == "third", "two steps were made before"
        assert await talk.say("once more") == "I have no tools", "the script starts again"


async def test_a_tool_loop_ends_at_max_steps(postgres_url: str) -> None:
    script = scripted({"toolCalls": [{"name": "t"}]})
    async with serving(postgres_url, manifest("a", script, limits={"maxSteps": 3})) as served:
        body = (await served.talk("a").post("go")).json()
        assert (body["turn"]["status"], body["turn"]["error"]["type"]) == ("failed", "StepLimit")


async def test_the_model_sees_no_more_than_the_history_limit(postgres_url: str) -> None:
    async with serving(postgres_url, manifest("a", history={"limit": 3})) as served:
        talk = served.talk("a")
        replies = [await talk.say(f"m{n}") for n in range(4)]
        assert replies == ["m0 [1]", "m1 [2]", "m2 [2]", "m3 [2]"]
        assert len(await talk.messages()) == 8, "the full record stays"


async def test_an_evicted_session_is_rebuilt_from_the_store(postgres_url: str, database: Database) -> None:
    async with serving(postgres_url, manifest("a", session={"evictAfterSeconds": 1})) as served:
        talk = served.talk("a")
        assert await talk.say("one") == "one [1]"

        async def evicted() -> bool:
            metrics = (await served.http.get(f"{served.base}/metrics")).text
            return 'abide_sessions_in_memory{agent="a",agent_namespace="tests"} 0.0' in metrics

        await until(evicted, "the session leaves memory")
        assert await database.value("SELECT count(*) FROM abide.agent_states") == 1, "saved on its way out"
        assert await talk.say("two") == "two [2]"


# ---- idempotency


async def test_the_same_key_and_body_is_the_same_turn(postgres_url: str, database: Database) -> None:
    async with serving(postgres_url, manifest("a")) as served:
        talk = served.talk("a")
        first = await talk.post("pay", key="k1")
        again = await talk.post("pay", key="k1")
        assert (again.status_code, again.json()) == (200, first.json())
        problem_of(await talk.post("pay twice", key="k1"), 409, "idempotency-mismatch")
        assert await database.value("SELECT count(*) FROM abide.turns") == 1
        elsewhere = [
            await talk.post("pay", "t", key="k1"),
            await talk.as_user("bob").post("pay", key="k1"),
        ]
        assert len({response.json()["turn"]["id"] for response in (first, *elsewhere)}) == 3


async def test_duplicates_in_flight_attach_to_the_one_turn(postgres_url: str, database: Database) -> None:
    async with serving(postgres_url, manifest("a", echo(0.3))) as served:
        talk = served.talk("a")
        answers = await asyncio.gather(*(talk.post("once", key="k") for _ in range(20)))
        assert {answer.status_code for answer in answers} == {200}
        assert len({answer.text for answer in answers}) == 1
        assert await database.value("SELECT count(*) FROM abide.turns") == 1
        assert len(await talk.messages()) == 2


async def test_a_stream_attaches_too(postgres_url: str) -> None:
    async with serving(postgres_url, manifest("a", echo(0.2))) as served:
        talk = served.talk("a")
        first, second = await asyncio.gather(
            *(talk.post("once", key="k", Accept="text/event-stream") for _ in range(2))
        )
        ended = [events_of(response.text)[-1]["data"] for response in (first, second)]
        assert ended[0] == ended[1]


# ---- queueing


async def test_messages_of_a_session_are_answered_in_order_and_a_full_queue_refuses(postgres_url: str) -> None:
    async with serving(postgres_url, manifest("a", echo(0.25), session={"queueLimit": 2})) as served:
        talk = served.talk("a")
        waiting = [(await talk.post(f"m{number}", wait=0)).json()["turn"] for number in range(3)]
        assert [turn["status"] for turn in waiting] == ["running", "queued", "queued"]
        refused = await talk.post("m3", wait=0)
        problem_of(refused, 429, "queue-full")
        metrics = (await served.http.get(f"{served.base}/metrics")).text
        counted = 'abide_messages_refused_total{agent="a",agent_namespace="tests",reason="QueueFull"} 1.0'
        assert counted in metrics
        assert int(refused.headers["retry-after"]) >= 1
        other = await talk.post("elsewhere", "t", wait=0)
        assert other.json()["turn"]["status"] == "running", "sessions never wait for each other"
        for turn in waiting:
            await talk.outcome(turn["id"])
        assert [line["content"] for line in await talk.messages()] == [
            text for number in range(3) for text in (f"m{number}", f"m{number} [{number + 1}]")
        ]


async def test_a_waiting_client_gets_the_reply_to_its_queued_message(postgres_url: str) -> None:
    async with serving(postgres_url, manifest("a", echo(0.1))) as served:
        talk = served.talk("a")
        replies = await asyncio.gather(*(talk.say(f"m{number}") for number in range(8)))
        assert sorted(int(reply.split("[")[1][:-1]) for reply in replies) == list(range(1, 9))


async def test_turns_at_once_are_bounded(postgres_url: str) -> None:
    from agent_runtime.settings import Bounds

    bounds = Bounds(running_turns=2, waiters=3)
    async with serving(postgres_url, manifest("a", echo(0.5)), bounds=bounds) as served:
        talk = served.talk("a")
        for number in range(2):
            assert (await talk.post("x", f"s{number}", wait=0)).status_code == 202
        refused = await talk.post("x", "s3", wait=0)
        problem_of(refused, 503, "overloaded")
        assert refused.headers["retry-after"] == "1"


async def test_waiting_requests_are_bounded(postgres_url: str) -> None:
    from agent_runtime.settings import Bounds

    async with serving(postgres_url, manifest("a", echo(0.5)), bounds=Bounds(waiters=1)) as served:
        talk = served.talk("a")
        first = asyncio.create_task(talk.post("x", "s0"))
        await until(lambda: _has_messages(talk, "s0"), "the first is accepted")
        problem_of(await talk.post("x", "s1"), 503, "overloaded")
        assert await talk.messages("s1") == [], "nothing was stored"
        assert (await first).status_code == 200


async def _has_messages(talk: Talk, session: str) -> bool:
    return bool(await talk.messages(session))


# ---- cancelling


async def test_cancelling_a_queued_a_running_and_a_finished_turn(postgres_url: str) -> None:
    async with serving(postgres_url, manifest("a", scripted("quick", {"delaySeconds": 30}, "after"))) as served:
        talk = served.talk("a")
        finished = (await talk.post("first")).json()
        running = (await talk.post("second", wait=0)).json()["turn"]["id"]
        queued = (await talk.post("third", wait=0)).json()["turn"]["id"]
        last = (await talk.post("fourth", wait=0)).json()["turn"]["id"]
        answer = await talk.request("POST", f"/turns/{queued}/cancel")
        assert (answer.status_code, answer.json()["turn"]["status"]) == (200, "cancelled")
        answer = await talk.request("POST", f"/turns/{running}/cancel")
        assert (answer.status_code, answer.json()["turn"]["status"]) == (200, "cancelled")
        assert answer.json()["reply"] is None
        assert (await talk.outcome(last))["reply"] == {"content": "after"}
        answer = await talk.request("POST", f"/turns/{finished['turn']['id']}/cancel")
        assert (answer.status_code, answer.json()) == (200, finished)
        problem_of(await talk.request("POST", f"/turns/{agent_id('x')}/cancel"), 404, "turn-not-found")


async def test_whoever_waits_for_a_cancelled_turn_is_told(postgres_url: str) -> None:
    async with serving(postgres_url, manifest("a", echo(30))) as served:
        talk = served.talk("a")
        waiting = asyncio.create_task(talk.post("x", key="k"))
        turn = None

        async def accepted() -> bool:
            nonlocal turn
            turn = (await talk.post("x", key="k", wait=0)).json()["turn"]["id"]
            return bool(await talk.messages())

        await until(accepted, "it runs")
        await talk.request("POST", f"/turns/{turn}/cancel")
        body = (await waiting).json()
        assert (body["turn"]["status"], body["turn"]["error"]["type"]) == ("cancelled", "Cancelled")


# ---- reading


async def test_history_is_paged_oldest_first(postgres_url: str) -> None:
    async with serving(postgres_url, manifest("a")) as served:
        talk = served.talk("a")
        for number in range(4):
            await talk.say(f"m{number}")
        seen: list[dict[str, Any]] = []
        params: dict[str, Any] = {"limit": 3}
        while True:
            page = (await talk.request("GET", "/sessions/s/messages", params=params)).json()
            seen += page["items"]
            assert len(page["items"]) <= 3
            if page["nextCursor"] is None:
                break
            params["cursor"] = page["nextCursor"]
        assert [line["seq"] for line in seen] == list(range(1, 9))
        assert set(seen[0]) == {"seq", "role", "content", "turnId", "createdAt"}
        unknown = await talk.request("GET", "/sessions/never/messages")
        assert (unknown.status_code, unknown.json()) == (200, {"items": [], "nextCursor": None})


async def test_sessions_are_listed_newest_activity_first_and_deleted_with_everything(
    postgres_url: str, database: Database
) -> None:
    async with serving(postgres_url, manifest("a", state={"autoSaveEveryMessages": 1})) as served:
        talk = served.talk("a")
        for session in ("one", "two", "three", "one"):
            await talk.say("x", session)
        page = (await talk.request("GET", "/sessions", params={"limit": 2})).json()
        rest = (await talk.request("GET", "/sessions", params={"limit": 2, "cursor": page["nextCursor"]})).json()
        assert [one["name"] for one in page["items"] + rest["items"]] == ["one", "three", "two"]
        assert page["items"][0]["messages"] == 2
        assert rest["nextCursor"] is None
        assert (await talk.request("DELETE", "/sessions/one")).status_code == 204
        problem_of(await talk.request("DELETE", "/sessions/one"), 404, "session-not-found")
        assert await talk.messages("one") == []
        for table in ("turns", "messages", "agent_states"):
            left = await database.value(
                f"SELECT count(*) FROM abide.{table} WHERE session_id NOT IN (SELECT id FROM abide.sessions)"
            )
            assert left == 0, table
        assert await talk.say("x", "one") == "x [1]", "it starts anew"


async def test_deleting_a_session_stops_its_running_turn(postgres_url: str) -> None:
    async with serving(postgres_url, manifest("a", echo(30))) as served:
        talk = served.talk("a")
        waiting = asyncio.create_task(talk.post("x"))
        await until(lambda: _has_messages(talk, "s"), "it runs")
        assert (await talk.request("DELETE", "/sessions/s")).status_code == 204
        problem_of(await waiting, 404, "turn-not-found")


# ---- users


async def test_two_users_of_the_same_session_name_never_meet(postgres_url: str) -> None:
    async with serving(postgres_url, manifest("a", echo(0.1))) as served:
        alice, bob = served.talk("a", "alice"), served.talk("a", "bob")
        assert await alice.say("secret of alice") == "secret of alice [1]"
        assert await bob.say("hello") == "hello [1]"
        assert [line["content"] for line in await bob.messages()] == ["hello", "hello [1]"]
        turn = (await alice.post("more", wait=0)).json()["turn"]["id"]
        for method, path in (
            ("GET", f"/turns/{turn}"),
            ("GET", f"/turns/{turn}/events"),
            ("POST", f"/turns/{turn}/cancel"),
        ):
            problem_of(await bob.request(method, path), 404, "turn-not-found")
        assert (await alice.outcome(turn))["turn"]["status"] == "completed"
        assert [one["user"] for one in (await bob.request("GET", "/sessions")).json()["items"]] == ["bob"]
        assert (await bob.request("DELETE", "/sessions/s")).status_code == 204
        assert len(await alice.messages()) == 4
        anonymous = served.talk("a")
        assert await anonymous.messages() == []
        assert await anonymous.say("x") == "x [1]"
        assert len(await served.talk("a", "anonymous").messages()) == 2


# ---- refusals


@pytest.mark.parametrize(
    ("content", "status", "kind"),
    [
        ("", 422, "invalid-request"),
        ("x" * 100_001, 413, "too-large"),
        (7, 422, "invalid-request"),
        (None, 422, "invalid-request"),
    ],
)
async def test_bad_content_is_refused_by_its_field(postgres_url: str, content: Any, status: int, kind: str) -> None:
    async with serving(postgres_url, manifest("a")) as served:
        body = problem_of(await served.talk("a").post(content), status, kind)
        assert [error["field"] for error in body["errors"]] == ["content"]
        assert await served.talk("a").messages() == []


async def test_the_longest_content_is_kept_whole(postgres_url: str) -> None:
    async with serving(postgres_url, manifest("a")) as served:
        text = "ü\U0001f600\u2028\0" * 25_000
        assert await served.talk("a").say(text) == f"{text} [1]"


@pytest.mark.parametrize(
    ("path", "params", "headers", "field"),
    [
        ("/sessions/with%20blank/messages", {}, {}, "session"),
        (f"/sessions/{'x' * 129}/messages", {}, {}, "session"),
        ("/sessions/s/messages", {"waitSeconds": "-1"}, {}, "waitSeconds"),
        ("/sessions/s/messages", {"waitSeconds": "soon"}, {}, "waitSeconds"),
        ("/sessions/s/messages", {"waitSeconds": "nan"}, {}, "waitSeconds"),
        ("/sessions/s/messages", {}, {"Abide-User": "no blanks"}, "Abide-User"),
        ("/sessions/s/messages", {}, {"Idempotency-Key": "k" * 256}, "Idempotency-Key"),
        ("/sessions/s/messages", {}, {"Idempotency-Key": ""}, "Idempotency-Key"),
    ],
)
async def test_bad_parameters_are_named(
    postgres_url: str, path: str, params: dict[str, str], headers: dict[str, str], field: str
) -> None:
    async with serving(postgres_url, manifest("a")) as served:
        response = await served.talk("a").request("POST", path, params=params, headers=headers, json={"content": "x"})
        body = problem_of(response, 422, "invalid-request")
        assert [error["field"] for error in body["errors"]] == [field]


@pytest.mark.parametrize(
    ("path", "params", "field"),
    [
        ("/sessions/s/messages", {"limit": "201"}, "limit"),
        ("/sessions/s/messages", {"limit": "0"}, "limit"),
        ("/sessions/s/messages", {"cursor": "x"}, "cursor"),
        ("/sessions", {"cursor": "x"}, "cursor"),
        ("/turns/seven", {}, "turn"),
    ],
)
async def test_bad_reads_are_named(postgres_url: str, path: str, params: dict[str, str], field: str) -> None:
    async with serving(postgres_url, manifest("a")) as served:
        response = await served.talk("a").request("GET", path, params=params)
        assert [error["field"] for error in problem_of(response, 422, "invalid-request")["errors"]] == [field]


async def test_bodies_that_are_not_messages(postgres_url: str) -> None:
    async with serving(postgres_url, manifest("a")) as served:
        path = f"{served.talk('a').path}/sessions/s/messages"
        for body in (b"", b"{", b"[]", b"null", b'{"content": "\\ud800"}', b"\xff\xfe", b"[" * 100_000):
            problem_of(await served.http.post(path, content=body), 422, "invalid-request")
        extra = problem_of(await served.http.post(path, json={"content": "x", "colour": 1}), 422, "invalid-request")
        assert [error["field"] for error in extra["errors"]] == ["colour"]
        plain = await served.http.post(
            path, content=json.dumps({"content": "x"}), headers={"Content-Type": "text/plain"}
        )
        assert plain.status_code == 200, "what curl -d sends is read as JSON too"


async def test_bodies_that_are_too_large_are_refused_however_they_come(postgres_url: str) -> None:
    async with serving(postgres_url, manifest("a")) as served:
        path = f"{served.talk('a').path}/sessions/s/messages"
        problem_of(await served.http.post(path, content=b"x" * 3_000_000), 413, "too-large")

        async def chunks() -> Any:
            for _ in range(50):
                yield b"x" * 65_536

        problem_of(await served.http.post(path, content=chunks()), 413, "too-large")


async def test_what_is_not_there(postgres_url: str) -> None:
    async with serving(postgres_url, manifest("a")) as served:
        problem_of(await served.talk("nobody").post("x"), 404, "agent-not-found")
        problem_of(await served.http.get(f"{served.base}/nowhere"), 404, "not-found")
        problem_of(await served.http.get(f"{served.base}/v1/agents"), 404, "not-found")
        problem_of(await served.talk("a").request("GET", f"/turns/{agent_id('x')}"), 404, "turn-not-found")
        refused = await served.talk("a").request("PATCH", "/sessions/s/messages")
        problem_of(refused, 405, "method-not-allowed")
        assert refused.headers["allow"] == "GET, POST"


async def test_headers_are_bounded_and_nonsense_is_answered(postgres_url: str) -> None:
    async with serving(postgres_url, manifest("a")) as served:
        response = await served.http.get(f"{served.base}/livez", headers={"X-Big": "x" * 40_000})
        problem_of(response, 431, "headers-too-large")
        many = await served.http.get(f"{served.base}/livez", headers={f"X-{number}": "x" for number in range(300)})
        problem_of(many, 431, "headers-too-large")
        port = int(served.base.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"what is this\r\n\r\n")
        answer = await asyncio.wait_for(reader.read(), 5)
        assert answer.startswith(b"HTTP/1.1 400")
        assert b"problem+json" in answer
        writer.close()


async def test_several_agents_in_one_process_keep_apart(postgres_url: str) -> None:
    async with serving(postgres_url, manifest("a"), manifest("b", scripted("I am b"))) as served:
        assert await served.talk("a").say("x") == "x [1]"
        assert await served.talk("b").say("x") == "I am b"
        turn = (await served.talk("a").post("y")).json()["turn"]["id"]
        problem_of(await served.talk("b").request("GET", f"/turns/{turn}"), 404, "turn-not-found")
