"""Connections to Postgres, opened when needed and closed when idle.

The last one used is the next one used, so that an idle process keeps at most one and finally none. No reset statement
when one is given back (it would cost a fifth of the speed): nothing here leaves anything behind in a connection, and
one whose statement was interrupted is thrown away.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

Connection = Any  # asyncpg.Connection, which has no types


@dataclass(frozen=True, slots=True)
class PoolStatistics:
    """How many connections are open, and how many of these are idle."""

    open: int
    idle: int


class Pool:
    """At most `max_size` connections; one that was idle for `idle_seconds` is closed."""

    def __init__(self, connect: Callable[[], Awaitable[Connection]], max_size: int, idle_seconds: float) -> None:
        self._connect = connect
        self._free = max_size
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._idle_seconds = idle_seconds
        self._idle: list[tuple[Connection, float]] = []
        self._open = 0
        self._is_closed = False
        self._reaper: asyncio.TimerHandle | None = None
        self._closing: set[asyncio.Task[None]] = set()

    def statistics(self) -> PoolStatistics:
        """Return the present figures."""
        return PoolStatistics(self._open, len(self._idle))

    async def acquire(self, timeout: float) -> tuple[Connection, bool]:
        """Return a connection for the caller alone, and whether it was used before.

        Raises TimeoutError if all stay busy for `timeout` seconds; errors of connecting pass through.
        """
        if self._is_closed:
            raise ConnectionError("the pool is closed")
        if self._free and not self._waiters:
            self._free -= 1
        else:
            await self._wait_slot(timeout)
        while self._idle:
            connection, _ = self._idle.pop()
            if not connection.is_closed():
                return connection, True
            self._open -= 1
        self._open += 1
        try:
            return await self._connect(), False
        except BaseException:
            self._open -= 1
            self._release_slot()
            raise

    def release(self, connection: Connection, *, usable: bool) -> None:
        """Give a connection back; one that is not `usable` is cut off."""
        if usable and not self._is_closed and not connection.is_closed():
            loop = asyncio.get_running_loop()
            self._idle.append((connection, loop.time()))
            if self._reaper is None:
                self._reaper = loop.call_later(self._idle_seconds, self._reap)
        else:
            connection.terminate()
            self._open -= 1
        self._release_slot()

    async def _wait_slot(self, timeout: float) -> None:
        """Return once a slot was handed over, in the order of asking. Raises TimeoutError."""
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[None] = loop.create_future()
        self._waiters.append(waiter)
        # A timer of our own: a busy process waits here for every statement, and a timeout context costs three times it.
        timer = loop.call_later(timeout, _give_up, waiter)
        try:
            await waiter
        except BaseException:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self._release_slot()  # cancelled in the moment it was handed over
            elif waiter in self._waiters:
                self._waiters.remove(waiter)
            raise
        finally:
            timer.cancel()

    def _release_slot(self) -> None:
        """Hand the slot to whoever has waited longest, or keep it free."""
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return
        self._free += 1

    def _reap(self) -> None:
        loop = asyncio.get_running_loop()
        oldest = loop.time() - self._idle_seconds
        # The list is ordered by when they were given back.
        while self._idle and self._idle[0][1] <= oldest:
            connection, _ = self._idle.pop(0)
            self._open -= 1
            task = loop.create_task(_close(connection, 1.0), name="close an idle connection")
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)
        self._reaper = loop.call_at(self._idle[0][1] + self._idle_seconds, self._reap) if self._idle else None

    async def aclose(self, timeout: float) -> None:
        """Close what is idle within `timeout` seconds; what is in use is cut off when given back. No more acquire()."""
        self._is_closed = True
        if self._reaper is not None:
            self._reaper.cancel()
            self._reaper = None
        idle, self._idle = self._idle, []
        self._open -= len(idle)
        closing = [asyncio.create_task(_close(connection, timeout)) for connection, _ in idle]
        await asyncio.gather(*closing, *self._closing)


def _give_up(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_exception(TimeoutError())


async def _close(connection: Connection, timeout: float) -> None:
    try:
        await connection.close(timeout=timeout)
    except Exception:  # it is of no use any more, whatever is wrong with it
        connection.terminate()
