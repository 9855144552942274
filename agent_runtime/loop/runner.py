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
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final, TypeVar
from uuid import UUID

from agent_api.conditions import Reason
from agent_api.v1alpha1 import AgentSpec
from agent_api.wire import TurnStatus
from agent_runtime.budgets.ledger import Hold
from agent_runtime.budgets.turns import TurnBudgets
from agent_runtime.clock import Clock
from agent_runtime.errors import InvalidState
from agent_runtime.history.compaction import Compactor, after_summary, with_summary
from agent_runtime.history.tokens import TokenGauge
from agent_runtime.hooks.port import TurnHooks
from agent_runtime.ids import accepted_at
from agent_runtime.llm.port import ChatMessage
from agent_runtime.loop.driver import NOTHING_KNOWN, TurnDriver, TurnRun, TurnWork, chat_message, with_spent
from agent_runtime.loop.keeper import LeaseKeeper, wait_event
from agent_runtime.loop.machine import Broke, CancelRequested, Plan, Refused, TriedTooOften
from agent_runtime.loop.solitude import Solitude
from agent_runtime.loop.steps import TurnWaits, WriteSteps
from agent_runtime.loop.stream import StreamHub, TurnStream, first_attempt
from agent_runtime.saver import StateSaver
from agent_runtime.sessions import SessionCache
from agent_runtime.state import SessionDocument, decode
from agent_runtime.supervisor import Pulse, Supervisor
from agent_runtime.telemetry.agent import AgentTelemetry
from agent_runtime.telemetry.logs import get_logger
from agent_runtime.tools.port import ToolContext
from agent_store.errors import LeaseLost, StoreError, StoreUnavailable
from agent_store.ports import CancelRequest, Claim, Completed, NewMessage, Outcome, Owner, Store, StoredMessage
from agent_store.steps import Journal, NewApproval, NewStep

_LOG = get_logger("engine")
T = TypeVar("T")

SUSPICIOUS_ATTEMPTS: Final = 3
"""From this attempt on a turn runs alone, since the processes that ran it ended; if that one ends too, it fails."""
MOST_ATTEMPTS: Final = 10
"""A turn whose processes ended this often is failed, whatever ran beside it."""
MOST_DEFECTS: Final = SUSPICIOUS_ATTEMPTS + 2
"""So often the sweep brings a turn back that cannot be committed because of a defect; a restart begins anew."""
MOST_REMEMBERED: Final = 1000
SWEEP_SECONDS: Final = (1.0, 1.9)
"""With the lease of 8 s a turn is taken over within 10 s of the end of its process."""
SWEEP_LIMIT: Final = 100
MOST_MERGED: Final = 20
"""Waiting messages that are answered together (session.whenBusy: Merge); more are answered after them."""
INTERRUPTED: Final = ("Interrupted", "A newer message took its place (session.whenBusy: Interrupt).")
EXPIRED: Final = "MessageExpired"
FIRST_RETRY: Final = 0.05
LONGEST_RETRY: Final = 1.0
CLEAR_SECONDS: Final = 2.0
STREAM_ATTEMPTS_PER_STEP: Final = 20
"""More than the models of a chain make of one step."""
EXPIRE_SECONDS: Final = 5.0
"""How often approvals that nobody gave are looked for."""


class Stop(StrEnum):
    """Why a turn's work is ended from outside; only the first two lead to an outcome here."""

    USER = "user"
    NEWER = "newer"
    """A newer message takes its place (session.whenBusy: Interrupt)."""
    LEASE = "lease"
    SHUTDOWN = "shutdown"
    DELETED = "deleted"

    @property
    def is_wish(self) -> bool:
        """Whether somebody wants no answer any more: the turn ends with an outcome."""
        return self in (Stop.USER, Stop.NEWER)


