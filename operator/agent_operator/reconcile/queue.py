"""The keyed work queue: each key at most once, never in two workers, with growing pauses after failures.

Bounded by the number of keys. Adding a key that is being worked on makes it come again afterwards. Order is that of
arrival. Time is the event loop's, so that tests may run on a virtual clock.
"""

import asyncio
import heapq
import random
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

BACKOFF_FIRST: Final = 0.2
BACKOFF_LIMIT: Final = 300.0
JITTER: Final = 0.2
_DOUBLINGS: Final = 20

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True, slots=True)
class QueueStatistics:
    """A snapshot: `depth` keys wait, `delayed` ones are due later, `processing` are worked on; ages in seconds."""

    depth: int
    delayed: int
    processing: int
    oldest_waiting: float
    oldest_processing: float
    retries: int


class QueueClosed(Exception):  # noqa: N818 - the end of work, not a mistake
    """The queue takes no more work and has none left."""


class WorkQueue(Generic[Key]):
    """See the module. All methods but `get` and `wait_idle` return at once."""

    def __init__(self, *, random_source: random.Random | None = None) -> None:
        self._waiting: OrderedDict[Key, float] = OrderedDict()
        self._processing: dict[Key, float] = {}
        self._again: dict[Key, float] = {}
        self._due: dict[Key, float] = {}
        self._heap: list[tuple[float, int, Key]] = []
        self._counter = 0
        self._failures: dict[Key, int] = {}
        self._retries = 0
        self._closed = False
        self._changed = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._random = random_source or random.Random()

    def add(self, key: Key) -> None:
        """Let the key be worked on as soon as a worker is free. Does nothing after `close`."""
        if self._closed:
            return
        now = self._now()
        if key in self._processing:
            self._again.setdefault(key, now)
        elif key not in self._waiting:
            self._due.pop(key, None)
            self._waiting[key] = now
            self._changed.set()

    def add_after(self, key: Key, delay: float) -> None:
        """Let the key be worked on in `delay` seconds, or earlier if something else asks for it."""
        if self._closed or key in self._waiting:
            return
        due = self._now() + delay
        if due < self._due.get(key, float("inf")):
            self._due[key] = due
            self._counter += 1
            heapq.heappush(self._heap, (due, self._counter, key))
            self._schedule()

    def retry(self, key: Key, *, at_least: float = 0.0) -> float:
        """Let the key be worked on after a pause that doubles with each failure in a row; return the pause."""
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        self._retries += 1
        pause = min(BACKOFF_FIRST * float(2 ** min(failures, _DOUBLINGS)), BACKOFF_LIMIT)
        pause = max(pause * self._random.uniform(1 - JITTER, 1 + JITTER), at_least)
        self.add_after(key, pause)
        return pause

    def forget(self, key: Key) -> None:
        """Count the next failure of the key as its first."""
        self._failures.pop(key, None)

    async def get(self) -> tuple[Key, float]:
        """Wait for a key and return it with the seconds it waited; call `done` when it was worked on.

        Raises: QueueClosed. If cancelled, nothing is lost.
        """
        while True:
            self._promote()
            if self._waiting:
                key, since = self._waiting.popitem(last=False)
                now = self._now()
                self._processing[key] = now
                return key, now - since
            if self._closed:
                raise QueueClosed
            self._changed.clear()
            await self._changed.wait()

    def done(self, key: Key) -> None:
        """Say that the work on a key has ended, however it ended."""
        self._processing.pop(key, None)
        since = self._again.pop(key, None)
        if since is not None and not self._closed:
            self._due.pop(key, None)
            self._waiting[key] = since
        self._changed.set()

    def close(self) -> None:
        """Take no more work; what waits is dropped (the next leader looks at everything), what runs goes on."""
        self._closed = True
        self._waiting.clear()
        self._again.clear()
        self._due.clear()
        self._heap.clear()
        if self._timer is not None:
            self._timer.cancel()
        self._changed.set()

    async def wait_idle(self) -> None:
        """Wait until nothing is being worked on and nothing waits."""
        while self._processing or self._waiting:
            self._changed.clear()
            await self._changed.wait()

    def statistics(self) -> QueueStatistics:
        """Return a snapshot."""
        now = self._now()
        return QueueStatistics(
            depth=len(self._waiting),
            delayed=len(self._due),
            processing=len(self._processing),
            oldest_waiting=now - min(self._waiting.values(), default=now),
            oldest_processing=now - min(self._processing.values(), default=now),
            retries=self._retries,
        )

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def _promote(self) -> None:
        """Move what is due to the waiting keys."""
        now = self._now()
        while self._heap and self._heap[0][0] <= now:
            due, _, key = heapq.heappop(self._heap)
            if self._due.get(key) == due:
                del self._due[key]
                self.add(key)

    def _schedule(self) -> None:
        """Wake a worker when the next key is due."""
        if self._timer is not None:
            self._timer.cancel()
        if self._heap:
            self._timer = asyncio.get_running_loop().call_at(self._heap[0][0], self._wake)

    def _wake(self) -> None:
        self._timer = None
        self._promote()
        self._changed.set()
        if self._heap:
            self._schedule()
