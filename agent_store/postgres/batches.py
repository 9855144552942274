"""Statements that carry the work of several callers: what arrives while one is under way shares the next.

Nobody waits for company: a call that finds its lane free is sent at once, alone. A busy process so pays one round trip,
one wake-up of a server process and one commit for many turns.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Final, Generic, Protocol, TypeVar

MOST_TOGETHER: Final = 64
"""Calls in one statement."""
MOST_BYTES: Final = 1_000_000
"""Content in one statement; a call that has more goes alone."""
SLOW_SECONDS: Final = 0.05
"""A statement that takes longer (its session may be locked by a long deletion) does not hold up the next one."""


class Shared(Protocol):
    """One caller's part of a statement. Parts of one statement never have the same `place`."""

    @property
    def place(self) -> tuple[str, str]:
        """User and name of the session."""
        ...

    @property
    def size(self) -> int:
        """Bytes of content, about."""
        ...


K = TypeVar("K", bound=Hashable)
S = TypeVar("S", bound=Shared)
R = TypeVar("R")
Run = Callable[[K, Sequence[S]], Awaitable[Sequence[R | None]]]
"""Sends one statement; the answer to each part in its order, None: the statement did not do it."""


@dataclass(slots=True)
class _Call(Generic[S, R]):
    part: S
    answer: "asyncio.Future[R | None]"


@dataclass(slots=True)
class _Lane(Generic[S, R]):
    """What waits for the same statement, and whether one is under way that the rest has to wait for."""

    waiting: deque[_Call[S, R]] = field(default_factory=deque)
    busy: bool = False


class Batches(Generic[K, S, R]):
    """Shares statements among the calls that have the same key.

    What keeps it right:

    - The parts of a statement are sorted by user and name, and it locks their sessions in that order, as every batch of
      every process does. So two of them never wait for each other in a circle.
    - A session comes at most once in a statement: a second call for it waits for the next one.
    - A statement is one transaction, so it does all or nothing. If it is refused because of one part (`is_refusal`),
      each part is sent alone, and only the culprit hears of it. If it is unknown what became of it, every caller is
      told so, as for a statement of its own.
    - Every caller's wait is bounded: a statement under way has deadlines, and after SLOW_SECONDS the next one starts
      beside it, as far as there are connections. The number of callers is bounded by theirs.
    """

    def __init__(self, run: Run[K, S, R], is_refusal: Callable[[Exception], bool]) -> None:
        self._run = run
        self._is_refusal = is_refusal
        self._lanes: dict[K, _Lane[S, R]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def call(self, key: K, part: S) -> R | None:
        """Return the answer to this part. Raises what the statement raises.

        If cancelled while it waits, it is not sent; while its statement is under way, it is unknown what became of it.
        """
        loop = asyncio.get_running_loop()
        call = _Call[S, R](part, loop.create_future())
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = _Lane()
        lane.waiting.append(call)
        if not lane.busy:
            lane.busy = True
            # From the loop, so that everybody who calls in this round is along.
            loop.call_soon(self._next, key, lane)
        return await call.answer

    def _next(self, key: K, lane: _Lane[S, R]) -> None:
        calls = _take(lane.waiting)
        if not calls:
            lane.busy = False
            if not lane.waiting and self._lanes.get(key) is lane:
                del self._lanes[key]
            return
        lane.busy = True
        task = asyncio.get_running_loop().create_task(self._send(key, lane, calls), name="statement")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _send(self, key: K, lane: _Lane[S, R], calls: list[_Call[S, R]]) -> None:
        leaves = _Once(lambda: self._next(key, lane))
        timer = asyncio.get_running_loop().call_later(SLOW_SECONDS, leaves)
        try:
            await self._answer(key, calls)
        finally:
            timer.cancel()
            leaves()

    async def _answer(self, key: K, calls: list[_Call[S, R]]) -> None:
        try:
            answers = await self._run(key, [call.part for call in calls])
        except Exception as error:
            if len(calls) > 1 and self._is_refusal(error):
                await asyncio.gather(*(self._answer(key, [call]) for call in calls))
                return
            for call in calls:
                if not call.answer.done():
                    call.answer.set_exception(error)
            return
        except asyncio.CancelledError:
            for call in calls:
                call.answer.cancel()
            raise
        for call, answer in zip(calls, answers, strict=True):
            if not call.answer.done():
                call.answer.set_result(answer)

    async def aclose(self, timeout: float) -> None:
        """Wait for the statements under way, for at most `timeout` seconds, then give them up."""
        if tasks := list(self._tasks):
            _, left = await asyncio.wait(tasks, timeout=timeout)
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)


class _Once:
    """Calls a function at most once."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[[], None]) -> None:
        self._function: Callable[[], None] | None = function

    def __call__(self) -> None:
        function, self._function = self._function, None
        if function is not None:
            function()


def _take(waiting: deque[_Call[S, R]]) -> list[_Call[S, R]]:
    """Take the next statement's calls from those that wait, in order of asking; return them sorted by place."""
    taken: dict[tuple[str, str], _Call[S, R]] = {}
    left: list[_Call[S, R]] = []
    size = 0
    while waiting and len(taken) < MOST_TOGETHER:
        call = waiting.popleft()
        if call.answer.done():
            continue  # its caller went away before anything was sent
        if call.part.place in taken:
            left.append(call)
            continue
        size += call.part.size
        if taken and size > MOST_BYTES:
            left.append(call)
            break
        taken[call.part.place] = call
    waiting.extendleft(reversed(left))
    return [taken[place] for place in sorted(taken)]
