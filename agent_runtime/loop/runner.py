"""Works on claimed turns until each has its committed outcome, and finds turns that nobody works on.

Rules that hold wherever this is interrupted:

- Work on a turn holds a claim; only complete() with the claim's token ends it, and only under a live lease.
- A result is kept and offered again until it is committed or the lease is certainly lost.
- Whatever the store may have committed without its answer arriving (a claim) comes back through the sweep, because the
  sweep is told which turns are known.
"""

import asyncio
import random
import traceback
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, TypeVar
from uuid import UUID

from agent_api.v1alpha1 import AgentSpec
from agent_runtime.clock import Clock
from agent_runtime.llm.port import ChatMessage
from agent_runtime.loop.driver import TurnDriver, TurnRun, TurnWork, chat_message
from agent_runtime.loop.keeper import LeaseKeeper, wait_event
from agent_runtime.loop.machine import Broke, CancelRequested, Plan, TriedTooOften
from agent_runtime.loop.stream import StreamHub, TurnStream, first_attempt
from agent_runtime.saver import StateSaver
from agent_runtime.sessions import SessionCache
from agent_runtime.supervisor import Pulse, Supervisor
from agent_runtime.telemetry.agent import AgentTelemetry
from agent_runtime.telemetry.logs import get_logger
from agent_store.errors import LeaseLost, StoreError, StoreUnavailable
from agent_store.ports import Claim, Completed, NewMessage, Outcome, Owner, Store, StoredMessage

_LOG = get_logger("engine")
T = TypeVar("T")

MOST_ATTEMPTS: Final = 3
"""A turn whose processes ended this often is failed with the reason instead of being run again."""
MOST_DEFECTS: Final = MOST_ATTEMPTS + 2
"""So often the sweep brings a turn back that cannot be committed because of a defect; a restart begins anew."""
MOST_REMEMBERED: Final = 1000
SWEEP_SECONDS: Final = (1.0, 1.9)
"""With the lease of 8 s a turn is taken over within 10 s of the end of its process."""
SWEEP_LIMIT: Final = 100
FIRST_RETRY: Final = 0.05
LONGEST_RETRY: Final = 1.0


class Stop(StrEnum):
    """Why a turn's work is ended from outside; only USER leads to an outcome here."""

    USER = "user"
    LEASE = "lease"
    SHUTDOWN = "shutdown"
    DELETED = "deleted"


@dataclass(slots=True, eq=False)
class RunningTurn:
    """A turn being worked on in this process."""

    claim: Claim
    owner: Owner
    task: asyncio.Task[None] | None = None
    stop: Stop | None = None
    started: bool = False
    committing: bool = False

    def end(self, why: Stop) -> None:
        """Ask the work to end; a user's wish comes too late once the outcome is being committed."""
        if self.stop is not None or (why is Stop.USER and self.committing):
            return
        self.stop = why
        # A task cancelled before its first step would never see why; it looks at `stop` when it starts.
        if self.started and self.task is not None:
            self.task.cancel()


@dataclass(frozen=True, slots=True)
class RunnerParts:
    """What a runner works with."""

    store: Store
    clock: Clock
    supervisor: Supervisor
    telemetry: AgentTelemetry
    driver: TurnDriver
    lease: LeaseKeeper
    cache: SessionCache
    saver: StateSaver
    hub: StreamHub


