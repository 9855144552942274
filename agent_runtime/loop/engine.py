"""The engine of one agent: accepts messages, lets their outcomes be followed, cancels, and keeps the parts together.

Two commits per plain turn: accept here, complete in the runner. What accept may have committed without its answer
arriving is found by the runner's sweep.
"""

import asyncio
import hashlib
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final
from uuid import UUID

from agent_api.conditions import Reason
from agent_api.v1alpha1 import AgentSpec
from agent_api.wire import ANONYMOUS, BudgetCheck, TurnStatus
from agent_runtime.budgets.ledger import BudgetLedger, Refusal
from agent_runtime.budgets.turns import TurnBudgets
from agent_runtime.clock import Clock
from agent_runtime.errors import Draining, NotFound, NotReady, NotWaiting, Overloaded, SessionBusy
from agent_runtime.history.compaction import Compactor
from agent_runtime.history.tokens import TokenGauge
from agent_runtime.hooks.port import TurnHooks
from agent_runtime.ids import new_turn_id
from agent_runtime.llm.catalog import AgentModels
from agent_runtime.llm.port import ChatMessage
from agent_runtime.loop.contract import InputContract, ReplyContract
from agent_runtime.loop.driver import (
    ModelCall,
    Observer,
    TurnDriver,
    TurnRun,
    TurnWork,
)
from agent_runtime.loop.keeper import LeaseKeeper, StoreContact
from agent_runtime.loop.machine import Plan, Refused
from agent_runtime.loop.runner import INTERRUPTED, RunnerParts, Stop, TurnRunner
from agent_runtime.loop.stream import StreamHub, TurnStream
from agent_runtime.loop.summaries import SummaryWriter
from agent_runtime.loop.watch import TurnEvent, watch_events, watch_outcome
from agent_runtime.memory.memories import AgentMemories
from agent_runtime.saver import StateSaver
from agent_runtime.sessions import SessionCache
from agent_runtime.settings import Bounds
from agent_runtime.supervisor import Pulse, Supervisor
from agent_runtime.telemetry.agent import AgentName, AgentTelemetry
from agent_runtime.telemetry.logs import get_logger
from agent_runtime.tools.none import NoTools
from agent_runtime.tools.port import ToolContext, Tools
from agent_store.errors import IdempotencyMismatch, LeaseLost, QueueFull, StoreUnavailable
from agent_store.ports import (
    Accepted,
    Disposition,
    NewTurn,
    Outcome,
    Owner,
    SessionKey,
    Store,
    TurnRecord,
)
from agent_store.steps import ApprovalRecord, StepRecord, Verdict

_LOG = get_logger("engine")

