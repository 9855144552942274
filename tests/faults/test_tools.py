"""A turn with tools is killed after every single statement, and Postgres is taken away at each: judged from outside.

The statements are not listed here: a turn without faults is traced first, and each point it passes is then the end of a
process in a play of its own. What happened is counted by the service behind the tools. Checked is:

- The message was acknowledged and has one outcome, and its turn's lines stand once, in their order.
- No side effect happened twice. One whose outcome is unknown is not repeated, and the model was told so.
- What takes a key happened once, however often it was asked for.
- A step whose result was in the journal when the process died was not made again.
"""

import asyncio
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from itertools import permutations
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest

from agent_runtime.loop.steps import UNKNOWN_OUTCOME
from agent_store.embedded import EmbeddedPostgres
from agent_store.failpoints import PLAIN_TURN, READING, REPEATED_MESSAGE, TOOL_READING, UPKEEP
from tests.faults.breakable import BreakablePostgres, Outage, breakable_postgres
from tests.faults.conftest import copied_database
from tests.faults.driver import Message, RuntimeProcess, until
from tests.faults.scene import Scene, staged_with
from tests.faults.shop import DONE, SCRIPT, Buyer, Shop, tools_of

# Dozens of plays in one test, each a process or two to start: beyond the usual time on a busy machine.
pytestmark = pytest.mark.timeout(1800)

# Bounded by the connections of one embedded Postgres (60) and by two cores.
AT_ONCE = 8
# Outages are mostly waited for, and each has a Postgres of its own.
OUTAGES_AT_ONCE = 8
PLAY_SECONDS = 240.0
# From a process's start until it is at its point.
REACH_SECONDS = 90.0
OUTAGE_SECONDS = 2.0
# The last thing a turn with tools passes.
FORGOTTEN = "store.forget_results.1.after"
# Every n-th point is taken for a second death.
SECOND_EVERY = 9
# Results of calls made at the same time are written together or not, as they arrive: so many of these more or fewer.
JOURNAL = "store.write_steps.1"
VARYING = 2
TRIES = 4
# What comes round by itself, or as often as clients and the person ask: passed more often in a slower turn. The first
# times count, and each is reached: what comes round goes on after the turn, and so do the clients.
COMING_ROUND = frozenset({*UPKEEP, *REPEATED_MESSAGE, *READING, *TOOL_READING, *PLAIN_TURN[:2]})
ROUNDS = 2
# The lines of the script's turn: what was said, three answers that ask for tools, their results, the reply.
CALLS = (3, 1, 2, 1)
LINES = ["user", *(role for calls in CALLS for role in ["assistant", *["tool"] * calls]), "assistant"]
# The calls of each tool in the script.
WANTED = Counter(pay=1, look=3, book=1, wire=1, post=1)
ONCE = ("pay", "wire", "post")


@dataclass(frozen=True, slots=True)
class Point:
    """The n-th passing (from 0) of a failpoint since the process began."""

    name: str
    skip: int

    @property
    def kill(self) -> str:
        """Return the failpoint that ends a process there."""
        return f"{self.name}=kill:{self.skip}"

    def is_passed(self, names: list[str]) -> bool:
        """Whether it is among the points that a process passed."""
        return names.count(self.name) > self.skip

    def __str__(self) -> str:
        return f"{self.name}#{self.skip}"


class Missed(Exception):  # noqa: N818 - no error: the turn was done with fewer statements this time
    """The turn has its outcome and never came to the point."""


