"""Faults before and after every statement of the store, while clients talk: no promise is broken.

*kill -9*: a process is killed at the point; another instance, set to die at the same point, waits for the lease to run
out, takes over and is killed there too; the same instance started again takes over at once and finishes.
*Lost answers*: twice the statement took effect and the process is told that Postgres went away.
The clients know nothing of this: they repeat what was not answered.

Most of that is waiting, so several points are played at the same time, each on a database of its own; a test waits for
its own play.
"""

import asyncio
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from agent_store.failpoints import DRAIN, EVERY, FIRST_START, FOREIGN_STATE
from tests.faults.chatter import answered, chatter
from tests.faults.driver import RuntimeProcess, until
from tests.faults.scene import Scene, staged

pytestmark = pytest.mark.asyncio(loop_scope="module")

# Bounded by the connections of one embedded Postgres (60) and by two cores.
AT_ONCE = 8
PLAY_SECONDS = 200.0
# Long enough for messages to queue behind a turn, also where clients get little of a busy machine.
DELAY_SECONDS = 0.25
# Everything that comes round (renewals, heartbeats, metrics, sweeps, a takeover before it) does so within this time.
ROUND_SECONDS = 60.0
# Passed only where a session has a history that the process does not know.
OF_KNOWN_SESSIONS = frozenset({"store.load_history.1.before", "store.load_history.1.after"})
# Hits to let pass, so that there is something to lose; at all others the process dies at the first hit.
SKIPS = {"accept": 4, "complete": 3, "start_next": 1}
ANSWERS_LOST = 2
# Passed once, by the first process of an agent or at the end of one: no second process and no second answer meets it.
PASSED_ONCE = frozenset({*FIRST_START, *DRAIN})
AFTER = [point for point in EVERY if point.endswith(".after")]


@dataclass(slots=True)
class Play:
    """What came of a play: how processes ended, which point each had passed last, and what was passed in all."""

    exit_codes: list[int] = field(default_factory=list)
    last_points: list[str] = field(default_factory=list)
    passed: Counter[str] = field(default_factory=Counter)
    attempts: Counter[int] = field(default_factory=Counter)

    def note_exit(self, process: RuntimeProcess, trace: Path) -> None:
        """Add how a process ended, and where."""
        names = names_in(trace)
        self.exit_codes.append(process.exit_code or 0)
        self.last_points.append(names[-1] if names else "")
        self.passed.update(names)


def names_in(trace: Path) -> list[str]:
    """Return the points a process passed, in order."""
    return trace.read_text().splitlines() if trace.exists() else []


@asynccontextmanager
async def talking(folder: Path, postgres_url: str, played: Play) -> AsyncIterator[Scene]:
    """Let clients talk while the block runs, then judge the invariants. A client's failure ends the block."""
    enough = asyncio.Event()
    async with staged(folder, postgres_url, delay_seconds=DELAY_SECONDS) as scene:
        async with asyncio.TaskGroup() as group:
            group.create_task(chatter(scene, enough), name="chatter")
            yield scene
            enough.set()
        seen = await scene.assert_invariants()
        played.attempts.update(turn.attempts for turn in seen.turns)
        for process in scene.fleet.running():
            await drain(process)


async def play_kills(folder: Path, postgres_url: str, *, point: str) -> Play:
    """Let two processes die at the point (only one where no second one comes there) and another one finish."""
    played = Play()
    skip = SKIPS.get(point.split(".")[1], 0)
    async with talking(folder, postgres_url, played) as scene:
        if point in OF_KNOWN_SESSIONS:
            await make_known(scene)
        for instance in victims_at(point):
            trace = folder / f"{instance}.trace"
            environ = {"ABIDE_FAILPOINTS": f"{point}=kill:{skip}", "ABIDE_FAILPOINTS_TRACE": str(trace)}
            victim = scene.fleet.start(instance, environ)
            await wait_killed(scene, victim, point)
            played.note_exit(victim, trace)
        await scene.start("second")
        await wait_answers(scene)
    return played


