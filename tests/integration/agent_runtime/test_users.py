"""All that is kept of one user: exported, and erased; feedback; metrics and errors of others."""

import json
from typing import Any

import httpx

from tests.integration.agent_runtime.harness import (
    Database,
    Serving,
    agent_id,
    echo,
    manifest,
    process,
    serving,
    until,
)
from tests.integration.agent_runtime.test_messages import problem_of

TABLES = ("sessions", "turns", "messages", "agent_states", "turn_feedback", "memories", "budget_usage")


async def export(served: Serving, user: str) -> list[dict[str, Any]]:
    response = await served.talk("a").request("GET", f"/users/{user}/export")
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("application/x-ndjson")
    return [json.loads(line) for line in response.text.splitlines()]


async def write_much(served: Serving, database: Database, user: str, sessions: int = 3) -> str:
    """Make rows of every kind for a user; return the id of a turn."""
    talk = served.talk("a", user)
    for number in range(sessions):
        for text in ("one", "two"):
            await talk.say(f"{text} of {user}", f"s{number}")
    turn = (await talk.post("rated", "s0")).json()["turn"]["id"]
    rated = await talk.request("PUT", f"/turns/{turn}/feedback", json={"score": 1, "text": f"thanks from {user}"})
    assert rated.status_code == 200, rated.text
    saved = await talk.request("PUT", "/sessions/s0/state", json={"variables": {"of": user}})
    assert saved.status_code == 200
    await database.rows(
        "INSERT INTO abide.memories (agent_id, id, importance, type, user_id, content)"
        " VALUES ($1, gen_random_uuid(), 5, 'general', $2, 'likes ' || $2)",
        agent_id("a"),
        user,
    )
    await database.rows(
        "INSERT INTO abide.budget_usage (agent_id, day, scope, tokens_used)"
        " VALUES ($1, '2026-01-31', 'user:' || $2, 7)",
        agent_id("a"),
        user,
    )
    return str(turn)


async def test_an_export_has_all_of_one_user_and_nothing_of_others(postgres_url: str, database: Database) -> None:
    async with serving(postgres_url, manifest("a")) as served:
        turn = await write_much(served, database, "alice")
        await write_much(served, database, "bob", sessions=1)
        lines = await export(served, "alice")
        assert (lines[0]["kind"], lines[0]["user"], lines[0]["agent"]) == ("export", "alice", "tests/a")
        assert lines[-1] == {"kind": "end", "items": len(lines) - 2}
        kinds = [line["kind"] for line in lines]
        assert {kind: kinds.count(kind) for kind in set(kinds) - {"export", "end"}} == {
            "session": 3, "turn": 7, "message": 14, "state": 1, "feedback": 1, "memory": 1, "usage": 1,
        }  # fmt: skip
        text = json.dumps(lines)
        assert "one of alice" in text
        assert "bob" not in text
        (feedback,) = [line for line in lines if line["kind"] == "feedback"]
        assert (feedback["turnId"], feedback["score"], feedback["text"]) == (turn, 1, "thanks from alice")
        (usage,) = [line for line in lines if line["kind"] == "usage"]
        assert usage == {"kind": "usage", "day": "2026-01-31", "tokensUsed": 7, "microsUsed": 0}
        (state,) = [line for line in lines if line["kind"] == "state"]
        assert state["document"]["variables"] == {"of": "alice"}
        contents = [line["content"] for line in lines if line["kind"] == "message" and line["session"] == "s1"]
        assert contents == ["one of alice", "one of alice [1]", "two of alice", "two of alice [2]"]
        assert [line["kind"] for line in await export(served, "nobody")] == ["export", "end"]


async def test_many_sessions_and_messages_come_in_pages(postgres_url: str, database: Database) -> None:
    async with serving(postgres_url, manifest("a", limits={"requestsPerMinute": 0})) as served:
        await served.talk("a", "alice").say("first")
        # Rows like those of conversations, which would take long to hold: 450 sessions, one of 500 messages.
        await database.rows(
            "INSERT INTO abide.sessions (agent_id, id, user_id, name, token, next_turn_seq, next_seq, queued, steps)"
            " SELECT $1, gen_random_uuid(), 'alice', 'x' || n, 0, 1, 1, 0, 0 FROM generate_series(1, 450) n",
            agent_id("a"),
        )
        await database.rows(
            "INSERT INTO abide.messages (agent_id, session_id, turn_id, seq, turn_seq, turn_index, role, content)"
            " SELECT m.agent_id, m.session_id, m.turn_id, 100 + n, m.turn_seq, 100 + n, 'assistant', 'more'::bytea"
            " FROM abide.messages m, generate_series(1, 500) n WHERE m.agent_id = $1 AND m.seq = 1",
            agent_id("a"),
        )
        lines = await export(served, "alice")
        names = [line["name"] for line in lines if line["kind"] == "session"]
        assert (len(names), len(set(names))) == (451, 451)
        assert len([line for line in lines if line["kind"] == "message"]) == 502
        erased = await served.talk("a").request("DELETE", "/users/alice")
        assert erased.json() == {"sessions": 451, "memories": 0}
        assert [line["kind"] for line in await export(served, "alice")] == ["export", "end"]