@dataclass(slots=True)
class Stage:
    """One play: the agent's scene, the service, and what was found out when the process died."""

    scene: Scene
    shop: Shop
    folder: Path
    finished: Counter[str] = field(default_factory=Counter)
    """Calls whose result was in the journal at that moment, by tool."""
    made: Counter[str] = field(default_factory=Counter)
    """Calls made until then, by tool."""
    deaths: int = 0

    def trace(self, process: str = "first") -> Path:
        """Return the file in which a process says what it passes."""
        return self.folder / f"{process}.trace"

    def passed(self, process: str = "first") -> list[str]:
        """Return the points a process passed, in order."""
        trace = self.trace(process)
        return trace.read_text().splitlines() if trace.exists() else []

    async def approve(self) -> None:
        """Agree to whatever waits, like a person who asks again when no answer comes, until cancelled."""
        while True:
            for url in self.scene.fleet.urls() if self._is_asked() else ():
                with suppress(httpx.TransportError):
                    await self._approve_at(f"{url}{self.scene.agent.path}")
            await asyncio.sleep(0.05)

    def _is_asked(self) -> bool:
        """Whether the client was told last that its turn waits."""
        last = [message.answers[-1] for message in self.scene.clients.said if message.answers]
        return any(answer.turn_status == "waiting" for answer in last)

    async def _approve_at(self, agent: str) -> None:
        waiting = await self.scene.http.get(f"{agent}/approvals", timeout=5.0)
        if waiting.status_code != 200:
            assert waiting.status_code == 503, waiting.text
            return
        for item in waiting.json()["items"]:
            assert item["tool"] == "wire"
            place = f"{agent}/turns/{item['turnId']}/approvals/{item['callId']}"
            decided = await self.scene.http.post(place, json={"decision": "approve"}, timeout=5.0)
            assert decided.status_code in (200, 503), decided.text

    async def reach(self, point: Point, process: str = "first") -> None:
        """Return once the process passed the point. Raises Missed, only for statements that a turn may do without."""
        asking = asyncio.create_task(self._keep_asking(), name="asking")
        try:
            await until(lambda: self._is_decided(point, process), REACH_SECONDS, f"{point} is reached")
        finally:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
        names = self.passed(process)
        if not point.is_passed(names):
            assert names.count(point.name) >= point.skip + 1 - VARYING, f"the turn never came near {point}"
            raise Missed(str(point))

    def _is_decided(self, point: Point, process: str) -> bool:
        names = self.passed(process)
        return point.is_passed(names) or (point.name.startswith(JOURNAL) and FORGOTTEN in names)

    async def _keep_asking(self) -> None:
        """Ask on once the message has its outcome: how often clients ask during a turn is a matter of time."""
        while True:
            for message in self.scene.clients.said:
                if message.final is not None:
                    await self.scene.clients.repeat(message)
                    await self.scene.clients.follow(message)
                    for url in self.scene.fleet.urls():
                        with suppress(httpx.TransportError):
                            await self.scene.http.get(f"{url}{self.scene.agent.path}/approvals", timeout=5.0)
            await asyncio.sleep(0.1)

    async def note_death(self) -> None:
        """Remember how far the journal was and what had happened."""
        connection = await asyncpg.connect(self.scene.postgres_url, timeout=10, command_timeout=10)
        try:
            rows = await connection.fetch(
                "select name, count(*) from abide.steps where kind = 'tool' and finished_at is not null group by name"
            )
        finally:
            await connection.close()
        self.deaths += 1
        self.finished = Counter({row["name"]: row["count"] for row in rows})
        self.made = self.shop.counts()


@asynccontextmanager
async def stage(folder: Path, postgres_url: str) -> AsyncIterator[Stage]:
    """Yield a stage on which nothing runs yet."""
    with Shop().serving() as shop:
        agent = Buyer(name="buyer", delay_seconds=0, folder=folder, tools=tools_of(shop), replies=SCRIPT)
        async with staged_with(agent, postgres_url) as scene:
            play = Stage(scene, shop, folder)
            approver = asyncio.create_task(play.approve(), name="approver")
            try:
                yield play
            finally:
                approver.cancel()
                await asyncio.gather(approver, return_exceptions=True)
            if not approver.cancelled():
                approver.result()  # it ends by itself only if something is wrong


async def judge(play: Stage, message: Message) -> list[str]:
    """Return one sentence per broken promise."""
    final = message.final
    if final is None or final.turn_status != "completed" or final.reply != DONE:
        return [f"the outcome is {final}"]
    await play.scene.clients.repeat(message)
    outcomes = {(answer.turn_id, answer.turn_status, answer.reply) for answer in message.answers if answer.final}
    found = [f"{len(outcomes)} outcomes: {outcomes}"] if len(outcomes) > 1 else []
    lines = await play.scene.clients.history(message.user, message.session)
    if [line["role"] for line in lines] != LINES:
        found.append(f"the history is {[line['role'] for line in lines]}")
    counts = play.shop.counts()
    results = [line["content"] for line in lines if line["role"] == "tool"]
    unknown = sum(result == UNKNOWN_OUTCOME for result in results)
    happened = sum(counts[tool] for tool in ONCE)
    found += [f"{tool} took effect {counts[tool]} times" for tool in ONCE if counts[tool] > 1]
    if unknown > play.deaths or happened + unknown < len(ONCE):
        found.append(f"{unknown} unknown outcomes after {play.deaths} deaths, while of {ONCE} {happened} took effect")
    if len(play.shop.keys("book")) != 1:
        found.append(f"book was called with {len(play.shop.keys('book'))} keys")
    if counts["look"] < WANTED["look"]:
        found.append("look was not called")
    for tool, finished in play.finished.items():
        again = counts[tool] - play.made[tool]
        if again > WANTED[tool] - finished:
            found.append(f"{tool} was called {again} times more, though {finished} of its calls had finished")
    found += await judge_rows(play.scene)
    return found


