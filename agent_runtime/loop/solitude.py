"""Turns run side by side, save one suspected of ending processes: it runs alone, so that only the culprit fails.

Whoever waits here waits for a bounded time: a suspect waits `quiet` seconds for the others to end, during which no
other begins, and has the process for itself for `alone` seconds at most.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

QUIET_SECONDS: Final = 20.0
ALONE_SECONDS: Final = 30.0


class Solitude:
    """Lets many in, or one alone. Belongs to one event loop."""

    def __init__(self, *, quiet: float = QUIET_SECONDS, alone: float = ALONE_SECONDS) -> None:
        self._quiet = quiet
        self._longest = alone
        self._inside = 0
        self._open = asyncio.Event()
        self._open.set()
        self._empty = asyncio.Event()
        self._empty.set()
        self._suspects = asyncio.Lock()

    @asynccontextmanager
    async def beside(self) -> AsyncIterator[None]:
        """Run beside others; waits while one is alone, or about to be."""
        while not self._open.is_set():
            await self._open.wait()
        self._inside += 1
        self._empty.clear()
        try:
            yield
        finally:
            self._inside -= 1
            if not self._inside:
                self._empty.set()

    @asynccontextmanager
    async def alone(self, mark: Callable[[bool], Awaitable[None]]) -> AsyncIterator[bool]:
        """Run alone, one after the other; False if others did not end in time, so that it runs beside them.

        `mark(True)` is called before, and `mark(False)` if it takes so long that others go on: from then on it is no
        longer alone. What `mark` raises before passes through.
        """
        async with self._suspects:
            self._open.clear()
            try:
                is_alone = await self._wait_empty()
                if not is_alone:
                    self._open.set()
                    yield False
                    return
                await mark(True)
                limit = asyncio.create_task(self._let_others_go_on(mark), name="solitude-ends")
                try:
                    yield True
                finally:
                    limit.cancel()
                    await asyncio.gather(limit, return_exceptions=True)
            finally:
                self._open.set()

    async def _wait_empty(self) -> bool:
        try:
            async with asyncio.timeout(self._quiet):
                await self._empty.wait()
        except TimeoutError:
            return False
        return True

    async def _let_others_go_on(self, mark: Callable[[bool], Awaitable[None]]) -> None:
        await asyncio.sleep(self._longest)
        await mark(False)
        self._open.set()
