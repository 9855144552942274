"""The engine of one agent: accepts messages, owns the turns that run, commits their outcomes, recovers orphans.

Two commits per plain turn (accept, complete). Everything here may be interrupted at any point: what was committed is
found again by the sweep, what was not is refused or repeated. Rules that keep it so:

- Work on a turn holds a claim; only complete() with the claim's token ends it, and only under a live lease.
- A result is kept and offered again until it is committed or the lease is certainly lost.
- Whatever the store may have committed without its answer arriving (a claim) comes back through the sweep, because the
  sweep is told which turns are known.
"""

import asyncio
import hashlib
import random
import traceback
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final, TypeVar
from uuid import UUID

from agent_api.conditions import Reason
from agent_api.v1alpha1 import AgentSpec
from agent_api.wire import TurnStatus
from agent_runtime.clock import Clock
from agent_runtime.errors import Draining, NotFound, NotReady, Overloaded, RunsElsewhere
from agent_runtime.ids import new_turn_id
from agent_runtime.llm.port import ChatMessage, Model
from agent_runtime.loop.driver import (
    Observer,
    TurnDriver,
    TurnRun,
    TurnWork,
    chat_message,
)
from agent_runtime.loop.keeper import LeaseKeeper, StoreContact, wait_event
from agent_runtime.loop.machine import CancelRequested, Plan, TriedTooOften
from agent_runtime.loop.stream import StreamHub, TurnStream, first_attempt
from agent_runtime.loop.watch import TurnEvent, watch_events, watch_outcome
from agent_runtime.saver import StateSaver
from agent_runtime.sessions import SessionCache
from agent_runtime.settings import Bounds
from agent_runtime.supervisor import Pulse, Supervisor
from agent_runtime.telemetry.agent import AgentName, AgentTelemetry
from agent_runtime.telemetry.logs import get_logger
from agent_runtime.tools.port import Tools
from agent_store.errors import LeaseLost, StoreUnavailable
from agent_store.ports import (
    Accepted,
    Claim,
    Completed,
    Disposition,
    NewMessage,
    NewTurn,
    Outcome,
    Owner,
    SessionKey,
    Store,
    StoredMessage,
    TurnRecord,
)

_LOG = get_logger("engine")
T = TypeVar("T")

MOST_ATTEMPTS: Final = 3
"""A turn whose processes ended this often is failed with the reason instead of being run again."""
SWEEP_SECONDS: Final = (2.0, 3.0)
SWEEP_LIMIT: Final = 100
FIRST_RETRY: Final = 0.05
LONGEST_RETRY: Final = 1.0
ACCEPT_RETRIES: Final = (0.05, 0.25)
"""Pauses before an accept whose outcome is unknown is repeated: a pool finds out late that Postgres was restarted."""
CANCEL_WAIT: Final = 5.0
MOST_STUCK: Final = 1000


class Stop(StrEnum):
    """Why a turn's work is cancelled; only USER leads to an outcome here."""

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
    committing: bool = False

    def cancel(self, why: Stop) -> None:
        """Ask the work to end."""
        if self.stop is None and self.task is not None:
            self.stop = why
            self.task.cancel()


@dataclass(frozen=True, slots=True)
class EngineStatistics:
    """What the engine is doing, at one moment."""

    running: int
    sessions: int
    listeners: int
    lease_held: bool
    epoch: int
    accepting: int


@dataclass(frozen=True, slots=True)
class Collaborators:
    """What an engine works with; the composition root picks them."""

    store: Store
    models: tuple[Model, ...]
    tools: Tools
    clock: Clock
    supervisor: Supervisor
    telemetry: AgentTelemetry


