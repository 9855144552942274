"""Postgres goes away in mid-conversation: the runtime says so, refuses honestly, lives on, and is back by itself."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from agent_api.conditions import Reason
from tests.faults.breakable import Outage, breakable_postgres
from tests.faults.chatter import answered
from tests.faults.driver import RuntimeProcess, until
from tests.faults.scene import Scene, staged

pytestmark = pytest.mark.asyncio(loop_scope="module")

AT_ONCE = 3
PLAY_SECONDS = 150.0
UNREADY_SECONDS = 10.0
READY_AGAIN_SECONDS = 10.0
REFUSED = frozenset({Reason.CONNECTION_REFUSED})
SILENT = frozenset({Reason.TIMEOUT})


class Pulse:
    """Asks /livez all the time and remembers what it did not like."""

    def __init__(self, scene: Scene, process: RuntimeProcess) -> None:
        self.scene = scene
        self.process = process
        self.beats = 0
        self.missed: list[str] = []

    async def watch(self) -> None:
        """Ask until cancelled."""
        while True:
            health = await self.process.health(self.scene.http, "/livez")
            self.beats += 1
            if health is None or health.status_code != 200:
                self.missed.append("no answer" if health is None else health.text)
            await asyncio.sleep(0.1)


async def readiness(scene: Scene, process: RuntimeProcess) -> tuple[int, dict[str, dict[str, Any]]]:
    """Return the status code of /readyz and its checks by name."""
    health = await process.health(scene.http, "/readyz", timeout=5)
    if health is None:
        return 0, {}
    return health.status_code, {check["name"]: check for check in health.json()["checks"]}


async def refused_for_one_of(scene: Scene, process: RuntimeProcess, reasons: frozenset[Reason]) -> bool:
    """Whether /readyz says 503 and names the store with one of the reasons."""
    status, checks = await readiness(scene, process)
    return status == 503 and not checks["store"]["ok"] and checks["store"]["reason"] in reasons


async def is_ready(scene: Scene, process: RuntimeProcess) -> bool:
    return (await readiness(scene, process))[0] == 200


async def talk_until(scene: Scene, done: asyncio.Event, user: str, session: str) -> None:
    """Keep talking until told to stop; each message is tried until it is answered."""
    while not done.is_set():
        await scene.clients.settle(scene.clients.compose(user, session), timeout=60, patience=5)


async def assert_refused(scene: Scene, process: RuntimeProcess) -> None:
    """Send a message nobody repeats: 503, Retry-After, and soon."""
    message = scene.clients.compose("carol", "main", keyed=False)
    url = f"{process.url}{scene.agent.path}/sessions/main/messages"
    answer = await scene.http.post(url, json={"content": message.content}, headers={"Abide-User": "carol"}, timeout=10)
    assert answer.status_code == 503, answer.text
    assert float(answer.headers["Retry-After"]) > 0
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["type"].startswith("https://abide.dev/problems/")
    # Its turn may have been stored, the answer says so by not promising anything; the invariants allow both.


async def answers(postgres_url: str) -> bool:
    """Whether Postgres takes connections and answers."""
    try:
        connection = await asyncpg.connect(postgres_url, timeout=2, command_timeout=2)
    except (OSError, asyncpg.PostgresError, TimeoutError):
        return False
    try:
        return bool(await connection.fetchval("select true"))
    except (OSError, asyncpg.PostgresError, TimeoutError):
        return False
    finally:
        connection.terminate()


@dataclass(frozen=True, slots=True)
class Figures:
    """Seconds from the outage to unready, from its end to Postgres' first answer, and from there to ready."""

    unready: float
    back: float
    ready: float


async def play_outage(folder: Path, _: str, *, outage: Outage, seconds: float, reasons: frozenset[Reason]) -> Figures:
    """Let Postgres go away in mid-conversation for some seconds; judge what the runtime says and does."""
    async with breakable_postgres(folder / "postgres") as postgres:
        url = postgres.server.url
        async with staged(folder, url, delay_seconds=0.3) as scene, conversing(scene) as process:
            broken_at = time.monotonic()
            postgres.break_(outage)
            unready = await until(
                lambda: refused_for_one_of(scene, process, reasons), UNREADY_SECONDS, "unready for the right reason"
            )
            await assert_refused(scene, process)
            assert not await is_ready(scene, process), "not ready while Postgres is away"
            await stays_unready(scene, process, seconds - (time.monotonic() - broken_at))
            postgres.mend()
            back = await until(lambda: answers(url), 30, "Postgres is back")
            ready = await until(lambda: is_ready(scene, process), READY_AGAIN_SECONDS, "ready again")
            await progress(scene, 6)
        return Figures(unready, back, ready)


@asynccontextmanager
async def conversing(scene: Scene) -> AsyncIterator[RuntimeProcess]:
    """Start a process and let clients talk to it while the block runs; it must live all the time, and keep its word."""
    process = await scene.start("only")
    pid, pulse, done = process.pid, Pulse(scene, process), asyncio.Event()
    heart = asyncio.create_task(pulse.watch())
    async with asyncio.TaskGroup() as group:
        for user, session in (("alice", "main"), ("alice", "side"), ("bob", "main")):
            group.create_task(talk_until(scene, done, user, session))
        await progress(scene, 6)
        yield process
        done.set()
    heart.cancel()
    assert pulse.beats > 10
    assert pulse.missed == [], "live all the time"
    assert process.running
    assert process.pid == pid
    await scene.assert_invariants()


async def progress(scene: Scene, count: int) -> None:
    """Wait until that many more messages have their outcome."""
    target = answered(scene) + count
    await until(lambda: answered(scene) >= target, 30, f"{count} more messages are answered")


async def stays_unready(scene: Scene, process: RuntimeProcess, seconds: float) -> None:
    """Watch the process for the rest of the outage. Raises if it becomes ready."""
    with suppress(TimeoutError):
        await until(lambda: is_ready(scene, process), seconds, "ready during the outage")
        raise AssertionError("ready during the outage")


@pytest.mark.parametrize(
    ("outage", "seconds", "reasons"),
    [
        pytest.param(Outage.FAST, 3.0, REFUSED, id="fast-stop"),
        pytest.param(Outage.IMMEDIATE, 3.0, REFUSED, id="immediate-stop"),
        pytest.param(Outage.KILLED, 3.0, REFUSED, id="kill-9"),
        pytest.param(Outage.FROZEN, 3.0, SILENT, id="freeze"),
        # Longer than the lease of 8 s: the process must get a new one, and its turns with it.
        pytest.param(Outage.FROZEN, 12.0, SILENT, id="freeze-longer-than-the-lease"),
    ],
)
async def test_an_outage_is_told_survived_and_forgotten(
    outage: Outage, seconds: float, reasons: frozenset[Reason], played: Figures
) -> None:
    print(f"unready after {played.unready:.2f} s; Postgres back {played.back:.2f} s, ready {played.ready:.2f} s later")
    assert played.ready <= READY_AGAIN_SECONDS


PLAYS = {"test_an_outage_is_told_survived_and_forgotten": play_outage}
