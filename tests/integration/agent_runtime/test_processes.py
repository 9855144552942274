"""Runtimes as processes: restarted, killed, drained, two at once. What was acknowledged gets exactly one outcome."""

import asyncio
import json
import signal
import time
from pathlib import Path
from uuid import UUID

import httpx
import pytest

from tests.integration.agent_runtime.harness import (
    Database,
    Process,
    Talk,
    echo,
    manifest,
    process,
    scripted,
    until,
)
from tests.integration.agent_runtime.test_messages import problem_of

TAKEOVER_SECONDS = 10.0


@pytest.fixture
async def http() -> httpx.AsyncClient:
    async with httpx.AsyncClient(timeout=30) as client:
        yield client


def talk_to(http: httpx.AsyncClient, runtime: Process) -> Talk:
    return Talk(http, runtime.base, runtime.agent)


async def outcomes(database: Database) -> list[tuple[str, int]]:
    rows = await database.rows("SELECT status, attempts FROM abide.turns ORDER BY turn_seq")
    return [(row["status"], row["attempts"]) for row in rows]


async def test_a_restarted_process_goes_on_where_it_was(
    postgres_url: str, tmp_path: Path, http: httpx.AsyncClient
) -> None:
    for number, expected in enumerate(("x [1]", "x [2]", "x [3]")):
        async with process(tmp_path, postgres_url, manifest("a")) as runtime:
            await runtime.wait_ready(http)
            assert await talk_to(http, runtime).say("x") == expected
            if number == 1:
                runtime.signal(signal.SIGKILL)
            else:
                runtime.signal(signal.SIGTERM if number else signal.SIGINT)
                assert await runtime.wait_exit() == 0


@pytest.mark.parametrize("instance", ["pod-1", "pod-2"])
async def test_a_message_in_flight_survives_kill_9(
    postgres_url: str, tmp_path: Path, http: httpx.AsyncClient, database: Database, instance: str
) -> None:
    agent = manifest("a", echo(1.0))
    async with process(tmp_path, postgres_url, agent) as first:
        await first.wait_ready(http)
        turn = (await talk_to(http, first).post("precious", wait=0)).json()["turn"]["id"]
        queued = (await talk_to(http, first).post("behind", wait=0, key="k")).json()["turn"]["id"]
        first.signal(signal.SIGKILL)
        await first.wait_exit()
        killed_at = time.monotonic()
        async with process(tmp_path, postgres_url, agent, instance) as second:
            await second.wait_ready(http)
            talk = talk_to(http, second)
            done = await talk.outcome(turn)
            took = time.monotonic() - killed_at
            assert done["reply"] == {"content": "precious [1]"}
            assert done["turn"]["attempts"] == 2
            assert took < TAKEOVER_SECONDS + 1.0  # and the model's own second
            if instance == "pod-1":
                assert took < 6.0, "the same instance takes over by its epoch, without waiting for the lease"
            again = await talk.post("behind", key="k")
            assert (again.json()["turn"]["id"], again.json()["reply"]["content"]) == (queued, "behind [2]")
            assert await outcomes(database) == [("completed", 2), ("completed", 1)]
            assert len(await talk.messages()) == 4


async def test_a_turn_that_ends_its_process_again_and_again_fails_with_the_reason(
    postgres_url: str, tmp_path: Path, http: httpx.AsyncClient, database: Database
) -> None:
    agent = manifest("a", echo(30), messages={"fallback": "Sorry."})
    turn = ""
    for attempt in range(4):
        async with process(tmp_path, postgres_url, agent) as runtime:
            await runtime.wait_ready(http)
            talk = talk_to(http, runtime)
            turn = turn or (await talk.post("poison", wait=0)).json()["turn"]["id"]
            if attempt == 3:
                done = await talk.outcome(turn)
                assert (done["turn"]["status"], done["turn"]["error"]["type"]) == ("failed", "TooManyAttempts")
                assert done["reply"] == {"content": "Sorry."}
                return

            async def running(turn: str = turn, attempts: int = attempt + 1) -> bool:
                (row,) = await database.rows("SELECT attempts, is_alone FROM abide.turns WHERE id = $1", UUID(turn))
                return row["attempts"] == attempts and bool(row["is_alone"]) == (attempts == 3)

            await until(running, "it is started again, the third time alone")
            runtime.signal(signal.SIGKILL)
            await runtime.wait_exit()