async def test_an_erased_user_leaves_nothing_and_others_stay(postgres_url: str, database: Database) -> None:
    async with serving(postgres_url, manifest("a")) as served:
        await write_much(served, database, "alice")
        await write_much(served, database, "bob")
        before = {table: await count(database, table) for table in TABLES}
        erased = await served.talk("a").request("DELETE", "/users/alice")
        assert (erased.status_code, erased.json()) == (200, {"sessions": 3, "memories": 1})
        after = {table: await count(database, table) for table in TABLES}
        assert {table: (before[table], after[table]) for table in TABLES} == {
            table: (2 * after[table], after[table]) for table in TABLES
        }
        assert "alice" not in json.dumps(await export(served, "bob"))
        assert await served.talk("a", "alice").say("again", "s0") == "again [1]"
        assert (await served.talk("a").request("DELETE", "/users/nobody")).json() == {"sessions": 0, "memories": 0}
        acts = await database.rows(
            "SELECT details->>'outcome' AS outcome, details->>'erased' AS erased FROM abide.system_events"
            " WHERE event_type = 'access.operate' AND details->>'method' = 'DELETE' ORDER BY occurred_at"
        )
        assert [act["outcome"] for act in acts] == ["done", "done"]
        assert json.loads(acts[0]["erased"]) == {"sessions": 3, "memories": 1}


async def test_a_running_turn_of_an_erased_user_writes_nothing_any_more(postgres_url: str, database: Database) -> None:
    async with serving(postgres_url, manifest("a", echo(30))) as served:
        talk = served.talk("a", "alice")
        running = (await talk.post("slow", wait=0)).json()["turn"]["id"]
        await talk.post("queued", wait=0)
        assert "queued" in json.dumps(await export(served, "alice"))
        await talk.wait_status(running, "running")
        assert (await served.talk("a").request("DELETE", "/users/alice")).json()["sessions"] == 1
        problem_of(await talk.request("GET", f"/turns/{running}"), 404, "turn-not-found")
        assert await count(database, "active_turns") == 0
        assert await count(database, "messages") == 0


async def test_another_process_does_not_finish_a_turn_of_an_erased_user(
    postgres_url: str, database: Database, tmp_path: Any
) -> None:
    async with (
        httpx.AsyncClient(timeout=20) as http,
        process(tmp_path, postgres_url, manifest("a", echo(3)), "pod-1") as one,
        process(tmp_path, postgres_url, manifest("a", echo(3)), "pod-2") as other,
    ):
        await one.wait_ready(http)
        await other.wait_ready(http)
        url = f"{one.base}/v1/agents/tests/a/sessions/s/messages"
        headers = {"Abide-User": "alice"}
        await http.post(url, json={"content": "slow"}, headers=headers, params={"waitSeconds": 0})
        erased = await http.delete(f"{other.base}/v1/agents/tests/a/users/alice")
        assert erased.json()["sessions"] == 1

        async def fenced() -> bool:
            return "turn_fenced_out" in one.logs()

        await until(fenced, "the turn's process finds that it is gone", 15)
        for table in (*TABLES, "active_turns"):
            assert await count(database, table) == 0, table


async def test_feedback_is_the_users_own_and_its_last_word_counts(postgres_url: str) -> None:
    async with serving(postgres_url, manifest("a")) as served:
        alice, bob = served.talk("a", "alice"), served.talk("a", "bob")
        turn = (await alice.post("hello")).json()["turn"]["id"]
        path = f"/turns/{turn}/feedback"
        problem_of(await alice.request("GET", path), 404, "feedback-not-found")
        for body in ({"score": -1, "text": "no"}, {"score": 0}):
            saved = (await alice.request("PUT", path, json=body)).json()
            assert (saved["turnId"], saved["score"], saved["text"]) == (turn, body["score"], body.get("text", ""))
        assert (await alice.request("GET", path)).json() == saved
        problem_of(await bob.request("GET", path), 404, "feedback-not-found")
        problem_of(await bob.request("PUT", path, json={"score": 1}), 404, "turn-not-found")
        long = {"score": 1, "text": "x" * 4001}
        for wrong in ({"score": 2}, {"score": "1"}, {"score": True}, {"score": 1.0}, {}, long, {"score": 1, "more": 1}):
            problem_of(await alice.request("PUT", path, json=wrong), 422, "invalid-request")
        await alice.request("DELETE", "/sessions/s")
        problem_of(await alice.request("GET", path), 404, "feedback-not-found")


async def test_programs_around_an_agent_add_metrics_and_errors(postgres_url: str, database: Database) -> None:
    async with serving(postgres_url, manifest("a")) as served:
        talk = served.talk("a")
        sample = {"type": "orders_found", "value": 2.5, "metadata": {"shop": "north"}}
        assert (await talk.request("POST", "/metrics", json=sample)).status_code == 204
        row = (await database.rows("SELECT * FROM abide.agent_metrics WHERE metric_type = 'orders_found'"))[0]
        assert (row["agent_id"], row["value"], json.loads(row["metadata"])) == (agent_id("a"), 2.5, {"shop": "north"})
        error = {"type": "OrderSystemDown", "message": "password=hunter22 was refused", "context": {"tries": 3}}
        assert (await talk.request("POST", "/errors", json=error)).status_code == 204
        (item,) = (await talk.request("GET", "/errors", params={"type": "OrderSystemDown"})).json()["items"]
        assert item["message"] == "password=[redacted] was refused"
        for path, body in (
            ("/metrics", {"type": "a b", "value": 1}),
            ("/metrics", {"type": "x", "value": "many"}),
            ("/metrics", {"type": "x", "value": 1, "metadata": {"x": "y" * 20_000}}),
            ("/errors", {"type": "x", "message": ""}),
        ):
            problem_of(await talk.request("POST", path, json=body), 422, "invalid-request")


async def count(database: Database, table: str) -> int:
    return int(await database.value(f"SELECT count(*) FROM abide.{table}"))