async def judge_rows(scene: Scene) -> list[str]:
    """Return what is wrong in Postgres once all is done."""
    connection = await asyncpg.connect(scene.postgres_url, timeout=10, command_timeout=10)
    try:
        turns = await connection.fetch("select status, attempts from abide.turns")
        active = await connection.fetchval("select count(*) from abide.active_turns")
        steps = await connection.fetch("select status from abide.steps")
    finally:
        await connection.close()
    found = [f"turns: {[dict(turn) for turn in turns]}"] if len(turns) != 1 else []
    if active:
        found.append("the turn is done and still counts as running")
    if len(steps) != len(LINES) - 2 or any(step["status"] == "started" for step in steps):
        found.append(f"the journal has {[step['status'] for step in steps]}")
    return found


def start(play: Stage, failpoint: str = "", *, process: str = "first") -> RuntimeProcess:
    """Start a process, traced, with a failpoint if one is given; it is always the same instance."""
    environ = {"ABIDE_FAILPOINTS_TRACE": str(play.trace(process))}
    if failpoint:
        environ["ABIDE_FAILPOINTS"] = failpoint
    return play.scene.fleet.start("only", environ)


async def wait_killed(play: Stage, victim: RuntimeProcess, point: Point, *, process: str = "first") -> None:
    """Wait until the process died at its point, and remember how far the turn was. Raises Missed."""
    await play.reach(point, process)
    await victim.wait_exit()
    assert victim.exit_code == -signal.SIGKILL
    last = play.passed(process)[-1]
    assert last == point.name, f"it died at {last}"
    await play.note_death()


async def traced(folder: Path, postgres_url: str) -> list[Point]:
    """Return every point that a process passes from the message to the end of its turn, without faults."""
    async with stage(folder, postgres_url) as play:
        process = start(play)
        await process.wait_ready(play.scene.http)
        message = await play.scene.clients.say("ann", "main")
        await until(lambda: FORGOTTEN in play.passed(), 10, "the journal is tidied")
        assert await judge(play, message) == []
        assert play.shop.counts() == WANTED
        names = play.passed()
    return points_between(names, "store.accept.1.before", FORGOTTEN)


def points_between(names: list[str], first: str, last: str) -> list[Point]:
    """Return the points from the first passing of one to the first passing of another."""
    begin, end = names.index(first), names.index(last)
    seen: Counter[str] = Counter()
    points = []
    for position, name in enumerate(names):
        if begin <= position <= end and (seen[name] < ROUNDS or name not in COMING_ROUND):
            points.append(Point(name, seen[name]))
        seen[name] += 1
    return points


async def play_kill(folder: Path, postgres_url: str, point: Point) -> list[str]:
    """Let the process die at the point, start it again, and judge what comes of it."""
    async with stage(folder, postgres_url) as play:
        async with sending(play) as message:
            await wait_killed(play, start(play, point.kill), point)
            await play.scene.start("only")
        return await judge(play, message)


async def trace_second(folder: Path, postgres_url: str, first: Point) -> list[Point]:
    """Return what the process passes that takes the turn over after a death at the point."""
    async with stage(folder, postgres_url) as play:
        async with sending(play) as message:
            await wait_killed(play, start(play, first.kill), first)
            start(play, process="second")
        assert await judge(play, message) == []
        await until(lambda: FORGOTTEN in play.passed("second"), 10, "the journal is tidied")
        return points_between(play.passed("second"), "store.claim_orphans.1.before", FORGOTTEN)


async def play_two_kills(folder: Path, postgres_url: str, first: Point, second: Point) -> list[str]:
    """Let the process die at one point, and the one that takes over at another."""
    async with stage(folder, postgres_url) as play:
        async with sending(play) as message:
            await wait_killed(play, start(play, first.kill), first)
            await wait_killed(play, start(play, second.kill, process="second"), second, process="second")
            await play.scene.start("only")
        return await judge(play, message)