class TurnRunner:
    """Owns the turns of one agent that run in this process, at most `most_running` at once.

    `accepting` tells which turns are being accepted right now: the sweep leaves them to whoever accepts them.
    """

    def __init__(
        self,
        agent_id: UUID,
        spec: AgentSpec,
        plan: Plan,
        parts: RunnerParts,
        *,
        most_running: int,
        accepting: Callable[[], Sequence[UUID]],
    ) -> None:
        self._agent_id = agent_id
        self._spec = spec
        self._plan = plan
        self._store = parts.store
        self._clock = parts.clock
        self._supervisor = parts.supervisor
        self._telemetry = parts.telemetry
        self._driver = parts.driver
        self._lease = parts.lease
        self._cache = parts.cache
        self._saver = parts.saver
        self._hub = parts.hub
        self._most_running = most_running
        self._accepting = accepting
        self._running: dict[UUID, RunningTurn] = {}
        self._defects: dict[UUID, int] = {}
        self._suspects = asyncio.Semaphore(1)
        self._paused = False
        self._wake = asyncio.Event()

    def __len__(self) -> int:
        """Return how many turns run."""
        return len(self._running)

    def find(self, turn_id: UUID) -> RunningTurn | None:
        """Return the turn if it runs here."""
        return self._running.get(turn_id)

    def tasks(self) -> list[asyncio.Task[None]]:
        """Return the tasks that work on turns."""
        return [entry.task for entry in self._running.values() if entry.task is not None]

    def pause(self) -> None:
        """Start nothing by itself any more; what runs goes on, what waits is left to other processes."""
        self._paused = True

    def end(self, why: Stop, *, session_id: UUID | None = None) -> None:
        """Ask the work on all turns (or on one session's) to end."""
        for entry in list(self._running.values()):
            if session_id is None or entry.claim.session_id == session_id:
                entry.end(why)

    def look_around(self) -> None:
        """Have the sweep run now."""
        self._wake.set()

    def begin(self, claim: Claim, owner: Owner) -> None:
        """Work on a claimed turn in a task of its own; once, however often the claim arrives."""
        entry = self._running.get(claim.turn_id)
        if entry is not None and entry.owner == owner and claim.token > entry.claim.token:
            # A claim whose answer was slower than the sweep that found it: same work, newer right to commit it.
            entry.claim = claim
        if entry is not None or self._lease.owner != owner:
            return
        entry = RunningTurn(claim, owner)
        self._running[claim.turn_id] = entry
        self._telemetry.running(len(self._running))
        entry.task = self._supervisor.spawn(self._run_to_end(entry), name=f"turn-{claim.turn_id}")

    async def sweep_for_ever(self, pulse: Pulse) -> None:
        """Take over orphans and start what waits, every few seconds and when woken."""
        while True:
            pulse()
            self._wake.clear()
            more = await self._sweep()
            if not more:
                await wait_event(self._wake, random.uniform(*SWEEP_SECONDS))

    async def _sweep(self) -> bool:
        """Take over orphans and start what waits; True if there may be more."""
        owner, accepting = self._lease.owner, self._accepting()
        room = min(SWEEP_LIMIT, self._most_running - len(self._running) - len(accepting))
        if owner is None or self._paused or room <= 0:
            return False
        given_up = (turn_id for turn_id, times in self._defects.items() if times >= MOST_DEFECTS)
        known = [*self._running, *accepting, *given_up]
        try:
            claims = await self._store.claim_orphans(self._agent_id, owner, limit=room, known=known)
        except LeaseLost:
            self._lease.fenced()
            return False
        except StoreUnavailable:
            self._lease.probe()
            return False
        for claim in claims:
            if claim.attempts > 1 and claim.turn_id not in self._running:
                self._telemetry.turn_taken_over(claim)
            self.begin(claim, owner)
        return len(claims) == room

    async def _run_to_end(self, entry: RunningTurn) -> None:
        entry.started = True
        claim = entry.claim
        completed: Completed | None = None
        try:
            if entry.stop in (None, Stop.USER):
                completed = await self._run_claim(entry)
        except LeaseLost:
            self._lease.probe()  # either this turn or the whole process was fenced out
            _LOG.warning("turn_fenced_out", turn=str(claim.turn_id), attempts=claim.attempts)
        except Exception as error:
            self._note_defect(claim, error)
        finally:
            self._running.pop(claim.turn_id, None)
            self._telemetry.running(len(self._running))
        if completed is not None:
            self._defects.pop(claim.turn_id, None)
            await self._after(entry, completed)

    async def _run_claim(self, entry: RunningTurn) -> Completed:
        """Return the committed outcome. Raises LeaseLost; CancelledError when the work is ended without one."""
        claim, started = entry.claim, self._clock.monotonic()
        with self._hub.hold(claim.turn_id) as stream:
            stream.begin(max(first_attempt(claim.attempts), stream.attempt + 1 if stream.attempt else 0))
            history, outcome = await self._work(entry, stream)
            entry.committing = True
            stream.usage = (outcome.input_tokens, outcome.output_tokens)
            outcome, completed = await self._commit(entry, outcome, stream)
            if history is not None:
                self._remember(claim, history, outcome)
            self._telemetry.turn_finished(completed.turn, self._clock.monotonic() - started)
            stream.finish(completed.turn)
        return completed

    async def _work(self, entry: RunningTurn, stream: TurnStream) -> tuple[tuple[ChatMessage, ...] | None, Outcome]:
        """Return the history the turn was given (None: it was not read) and its outcome."""
        claim = entry.claim
        history: tuple[ChatMessage, ...] | None = None
        run = self._prepare(claim, (), stream)
        try:
            if entry.stop is Stop.USER:
                return None, run.end_with(CancelRequested())
            if claim.attempts > MOST_ATTEMPTS:
                return None, run.end_with(TriedTooOften(claim.attempts - 1))
            history = await self._history(entry)
            run = self._prepare(claim, history, stream)
            return history, await self._run(claim, run)
        except asyncio.CancelledError:
            if entry.stop is not Stop.USER or entry.task is None:
                raise
            entry.task.uncancel()
            return history, run.end_with(CancelRequested())

    async def _commit(self, entry: RunningTurn, outcome: Outcome, stream: TurnStream) -> tuple[Outcome, Completed]:
        """Commit the outcome; one that the store cannot take becomes a failure, since every turn gets an outcome."""
        try:
            completed = await self._insist(entry, lambda owner: self._store.complete(entry.claim, owner, outcome))
        except StoreError:
            raise
        except Exception as error:
            self._telemetry.broke(error, traceback.format_exc())
            failed = self._prepare(entry.claim, (), stream).end_with(Broke())
            completed = await self._insist(entry, lambda owner: self._store.complete(entry.claim, owner, failed))
            return failed, completed
        return outcome, completed

    def _prepare(self, claim: Claim, history: tuple[ChatMessage, ...], stream: TurnStream) -> TurnRun:
        work = TurnWork(
            content=claim.content,
            history=history,
            system=self._spec.system_prompt or "",
            history_limit=self._spec.history.limit,
            steps_before=claim.steps_before,
            turn_seconds=float(self._spec.limits.turn_seconds),
            plan=self._plan,
            session=str(claim.session_id),
        )
        return self._driver.prepare(work, stream)

    async def _run(self, claim: Claim, run: TurnRun) -> Outcome:
        if claim.attempts < MOST_ATTEMPTS:
            return await run.run()
        # What ended two processes may end this one: suspects run one at a time, so that the culprit is found.
        async with self._suspects:
            return await run.run()

    async def _history(self, entry: RunningTurn) -> tuple[ChatMessage, ...]:
        claim = entry.claim
        known = self._cache.messages_before(claim.session_id, claim.turn_seq)
        if known is not None:
            return known
        stored = await self._insist(
            entry,
            lambda _owner: self._store.load_history(
                claim.session_id, self._agent_id, before_turn_seq=claim.turn_seq, limit=self._spec.history.limit
            ),
        )
        return tuple(map(_from_store, stored))

    def _remember(self, claim: Claim, history: tuple[ChatMessage, ...], outcome: Outcome) -> None:
        session = self._cache.put(
            claim.session_id,
            turn_seq=claim.turn_seq,
            accepted_messages=claim.accepted_messages,
            history=history,
            added=(ChatMessage("user", claim.content), *map(chat_message, outcome.messages)),
            now=self._clock.monotonic(),
        )
        if claim.accepted_messages % self._spec.state.auto_save_every_messages == 0:
            session.save_due = True
        self._telemetry.sessions(len(self._cache))

    async def _after(self, entry: RunningTurn, completed: Completed) -> None:
        """Start what waited behind the turn; save the session if it is time."""
        if completed.waiting and not self._paused and self._lease.owner == entry.owner:
            try:
                following = await self._store.start_next(self._agent_id, entry.claim.session_id, entry.owner)
            except LeaseLost:
                self._lease.fenced()
                return
            except StoreUnavailable:
                self._lease.probe()
                self._wake.set()  # it starts queued turns of idle sessions, and finds a claim that got lost
                return
            if following is not None:
                self.begin(following, entry.owner)
        await self._saver.save_due(entry.claim.session_id)

    def _note_defect(self, claim: Claim, error: Exception) -> None:
        """A defect kept the turn from its commit: the sweep brings it back, but not for ever."""
        self._telemetry.broke(error, traceback.format_exc())
        self._defects[claim.turn_id] = self._defects.get(claim.turn_id, 0) + 1
        while len(self._defects) > MOST_REMEMBERED:
            self._defects.pop(next(iter(self._defects)))

    async def _insist(self, entry: RunningTurn, call: Callable[[Owner], Awaitable[T]]) -> T:
        """Repeat a call to the store until it succeeds. Raises LeaseLost once the lease is not ours any more."""
        pause = FIRST_RETRY
        while True:
            if self._lease.owner != entry.owner:
                raise LeaseLost("the lease ended while the turn ran")
            try:
                return await call(entry.owner)
            except StoreUnavailable as error:
                self._lease.probe()
                _LOG.warning("store_retry", turn=str(entry.claim.turn_id), reason=error.reason.value)
            await self._clock.sleep(pause)
            pause = min(pause * 2, LONGEST_RETRY)


def _from_store(message: StoredMessage) -> ChatMessage:
    return chat_message(
        NewMessage(message.role, message.content, tool_calls=message.tool_calls, tool_call_id=message.tool_call_id)
    )