ACCEPT_RETRIES: Final = (0.05, 0.25)
"""Pauses before an accept whose outcome is unknown is repeated: a pool finds out late that Postgres was restarted."""
_REFUSALS: Final = (Draining, NotReady, Overloaded, SessionBusy, QueueFull, IdempotencyMismatch, StoreUnavailable)
CANCEL_WAIT: Final = 5.0
CANCEL_POLL: Final = 0.1
RETENTION_PAUSE: Final = (300.0, 600.0)
"""Seconds between two looks for sessions past their retention, which read all sessions of the agent."""
RETENTION_BATCH: Final = 50
BUDGET_TIMEOUT: Final = 2.0


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
    hooks: TurnHooks | None = None
    memories: AgentMemories | None = None
    changed: Callable[[], None] = lambda: None
    """Told when something changed that heartbeats tell at once."""


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
            most_tokens=spec.limits.turn_tokens,
            output=ReplyContract(spec.output.json_schema) if spec.output is not None else None,
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
        self.tools = parts.tools
        self._input = InputContract(spec.input.json_schema) if spec.input is not None else None
        self.memories = parts.memories
        self._driver = TurnDriver(
            parts.models.models,
            parts.tools,
            parts.clock,
            Observer(self._on_model_call, parts.telemetry.broke),
            parts.hooks,
        )
        self._lease = LeaseKeeper(
            agent,
            instance,
            parts.store,
            parts.clock,
            parts.telemetry,
            on_granted=lambda: self._runner.look_around(),
            on_lost=lambda: self._runner.end(Stop.LEASE),
            on_cancel=lambda requests: self._runner.cancel(requests),
        )
        self.budgets = self._make_budgets(parts)
        self._gauge = TokenGauge()
        self._compactor = self._make_compactor(parts)
        self._accepting: set[UUID] = set()
        self._when_busy = spec.session.when_busy
        self._retention_due = 0.0
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
                hooks=parts.hooks,
                budgets=self.budgets,
                compactor=self._compactor,
                gauge=self._gauge,
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
        if self.budgets is not None:
            self._supervisor.start_loop(self._loop_name("budgets"), self.budgets.ledger.keep)

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
        if self.budgets is not None:
            await self._supervisor.stop_loops([self._loop_name("budgets")])
            await self.budgets.ledger.aclose(timeout=BUDGET_TIMEOUT)
        await self._supervisor.stop_loops(self._loop_name(part) for part in ("lease", "expiry"))
        await self._lease.release()

    def _make_compactor(self, parts: Collaborators) -> Compactor | None:
        """Return who writes summaries; nobody where the primary model is built in."""
        if self.spec.models[0].is_built_in or not self.spec.history.compaction.enabled:
            return None
        entries = [index for index, model in enumerate(self.spec.models) if not model.is_built_in]
        writer = SummaryWriter(
            self.agent.id,
            TurnDriver(
                [parts.models.models[index] for index in entries],
                NoTools(),
                parts.clock,
                Observer(
                    lambda call: self._on_model_call(replace(call, entry=entries[call.entry])), parts.telemetry.broke
                ),
            ),
            [parts.models.models[index].display for index in entries],
            self.budgets,
        )
        return Compactor(
            self.agent.id,
            self.spec.history,
            parts.store,
            parts.clock,
            parts.telemetry,
            self._gauge,
            summarize=writer.write,
            save=self._saver.save_summary,
            spawn=self._supervisor.spawn,
        )

    def _make_budgets(self, parts: Collaborators) -> TurnBudgets | None:
        budget = self.spec.budget
        if budget is None:
            return None
        ledger = BudgetLedger(
            self.agent.id, budget, parts.store, parts.clock, owner=lambda: self._lease.owner, changed=parts.changed
        )
        return TurnBudgets(self.spec, budget, ledger, parts.telemetry)

    def _loop_name(self, part: str) -> str:
        return f"{part}:{self.agent.namespace}/{self.agent.name}"

    def _on_model_call(self, call: ModelCall) -> None:
        self.telemetry.model_called(call)
        self.models.called(call.entry, call.error, call.session, call.seconds)

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

    def budget_checks(self) -> list[BudgetCheck]:
        """Return where the budgets of the agent stand; none if it has none."""
        return self.budgets.ledger.checks() if self.budgets is not None else []

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

        Returns only after the commit. Raises InvalidContent, Draining, NotReady, Overloaded, SessionBusy (nothing was
        stored); QueueFull and IdempotencyMismatch of the store; StoreUnavailable when it is unknown whether the message
        was stored, in which case it is answered if it was. If cancelled: the same.
        """
        self._check_input(content)
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
            queue_limit=0 if self._when_busy == "Reject" else self.spec.session.queue_limit,
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
                if self._when_busy == "Interrupt":
                    await self._interrupt(accepted.turn)
            if accepted.claim is not None:
                self._runner.begin(accepted.claim, owner)
            return accepted.turn
        except QueueFull as error:
            if self._when_busy == "Reject":
                raise SessionBusy(self.spec.messages.busy, retry_after=2.0) from error
            raise
        finally:
            self._accepting.discard(turn.id)

    async def _interrupt(self, turn: TurnRecord) -> None:
        """Make way for a turn that is queued. It is accepted already: if this fails, it waits like any other."""
        try:
            before = await self._store.interrupt(turn, INTERRUPTED)
            if before is not None:
                await self._ask_to_end(before, Stop.NEWER)
        except StoreUnavailable as error:
            self._lease.probe(error)
            _LOG.warning("not_interrupted", agent=self.agent.name, turn=str(turn.id), reason=error.reason.value)

    async def _ask_to_end(self, turn: TurnRecord, why: Stop) -> None:
        """End a turn that runs here, or waits for a person and runs nowhere; other owners learn it as they renew."""
        entry = self._runner.find(turn.id)
        if entry is not None:
            entry.end(why)
        elif turn.status is TurnStatus.WAITING and await self._store.cancel_waiting(self.agent.id, turn.id, turn.user):
            self._runner.look_around()

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
                self._lease.fenced(owner)
                raise NotReady(Reason.STARTING, "The lease on this agent is being renewed.", retry_after=1.0) from error
            except StoreUnavailable as error:
                self._lease.probe(error)
                if pause is None:
                    self._runner.look_around()
                    raise
                _LOG.warning("accept_repeated", agent=self.agent.name, turn=str(turn.id), reason=error.reason.value)
                await self._clock.sleep(pause)
        raise AssertionError("unreachable")

    def _check_input(self, content: str) -> None:
        if self._input is not None:
            self._input.check(content)

    def prepare_once(
        self,
        content: str,
        history: tuple[ChatMessage, ...],
        stream: TurnStream,
        *,
        system: str = "",
        user: str = ANONYMOUS,
    ) -> TurnRun:
        """Return a turn that is answered from the conversation it brings along, and kept nowhere.

        `system` is added to the agent's own prompt; tools are called for `user`. The caller owns the work. Raises
        Draining, InvalidContent.
        """
        self._check_input(content)
        if self._draining:
            raise Draining("This process is being stopped; send the request again.", retry_after=2.0)
        nowhere = new_turn_id(self._clock.now())
        work = TurnWork(
            content=content,
            history=history,
            system="\n\n".join(part for part in (self.spec.system_prompt, system) if part),
            history_limit=self.spec.history.limit,
            steps_before=sum(message.role == "assistant" for message in history),
            turn_seconds=float(self.spec.limits.turn_seconds),
            plan=self._plan,
            context=ToolContext(self.agent.id, user, "", nowhere, nowhere, key=""),
        )
        return self._driver.prepare(work, stream)

    async def run_once(self, run: TurnRun) -> Outcome:
        """Return the outcome of a turn of prepare_once(), within the budgets. Raises StoreUnavailable, NotReady.

        If cancelled: what it used by then counts as what was expected.
        """
        if self.budgets is None:
            return await run.run()
        try:
            found = await self.budgets.admit(run.user, run.chars)
        except LeaseLost as error:
            raise NotReady(Reason.STARTING, "The lease on this agent is not held yet.", retry_after=1.0) from error
        if isinstance(found, Refusal):
            return run.end_with(Refused(Reason.BUDGET_EXHAUSTED.value, found.message, self.spec.messages.budget))
        outcome: Outcome | None = None
        try:
            outcome = await run.run()
        finally:
            self.budgets.settle(found, outcome, run.chars)
        return outcome

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

        A turn that another process runs ends when that one next renews its lease, within CANCEL_WAIT if all is well; if
        not, the wish stays, and the turn comes back as it stands. Raises NotFound, StoreUnavailable.
        """
        record = await self._store.cancel_turn(self.agent.id, turn_id, user)
        if record is None:
            raise NotFound("turn")
        if record.status.is_final:
            self._publish(record)
            return record
        if record.status is TurnStatus.WAITING:
            return await self._cancel_waiting(record)
        await self._ask_to_end(record, Stop.USER)
        return await self.wait_outcome(record, CANCEL_WAIT)

    async def _cancel_waiting(self, record: TurnRecord) -> TurnRecord:
        """Have a turn that waits for a person cancelled by whichever process sweeps first."""
        await self._store.cancel_waiting(self.agent.id, record.id, record.user)
        self._runner.look_around()
        deadline = self._clock.monotonic() + CANCEL_WAIT
        while not record.status.is_final and self._clock.monotonic() < deadline:
            await self._clock.sleep(CANCEL_POLL)
            record = await self.turn(record.id, record.user)
        return record

    # ---- steps and approvals

    async def steps(self, turn: TurnRecord) -> list[StepRecord]:
        """Return what the turn did with tools so far."""
        return await self._store.list_steps(self.agent.id, turn.session_id, turn.id)

    async def approvals(self, turn_id: UUID | None = None) -> list[ApprovalRecord]:
        """Return the tool calls that wait for a person, of one turn if it is given."""
        return await self._store.list_approvals(self.agent.id, turn_id=turn_id)

    async def decide(self, turn_id: UUID, call_id: str, *, approve: bool, by: str, comment: str) -> ApprovalRecord:
        """Decide on a tool call that waits; with the last one of its turn some process goes on with the turn at once.

        The same decision again is no mistake. Raises NotFound, NotWaiting.
        """
        verdict = Verdict.APPROVED if approve else Verdict.REJECTED
        approval = await self._store.find_approval(self.agent.id, turn_id, call_id)
        if approval is None:
            raise NotFound("approval")
        if approval.verdict is None:
            await self._store.decide(self.agent.id, approval, approve=approve, by=by, comment=comment)
            self._runner.look_around()
            approval = await self._store.find_approval(self.agent.id, turn_id, call_id) or approval
        if approval.verdict is not verdict:
            how = approval.verdict.value if approval.verdict is not None else "out of time, or its turn was cancelled"
            raise NotWaiting(f"It is {how}.")
        return approval

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

    def forget_sessions(self, session_ids: Sequence[UUID]) -> None:
        """Stop the turns of sessions that were just deleted, and drop these from memory."""
        for session_id in session_ids:
            self._runner.end(Stop.DELETED, session_id=session_id)
            self._cache.forget(session_id)

    def state_changed(self, session_id: UUID) -> None:
        """Somebody wrote or deleted the session's state: its next turn here reads it."""
        self._cache.reload(session_id)

    async def _tidy_for_ever(self, pulse: Pulse) -> None:
        while True:
            pulse()
            await self._clock.sleep(1.0)
            await self._forget_old_sessions()
            await self._saver.save_owed()
            await self._saver.evict_surplus()
            self._cache.rest(self._clock.monotonic())
            self.telemetry.sessions(len(self._cache))

    async def _forget_old_sessions(self) -> None:
        """Now and then delete some sessions that are past their retention; more come at once if there may be more."""
        days = self.spec.session.retention_days
        if not days or self._clock.monotonic() < self._retention_due or self._lease.owner is None:
            return
        self._retention_due = self._clock.monotonic() + random.uniform(*RETENTION_PAUSE)
        try:
            gone = await self._store.delete_old_sessions(self.agent.id, days=days, limit=RETENTION_BATCH)
        except StoreUnavailable as error:
            self._lease.probe(error)
            return
        self.forget_sessions(gone)
        if len(gone) == RETENTION_BATCH:
            self._retention_due = self._clock.monotonic()
        if gone:
            _LOG.info("sessions_forgotten", agent=self.agent.name, sessions=len(gone), days=days)
