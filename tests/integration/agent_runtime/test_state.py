"""Snapshots of sessions: saved by themselves, read, written and deleted by users."""

from typing import Any

import pytest

from tests.integration.agent_runtime.harness import Database, agent_id, manifest, scripted, serving, until
from tests.integration.agent_runtime.test_messages import problem_of


async def saved(database: Database, name: str = "a") -> list[dict[str, Any]]:
    return await database.rows("SELECT * FROM abide.agent_states WHERE agent_id = $1", agent_id(name))


async def test_a_session_is_saved_after_every_fifth_message_and_counted(postgres_url: str, database: Database) -> None:
    async with serving(postgres_url, manifest("a")) as served:
        talk = served.talk("a")
        for number in range(4):
            await talk.say(f"m{number}")
        assert await saved(database) == []
        await talk.say("m4")
        await until(lambda: saved(database), "the fifth message saves the state")
        for number in range(5):
            await talk.say(f"m{number}")

        async def again() -> bool:
            return (await saved(database))[0]["version"] == 2

        await until(again, "and so does the tenth")
        state = (await talk.request("GET", "/sessions/s/state")).json()
        assert state["cursor"] == {"turnSeq": 10, "acceptedMessages": 10}

        async def counted() -> bool:
            rows = await database.rows(
                "SELECT sum(value) AS saves FROM abide.agent_metrics WHERE metric_type = 'auto_save'"
            )
            return bool(rows[0]["saves"] == 2)

        await until(counted, "both saves are in agent_metrics")


async def test_messages_count_per_session_and_failed_turns_count_too(postgres_url: str, database: Database) -> None:
    agent = manifest("a", scripted({"error": 401}), state={"autoSaveEveryMessages": 2})
    async with serving(postgres_url, agent) as served:
        talk = served.talk("a")
        await talk.say("one", "s1")
        await talk.say("one", "s2")
        assert await saved(database) == []
        await talk.say("two", "s1")
        await until(lambda: saved(database), "two messages of one session save it")
        assert len(await saved(database)) == 1


async def test_unsaved_sessions_are_saved_at_the_end(postgres_url: str, database: Database) -> None:
    async with serving(postgres_url, manifest("a")) as served:
        talk = served.talk("a")
        for session in ("one", "two", "three"):
            await talk.say("x", session)
    assert len(await saved(database)) == 3
    by = await database.value("SELECT metadata FROM abide.agent_metrics WHERE metric_type = 'auto_save'")
    assert '"shutdown"' in str(by)
    async with serving(postgres_url, manifest("a")) as served:
        assert await served.talk("a").say("y", "one") == "y [2]"


async def test_what_was_written_is_read_and_survives_the_automatic_save(postgres_url: str) -> None:
    async with serving(postgres_url, manifest("a", state={"autoSaveEveryMessages": 1})) as served:
        talk = served.talk("a")
        problem_of(await talk.request("GET", "/sessions/s/state"), 404, "session-not-found")
        await talk.say("x")
        written = await talk.request(
            "PUT", "/sessions/s/state", json={"variables": {"language": "de", "n": [1, {"a": None}]}, "summary": "kurz"}
        )
        assert written.status_code == 200, written.text
        assert written.json()["variables"] == {"language": "de", "n": [1, {"a": None}]}
        version = written.json()["version"]
        await talk.say("y")

        async def saved_again() -> dict[str, Any] | None:
            state = (await talk.request("GET", "/sessions/s/state")).json()
            return state if state["version"] > version and state["cursor"]["turnSeq"] == 2 else None

        state = await until(saved_again, "the next message saves it")
        assert state is not None
        assert (state["variables"], state["summary"]) == ({"language": "de", "n": [1, {"a": None}]}, "kurz")
        back = await talk.request("PUT", "/sessions/s/state", json=state)
        assert back.status_code == 200, "what was read can be written"
        strip = ("version", "updatedAt")
        assert {k: v for k, v in back.json().items() if k not in strip} == {
            k: v for k, v in state.items() if k not in strip
        }
        assert (await talk.request("DELETE", "/sessions/s/state")).status_code == 204
        problem_of(await talk.request("DELETE", "/sessions/s/state"), 404, "state-not-found")
        problem = problem_of(await talk.request("GET", "/sessions/s/state"), 404, "state-not-found")
        assert "saved after state.autoSaveEveryMessages messages" in problem["detail"]
        assert await talk.say("z") == "z [3]", "the history is another matter"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"[]", ""),
        (b"{", ""),
        (b"", ""),
        (b'{"variables": 1}', "variables"),
        (b'{"formatVersion": 99}', "formatVersion"),
        (b'{"variables": {"a": NaN}}', "variables"),
        (b'{"colour": 1}', "colour"),
    ],
)
async def test_documents_that_are_not_states_are_refused(postgres_url: str, body: bytes, field: str) -> None:
    async with serving(postgres_url, manifest("a")) as served:
        talk = served.talk("a")
        await talk.say("x")
        refused = problem_of(await talk.request("PUT", "/sessions/s/state", content=body), 422, "invalid-request")
        assert [error["field"] for error in refused["errors"]] == [field]


async def test_another_users_state_is_out_of_reach(postgres_url: str) -> None:
    async with serving(postgres_url, manifest("a", state={"autoSaveEveryMessages": 1})) as served:
        await served.talk("a", "alice").say("x")
        bob = served.talk("a", "bob")
        for method in ("GET", "DELETE"):
            problem_of(await bob.request(method, "/sessions/s/state"), 404, "session-not-found")
        own = await bob.request("PUT", "/sessions/s/state", json={"summary": "bob's"})
        assert own.status_code == 200, own.text
        alices = await served.talk("a", "alice").request("GET", "/sessions/s/state")
        assert alices.json()["summary"] is None


async def test_a_state_is_loaded_into_a_session_that_does_not_exist_yet(postgres_url: str) -> None:
    async with serving(postgres_url, manifest("a")) as served:
        talk = served.talk("a")
        document = {"variables": {"language": "de"}, "summary": "kurz"}
        for _ in range(2):
            assert (await talk.request("PUT", "/sessions/new/state", json=document)).status_code == 200
        assert (await talk.request("GET", "/sessions/new/state")).json()["variables"] == {"language": "de"}
        assert await talk.say("hello", "new") == "hello [1]"
        history = await talk.request("GET", "/sessions/new/messages")
        assert [(item["seq"], item["content"]) for item in history.json()["items"]] == [(1, "hello"), (2, "hello [1]")]
