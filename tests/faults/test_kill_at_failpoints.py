"""kill -9 before and after every statement of the store, while clients talk: no promise is broken.

For each failpoint, on a database of its own: a process is killed there; another instance, set to die at the same point,
waits for the lease to run out, takes over and is killed there too; the same instance started again takes over at once
and finishes. The clients know nothing of this: they repeat what was not answered.

Most of that is waiting, so the failpoints are played several at once; each test waits for its own.
"""

import asyncio
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import pytest_asyncio

from agent_store.failpoints import DRAIN, EVERY
from tests.faults.driver import RuntimeProcess, until
from tests.faults.scene import Scene, staged

pytestmark = pytest.mark.asyncio(loop_scope="module")

# Bounded by the connections of one embedded Postgres (60) and by two cores.
AT_ONCE = 10
PLAY_SECONDS = 240.0
DELAY_SECONDS = 0.1
# What clients think between two rounds; without it they would be most of the load.
PAUSE_SECONDS = 0.3
# Everything that comes round (renewals, heartbeats, metrics, sweeps, a takeover before it) does so within this time.
ROUND_SECONDS = 40.0
DRAIN_SECONDS = 15.0
# Passed only where a session has a history that the process does not know.
OF_KNOWN_SESSIONS = frozenset({"store.load_history.1.before", "store.load_history.1.after"})
# Hits to let pass, so that there is something to lose; all others die at their first hit.
SKIPS = {"accept": 4, "complete": 3, "start_next": 1}


@dataclass(slots=True)
class Play:
    """What came of one failpoint: how the killed processes ended and which point they had passed last."""

    exit_codes: list[int] = field(default_factory=list)
    last_points: list[str] = field(default_factory=list)
    attempts: Counter[int] = field(default_factory=Counter)
    seconds: float = 0.0


async def play(point: str, folder: Path, postgres_url: str) -> Play:
    """Let two processes die at the failpoint and a third one finish; judge the invariants."""
    played, started_at = Play(), time.monotonic()
    async with staged(folder, postgres_url, delay_seconds=DELAY_SECONDS) as scene:
        enough = asyncio.Event()
        talk = asyncio.create_task(talk_until(scene, enough))
        try:
            if point in OF_KNOWN_SESSIONS:
                await make_known(scene)
            for instance in ("first", "second"):
                trace = folder / f"{instance}.trace"
                victim = scene.fleet.start(instance, environ_for(point, trace))
                await wait_killed(scene, victim, point)
                played.exit_codes.append(victim.exit_code or 0)
                played.last_points.append(names_in(trace)[-1])
            finisher = await scene.start("second")
            before = answered(scene)
            await until(lambda: answered(scene) > before, 30, "the conversation goes on")
        finally:
            enough.set()
            await asyncio.wait([talk], timeout=60)
            talk.cancel()
        await talk
        seen = await scene.assert_invariants()
        played.attempts.update(turn.attempts for turn in seen.turns)
        finisher.terminate()
        assert await finisher.wait_exit() == 0
    played.seconds = time.monotonic() - started_at
    return played


async def make_known(scene: Scene) -> None:
    """Let a process answer something and leave, so that the next one finds sessions with a history.

    It is not killed: a turn that three processes died of fails, and two are to die of the failpoint.
    """
    process = await scene.start("first")
    await until(lambda: answered(scene) >= 3, 30, "sessions have a history")
    process.terminate()
    assert await process.wait_exit() == 0


def environ_for(point: str, trace: Path) -> dict[str, str]:
    """Return the variables that let a process die at the point and write down the points it passed."""
    skip = SKIPS.get(point.split(".")[1], 0)
    return {"ABIDE_FAILPOINTS": f"{point}=kill:{skip}", "ABIDE_FAILPOINTS_TRACE": str(trace)}


def names_in(trace: Path) -> list[str]:
    """Return the failpoints passed, in order."""
    return trace.read_text().splitlines() if trace.exists() else [""]


def answered(scene: Scene) -> int:
    """Return how many messages have their outcome."""
    return sum(message.final is not None for message in scene.clients.said)


async def wait_killed(scene: Scene, victim: RuntimeProcess, point: str) -> None:
    """Wait until the process died of its failpoint; where conversation alone does not reach it, a drain must."""
    if await victim.wait_ready_or_exit(scene.http):
        patience = ROUND_SECONDS
        if point in DRAIN:
            before, patience = answered(scene), DRAIN_SECONDS
            await until(lambda: answered(scene) > before, ROUND_SECONDS, "an answer before the drain")
            victim.terminate()
        await victim.wait_exit(patience)


async def talk_until(scene: Scene, enough: asyncio.Event) -> None:
    """Say round after round: one by one, several that queue, one that is never repeated; and read."""
    while not enough.is_set():
        await asyncio.gather(one_by_one(scene), queueing(scene), once(scene))
        await scene.clients.glance("alice", "main")
        await scene.clients.follow(scene.clients.said[0])
        with suppress(TimeoutError):
            async with asyncio.timeout(PAUSE_SECONDS):
                await enough.wait()


async def one_by_one(scene: Scene) -> None:
    for _ in range(3):
        message = await scene.clients.say("alice", "main", timeout=60)
    await scene.clients.repeat(message)


async def queueing(scene: Scene) -> None:
    for message in await scene.clients.burst("bob", "main", 3, timeout=60):
        await scene.clients.settle(message, timeout=60)


async def once(scene: Scene) -> None:
    message = await scene.clients.say_once("alice", "side")
    if message.acknowledged:
        await scene.clients.settle(message, timeout=60)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def plays(
    request: pytest.FixtureRequest,
    new_database: Callable[[], AbstractContextManager[str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[Mapping[str, asyncio.Task[Play]]]:
    """Start to play every failpoint whose test was selected; ends what is left over."""
    stage, entrance = asyncio.Semaphore(AT_ONCE), asyncio.Lock()

    async def in_turn(point: str) -> Play:
        async with stage:
            database = new_database()
            async with entrance:  # two copies of one template at a time would get in each other's way
                url = await asyncio.to_thread(database.__enter__)
            try:
                async with asyncio.timeout(PLAY_SECONDS):
                    return await play(point, tmp_path_factory.mktemp("play"), url)
            finally:
                await asyncio.to_thread(database.__exit__, None, None, None)

    chosen = [point for item in request.session.items if item.path == request.path for point in points_of(item)]
    tasks = {point: asyncio.create_task(in_turn(point), name=point) for point in chosen}
    yield tasks
    for task in tasks.values():
        task.cancel()
    await asyncio.gather(*tasks.values(), return_exceptions=True)


def points_of(item: pytest.Item) -> list[str]:
    """Return the failpoint the test is for, or nothing."""
    callspec = getattr(item, "callspec", None)
    return [] if callspec is None else [callspec.params["point"]]


@pytest.mark.parametrize("point", EVERY)
async def test_a_kill_at_this_point_breaks_no_promise(point: str, plays: Mapping[str, asyncio.Task[Play]]) -> None:
    played = await plays[point]
    print(f"{played.seconds:.1f} s, attempts {dict(played.attempts)}")
    assert played.exit_codes == [-signal.SIGKILL, -signal.SIGKILL]
    assert played.last_points == [point, point], "the failpoint was where the process died"
