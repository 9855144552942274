"""Runtime processes with encryption keys: rotated while they serve, refused when wrong, killed while keys are made."""

import asyncio
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest

from agent_store.codec_aes import new_key
from agent_store.codec_keys import format_key
from tests.integration.agent_runtime.harness import Database, Process, Talk, manifest, process, serving, until

SESSIONS = 6


@pytest.fixture
async def http() -> httpx.AsyncClient:
    async with httpx.AsyncClient(timeout=30) as client:
        yield client


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """A folder with one wrapping key."""
    folder = tmp_path / "keys"
    folder.mkdir()
    put_key(folder, "1")
    return folder


def put_key(folder: Path, name: str) -> None:
    (folder / name).write_text(format_key(new_key()))


def pod(folder: Path, url: str, keys: Path, instance: str, agent: dict[str, Any] | None = None, **environ: str) -> Any:
    where = {"ABIDE_ENCRYPTION_KEYS_DIR": str(keys), "ABIDE_ENCRYPTION_SOURCE": "Secret tests/a-keys"}
    return process(folder, url, agent or manifest("a"), instance, **where, **environ)


def talk_to(http: httpx.AsyncClient, runtime: Process) -> Talk:
    return Talk(http, runtime.base, runtime.agent)


async def test_keys_are_rotated_while_two_processes_answer_the_same_sessions(
    postgres_url: str, tmp_path: Path, keys: Path, http: httpx.AsyncClient, database: Database
) -> None:
    async with pod(tmp_path, postgres_url, keys, "pod-1") as one, pod(tmp_path, postgres_url, keys, "pod-2") as two:
        await asyncio.gather(one.wait_ready(http), two.wait_ready(http))
        talks = [talk_to(http, one), talk_to(http, two)]
        enough = asyncio.Event()
        said: Counter[str] = Counter()

        async def chat(session: str) -> None:
            while not enough.is_set():
                # Each process must read what the other one wrote a moment before.
                count = said[session] = said[session] + 1
                assert await talks[count % 2].say("x", session) == f"x [{count}]"

        chatting = [asyncio.create_task(chat(f"s{n}")) for n in range(SESSIONS)]
        for round_ in range(4):
            put_key(keys, str(round_ + 2))
            rotated = await talks[round_ % 2].request("POST", "/keys/rotation")
            assert rotated.status_code == 200, rotated.text
            cursor: str | None = None
            while True:
                body = {"cursor": cursor, "dryRun": False}
                step = await talks[1 - round_ % 2].request("POST", "/keys/reencryption", json=body)
                assert step.status_code == 200, step.text
                assert step.json()["unreadable"] == 0
                if (cursor := step.json()["cursor"]) is None:
                    break
            floor = sum(said.values()) + 2 * SESSIONS

            async def went_on(floor: int = floor) -> bool:
                return sum(said.values()) >= floor or any(task.done() for task in chatting)

            await until(went_on, "the conversations go on", 30)
        enough.set()
        await asyncio.gather(*chatting)
        listed = (await talks[0].request("GET", "/keys")).json()
        assert [key["wrappingKey"] for key in listed["items"]] == ["5"] * 5
        for session, count in said.items():
            lines = await talks[0].messages(session, limit=200)
            assert len(lines) == min(200, 2 * count)
    statuses = await database.rows("SELECT DISTINCT status FROM abide.turns")
    assert [row["status"] for row in statuses] == ["completed"]


async def test_with_a_wrong_key_a_process_is_alive_but_not_ready_and_goes_on_with_the_right_one(
    postgres_url: str, tmp_path: Path, keys: Path, http: httpx.AsyncClient, database: Database
) -> None:
    async with pod(tmp_path, postgres_url, keys, "pod-1") as runtime:
        await runtime.wait_ready(http)
        assert await talk_to(http, runtime).say("kept") == "kept [1]"
        runtime.signal(signal.SIGTERM)
        assert await runtime.wait_exit() == 0
    right = (keys / "1").read_text()
    put_key(keys, "1")
    before = await database.rows("SELECT * FROM abide.runtime_instances")
    async with pod(tmp_path, postgres_url, keys, "pod-2") as runtime:

        async def told() -> dict[str, Any] | None:
            try:
                checks = (await http.get(f"{runtime.base}/readyz")).json()["checks"]
            except httpx.TransportError:
                return None
            return next((dict(one) for one in checks if one["reason"] == "EncryptionKeyMismatch"), None)

        check = await until(told, "the mismatch is told")
        assert check is not None
        assert check["name"] == "store"
        assert 'key "1" of Secret tests/a-keys is not the one' in check["message"]
        assert (await http.get(f"{runtime.base}/livez")).status_code == 200
        refused = await talk_to(http, runtime).post("lost?")
        assert refused.status_code == 503
        assert "Secret" not in refused.text, "callers are not told about the inside"
        assert await database.rows("SELECT * FROM abide.runtime_instances") == before
        (keys / "1").write_text(right)
        await runtime.wait_ready(http)
        assert await talk_to(http, runtime).say("again") == "again [2]"
    errors = await database.rows("SELECT * FROM abide.messages WHERE key_id IS NULL")
    assert errors == []


