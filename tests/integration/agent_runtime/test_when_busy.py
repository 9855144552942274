"""What a message does while another one is answered: session.whenBusy, cancelling from anywhere, age and retention."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from agent_runtime.loop import engine as engine_module
from tests.integration.agent_runtime.harness import (
    Database,
    Talk,
    echo,
    events_of,
    manifest,
    scripted,
    serving,
    until,
)
from tests.integration.agent_runtime.test_messages import problem_of

SLOW = 30.0
CANCEL_SECONDS = 4.0
"""A renewal is at most two seconds away."""


async def started(talk: Talk, content: str = "long", session: str = "s") -> str:
    """Start a turn that takes its time; return its id."""
    answer = await talk.post(content, session, Prefer="respond-async")
    assert answer.status_code == 202, answer.text
    turn = str(answer.json()["turn"]["id"])
    await talk.wait_status(turn, "running")
    return turn


@asynccontextmanager
async def replicas(postgres_url: str, agent: dict[str, Any]) -> AsyncIterator[tuple[Talk, Talk]]:
    """Serve an agent by two processes' worth of runtimes."""
    name = agent["metadata"]["name"]
    async with (
        serving(postgres_url, agent, instance="one") as one,
        serving(postgres_url, agent, instance="two") as two,
    ):
        yield one.talk(name), two.talk(name)


# ---- Reject


async def test_reject_refuses_while_another_message_is_answered(postgres_url: str) -> None:
    agent = manifest("a", echo(SLOW), session={"whenBusy": "Reject"}, messages={"busy": "One at a time, please."})
    async with serving(postgres_url, agent) as served:
        talk = served.talk("a")
        turn = await started(talk)
        answer = await talk.post("more", Prefer="respond-async")
        assert problem_of(answer, 429, "session-busy")["detail"] == "One at a time, please."
        assert int(answer.headers["Retry-After"]) >= 1
        assert (await talk.post("elsewhere", "t", Prefer="respond-async")).status_code == 202
        await talk.request("POST", f"/turns/{turn}/cancel")
        assert (await talk.post("again", Prefer="respond-async")).status_code == 202


async def test_reject_still_attaches_the_same_message(postgres_url: str) -> None:
    agent = manifest("a", echo(SLOW), session={"whenBusy": "Reject"})
    async with serving(postgres_url, agent) as served:
        talk = served.talk("a")
        first = await talk.post("x", key="k", Prefer="respond-async")
        again = await talk.post("x", key="k", Prefer="respond-async")
        assert again.status_code == 202
        assert again.json()["turn"]["id"] == first.json()["turn"]["id"]


# ---- Merge


async def test_merge_answers_all_that_waited_at_once(postgres_url: str) -> None:
    agent = manifest("a", echo(0.5), session={"whenBusy": "Merge"})
    async with serving(postgres_url, agent) as served:
        talk = served.talk("a")
        await started(talk, "one")
        others = [asyncio.create_task(talk.post(text)) for text in ("two", "three")]
        stream = talk.request(
            "POST", "/sessions/s/messages", json={"content": "four"}, headers={"Accept": "text/event-stream"}
        )
        events, *answers = await asyncio.gather(stream, *others)
        bodies = [answer.json() for answer in answers]
        replies = {body["reply"]["content"] for body in bodies}
        assert len(replies) == 1
        reply = replies.pop()
        assert sorted(reply.removesuffix(" [2]").split("\n\n")) == ["four", "three", "two"]
        told = events_of(events.text)
        assert "".join(event["data"]["text"] for event in told if event["event"] == "delta").endswith(reply)
        assert told[-1]["data"]["reply"]["content"] == reply
        assert len({body["turn"]["id"] for body in bodies} | {told[-1]["data"]["turn"]["id"]}) == 3
        roles = [(one["role"], one["content"]) for one in await talk.messages()]
        assert [role for role, _ in roles] == ["user", "assistant", "user", "user", "user", "assistant"]
        assert await talk.say("five") == "five [5]"


# ---- Interrupt


async def test_interrupt_ends_the_running_turn_and_answers_the_newest(postgres_url: str) -> None:
    agent = manifest("a", scripted({"text": "never", "delaySeconds": SLOW}, "new"), session={"whenBusy": "Interrupt"})
    async with serving(postgres_url, agent) as served:
        talk = served.talk("a")
        waiting = asyncio.create_task(talk.post("one"))
        turn = await running_turn(talk, postgres_url)
        answer = await talk.post("two")
        assert answer.json()["turn"]["status"] == "completed"
        first = (await waiting).json()
        assert (first["turn"]["id"], first["turn"]["status"], first["reply"]) == (turn, "cancelled", None)
        assert first["turn"]["error"]["type"] == "Interrupted"
        contents = [one["content"] for one in await talk.messages() if one["role"] == "user"]
        assert contents == ["one", "two"]


async def running_turn(talk: Talk, postgres_url: str) -> str:
    """Return the one turn that runs, once it does."""

    async def find() -> str | None:
        found = await Database(postgres_url).value("SELECT turn_id FROM abide.active_turns")
        return str(found) if found else None

    turn = await until(find, "a turn runs")
    assert turn is not None
    await talk.wait_status(turn, "running")
    return turn


async def test_interrupt_reaches_a_turn_of_another_replica(postgres_url: str) -> None:
    agent = manifest("a", scripted({"text": "never", "delaySeconds": SLOW}, "new"), session={"whenBusy": "Interrupt"})
    async with replicas(postgres_url, agent) as (one, two):
        turn = await started(one)
        begun = time.monotonic()
        answer = await two.post("two")
        assert time.monotonic() - begun < 2 * CANCEL_SECONDS
        assert answer.json()["turn"]["status"] == "completed"
        assert (await one.turn(turn))["turn"]["error"]["type"] == "Interrupted"