class AgentEngine:
    """Serves one agent. One instance per agent and process."""

    def __init__(
        self, agent: AgentName, spec: AgentSpec, *, instance: str, revision: str, bounds: Bounds, parts: Collaborators
    ) -> None:
        self.agent = agent
        self.spec = spec
        self.revision = revision
        self.telemetry = parts.telemetry
        self._bounds = bounds
        self._store = parts.store
        self._clock = parts.clock
        self._supervisor = parts.supervisor
        observer = Observer(parts.telemetry.model_called, parts.telemetry.broke)
        self._driver = TurnDriver(parts.models, parts.tools, parts.clock, observer)
        self._plan = Plan(
            models=tuple(model.display for model in parts.models),
            max_steps=spec.limits.max_steps,
            fallback=spec.messages.fallback,
        )
        self._lease = LeaseKeeper(
            agent,
            instance,
            parts.store,
            parts.clock,
            parts.telemetry,
            on_granted=self._on_lease_granted,
            on_lost=self._on_lease_lost,
        )
        self._cache = SessionCache(
            history_limit=spec.history.limit,
            most_sessions=bounds.cached_sessions,
            most_chars=bounds.cached_chars,
            idle_seconds=float(spec.session.evict_after_seconds),
        )
        self.saver = StateSaver(agent.id, parts.store, parts.clock, self._cache, parts.telemetry)
        self.hub = StreamHub()
        self._running: dict[UUID, RunningTurn] = {}
        self._accepting: set[UUID] = set()
        self._stuck: dict[UUID, int] = {}
        self._suspects = asyncio.Semaphore(1)
        self._draining = False
        self._wake_sweep = asyncio.Event()

    # ---- life

    def start(self) -> None:
        """Start the loops that keep the lease, recover turns and tidy up."""
        self._supervisor.start_loop(self._loop_name("lease"), self._lease.keep)
        self._supervisor.start_loop(self._loop_name("expiry"), self._lease.watch_expiry)
        self._supervisor.start_loop(self._loop_name("sweep"), self._sweep_for_ever)
        self._supervisor.start_loop(self._loop_name("sessions"), self._tidy_for_ever)

    def stop_intake(self) -> None:
        """Refuse new messages from now on; queued turns are left to other processes."""
        self._draining = True

    async def wait_idle(self) -> None:
        """Return once no message is being accepted and no turn runs."""
        while self._running or self._accepting:
            tasks = [entry.task for entry in self._running.values() if entry.task is not None]
            if tasks:
                await asyncio.wait(tasks, timeout=1.0)
            else:
                await asyncio.sleep(0.01)

    async def stop(self, *, save_timeout: float) -> None:
        """Abandon what still runs, save unsaved sessions, release the lease. Everything is bounded in time."""
        self._draining = True
        await self._supervisor.stop_loops(self._loop_name(part) for part in ("sweep", "sessions"))
        tasks = [entry.task for entry in self._running.values() if entry.task is not None]
        for entry in list(self._running.values()):
            entry.cancel(Stop.SHUTDOWN)
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._lease.owner is not None:
            await self.saver.save_all(timeout=save_timeout)
        await self._supervisor.stop_loops(self._loop_name(part) for part in ("lease", "expiry"))
        await self._lease.release()

    def _loop_name(self, part: str) -> str:
        return f"{part}:{self.agent.namespace}/{self.agent.name}"

    # ---- what it is doing

    @property
    def draining(self) -> bool:
        """Whether new messages are refused because the process ends."""
        return self._draining

    @property
    def lease_held(self) -> bool:
        """Whether this process may commit now."""
        return self._lease.owner is not None

    def store_contact(self) -> StoreContact:
        """Return how Postgres answered last."""
        return self._lease.contact()

    def statistics(self) -> EngineStatistics:
        """Return a snapshot of what the engine holds."""
        owner = self._lease.owner
        return EngineStatistics(
            running=len(self._running),
            sessions=len(self._cache),
            listeners=len(self.hub),
            lease_held=owner is not None,
            epoch=owner.epoch if owner else 0,
            accepting=len(self._accepting),
        )

    # ---- accept

    async def accept(self, user: str, session: str, content: str, idempotency_key: str | None) -> TurnRecord:
        """Commit a message and start its turn if nothing is before it; return the turn as it stands.

        Returns only after the commit. Raises Draining, NotReady, Overloaded (nothing was stored); QueueFull and
        IdempotencyMismatch of the store; StoreUnavailable when it is unknown whether the message was stored, in which
        case it is answered if it was. If cancelled: the same.
        """
        owner = self._owner_for_intake()
        turn = NewTurn(
            id=new_turn_id(self._clock.now()),
            session=SessionKey(self.agent.id, user, session),
            content=content,
            idempotency_key=idempotency_key,
            request_hash=hashlib.sha256(content.encode("utf-8")).digest(),
            queue_limit=self.spec.session.queue_limit,
            revision=self.revision,
        )
        # While the id is in this set the sweep leaves the turn to us; afterwards the turn is either known as running
        # or found by the sweep, whatever became of the call.
        self._accepting.add(turn.id)
        try:
            accepted = await self._accept_with_retries(turn, owner)
            if accepted.disposition is not Disposition.DUPLICATE:
                self.telemetry.message_received()
            if accepted.claim is not None:
                self._begin(accepted.claim, owner)
            return accepted.turn
        finally:
            self._accepting.discard(turn.id)

    def _owner_for_intake(self) -> Owner:
        if self._draining:
            raise Draining("This process is being stopped; send the message again.", retry_after=2.0)
        contact = self.store_contact()
        owner = self._lease.owner
        if not contact.ok:
            raise NotReady(contact.reason, contact.message)
        if owner is None:
            raise NotReady(Reason.STARTING, "The lease on this agent is not held yet.", retry_after=1.0)
        if len(self._running) + len(self._accepting) >= self._bounds.running_turns:
            raise Overloaded(f"{self._bounds.running_turns} turns run already.", retry_after=1.0)
        return owner

    async def _accept_with_retries(self, turn: NewTurn, owner: Owner) -> Accepted:
        for pause in (*ACCEPT_RETRIES, None):
            try:
                return await self._store.accept(turn, owner)
            except LeaseLost as error:
                self._lease.fenced()
                raise NotReady(Reason.STARTING, "The lease on this agent is being renewed.", retry_after=1.0) from error
            except StoreUnavailable as error:
                self._lease.probe()
                if pause is None:
                    self._wake_sweep.set()
                    raise
                _LOG.warning("accept_repeated", agent=self.agent.name, turn=str(turn.id), reason=error.reason.value)
                await self._clock.sleep(pause)
        raise AssertionError("unreachable")

    # ---- run

    def _begin(self, claim: Claim, owner: Owner) -> None:
        """Work on a claimed turn in a task of its own; once, however often the claim arrives."""
        entry = self._running.get(claim.turn_id)
        if entry is not None and entry.owner == owner and claim.token > entry.claim.token:
            # A claim whose answer was slower than the sweep that found it: same work, newer right to commit it.
            entry.claim = claim
        if entry is not None or self._lease.owner != owner:
            return
        entry = RunningTurn(claim, owner)
        self._running[claim.turn_id] = entry
        self.telemetry.running(len(self._running))
        entry.task = self._supervisor.spawn(self._run_to_end(entry), name=f"turn-{claim.turn_id}")

    async def _run_to_end(self, entry: RunningTurn) -> None:
        claim = entry.claim
        completed: Completed | None = None
        try:
            with self.hub.hold(claim.turn_id) as stream:
                stream.begin(max(first_attempt(claim.attempts), stream.attempt + 1 if stream.attempt else 0))
                completed = await self._run_claim(entry, stream)
                stream.finish(completed.turn)
        except LeaseLost:
            self._lease.probe()  # either this turn or the whole process was fenced out
            _LOG.warning("turn_fenced_out", agent=self.agent.name, turn=str(claim.turn_id), attempts=claim.attempts)
        except Exception as error:
            self._give_up(claim, error)
        finally:
            self._running.pop(claim.turn_id, None)
            self.telemetry.running(len(self._running))
        if completed is not None:
            self._stuck.pop(claim.turn_id, None)
            await self._after(entry, completed)

    async def _run_claim(self, entry: RunningTurn, stream: TurnStream) -> Completed:
        """Return the committed outcome. Raises LeaseLost; CancelledError when the work is stopped without one."""
        claim, started = entry.claim, self._clock.monotonic()
        history: tuple[ChatMessage, ...] | None = None
        run = self._prepare(claim, (), stream)
        try:
            if claim.attempts > MOST_ATTEMPTS:
                outcome = run.end_with(TriedTooOften(claim.attempts - 1))
            else:
                history = await self._history(entry)
                run = self._prepare(claim, history, stream)
                outcome = await self._run(claim, run)
        except asyncio.CancelledError:
            if entry.stop is not Stop.USER or entry.task is None:
                raise
            entry.task.uncancel()
            outcome = run.end_with(CancelRequested())
        entry.committing = True
        stream.usage = (outcome.input_tokens, outcome.output_tokens)
        completed = await self._insist(entry, lambda owner: self._store.complete(entry.claim, owner, outcome))
        if history is not None:
            self._remember(claim, history, outcome)
        self.telemetry.turn_finished(completed.turn, self._clock.monotonic() - started)
        return completed

    def prepare_once(
        self, content: str, history: tuple[ChatMessage, ...], stream: TurnStream, *, system: str = ""
    ) -> TurnRun:
        """Return a turn that is answered from the conversation it brings along, and kept nowhere.

        `system` is added to the agent's own prompt. The caller owns the work. Raises Draining.
        """
        if self._draining:
            raise Draining("This process is being stopped; send the request again.", retry_after=2.0)
        work = TurnWork(
            content=content,
            history=history,
            system="\n\n".join(part for part in (self.spec.system_prompt, system) if part),
            history_limit=self.spec.history.limit,
            steps_before=sum(message.role == "assistant" for message in history),
            turn_seconds=float(self.spec.limits.turn_seconds),
            plan=self._plan,
        )
        return self._driver.prepare(work, stream)

    def _prepare(self, claim: Claim, history: tuple[ChatMessage, ...], stream: TurnStream) -> TurnRun:
        work = TurnWork(
            content=claim.content,
            history=history,
            system=self.spec.system_prompt or "",
            history_limit=self.spec.history.limit,
            steps_before=claim.steps_before,
            turn_seconds=float(self.spec.limits.turn_seconds),
            plan=self._plan,
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
                claim.session_id, self.agent.id, before_turn_seq=claim.turn_seq, limit=self.spec.history.limit
            ),
        )
        return tuple(map(_from_store, stored))

    def _remember(self, claim: Claim, history: tuple[ChatMessage, ...], outcome: Outcome) -> None:
        messages = (*history, ChatMessage("user", claim.content), *map(chat_message, outcome.messages))
        session = self._cache.put(
            claim.session_id,
            turn_seq=claim.turn_seq,
            accepted_messages=claim.accepted_messages,
            messages=messages,
            now=self._clock.monotonic(),
        )
        if claim.accepted_messages % self.spec.state.auto_save_every_messages == 0:
            session.save_due = True
        self.telemetry.sessions(len(self._cache))

    async def _after(self, entry: RunningTurn, completed: Completed) -> None:
        """Start what waited behind the turn; save the session if it is time."""
        if completed.waiting and not self._draining and self._lease.owner == entry.owner:
            try:
                following = await self._store.start_next(self.agent.id, entry.claim.session_id, entry.owner)
            except LeaseLost:
                self._lease.fenced()
                return
            except StoreUnavailable:
                self._lease.probe()
                self._wake_sweep.set()  # it starts queued turns of idle sessions, and finds a claim that got lost
                return
            if following is not None:
                self._begin(following, entry.owner)
        await self.saver.save_due(entry.claim.session_id)

    def _give_up(self, claim: Claim, error: Exception) -> None:
        """A defect around the turn's commit: the sweep tries again, but not for ever."""
        self.telemetry.broke(error, traceback.format_exc())
        self._stuck[claim.turn_id] = self._stuck.get(claim.turn_id, 0) + 1
        while len(self._stuck) > MOST_STUCK:
            self._stuck.pop(next(iter(self._stuck)))

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
                _LOG.warning(
                    "store_retry", agent=self.agent.name, turn=str(entry.claim.turn_id), reason=error.reason.value
                )
            await self._clock.sleep(pause)
            pause = min(pause * 2, LONGEST_RETRY)

    # ---- follow, cancel, delete

    async def turn(self, turn_id: UUID, user: str) -> TurnRecord:
        """Return the turn as it stands. Raises NotFound, also for another user's turn."""
        record = await self._store.get_turn(self.agent.id, turn_id, user)
        if record is None:
            raise NotFound("turn")
        return record

    async def wait_outcome(self, turn: TurnRecord, timeout: float) -> TurnRecord:
        """Return the turn once it is final, or as it stands after `timeout` seconds.

        Turns of other processes are followed through the store. Raises NotFound if the turn is deleted meanwhile.
        """
        if turn.status.is_final:
            return turn
        with self.hub.hold(turn.id) as stream:
            return await watch_outcome(turn, stream, self._poll_for(turn), timeout, self._clock)

    def events(self, turn: TurnRecord, last_event: tuple[int, int] | None) -> AsyncGenerator[TurnEvent | None, None]:
        """Yield the turn's events after `last_event` (attempt, index), ending with its outcome; None: still alive."""
        return watch_events(turn, self.hub, self._poll_for(turn), last_event, self._clock)

    def _poll_for(self, turn: TurnRecord) -> Callable[[], Awaitable[TurnRecord]]:
        async def poll() -> TurnRecord:
            if turn.id in self._running:
                return replace(turn, status=TurnStatus.RUNNING)
            return await self.turn(turn.id, turn.user)

        return poll

    async def cancel(self, turn_id: UUID, user: str) -> TurnRecord:
        """Cancel a turn and return it as it then stands; a finished turn stays as it is.

        Raises NotFound, RunsElsewhere, StoreUnavailable.
        """
        deadline = self._clock.monotonic() + CANCEL_WAIT
        while True:
            record = await self._store.cancel_queued(self.agent.id, turn_id, user)
            if record is None:
                raise NotFound("turn")
            if record.status.is_final:
                self._publish(record)
                return record
            entry = self._running.get(turn_id)
            if entry is not None:
                if not entry.committing:
                    entry.cancel(Stop.USER)
                return await self.wait_outcome(record, max(0.1, deadline - self._clock.monotonic()))
            if self._clock.monotonic() >= deadline:
                raise RunsElsewhere("Another process runs this turn; try again in a moment.", retry_after=2.0)
            await self._clock.sleep(0.2)

    def _publish(self, record: TurnRecord) -> None:
        stream = self.hub.find(record.id)
        if stream is not None and stream.outcome is None:
            stream.finish(record)

    async def delete_session(self, key: SessionKey) -> bool:
        """Delete a session with everything in it, fencing out its running turn; False if there was none."""
        record = await self._store.find_session(key)
        if record is None or not await self._store.delete_session(key):
            return False
        for entry in list(self._running.values()):
            if entry.claim.session_id == record.id:
                entry.cancel(Stop.DELETED)
        self._cache.forget(record.id)
        return True

    def _on_lease_granted(self) -> None:
        self._wake_sweep.set()

    def _on_lease_lost(self) -> None:
        for entry in list(self._running.values()):
            entry.cancel(Stop.LEASE)

    # ---- recovery and tidying

    async def _sweep_for_ever(self, pulse: Pulse) -> None:
        while True:
            pulse()
            self._wake_sweep.clear()
            more = await self._sweep()
            if not more:
                await wait_event(self._wake_sweep, random.uniform(*SWEEP_SECONDS))

    async def _sweep(self) -> bool:
        """Take over orphans and start what waits; True if there may be more."""
        owner = self._lease.owner
        room = min(SWEEP_LIMIT, self._bounds.running_turns - len(self._running) - len(self._accepting))
        if owner is None or self._draining or room <= 0:
            return False
        stuck = (turn_id for turn_id, times in self._stuck.items() if times >= MOST_ATTEMPTS)
        known = [*self._running, *self._accepting, *stuck]
        try:
            claims = await self._store.claim_orphans(self.agent.id, owner, limit=room, known=known)
        except LeaseLost:
            self._lease.fenced()
            return False
        except StoreUnavailable:
            self._lease.probe()
            return False
        for claim in claims:
            if claim.attempts > 1 and claim.turn_id not in self._running:
                self.telemetry.turn_taken_over(claim)
            self._begin(claim, owner)
        return len(claims) == room

    async def _tidy_for_ever(self, pulse: Pulse) -> None:
        while True:
            pulse()
            await self._clock.sleep(1.0)
            await self.saver.save_owed()
            await self.saver.evict_surplus()
            self.telemetry.sessions(len(self._cache))


def _from_store(message: StoredMessage) -> ChatMessage:
    return chat_message(
        NewMessage(message.role, message.content, tool_calls=message.tool_calls, tool_call_id=message.tool_call_id)
    )