async def play_lost_answers(folder: Path, postgres_url: str, *, point: str) -> Play:
    """Let one process lose answers at the point; nobody comes to its help, save after a drain."""
    played, trace = Play(), folder / "first.trace"
    environ = {"ABIDE_FAILPOINTS": f"{point}=error:{ANSWERS_LOST}", "ABIDE_FAILPOINTS_TRACE": str(trace)}
    async with talking(folder, postgres_url, played) as scene:
        if point in OF_KNOWN_SESSIONS:
            await make_known(scene)
        process = await scene.start("first", environ)
        await wait_answers(scene)
        if point in DRAIN:
            await drain(process)
            await scene.start("second")
        elif point not in FIRST_START:
            await wait_passed(trace, point, ANSWERS_LOST + 1)
        await wait_answers(scene)
    played.note_exit(process, trace)
    return played


async def play_trace(folder: Path, postgres_url: str) -> Play:
    """Let processes pass all they pass without faults: talk, drain, and a start that finds sessions."""
    played = Play()
    async with talking(folder, postgres_url, played) as scene:
        for number in (1, 2):
            trace = folder / f"{number}.trace"
            process = await scene.start("only", {"ABIDE_FAILPOINTS_TRACE": str(trace)})
            await wait_passed(trace, "store.record_metrics.1.after", 1)
            await wait_answers(scene)
            await drain(process)
            played.note_exit(process, trace)
        await scene.start("only")
    return played


async def make_known(scene: Scene) -> None:
    """Let a process answer something and leave, so that the next one finds sessions with a history.

    It is not killed: a turn that three processes died of fails, and two are to die of the failpoint.
    """
    process = await scene.start("first")
    await wait_answers(scene)
    await drain(process)


async def drain(process: RuntimeProcess) -> None:
    """End a process the way Kubernetes does."""
    process.terminate()
    assert await process.wait_exit() == 0


async def wait_answers(scene: Scene) -> None:
    """Wait until the conversation has made some progress from now on."""
    before = answered(scene)
    await until(lambda: answered(scene) >= before + 3, ROUND_SECONDS, "the conversation goes on")


async def wait_passed(trace: Path, point: str, times: int) -> None:
    """Wait until a process passed the point that often."""
    await until(lambda: names_in(trace).count(point) >= times, ROUND_SECONDS, f"{point} is passed {times} times")


async def wait_killed(scene: Scene, victim: RuntimeProcess, point: str) -> None:
    """Wait until the process died of its failpoint; what conversation alone does not reach, a drain must."""
    if await victim.wait_ready_or_exit(scene.http):
        if point in DRAIN:
            await wait_answers(scene)
            victim.terminate()
        await victim.wait_exit(ROUND_SECONDS)


def victims_at(point: str) -> tuple[str, ...]:
    """Return the instances that die at a point, one after the other."""
    return ("first",) if point in FIRST_START else ("first", "second")


async def test_the_registry_names_every_point_a_process_passes(played: Play) -> None:
    assert set(played.passed) - set(FOREIGN_STATE) == set(EVERY)


@pytest.mark.parametrize("point", EVERY)
async def test_a_kill_at_this_point_breaks_no_promise(point: str, played: Play) -> None:
    print(f"turns by attempts: {dict(played.attempts)}")
    victims = len(victims_at(point))
    assert played.exit_codes == [-signal.SIGKILL] * victims
    assert played.last_points == [point] * victims, "the failpoint was where the process died"


@pytest.mark.parametrize("point", AFTER)
async def test_a_lost_answer_at_this_point_breaks_no_promise(point: str, played: Play) -> None:
    assert played.passed[point] > (0 if point in PASSED_ONCE else ANSWERS_LOST), "the failpoint was passed"
    assert played.exit_codes == [0]


PLAYS = {
    "test_the_registry_names_every_point_a_process_passes": play_trace,
    "test_a_kill_at_this_point_breaks_no_promise": play_kills,
    "test_a_lost_answer_at_this_point_breaks_no_promise": play_lost_answers,
}