@pytest.mark.parametrize("point", [f"open_keys.{n}.{when}" for n in (1, 2, 3) for when in ("before", "after")])
async def test_a_process_killed_while_it_makes_its_first_key_is_followed_by_one_that_works(
    postgres_url: str, tmp_path: Path, keys: Path, http: httpx.AsyncClient, point: str
) -> None:
    async with pod(tmp_path, postgres_url, keys, "pod-1", ABIDE_FAILPOINTS=f"store.{point}=kill") as runtime:
        assert await runtime.wait_exit() == -signal.SIGKILL
    async with pod(tmp_path, postgres_url, keys, "pod-1") as runtime:
        await runtime.wait_ready(http)
        assert await talk_to(http, runtime).say("x") == "x [1]"
        assert len((await talk_to(http, runtime).request("GET", "/keys")).json()["items"]) == 1


@pytest.mark.parametrize("point", [f"rotate_key.{n}.{when}" for n in (1, 2, 3) for when in ("before", "after")])
async def test_a_process_killed_in_the_middle_of_a_rotation_loses_nothing(
    postgres_url: str, tmp_path: Path, keys: Path, http: httpx.AsyncClient, point: str
) -> None:
    async with pod(tmp_path, postgres_url, keys, "pod-1", ABIDE_FAILPOINTS=f"store.{point}=kill") as runtime:
        await runtime.wait_ready(http)
        assert await talk_to(http, runtime).say("x") == "x [1]"
        put_key(keys, "2")
        with pytest.raises(httpx.TransportError):
            await talk_to(http, runtime).request("POST", "/keys/rotation")
        assert await runtime.wait_exit() == -signal.SIGKILL
    async with pod(tmp_path, postgres_url, keys, "pod-1") as runtime:
        await runtime.wait_ready(http)
        assert await talk_to(http, runtime).say("x") == "x [2]"
        assert (await talk_to(http, runtime).request("POST", "/keys/rotation")).status_code == 200
        listed = (await talk_to(http, runtime).request("GET", "/keys")).json()["items"]
        assert {key["wrappingKey"] for key in listed} == {"2"}


async def test_an_agent_may_opt_out(postgres_url: str, keys: Path, database: Database) -> None:
    plain = manifest("a", state={"encryption": {"enabled": False}})
    async with serving(postgres_url, plain, manifest("b"), encryption_keys_dir=keys) as both:
        await both.talk("a").say("x")
        await both.talk("b").say("x")
        listed = (await both.talk("a").request("GET", "/keys")).json()
        assert listed == {"encrypts": False, "items": []}
    rows = await database.rows(
        "SELECT a.name, count(*) FILTER (WHERE m.key_id IS NULL) AS plain, count(m.key_id) AS encrypted "
        "FROM abide.messages m JOIN abide.agents a ON a.id = m.agent_id GROUP BY a.name ORDER BY a.name"
    )
    assert [(row["name"], row["plain"], row["encrypted"]) for row in rows] == [("a", 2, 0), ("b", 0, 2)]


async def test_requests_about_keys_that_make_no_sense_are_refused(postgres_url: str, keys: Path) -> None:
    async with serving(postgres_url, manifest("a"), encryption_keys_dir=keys) as runtime:
        for body in ({"cursor": "x"}, {"cursor": 1}, {"unknown": 1}, []):
            answer = await runtime.talk("a").request("POST", "/keys/reencryption", json=body)
            assert answer.status_code == 422, answer.text
    async with serving(postgres_url, manifest("c")) as without:
        answer = await without.talk("c").request("POST", "/keys/rotation")
        assert (answer.status_code, answer.json()["type"].rpartition("/")[2]) == (409, "encryption-keys")
        assert "set ABIDE_ENCRYPTION_KEYS_DIR" in answer.json()["detail"]
