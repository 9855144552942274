"""The engine of one agent: accepts messages, lets their outcomes be followed, cancels, and keeps the parts together.

Two commits per plain turn: accept here, complete in the runner. What accept may have committed without its answer
arriving is found by the runner's sweep.
"""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Final
from uuid import UUID

from agent_api.conditions import Reason
from agent_api.v1alpha1 import AgentSpec
from agent_api.wire import TurnStatus
from agent_runtime.clock import Clock
from agent_runtime.errors import Draining, NotFound, NotReady, Overloaded, RunsElsewhere
from agent_runtime.ids import new_turn_id
from agent_runtime.llm.catalog import AgentModels
from agent_runtime.llm.port import ChatMessage
from agent_runtime.loop.driver import (
    ModelCall,
    Observer,
    TurnDriver,
    TurnRun,
    TurnWork,
)
from agent_runtime.loop.keeper import LeaseKeeper, StoreContact
from agent_runtime.loop.machine import Plan
from agent_runtime.loop.runner import RunnerParts, Stop, TurnRunner
from agent_runtime.loop.stream import StreamHub, TurnStream
from agent_runtime.loop.watch import TurnEvent, watch_events, watch_outcome
from agent_runtime.saver import StateSaver
from agent_runtime.sessions import SessionCache
from agent_runtime.settings import Bounds
from agent_runtime.supervisor import Pulse, Supervisor
from agent_runtime.telemetry.agent import AgentName, AgentTelemetry
from agent_runtime.telemetry.logs import get_logger
from agent_runtime.tools.port import Tools
from agent_store.errors import IdempotencyMismatch, LeaseLost, QueueFull, StoreUnavailable
from agent_store.ports import (
    Accepted,
    Disposition,
    NewTurn,
    Owner,
    SessionKey,
    Store,
    TurnRecord,
)

_LOG = get_logger("engine")

ACCEPT_RETRIES: Final = (0.05, 0.25)
"""Pauses before an accept whose outcome is unknown is repeated: a pool finds out late that Postgres was restarted."""
_REFUSALS: Final = (Draining, NotReady, Overloaded, QueueFull, IdempotencyMismatch, StoreUnavailable)
CANCEL_WAIT: Final = 5.0


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
    models: AgentModels
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
        self._plan = Plan(
            models=tuple(model.display for model in parts.models.models),
            max_steps=spec.limits.max_steps,
            fallback=spec.messages.fallback,
        )
        self._cache = SessionCache(
            history_limit=spec.history.limit,
            most_sessions=bounds.cached_sessions,
            most_chars=bounds.cached_chars,
            idle_seconds=float(spec.session.evict_after_seconds),
        )
        self.hub = StreamHub()
        self._saver = StateSaver(agent.id, parts.store, parts.clock, self._cache, parts.telemetry)
        self.models = parts.models
        self._driver = TurnDriver(
            parts.models.models, parts.tools, parts.clock, Observer(self._on_model_call, parts.telemetry.broke)
        )
        self._lease = LeaseKeeper(
            agent,
            instance,
            parts.store,
            parts.clock,
            parts.telemetry,
            on_granted=lambda: self._runner.look_around(),
            on_lost=lambda: self._runner.end(Stop.LEASE),
        )
        self._accepting: set[UUID] = set()
        self._runner = TurnRunner(
            agent.id,
            spec,
            self._plan,
            RunnerParts(
                store=parts.store,
                clock=parts.clock,
                supervisor=parts.supervisor,
                telemetry=parts.telemetry,
                driver=self._driver,
                lease=self._lease,
                cache=self._cache,
                saver=self._saver,
                hub=self.hub,
            ),
            most_running=bounds.running_turns,
            accepting=lambda: tuple(self._accepting),
        )
        self._draining = False

    # ---- life

    def start(self) -> None:
        """Start the loops that keep the lease, recover turns and tidy up."""
        self._supervisor.start_loop(self._loop_name("lease"), self._lease.keep)
        self._supervisor.start_loop(self._loop_name("expiry"), self._lease.watch_expiry)
        self._supervisor.start_loop(self._loop_name("sweep"), self._runner.sweep_for_ever)
        self._supervisor.start_loop(self._loop_name("sessions"), self._tidy_for_ever)

    def stop_intake(self) -> None:
        """Refuse new messages from now on; queued turns are left to other processes."""
        self._draining = True
        self._runner.pause()

    async def wait_idle(self) -> None:
        """Return once no message is being accepted and no turn runs."""
        while len(self._runner) or self._accepting:
            if tasks := self._runner.tasks():
                await asyncio.wait(tasks, timeout=1.0)
            else:
                await asyncio.sleep(0.01)

    async def stop(self, *, save_timeout: float) -> None:
        """Abandon what still runs, save unsaved sessions, release the lease. Everything is bounded in time."""
        self.stop_intake()
        await self._supervisor.stop_loops(self._loop_name(part) for part in ("sweep", "sessions"))
        tasks = self._runner.tasks()
        self._runner.end(Stop.SHUTDOWN)
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._lease.owner is not None:
            await self._saver.save_all(timeout=save_timeout)
        await self._supervisor.stop_loops(self._loop_name(part) for part in ("lease", "expiry"))
        await self._lease.release()

    def _loop_name(self, part: str) -> str:
        return f"{part}:{self.agent.namespace}/{self.agent.name}"

    def _on_model_call(self, call: ModelCall) -> None:
        self.telemetry.model_called(call)
        self.models.called(call.entry, call.error, call.session)

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
            running=len(self._runner),
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
        try:
            return await self._accept(user, session, content, idempotency_key)
        except _REFUSALS as error:
            self.telemetry.message_refused(type(error).__name__)
            raise

    async def _accept(self, user: str, session: str, content: str, idempotency_key: str | None) -> TurnRecord:
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
            if accepted.disposition is Disposition.QUEUED:
                self.telemetry.message_queued()
            if accepted.claim is not None:
                self._runner.begin(accepted.claim, owner)
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
        if len(self._runner) + len(self._accepting) >= self._bounds.running_turns:
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
                    self._runner.look_around()
                    raise
                _LOG.warning("accept_repeated", agent=self.agent.name, turn=str(turn.id), reason=error.reason.value)
                await self._clock.sleep(pause)
        raise AssertionError("unreachable")

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
            if self._runner.find(turn.id) is not None:
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
            entry = self._runner.find(turn_id)
            if entry is not None:
                entry.end(Stop.USER)
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
        self._runner.end(Stop.DELETED, session_id=record.id)
        self._cache.forget(record.id)
        return True

    async def _tidy_for_ever(self, pulse: Pulse) -> None:
        while True:
            pulse()
            await self._clock.sleep(1.0)
            await self._saver.save_owed()
            await self._saver.evict_surplus()
            self.telemetry.sessions(len(self._cache))