@asynccontextmanager
async def sending(play: Stage) -> AsyncIterator[Message]:
    """Send the message until it is answered, while the block runs and after it."""
    message = play.scene.clients.compose("ann", "main")
    settled = asyncio.create_task(play.scene.clients.settle(message, timeout=PLAY_SECONDS / 2))
    try:
        yield message
        await settled
    finally:
        settled.cancel()
        await asyncio.gather(settled, return_exceptions=True)


async def play_lost_answer(folder: Path, postgres_url: str, point: Point) -> list[str]:
    """The statement takes effect, and the process is told that Postgres went away."""
    async with stage(folder, postgres_url) as play:
        process = start(play, f"{point.name}=error:1:{point.skip}")
        async with sending(play) as message:
            await play.reach(point)
        assert process.running
        return await judge(play, message)


async def play_death_in_a_call(folder: Path, postgres_url: str, tool: str) -> list[str]:
    """The process dies after a tool took effect and before it answered."""
    async with stage(folder, postgres_url) as play:
        victim = start(play)
        await victim.wait_ready(play.scene.http)

        def kill(call: Any) -> None:
            if call.tool == tool and play.shop.count(tool) == 1:
                victim.kill()

        play.shop.before_answer = kill
        async with sending(play) as message:
            await victim.wait_exit(REACH_SECONDS)
            await play.note_death()
            await play.scene.start("only")
        return await judge(play, message)


async def play_outages(folder: Path, outages: Sequence[tuple[Outage, Point]]) -> list[str]:
    """Postgres goes away while the process is at a point, and comes back; then at the next."""
    async with breakable_postgres(folder / "postgres") as postgres, stage(folder, postgres.server.url) as play:
        process = start(play, ",".join(f"{point.name}=sleep:1:{point.skip}" for _, point in outages))
        await process.wait_ready(play.scene.http)
        async with sending(play) as message:
            for outage, point in outages:
                await play.reach(point)
                await asyncio.to_thread(lose(postgres, outage))
        assert process.running
        return await judge(play, message)


def in_pairs(points: list[Point]) -> list[tuple[Point, Point]]:
    """Return pairs that hold every point, each of two different failpoints, in the order of the turn."""
    by_name, half = sorted(points, key=str), len(points) // 2
    pairs = [(by_name[number], by_name[number + half]) for number in range(len(points) - half)]
    assert all(first.name != second.name for first, second in pairs)
    return [(one, two) if points.index(one) < points.index(two) else (two, one) for one, two in pairs]


def lose(postgres: BreakablePostgres, outage: Outage) -> Callable[[], None]:
    """Return what takes Postgres away for longer than the process sleeps, and brings it back."""

    def away() -> None:
        postgres.break_(outage)
        time.sleep(OUTAGE_SECONDS)  # the length of the outage is what is tested
        postgres.mend()

    return away


async def play_all(
    plays: dict[str, Callable[[Path], Awaitable[list[str]]]], folder: Path, at_once: int
) -> dict[str, list[str]]:
    """Run plays side by side, each in a folder of its own; return what was wrong, by play."""
    gate = asyncio.Semaphore(at_once)
    broken: dict[str, list[str]] = {}

    async def run(number: int, name: str, play: Callable[[Path], Awaitable[list[str]]]) -> None:
        async with gate:
            own = folder / f"{number}"
            own.mkdir()
            try:
                found = await play_until_reached(play, own)
            except Exception as error:
                found = [f"{type(error).__name__}: {error}", *getattr(error, "__notes__", [])]
            if found:
                broken[name] = found

    async with asyncio.TaskGroup() as group:
        for number, (name, play) in enumerate(plays.items()):
            group.create_task(run(number, name, play))
    return broken


async def play_until_reached(play: Callable[[Path], Awaitable[list[str]]], folder: Path) -> list[str]:
    """Play, and again from the beginning where the turn did without the statement, up to TRIES times.

    If it did without in all of them, what it does at the statements that it has is judged by other plays.
    """
    for number in range(TRIES):
        own = folder / f"{number}"
        own.mkdir()
        try:
            async with asyncio.timeout(PLAY_SECONDS):
                return await play(own)
        except Missed as missed:
            print(f"no {missed} this time")
    return []