# ---- cancelling and following from another replica


async def test_a_turn_is_cancelled_through_any_replica(postgres_url: str) -> None:
    async with replicas(postgres_url, manifest("a", echo(SLOW))) as (one, two):
        turn = await started(one)
        begun = time.monotonic()
        answer = await two.request("POST", f"/turns/{turn}/cancel")
        assert time.monotonic() - begun < CANCEL_SECONDS
        assert (answer.status_code, answer.json()["turn"]["status"]) == (200, "cancelled")
        assert answer.json()["turn"]["error"]["type"] == "Cancelled"
        turn = await started(two)  # the session is free


async def test_a_message_cancelled_while_it_waited_stays_in_the_history(postgres_url: str) -> None:
    async with serving(postgres_url, manifest("a", echo(0.5))) as served:
        talk = served.talk("a")
        first = await started(talk, "one")
        queued = (await talk.post("two", Prefer="respond-async")).json()["turn"]["id"]
        assert (await talk.request("POST", f"/turns/{queued}/cancel")).json()["turn"]["status"] == "cancelled"
        await talk.outcome(first)
        assert sorted(one["content"] for one in await talk.messages()) == ["one", "one [1]", "two"]
        assert await talk.say("three") == "three [3]"  # the model was given all three


async def test_events_of_a_turn_can_be_read_from_another_replica(postgres_url: str) -> None:
    async with replicas(postgres_url, manifest("a", echo(1.0))) as (one, two):
        turn = await started(one, "hello there")
        last = f"{turn}:1:1"
        fresh, resumed = await asyncio.gather(
            two.request("GET", f"/turns/{turn}/events"),
            two.request("GET", f"/turns/{turn}/events", headers={"Last-Event-ID": last}),
        )
        for answer, kinds in ((fresh, ["accepted", "delta", "completed"]), (resumed, ["reset", "delta", "completed"])):
            events = events_of(answer.text)
            assert [event["event"] for event in events] == kinds
            assert events[-2]["data"]["text"] == "hello there [1]"
            assert events[-1]["data"]["reply"]["content"] == "hello there [1]"
        # The owner goes on where the listener stood.
        events = events_of((await one.request("GET", f"/turns/{turn}/events", headers={"Last-Event-ID": last})).text)
        assert events[-1]["event"] == "completed"


# ---- age and retention


async def test_a_message_that_waited_too_long_is_not_answered(postgres_url: str) -> None:
    agent = manifest("a", echo(2.5), session={"maxMessageAgeSeconds": 1}, messages={"expired": "Too late."}, state={})
    async with serving(postgres_url, agent) as served:
        talk = served.talk("a")
        first = await started(talk, "one")
        late = (await talk.post("two")).json()
        assert (late["turn"]["status"], late["turn"]["error"]["type"]) == ("failed", "MessageExpired")
        assert late["reply"]["content"] == "Too late."
        assert (await talk.outcome(first))["turn"]["status"] == "completed"


async def test_sessions_past_their_retention_go_by_themselves(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "RETENTION_PAUSE", (0.1, 0.2))
    database = Database(postgres_url)
    async with serving(postgres_url, manifest("a", session={"retentionDays": 3})) as served:
        talk = served.talk("a")
        await talk.say("x", "old")
        await talk.say("x", "new")
        await database.rows("UPDATE abide.sessions SET last_active_at = now() - interval '4 days' WHERE name = 'old'")

        async def gone() -> bool:
            return bool(await database.value("SELECT count(*) FROM abide.sessions") == 1)

        await until(gone, "the old session goes")
        assert await talk.messages("old") == []
        assert len(await talk.messages("new")) == 2
        assert await talk.say("x", "old") == "x [1]"


# ---- usage, headers, HEAD


async def test_a_finished_turn_says_what_it_used(postgres_url: str) -> None:
    async with serving(postgres_url, manifest("a")) as served:
        talk = served.talk("a")
        usage = (await talk.post("hello")).json()["turn"]["usage"]
        assert usage["inputTokens"] >= 0
        assert set(usage) == {"inputTokens", "outputTokens", "cost", "currency"}


async def test_headers_that_come_twice_are_refused_and_events_are_sent_to_those_who_take_them(
    postgres_url: str,
) -> None:
    async with serving(postgres_url, manifest("a")) as served:
        talk = served.talk("a")
        for name in ("Abide-User", "Idempotency-Key"):
            twice = [(name, "a"), (name, "b"), ("Content-Type", "application/json")]
            path = f"{talk.path}/sessions/s/messages"
            answer = await served.http.post(path, headers=twice, content=b'{"content": "x"}')
            problem = problem_of(answer, 422, "invalid-request")
            assert problem["errors"] == [{"field": name, "message": "comes twice; send it once"}]
        refused = await talk.post("x", Accept="text/event-stream;q=0, application/json")
        assert refused.headers["Content-Type"] == "application/json"
        taken = await talk.post("x", Accept="application/json;q=0.5, text/event-stream; q=0.9")
        assert taken.headers["Content-Type"].startswith("text/event-stream")


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/health"])
async def test_health_can_be_asked_for_without_its_body(postgres_url: str, path: str) -> None:
    async with serving(postgres_url, manifest("a")) as served:
        answer = await served.http.head(f"{served.base}{path}")
        assert (answer.status_code, answer.content) == (200, b"")
