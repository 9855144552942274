"""Time as a collaborator, so that tests decide what time it is."""

import asyncio
import heapq
import time
from datetime import UTC, datetime, timedelta
from typing import Protocol


class Clock(Protocol):
    """What the runtime knows of time."""

    def monotonic(self) -> float:
        """Return seconds of a clock that never goes back; only differences mean something."""
        ...

    def now(self) -> datetime:
        """Return the present instant, timezone-aware UTC."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Return after `seconds`, at once if not positive."""
        ...


class SystemClock:
    """The machine's clock. Its monotonic time also passes while the process is frozen."""

    def monotonic(self) -> float:
        """Return time.monotonic()."""
        return time.monotonic()

    def now(self) -> datetime:
        """Return the present instant in UTC."""
        return datetime.now(UTC)

    async def sleep(self, seconds: float) -> None:
        """Sleep on the event loop."""
        await asyncio.sleep(max(0.0, seconds))


class ManualClock:
    """A clock that moves only when told to. Sleepers wake in the order of their instants."""

    def __init__(self, start: datetime = datetime(2026, 1, 1, tzinfo=UTC)) -> None:
        self._start = start
        self._elapsed = 0.0
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._count = 0

    def monotonic(self) -> float:
        """Return the seconds the clock was advanced by."""
        return self._elapsed

    def now(self) -> datetime:
        """Return the start plus the seconds advanced."""
        return self._start + timedelta(seconds=self._elapsed)

    async def sleep(self, seconds: float) -> None:
        """Return once the clock was advanced by `seconds`."""
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._count += 1
        heapq.heappush(self._sleepers, (self._elapsed + seconds, self._count, future))
        await future

    def sleepers(self) -> int:
        """Return how many tasks sleep."""
        return sum(not future.done() for _, _, future in self._sleepers)

    async def advance(self, seconds: float) -> None:
        """Move on by `seconds`, waking each sleeper at its instant and letting it run."""
        target = self._elapsed + seconds
        while self._sleepers and self._sleepers[0][0] <= target:
            self._elapsed, _, future = heapq.heappop(self._sleepers)
            if not future.done():
                future.set_result(None)
            # A sleeper may need several turns of the loop before it sleeps again.
            for _ in range(10):
                await asyncio.sleep(0)
        self._elapsed = target
