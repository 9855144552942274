"""What turns say while they run, for whoever listens in this process.

Deltas belong to an attempt: falling back to another model, a further step and a takeover each begin a new one, and
what the attempt before had said does not count. Attempt numbers only rise, also across processes.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final
from uuid import UUID

from agent_store.ports import TurnRecord

ATTEMPTS_PER_CLAIM: Final = 100_000
"""More than the attempts one claim can make (steps times models), so that a takeover always counts higher."""
KEPT_FINISHED: Final = 256
KEPT_CHARS: Final = 16_000
"""Finished streams stay for clients that reconnect to read the rest; beyond this they get the whole text again."""


def first_attempt(claim_attempts: int) -> int:
    """Return the number of the first attempt of a turn that is claimed for the n-th time."""
    return max(0, claim_attempts - 1) * ATTEMPTS_PER_CLAIM + 1


class TurnStream:
    """The text of one turn's present attempt, and its outcome once committed. Not thread-safe."""

    __slots__ = ("_waiters", "attempt", "closed", "deltas", "outcome", "usage", "waiting", "watchers")

    def __init__(self) -> None:
        self.attempt = 0
        self.deltas: list[str] = []
        self.outcome: TurnRecord | None = None
        self.usage = (0, 0)
        """Tokens in and out, of a turn that ended in this process."""
        self.watchers = 0
        self.waiting = False
        """The turn waits for a person; nobody runs it."""
        self.closed = False
        self._waiters: list[asyncio.Future[bool]] = []

    def begin(self, attempt: int) -> None:
        """Start attempt number `attempt`, forgetting what was said."""
        self.attempt = attempt
        self.deltas = []
        self.waiting = False
        self._wake()

    def restart(self) -> None:
        """Start the next attempt if this one said anything."""
        if self.deltas:
            self.begin(self.attempt + 1)

    def add(self, text: str) -> None:
        """Append a delta."""
        self.deltas.append(text)
        self._wake()

    def finish(self, outcome: TurnRecord) -> None:
        """Publish the committed outcome."""
        self.outcome = outcome
        self._wake()

    def wait_for_person(self) -> None:
        """Say that the turn goes on only when a person has decided, here or in another process."""
        self.waiting = True
        self._wake()

    def close(self) -> None:
        """Send the listeners away: this process ends, and the turn goes on in another one."""
        self.closed = True
        self._wake()

    async def wait_change(self, timeout: float) -> bool:
        """Wait until something is said or `timeout` seconds passed; True if something was."""
        loop = asyncio.get_running_loop()
        said: asyncio.Future[bool] = loop.create_future()
        self._waiters.append(said)
        # A timer of our own: every request waits here, and a timeout context costs three times as much.
        timer = loop.call_later(timeout, _settle, said, False)
        try:
            return await said
        finally:
            timer.cancel()
            if said in self._waiters:
                self._waiters.remove(said)

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            _settle(waiter, True)


def _settle(waiter: "asyncio.Future[bool]", said: bool) -> None:
    if not waiter.done():
        waiter.set_result(said)


class StreamHub:
    """The streams of all turns that run or are listened to here; a stream lives while anybody holds it."""

    def __init__(self) -> None:
        self._streams: dict[UUID, TurnStream] = {}
        self._finished: OrderedDict[UUID, TurnStream] = OrderedDict()
        self._closed = False

    @contextmanager
    def hold(self, turn_id: UUID) -> Iterator[TurnStream]:
        """Yield the turn's stream, made on first use and dropped after the last holder."""
        stream = self._streams.get(turn_id) or self._finished.get(turn_id)
        if stream is None:
            stream = TurnStream()
        stream.closed = self._closed
        self._streams[turn_id] = stream
        stream.watchers += 1
        try:
            yield stream
        finally:
            stream.watchers -= 1
            if stream.watchers == 0:
                self._streams.pop(turn_id, None)
                self._keep_finished(turn_id, stream)

    def find(self, turn_id: UUID) -> TurnStream | None:
        """Return the stream if somebody holds it."""
        return self._streams.get(turn_id)

    def close(self) -> None:
        """Send all listeners away, now and later."""
        self._closed = True
        for stream in self._streams.values():
            stream.close()

    def __len__(self) -> int:
        """Return how many streams are held."""
        return len(self._streams)

    def _keep_finished(self, turn_id: UUID, stream: TurnStream) -> None:
        if stream.outcome is None or sum(map(len, stream.deltas)) > KEPT_CHARS:
            return
        self._finished[turn_id] = stream
        self._finished.move_to_end(turn_id)
        while len(self._finished) > KEPT_FINISHED:
            self._finished.popitem(last=False)
