"""Following a turn from outside: waiting for its outcome, and its events as a stream that can be resumed.

What runs in this process is heard at once; what runs elsewhere is found by asking the store, more and more rarely.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Final

from agent_api.wire import TurnStatus
from agent_runtime.clock import Clock
from agent_runtime.loop.stream import StreamHub, TurnStream
from agent_store.errors import StoreUnavailable
from agent_store.ports import TurnRecord

Poll = Callable[[], Awaitable[TurnRecord]]
FIRST_POLL: Final = 0.1
LONGEST_POLL: Final = 2.0
HEARTBEAT_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True)
class TurnEvent:
    """One event: `kind` is accepted, delta, reset, completed or failed; the outcome's events carry `turn`."""

    kind: str
    attempt: int
    index: int
    text: str = ""
    turn: TurnRecord | None = None


async def watch_outcome(turn: TurnRecord, stream: TurnStream, poll: Poll, timeout: float, clock: Clock) -> TurnRecord:
    """Return the turn once final, when it waits for a person, or as last seen after `timeout` seconds.

    Raises what `poll` raises but outages.
    """
    deadline = clock.monotonic() + timeout
    next_poll, pause = clock.monotonic() + FIRST_POLL, FIRST_POLL
    while True:
        if stream.outcome is not None:
            return stream.outcome
        if stream.closed:
            return turn
        if stream.waiting:
            turn = await _poll_once(replace(turn, status=TurnStatus.WAITING), poll)
            if turn.status.is_final or turn.status is TurnStatus.WAITING:
                return turn
            stream.waiting = False  # another process goes on with it
        now = clock.monotonic()
        if now >= next_poll or now >= deadline:
            turn = await _poll_once(turn, poll)
            pause = min(pause * 2, LONGEST_POLL)
            next_poll = clock.monotonic() + pause
            if turn.status.is_final or turn.status is TurnStatus.WAITING or now >= deadline:
                return stream.outcome or turn
        await stream.wait_change(max(0.001, min(next_poll, deadline) - clock.monotonic()))


async def _poll_once(turn: TurnRecord, poll: Poll) -> TurnRecord:
    try:
        return await poll()
    except StoreUnavailable:
        return turn


async def watch_events(
    turn: TurnRecord, hub: StreamHub, poll: Poll, last_event: tuple[int, int] | None, clock: Clock
) -> AsyncGenerator[TurnEvent | None, None]:
    """Yield the events behind `last_event`; None when nothing happened for a while, so that the line is kept alive.

    Ends after `completed` or `failed`, or without them when the process ends. Raises what `poll` raises but outages.
    """
    with hub.hold(turn.id) as stream:
        follower = _Follower(stream, last_event)
        if last_event is None:
            yield TurnEvent("accepted", 0, 0, turn=turn)
        next_poll, pause = clock.monotonic() + (0 if turn.status.is_final else FIRST_POLL), FIRST_POLL
        silent_since = clock.monotonic()
        while True:
            for event in follower.news():
                silent_since = clock.monotonic()
                yield event
            if stream.outcome is not None:
                yield follower.outcome(stream.outcome)
                return
            if stream.closed:
                return
            now = clock.monotonic()
            if now - silent_since >= HEARTBEAT_SECONDS:
                silent_since = now
                yield None
            if now >= next_poll:
                if not turn.status.is_final:
                    turn = await _poll_once(turn, poll)
                pause = min(pause * 2, LONGEST_POLL)
                next_poll = clock.monotonic() + pause
                if turn.status.is_final and stream.outcome is None:
                    for event in follower.told_by_store(turn):
                        yield event
                    return
                continue
            await stream.wait_change(max(0.001, min(next_poll, silent_since + HEARTBEAT_SECONDS) - now))


class _Follower:
    """Where one listener stands in a stream: which attempt, up to which delta (deltas count from 1)."""

    def __init__(self, stream: TurnStream, last_event: tuple[int, int] | None) -> None:
        self._stream = stream
        self._attempt, self._index = last_event or (0, 0)

    def news(self) -> list[TurnEvent]:
        """Return what was said since."""
        stream = self._stream
        events: list[TurnEvent] = []
        # An attempt behind the listener's is a stream that begins anew here, before its turn is claimed.
        if stream.attempt > self._attempt:
            if self._attempt > 0 and self._index > 0:
                events.append(TurnEvent("reset", stream.attempt, 0))
            self._attempt, self._index = stream.attempt, 0
        if stream.attempt == self._attempt:
            fresh = stream.deltas[self._index :]
            events += [
                TurnEvent("delta", self._attempt, self._index + offset, text=text)
                for offset, text in enumerate(fresh, start=1)
            ]
            self._index += len(fresh)
        return events

    def outcome(self, turn: TurnRecord) -> TurnEvent:
        """Return the last event; whoever had it already gets it again under the same id."""
        kind = "completed" if turn.status in (TurnStatus.COMPLETED, TurnStatus.FALLBACK) else "failed"
        said = len(self._stream.deltas) if self._stream.attempt == self._attempt else self._index
        return TurnEvent(kind, self._attempt, said + 1, turn=turn)

    def told_by_store(self, turn: TurnRecord) -> list[TurnEvent]:
        """Return the events of a turn that ended elsewhere: its whole text as one attempt more, then the outcome."""
        events: list[TurnEvent] = []
        if self._attempt > 0 and self._index > 0:
            events.append(TurnEvent("reset", self._attempt + 1, 0))
        self._attempt, self._index = self._attempt + 1, 0
        if turn.reply:
            self._index = 1
            events.append(TurnEvent("delta", self._attempt, 1, text=turn.reply))
        return [*events, self.outcome(turn)]