class Databases:
    """Fresh databases of one server, for plays."""

    def __init__(self, server: EmbeddedPostgres, template: str) -> None:
        self._server = server
        self._template = template
        self._entrance = asyncio.Lock()

    def on(self, play: Callable[..., Awaitable[list[str]]], *arguments: Any) -> Callable[[Path], Awaitable[list[str]]]:
        """Return the play on a database of its own."""

        async def run(folder: Path) -> list[str]:
            async with self.fresh() as url:
                return await play(folder, url, *arguments)

        return run

    @asynccontextmanager
    async def fresh(self) -> AsyncIterator[str]:
        """Yield the URL of a migrated database."""
        database = copied_database(self._server.url, self._template)
        async with self._entrance:  # two copies of one template at a time would get in each other's way
            url = await asyncio.to_thread(database.__enter__)
        try:
            yield url
        finally:
            await asyncio.to_thread(database.__exit__, None, None, None)


@pytest.fixture
def databases(postgres_server: EmbeddedPostgres, postgres_template: str) -> Databases:
    """Fresh databases for plays."""
    return Databases(postgres_server, postgres_template)


async def trace_turn(databases: Databases, folder: Path) -> list[Point]:
    """Return the points of a turn, on a database of its own."""
    own = folder / "trace"
    own.mkdir()
    async with databases.fresh() as url:
        points = await traced(own, url)
    print(f"{len(points)} points: {' '.join(map(str, points))}")
    assert sum("write_steps" in point.name for point in points) >= 8, "the turn has a journal"
    return points


async def test_a_kill_at_any_statement_of_a_turn_with_tools_breaks_no_promise(
    databases: Databases, tmp_path: Path
) -> None:
    points = await trace_turn(databases, tmp_path)
    plays = {f"kill at {point}": databases.on(play_kill, point) for point in points}
    for tool in WANTED:
        plays[f"kill in {tool}"] = databases.on(play_death_in_a_call, tool)
    assert await play_all(plays, tmp_path, AT_ONCE) == {}


async def test_a_second_kill_while_the_turn_is_taken_over_breaks_no_promise(
    databases: Databases, tmp_path: Path
) -> None:
    journaled = [point for point in await trace_turn(databases, tmp_path) if point.name == "store.write_steps.1.after"]
    seconds: dict[Point, list[Point]] = {}

    def tracing(first: Point) -> Callable[[Path, str], Awaitable[list[str]]]:
        async def play(folder: Path, postgres_url: str) -> list[str]:
            seconds[first] = await trace_second(folder, postgres_url, first)
            return []

        return play

    traces = tmp_path / "traces"
    traces.mkdir()
    plays = {f"trace after {first}": databases.on(tracing(first)) for first in journaled}
    assert await play_all(plays, traces, AT_ONCE) == {}
    pairs = [
        (first, second)
        for number, first in enumerate(journaled)
        for second in seconds.get(first, [])[number % SECOND_EVERY :: SECOND_EVERY]
    ]
    assert len(pairs) > len(journaled)
    plays = {f"kills at {first} and {second}": databases.on(play_two_kills, first, second) for first, second in pairs}
    assert await play_all(plays, tmp_path, AT_ONCE) == {}


async def test_a_lost_answer_at_any_statement_of_a_turn_with_tools_breaks_no_promise(
    databases: Databases, tmp_path: Path
) -> None:
    points = [point for point in await trace_turn(databases, tmp_path) if point.name.endswith(".after")]
    plays = {f"answer lost at {point}": databases.on(play_lost_answer, point) for point in points}
    assert await play_all(plays, tmp_path, AT_ONCE) == {}


async def test_postgres_goes_away_at_any_statement_of_a_turn_with_tools(databases: Databases, tmp_path: Path) -> None:
    points = [point for point in await trace_turn(databases, tmp_path) if point.name.endswith(".before")]

    def play_at(*outages: tuple[Outage, Point]) -> Callable[[Path], Awaitable[list[str]]]:
        return lambda folder: play_outages(folder, outages)

    plays = {
        f"{one.name} at {first}, {other.name} at {second}": play_at((one, first), (other, second))
        for first, second in in_pairs(points)
        for one, other in permutations((Outage.IMMEDIATE, Outage.FROZEN))
    }
    assert await play_all(plays, tmp_path, OUTAGES_AT_ONCE) == {}
