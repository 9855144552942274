"""Who may do what: keys with rights, users of their own, limits, and the record of acts."""

import os
from pathlib import Path
from typing import Any

import httpx
import pytest

from agent_runtime.settings import AuthMode
from tests.integration.agent_runtime.harness import Database, Serving, agent_id, manifest, serving, until
from tests.integration.agent_runtime.test_messages import problem_of

GENERATED = "the-generated-key"
RIGHTS = {"talker": ["Chat"], "reader": ["Read"], "approver": ["Approve"], "keeper": ["Operate"]}


def keys(**users: str) -> dict[str, Any]:
    """Return the spec of one key per right, and of one that speaks as a user of its own for each of `users`."""
    entries: list[dict[str, Any]] = [
        {"name": name, "secretKeyRef": {"name": "callers", "key": name}, "rights": rights}
        for name, rights in RIGHTS.items()
    ]
    entries += [
        {"name": name, "secretKeyRef": {"name": "callers", "key": name}, "user": user} for name, user in users.items()
    ]
    return {"keys": entries}


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    """Settings of a process with mounted keys: each named key is `<name>-key`."""
    generated, callers = tmp_path / "keys", tmp_path / "secrets" / "callers"
    generated.mkdir()
    callers.mkdir(parents=True)
    (generated / "key").write_text(GENERATED)
    for name in (*RIGHTS, "alices", "bobs"):
        (callers / name).write_text(f"{name}-key\n")
    return {"auth": AuthMode.KEY, "api_keys_dir": generated, "secrets_dir": tmp_path / "secrets"}


class Caller:
    """Somebody with a key, before one agent."""

    def __init__(self, served: Serving, key: str, agent: str = "a") -> None:
        self._http = served.http
        self._url = f"{served.base}/v1/agents/tests/{agent}"
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}

    async def __call__(self, method: str, path: str, user: str = "", body: Any = None) -> httpx.Response:
        headers = {**self._headers, **({"Abide-User": user} if user else {})}
        return await self._http.request(method, f"{self._url}{path}", headers=headers, json=body)

    async def say(self, content: str, session: str = "s", user: str = "") -> httpx.Response:
        return await self("POST", f"/sessions/{session}/messages", user, {"content": content})


async def test_a_key_gives_its_rights_and_no_other(postgres_url: str, settings: dict[str, Any]) -> None:
    async with serving(postgres_url, manifest("a", access=keys()), **settings) as served:
        owner = Caller(served, GENERATED)
        turn = (await owner.say("hello", user="alice")).json()["turn"]["id"]
        acts = {
            "talk": ("POST", "/sessions/s/messages", {"content": "more"}),
            "history": ("GET", "/sessions/s/messages", None),
            "sessions": ("GET", "/sessions", None),
            "turn": ("GET", f"/turns/{turn}", None),
            "errors": ("GET", "/errors", None),
            "write state": ("PUT", "/sessions/s/state", {"variables": {"x": 1}}),
            "read state": ("GET", "/sessions/s/state", None),
            "cancel": ("POST", f"/turns/{turn}/cancel", {}),
        }
        allowed = {
            "talker": {"talk", "history", "sessions", "turn", "read state", "cancel"},
            "reader": {"history", "sessions", "turn", "errors", "read state"},
            "approver": set(),
            "keeper": {"write state"},
        }
        await owner("PUT", "/sessions/s/state", "alice", {"variables": {}})
        for name, expected in allowed.items():
            caller = Caller(served, f"{name}-key")
            for act, (method, path, body) in acts.items():
                response = await caller(method, path, "alice", body)
                if act in expected:
                    assert response.status_code == 200, (name, act, response.text)
                else:
                    problem = problem_of(response, 403, "forbidden")
                    assert f"key:{name} does not have it" in problem["detail"], (name, act)
                    assert "insufficient_scope" in response.headers["WWW-Authenticate"]
        for wrong in ("", "wrong", "talker-key2"):
            assert (await Caller(served, wrong).say("x")).status_code == 401


async def test_a_key_of_one_user_speaks_as_nobody_else(postgres_url: str, settings: dict[str, Any]) -> None:
    async with serving(postgres_url, manifest("a", access=keys(alices="alice", bobs="bob")), **settings) as served:
        alice, bob = Caller(served, "alices-key"), Caller(served, "bobs-key")
        assert (await alice.say("mine")).json()["reply"]["content"] == "mine [1]"
        assert (await alice.say("again", user="alice")).json()["reply"]["content"] == "again [2]"
        assert (await bob.say("hi")).json()["reply"]["content"] == "hi [1]"
        turn = (await alice.say("secret")).json()["turn"]["id"]
        problem_of(await bob.say("as alice", user="alice"), 403, "forbidden")
        problem_of(await bob("GET", f"/turns/{turn}"), 404, "turn-not-found")
        problem_of(await bob("GET", f"/turns/{turn}", "alice"), 403, "forbidden")
        assert len((await bob("GET", "/sessions/s/messages")).json()["items"]) == 2
        url = f"{served.base}/v1/chat/completions"
        ask = {"model": "tests/a", "messages": [{"role": "user", "content": "x"}], "metadata": {"session": "s"}}
        headers = {"Authorization": "Bearer bobs-key"}
        answer = (await served.http.post(url, json=ask, headers=headers)).json()
        assert answer["choices"][0]["message"]["content"] == "x [2]"
        assert (await served.http.post(url, json={**ask, "user": "alice"}, headers=headers)).status_code == 403
        twice = [("Authorization", "Bearer bobs-key"), ("Abide-User", "bob"), ("Abide-User", "alice")]
        page = await served.http.get(f"{served.base}/v1/agents/tests/a/sessions/s/messages", headers=twice)
        assert page.status_code == 422