async def test_a_drain_finishes_what_runs_and_leaves_what_waits(
    postgres_url: str, tmp_path: Path, http: httpx.AsyncClient, database: Database
) -> None:
    agent = manifest("a", echo(1.5))
    async with process(tmp_path, postgres_url, agent) as first:
        await first.wait_ready(http)
        talk = talk_to(http, first)
        waiting = asyncio.create_task(talk.post("running", key="k"))

        async def started() -> bool:
            return bool(await talk.messages())

        await until(started, "it runs")
        queued = (await talk.post("queued", wait=0)).json()["turn"]["id"]
        first.signal(signal.SIGTERM)

        async def unready() -> bool:
            return (await http.get(f"{first.base}/readyz")).status_code == 503

        await until(unready, "it is unready at once", 1.0)
        refused = await talk.post("late", "other")
        problem_of(refused, 503, "draining")
        assert int(refused.headers["retry-after"]) >= 1
        assert (await http.get(f"{first.base}/livez")).status_code == 200
        answered = await waiting
        assert answered.json()["reply"] == {"content": "running [1]"}
        assert await first.wait_exit() == 0
        assert await database.value("SELECT count(*) FROM abide.agent_states") == 1
        assert await outcomes(database) == [("completed", 1), ("queued", 0)]
        lines = [json.loads(line) for line in first.logs().splitlines()]
        stages = [line["event"] for line in lines if line["part"] in ("process", "lease", "saver")]
        assert [stage for stage in stages if stage != "lease_taken" and stage != "store_contact"] == [
            "draining",
            "drained",
            "states_saved",
            "lease_released",
            "stopped",
        ]
    assert await database.value("SELECT bool_and(expires_at < now()) FROM abide.runtime_instances"), "no lease is left"
    async with process(tmp_path, postgres_url, agent, "pod-2") as second:
        await second.wait_ready(http)
        ready_at = time.monotonic()
        done = await talk_to(http, second).outcome(queued)
        assert done["reply"] == {"content": "queued [2]"}
        assert time.monotonic() - ready_at < 6.0, "a released lease is taken over without waiting"


async def test_a_drain_ends_in_time_and_the_turn_goes_on_elsewhere(
    postgres_url: str, tmp_path: Path, http: httpx.AsyncClient
) -> None:
    agent = manifest("a", echo(3))
    async with process(tmp_path, postgres_url, agent, ABIDE_DRAIN_SECONDS="1") as first:
        await first.wait_ready(http)
        waiting = asyncio.create_task(talk_to(http, first).post("long", key="k"))

        async def started() -> bool:
            return bool(await talk_to(http, first).messages())

        await until(started, "it runs")
        first.signal(signal.SIGTERM)
        signalled = time.monotonic()
        answer = await waiting
        assert answer.status_code == 202, "acknowledged, without an outcome yet"
        assert await first.wait_exit() == 0
        assert time.monotonic() - signalled < 5.0
    async with process(tmp_path, postgres_url, agent, "pod-2") as second:
        await second.wait_ready(http)
        again = await talk_to(http, second).post("long", key="k")
        assert again.json()["reply"] == {"content": "long [1]"}
        assert again.json()["turn"]["id"] == answer.json()["turn"]["id"]


async def test_a_second_signal_cuts_the_drain_short(postgres_url: str, tmp_path: Path, http: httpx.AsyncClient) -> None:
    async with process(tmp_path, postgres_url, manifest("a", echo(30))) as runtime:
        await runtime.wait_ready(http)
        await talk_to(http, runtime).post("long", wait=0)
        runtime.signal(signal.SIGINT)

        async def draining() -> bool:
            return '"draining"' in runtime.logs()

        await until(draining, "it drains")
        runtime.signal(signal.SIGINT)
        assert await runtime.wait_exit(5.0) == 0