@dataclass(slots=True, eq=False)
class RunningTurn:
    """A turn being worked on in this process."""

    claim: Claim
    owner: Owner
    task: asyncio.Task[None] | None = None
    stop: Stop | None = None
    started: bool = False
    committing: bool = False
    journaled: bool = False
    hold: Hold | None = None
    outcome: Outcome | None = None
    chars: int = 0
    summary: str | None = None
    fresh: bool = False

    def end(self, why: Stop) -> None:
        """Ask the work to end; a user's wish comes too late once the outcome is being committed."""
        # The end of the process is more than a wish: it must not wait for a commit that cannot be made.
        if (self.stop is not None and (why.is_wish or not self.stop.is_wish)) or (why.is_wish and self.committing):
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
    hooks: TurnHooks | None = None
    budgets: TurnBudgets | None = None
    compactor: Compactor | None = None
    gauge: TokenGauge = field(default_factory=TokenGauge)


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
        self._hooks = parts.hooks
        self._budgets = parts.budgets
        self._compactor = parts.compactor
        self._gauge = parts.gauge
        self._most_running = most_running
        self._most_merged = MOST_MERGED if spec.session.when_busy == "Merge" else 1
        self._accepting = accepting
        self._running: dict[UUID, RunningTurn] = {}
        self._defects: dict[UUID, int] = {}
        self._ended: set[UUID] = set()
        """Turns whose work ended since the last sweep began."""
        self._solitude = Solitude()
        self._spared: set[UUID] = set()
        self._expire_at = 0.0
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

    def cancel(self, requests: Iterable[CancelRequest]) -> None:
        """End turns that somebody asked another process to cancel, or that were not known yet when they asked."""
        for request in requests:
            if (entry := self._running.get(request.turn_id)) is not None:
                entry.end(Stop.NEWER if request.interrupted else Stop.USER)

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
        self._ended.clear()
        owner, accepting = self._lease.owner, self._accepting()
        room = min(SWEEP_LIMIT, self._most_running - len(self._running) - len(accepting))
        if owner is None or self._paused or room <= 0:
            return False
        await self._expire_approvals()
        given_up = (turn_id for turn_id, times in self._defects.items() if times >= MOST_DEFECTS)
        known = [*self._running, *accepting, *given_up]
        try:
            claims = await self._store.claim_orphans(
                self._agent_id, owner, limit=room, known=known, most=self._most_merged
            )
        except LeaseLost:
            self._lease.fenced(owner)
            return False
        except StoreUnavailable as error:
            self._lease.probe(error)
            return False
        for claim in claims:
            if claim.turn_id in self._ended:
                continue  # found while it still ran, and it has its outcome by now
            if claim.attempts > 1 and claim.turn_id not in self._running:
                self._telemetry.turn_taken_over(claim)
            self.begin(claim, owner)
        return len(claims) == room

    async def _expire_approvals(self) -> None:
        """Let turns go on whose approvals nobody gave in time, now and then."""
        if self._clock.monotonic() < self._expire_at:
            return
        self._expire_at = self._clock.monotonic() + EXPIRE_SECONDS
        try:
            await self._store.expire_approvals(self._agent_id)
        except StoreUnavailable as error:
            self._lease.probe(error)

    async def _run_to_end(self, entry: RunningTurn) -> None:
        entry.started = True
        claim = entry.claim
        completed: Completed | None = None
        try:
            if entry.stop is None or entry.stop.is_wish:
                completed = await self._run_claim(entry)
        except LeaseLost:
            self._lease.probe()  # either this turn or the whole process was fenced out
            _LOG.warning("turn_fenced_out", turn=str(claim.turn_id), attempts=claim.attempts)
        except Exception as error:
            self._note_defect(claim, error)
        finally:
            self._running.pop(claim.turn_id, None)
            self._ended.add(claim.turn_id)
            self._telemetry.running(len(self._running))
            if entry.hold is not None and self._budgets is not None:
                self._budgets.settle(entry.hold, entry.outcome, entry.chars)
        if completed is not None:
            self._defects.pop(claim.turn_id, None)
            await self._after(entry, completed)

    async def _run_claim(self, entry: RunningTurn) -> Completed | None:
        """Return the committed outcome, or None if the turn waits for a person.

        Raises LeaseLost; CancelledError when the work is ended without an outcome.
        """
        claim, started = entry.claim, self._clock.monotonic()
        with self._hub.hold(claim.turn_id) as stream:
            stream.begin(max(first_attempt(claim.attempts), stream.attempt + 1 if stream.attempt else 0))
            try:
                history, outcome = await self._work(entry, stream)
            except TurnWaits as waits:
                if await self._park(entry, waits.approvals):
                    self._let_go(entry)
                    stream.wait_for_person()
                    return None
                outcome = self._prepare(claim, (), stream).end_with(CancelRequested())
                history, outcome = None, await self._with_spent(entry, outcome)
            entry.committing, entry.outcome = True, outcome
            stream.usage = (outcome.input_tokens, outcome.output_tokens)
            outcome, completed = await self._commit(entry, outcome, stream)
            if history is not None:
                self._remember(entry, history, outcome)
            self._telemetry.turn_finished(completed.turn, self._clock.monotonic() - started)
            stream.finish(completed.turn)
        if entry.journaled:
            await self._forget_results(claim, outcome)
        return completed

    async def _park(self, entry: RunningTurn, approvals: Sequence[NewApproval]) -> bool:
        """Leave the turn to wait; False if it is to be cancelled instead."""
        entry.committing = True
        parked = await self._insist(entry, lambda _owner: self._store.park(entry.claim, approvals))
        if parked:
            tools = sorted({approval.tool for approval in approvals})
            _LOG.info("turn_waits", turn=str(entry.claim.turn_id), tools=tools)
        return parked

    async def _forget_results(self, claim: Claim, outcome: Outcome) -> None:
        """Drop from the journal what is in the turn's messages; what stays if this fails goes with the session."""
        try:
            await self._store.forget_results(claim, len(outcome.messages) - 1)
        except StoreUnavailable as error:
            self._lease.probe(error)

    async def _work(self, entry: RunningTurn, stream: TurnStream) -> tuple[tuple[ChatMessage, ...] | None, Outcome]:
        """Return the history the turn was given (None: it was not read) and its outcome."""
        claim = entry.claim
        history: tuple[ChatMessage, ...] | None = None
        run = self._prepare(claim, (), stream)
        try:
            if claim.is_cancelled or (entry.stop is not None and entry.stop.is_wish):
                return None, await self._with_spent(entry, _cancelled(entry, run))
            if (expired := self._expired(claim, run)) is not None:
                return None, expired
            if claim.attempts > MOST_ATTEMPTS or (claim.is_alone and claim.turn_id not in self._spared):
                return None, await self._with_spent(entry, run.end_with(TriedTooOften(claim.attempts - 1)))
            if claim.is_unreadable:
                raise ValueError("its message is stored in a form that cannot be read")
            known = await self._journal(entry, stream)
            history = await self._history(entry)
            run = self._prepare(claim, history, stream, known=known, write=self._writer(entry), summary=entry.summary)
            refused = await self._admit(entry, run.chars)
            if refused is not None:
                return history, run.end_with(refused)
            outcome = await self._run(entry, run)
            if not self._spec.models[0].is_built_in:
                self._learn(run, outcome)
            return history, outcome
        except asyncio.CancelledError:
            if entry.stop is None or not entry.stop.is_wish or entry.task is None:
                raise
            entry.task.uncancel()
            return history, _cancelled(entry, run)
        except ValueError as error:
            # A message, its history or its journal cannot be read, and reading again would not help.
            self._telemetry.broke(error, traceback.format_exc())
            return None, self._prepare(claim, (), stream).end_with(Broke())

    async def _with_spent(self, entry: RunningTurn, outcome: Outcome) -> Outcome:
        """Return the outcome of a turn that is not run again with what earlier work on it used: that is paid for."""
        claim = entry.claim
        if not (claim.is_resumed or claim.attempts > 1 or entry.journaled):
            return outcome
        journal = await self._insist(entry, lambda _owner: self._store.load_journal(claim))
        if not journal.steps:
            return outcome
        entry.journaled = True
        if entry.hold is None:
            await self._admit(entry, 0)
        return with_spent(outcome, journal)

    async def _admit(self, entry: RunningTurn, chars: int) -> Refused | None:
        """Keep room in the budgets for the turn, or say what users read instead; a turn that was begun goes on."""
        budgets = self._budgets
        if budgets is None:
            return None
        claim, entry.chars = entry.claim, chars
        begun = claim.is_resumed or claim.attempts > 1
        found = await self._insist(entry, lambda _owner: budgets.admit(claim.session.user, chars, begun=begun))
        if isinstance(found, Hold):
            entry.hold = found
            return None
        return Refused(Reason.BUDGET_EXHAUSTED.value, found.message, self._spec.messages.budget)

    def _learn(self, run: TurnRun, outcome: Outcome) -> None:
        """Learn how many characters a token has from a turn of one call that was shown all there is."""
        whole = run.chars <= self._gauge.chars_for(self._spec.history.max_tokens)
        if outcome.status is TurnStatus.COMPLETED and outcome.steps == 1 and whole:
            self._gauge.observe(run.chars, outcome.input_tokens)

    def _let_go(self, entry: RunningTurn) -> None:
        """The turn waits for a person; all it used is accounted for when it has its outcome."""
        if entry.hold is not None and self._budgets is not None:
            self._budgets.release(entry.hold)
            entry.hold = None

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

    async def _journal(self, entry: RunningTurn, stream: TurnStream) -> Journal:
        """Return what earlier work on the turn left behind; nothing is asked for at its first start."""
        claim = entry.claim
        if not claim.is_resumed and claim.attempts <= 1:
            return NOTHING_KNOWN
        journal = await self._insist(entry, lambda _owner: self._store.load_journal(claim))
        if journal.steps:
            entry.journaled = True
            # The turn may have waited for a person in another process, which counts as no attempt.
            said = first_attempt(claim.attempts) + STREAM_ATTEMPTS_PER_STEP * len(journal.steps)
            stream.begin(max(stream.attempt, said))
        return journal

    def _writer(self, entry: RunningTurn) -> WriteSteps:
        async def write(steps: Sequence[NewStep]) -> None:
            entry.journaled = True
            await self._insist(entry, lambda _owner: self._store.write_steps(entry.claim, steps))

        return write

    def _prepare(
        self,
        claim: Claim,
        history: tuple[ChatMessage, ...],
        stream: TurnStream,
        *,
        known: Journal = NOTHING_KNOWN,
        write: WriteSteps | None = None,
        summary: str | None = None,
    ) -> TurnRun:
        work = TurnWork(
            content=claim.content,
            history=history,
            system=with_summary(self._spec.system_prompt or "", summary),
            history_limit=self._spec.history.limit,
            history_chars=self._gauge.chars_for(self._spec.history.max_tokens),
            steps_before=claim.steps_before,
            turn_seconds=float(self._spec.limits.turn_seconds),
            plan=self._plan,
            context=self._context_of(claim),
            session=str(claim.session_id),
            known=known,
            write_steps=write,
        )
        return self._driver.prepare(work, stream)

    def _context_of(self, claim: Claim) -> ToolContext:
        return ToolContext(
            agent_id=self._agent_id,
            user=claim.session.user,
            session=claim.session.name,
            session_id=claim.session_id,
            turn_id=claim.turn_id,
            key="",
        )

    async def _run(self, entry: RunningTurn, run: TurnRun) -> Outcome:
        if entry.claim.attempts < SUSPICIOUS_ATTEMPTS:
            async with self._solitude.beside():
                return await run.run()

        async def mark(alone: bool) -> None:
            await self._insist(entry, lambda _owner: self._store.mark_alone(entry.claim, alone=alone))

        async with self._solitude.alone(mark) as is_alone:
            try:
                return await run.run()
            except TurnWaits:
                raise
            except BaseException:
                if is_alone:
                    await self._spare(entry)
                raise

    async def _spare(self, entry: RunningTurn) -> None:
        """The turn ends here without an outcome while the process lives: it did no harm, and may begin again."""
        self._spared.add(entry.claim.turn_id)
        while len(self._spared) > MOST_REMEMBERED:
            self._spared.pop()
        with suppress(StoreError, TimeoutError):
            async with asyncio.timeout(CLEAR_SECONDS):
                await self._store.mark_alone(entry.claim, alone=False)

    async def _history(self, entry: RunningTurn) -> tuple[ChatMessage, ...]:
        claim = entry.claim
        known = self._cache.messages_before(claim.session_id, claim.turn_seq)
        if known is not None:
            entry.summary = self._cache.summary_of(claim.session_id)
            return known
        entry.fresh = True
        stored = await self._insist(
            entry,
            lambda _owner: self._store.load_history(
                claim.session_id, self._agent_id, before_turn_seq=claim.turn_seq, limit=self._spec.history.limit
            ),
        )
        if self._compactor is not None:
            document = await self._document(entry)
            entry.summary, stored = document.summary, list(after_summary(document, stored))
        return tuple(map(_from_store, stored))

    async def _document(self, entry: RunningTurn) -> SessionDocument:
        """Return the session's state; one that a newer version wrote reads as empty."""
        session_id = entry.claim.session_id
        found = await self._insist(entry, lambda _owner: self._store.load_state(self._agent_id, session_id))
        try:
            return decode(found.document) if found is not None else SessionDocument()
        except InvalidState:
            return SessionDocument()

    def _remember(self, entry: RunningTurn, history: tuple[ChatMessage, ...], outcome: Outcome) -> None:
        claim = entry.claim
        session = self._cache.put(
            claim.session_id,
            turn_seq=claim.accepted_messages,  # the last one's, where several were merged
            accepted_messages=claim.accepted_messages,
            history=history,
            added=(
                *(ChatMessage("user", text) for text in claim.texts or (claim.content,)),
                *map(chat_message, outcome.messages),
            ),
            now=self._clock.monotonic(),
            summary=entry.summary,
            fresh=entry.fresh,
        )
        every = self._spec.state.auto_save_every_messages
        if claim.accepted_messages // every > (claim.turn_seq - 1) // every:
            session.save_due = True
        self._telemetry.sessions(len(self._cache))

    async def _after(self, entry: RunningTurn, completed: Completed) -> None:
        """Start what waited behind the turn; save the session if it is time."""
        if completed.waiting and not self._paused and self._lease.owner == entry.owner:
            try:
                following = await self._store.start_next(
                    self._agent_id, entry.claim.session_id, entry.owner, most=self._most_merged
                )
            except LeaseLost:
                self._lease.fenced(entry.owner)
                return
            except StoreUnavailable as error:
                self._lease.probe(error)
                self._wake.set()  # it starts queued turns of idle sessions, and finds a claim that got lost
                return
            if following is not None:
                self.begin(following, entry.owner)
        if entry.claim.merged:
            await self._tell_merged(entry.claim)
        if self._hooks is not None:
            self._hooks.after(self._context_of(entry.claim), completed.turn)
        await self._saver.save_due(entry.claim.session_id)
        session = self._cache.find(entry.claim.session_id)
        if self._compactor is not None and session is not None:
            self._compactor.consider(session, entry.claim.session.user)

    async def _tell_merged(self, claim: Claim) -> None:
        """Tell those who follow a turn that was merged into this one: it has the same outcome."""
        for turn_id, _ in claim.merged:
            stream = self._hub.find(turn_id)
            if stream is None or stream.outcome is not None:
                continue
            try:
                record = await self._store.get_turn(self._agent_id, turn_id, claim.session.user)
            except StoreUnavailable as error:
                self._lease.probe(error)
                return  # they look for themselves, a little later
            if record is not None and record.status.is_final:
                stream.begin(stream.attempt + 1)
                stream.add(record.reply or "")
                stream.finish(record)

    def _expired(self, claim: Claim, run: TurnRun) -> Outcome | None:
        """Return the outcome of a message that waited too long; None if it is to be answered, or was begun before."""
        longest = self._spec.session.max_message_age_seconds
        newest = claim.merged[-1][0] if claim.merged else claim.turn_id
        if not longest or claim.is_resumed or claim.attempts > 1:
            return None
        waited = self._clock.now().timestamp() - accepted_at(newest)
        if waited <= longest:
            return None
        message = f"It waited {waited:.0f} s; at most {longest} are allowed (session.maxMessageAgeSeconds)."
        return run.end_with(Refused(EXPIRED, message, self._spec.messages.expired))

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
                self._lease.probe(error)
                _LOG.warning("store_retry", turn=str(entry.claim.turn_id), reason=error.reason.value)
            await self._clock.sleep(pause)
            pause = min(pause * 2, LONGEST_RETRY)


def _cancelled(entry: RunningTurn, run: TurnRun) -> Outcome:
    """Return the outcome of a turn nobody wants an answer of; what it said so far is dropped."""
    outcome = run.end_with(CancelRequested())
    if entry.stop is not Stop.NEWER:
        return outcome
    error_type, message = INTERRUPTED
    return replace(outcome, error_type=error_type, error_message=message)


def _from_store(message: StoredMessage) -> ChatMessage:
    return chat_message(
        NewMessage(message.role, message.content, tool_calls=message.tool_calls, tool_call_id=message.tool_call_id)
    )