async def test_a_key_is_for_its_own_agent_only(postgres_url: str, settings: dict[str, Any]) -> None:
    async with serving(postgres_url, manifest("a", access=keys()), manifest("b"), **settings) as served:
        assert (await Caller(served, "talker-key").say("x")).status_code == 200
        assert (await Caller(served, "talker-key", "b").say("x")).status_code == 401
        headers = {"Authorization": "Bearer talker-key"}
        listed = (await served.http.get(f"{served.base}/v1/models", headers=headers)).json()
        assert [card["id"] for card in listed["data"]] == ["tests/a"]
        assert (await served.http.get(f"{served.base}/v1/models/tests/b", headers=headers)).status_code == 404
        assert (await Caller(served, GENERATED, "b").say("x")).status_code == 200


async def test_a_key_changes_without_a_restart(postgres_url: str, settings: dict[str, Any]) -> None:
    async with serving(postgres_url, manifest("a", access=keys()), **settings) as served:
        file = settings["secrets_dir"] / "callers" / "talker"
        assert (await Caller(served, "talker-key").say("x")).status_code == 200
        new = file.with_name("..new")
        new.write_text("another-key")
        os.replace(new, file)

        async def old_is_refused() -> bool:
            return (await Caller(served, "talker-key").say("x")).status_code == 401

        await until(old_is_refused, "the old key is refused", 5)
        assert (await Caller(served, "another-key").say("x")).status_code == 200
        file.unlink()

        async def new_is_refused() -> bool:
            return (await Caller(served, "another-key").say("x")).status_code == 401

        await until(new_is_refused, "a key that is gone is refused", 5)
        assert (await Caller(served, "").say("x")).status_code == 401


async def test_a_caller_who_asks_too_often_waits_and_others_do_not(postgres_url: str, settings: dict[str, Any]) -> None:
    agent = manifest("a", access=keys(), limits={"requestsPerMinute": 5})
    async with serving(postgres_url, agent, **settings) as served:
        caller = Caller(served, "talker-key")
        answers = [await caller("GET", "/sessions", "alice") for _ in range(7)]
        assert [answer.status_code for answer in answers[:5]] == [200] * 5
        refused = problem_of(answers[6], 429, "rate-limited")
        assert "5 requests" in refused["detail"]
        assert 1 <= int(answers[6].headers["Retry-After"]) <= 12
        assert (await caller("GET", "/sessions", "bob")).status_code == 200
        assert (await Caller(served, GENERATED)("GET", "/sessions", "alice")).status_code == 200
        assert (await served.http.get(f"{served.base}/readyz")).status_code == 200


async def test_what_operators_do_is_written_down(
    postgres_url: str, database: Database, settings: dict[str, Any]
) -> None:
    async with serving(postgres_url, manifest("a", access=keys()), **settings) as served:
        keeper = Caller(served, "keeper-key")
        await Caller(served, GENERATED).say("hello", user="alice")
        assert (await keeper("PUT", "/sessions/s/state", "alice", {"variables": {"x": 1}})).status_code == 200
        assert (await keeper("PUT", "/sessions/s/state", "alice", {"variables": 1})).status_code == 422
        rows = await database.rows(
            "SELECT event_type, message, details::text AS details FROM abide.system_events WHERE agent_id = $1"
            " ORDER BY occurred_at",
            agent_id("a"),
        )
        assert [row["event_type"] for row in rows] == ["access.operate"] * 2
        assert '"who": "key:keeper"' in rows[0]["details"]
        assert '"outcome": "done"' in rows[0]["details"]
        assert '"outcome": "refused"' in rows[1]["details"]
        assert "keeper-key" not in "".join(row["details"] + row["message"] for row in rows)


async def test_changes_of_shared_memories_are_written_down_and_those_of_users_are_not(
    postgres_url: str, database: Database, settings: dict[str, Any]
) -> None:
    agent = manifest("a", access=keys(), memories={"enabled": True})
    async with serving(postgres_url, agent, **settings) as served:
        keeper, talker = Caller(served, "keeper-key"), Caller(served, "talker-key")
        shared = {"content": "we open at nine", "shared": True}
        assert (await talker("POST", "/memories", "alice", shared)).status_code == 403
        kept = await keeper("POST", "/memories", "alice", shared)
        assert kept.status_code == 201
        own = await keeper("POST", "/memories", "alice", {"content": "alice likes tea"})
        for made in (kept.json()["id"], own.json()["id"]):
            assert (await keeper("PATCH", f"/memories/{made}", "alice", {"content": "changed"})).status_code == 200
        assert (await talker("DELETE", f"/memories/{kept.json()['id']}", "alice")).status_code == 403
        assert (await keeper("DELETE", f"/memories/{kept.json()['id']}", "alice")).status_code == 204
        rows = await database.rows(
            "SELECT details->>'method' AS method, details->>'who' AS who, details->>'outcome' AS outcome"
            " FROM abide.system_events WHERE agent_id = $1 AND event_type = 'access.operate' ORDER BY occurred_at",
            agent_id("a"),
        )
        acts = [(method, "key:keeper", "done") for method in ("POST", "PATCH", "DELETE")]
        assert [(row["method"], row["who"], row["outcome"]) for row in rows] == acts


async def test_where_nobody_is_asked_only_a_limit_that_is_written_counts(postgres_url: str) -> None:
    async with serving(postgres_url, manifest("a"), manifest("b", limits={"requestsPerMinute": 2})) as served:
        answers = [(await served.talk("b").request("GET", "/sessions")).status_code for _ in range(3)]
        assert answers == [200, 200, 429]
        answers = [(await served.talk("a").request("GET", "/sessions")).status_code for _ in range(620)]
        assert set(answers) == {200}