async def test_two_processes_serve_one_session_as_one(
    postgres_url: str, tmp_path: Path, http: httpx.AsyncClient, database: Database
) -> None:
    agent = manifest("a", echo(0.3))
    async with (
        process(tmp_path, postgres_url, agent, "pod-1") as first,
        process(tmp_path, postgres_url, agent, "pod-2") as second,
    ):
        await asyncio.gather(first.wait_ready(http), second.wait_ready(http))
        one, two = talk_to(http, first), talk_to(http, second)
        answers = await asyncio.gather(*(talk.post("same", key="k") for talk in (one, two) * 5))
        assert {answer.status_code for answer in answers} == {200}
        assert len({answer.text for answer in answers}) == 1
        replies = [await talk.say(f"m{number}") for number, talk in enumerate((one, two, one, two))]
        assert replies == [f"m{number} [{number + 2}]" for number in range(4)]
        burst = await asyncio.gather(*((one, two)[n % 2].post(f"b{n}") for n in range(6)))
        counts = sorted(int(answer.json()["reply"]["content"].split("[")[1][:-1]) for answer in burst)
        assert counts == list(range(6, 12))
        stream = await two.request("GET", f"/turns/{answers[0].json()['turn']['id']}/events")
        assert '"same [1]"' in stream.text
        overlaps = await database.value(
            "SELECT count(*) FROM abide.turns x JOIN abide.turns y ON x.session_id = y.session_id AND x.id < y.id "
            "WHERE x.started_at < y.finished_at AND y.started_at < x.finished_at"
        )
        assert overlaps == 0, "never two active turns in one session"


async def test_a_second_process_with_the_same_instance_fences_the_first_out(
    postgres_url: str, tmp_path: Path, http: httpx.AsyncClient, database: Database
) -> None:
    agent = manifest("a", echo(1.0))
    async with process(tmp_path, postgres_url, agent) as first:
        await first.wait_ready(http)
        turn = (await talk_to(http, first).post("x", wait=0)).json()["turn"]["id"]
        first.signal(signal.SIGSTOP)  # it believes to hold the lease when it wakes
        try:
            async with process(tmp_path, postgres_url, agent) as second:
                await second.wait_ready(http)
                done = await talk_to(http, second).outcome(turn)
                assert done["reply"] == {"content": "x [1]"}
                second.signal(signal.SIGTERM)
                assert await second.wait_exit() == 0
        finally:
            first.signal(signal.SIGCONT)

        # Until it has noticed, and taken a new lease, it refuses.
        async def answered() -> str:
            response = await talk_to(http, first).post("y", key="k")
            return str(response.json()["reply"]["content"]) if response.status_code == 200 else ""

        assert await until(answered, "it goes on under a new epoch") == "y [2]"
        assert await outcomes(database) == [("completed", 2), ("completed", 1)]
        assert len(await talk_to(http, first).messages()) == 4


async def test_no_secret_and_no_content_reaches_logs_or_rows(
    postgres_url: str, tmp_path: Path, http: httpx.AsyncClient, database: Database
) -> None:
    keys, secrets = tmp_path / "keys", tmp_path / "secrets" / "llm"
    keys.mkdir()
    secrets.mkdir(parents=True)
    (keys / "key").write_text("api-key-of-the-agent")
    (secrets / "openai").write_text("sk-provider-key")
    agent = manifest("a", scripted({"error": 401}))
    environ = {
        "ABIDE_AUTH": "key",
        "ABIDE_API_KEYS_DIR": str(keys),
        "ABIDE_SECRETS_DIR": str(secrets.parent),
        "ABIDE_LOG_LEVEL": "debug",
    }
    async with process(tmp_path, postgres_url, agent, **environ) as runtime:
        await runtime.wait_ready(http)
        talk = Talk(http, runtime.base, "a", None, {"Authorization": "Bearer api-key-of-the-agent"})
        await talk.say("content with sk-provider-key inside")
        runtime.signal(signal.SIGTERM)
        await runtime.wait_exit()
        password = postgres_url.split("://", 1)[1].split("@", 1)[0].partition(":")[2]
        written = runtime.logs() + str(await database.rows("SELECT * FROM abide.agent_errors"))
        assert "ModelAuthFailed" in written
        for secret in (password, "api-key-of-the-agent", "sk-provider-key", "content with"):
            assert secret not in written


@pytest.mark.parametrize(
    ("environ", "code", "said"),
    [
        ({"ABIDE_PORT": "none"}, 2, "ABIDE_PORT"),
        ({"ABIDE_MANIFEST": "/nowhere/agent.json"}, 2, "/nowhere/agent.json cannot be read"),
        ({"ABIDE_POSTGRES_URL": ""}, 2, "ABIDE_POSTGRES_URL is not set"),
        ({"ABIDE_HOST": "203.0.113.1"}, 1, "Cannot listen on 203.0.113.1"),
    ],
)
async def test_a_process_that_cannot_start_says_why_in_one_line(
    postgres_url: str, tmp_path: Path, environ: dict[str, str], code: int, said: str
) -> None:
    async with process(tmp_path, postgres_url, manifest("a"), **environ) as runtime:
        assert await runtime.wait_exit() == code
        (line,) = runtime.logs().splitlines()
        assert said in line
