"""The steps inside one turn that must not run twice: tool calls, and the model answers that ask for them.

What is promised, wherever the process ends:

- A step whose result is in the journal is not made again; its result is taken from there.
- Before a tool with side effects is called, `started` is in the journal. If no result follows, the outcome is unknown:
  the call is made again only with the key that makes repeating safe, else the model is told.
- Results are in the journal before the next model call can depend on them.

A turn whose tools have no side effects costs one write for each model answer that asks for tools; with side effects it
is one more. Steps are numbered like the lines they become: the answer first, then its calls in their order.
"""

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from agent_runtime.clock import Clock
from agent_runtime.llm.port import ToolCall
from agent_runtime.tools.port import Approval, ToolContext, ToolPolicy, Tools
from agent_store.errors import LeaseLost
from agent_store.steps import Decision, Journal, NewApproval, NewStep, StepKind, StepStatus, Verdict

TOOLS_AT_ONCE: Final = 8
UNKNOWN_OUTCOME: Final = (
    "The outcome of this call is unknown: the process that made it ended before the answer was recorded. It may or may "
    "not have taken effect, and it is not repeated by itself. Find out what happened before you call it again."
)
NO_APPROVAL_HERE: Final = "This call needs a person's approval, for which this request cannot wait; it was not made."
NOT_APPROVED: Final = "This call needs a person's approval, which nobody was asked for; it was not made. Call it again."

WriteSteps = Callable[[Sequence[NewStep]], Awaitable[None]]
"""Commits steps, however long it takes. Raises LeaseLost."""


class TurnWaits(Exception):  # noqa: N818 - what a turn comes to, not a mistake
    """The turn cannot go on before a person decides on these calls."""

    def __init__(self, approvals: Sequence[NewApproval]) -> None:
        super().__init__(f"waits for {len(approvals)} approvals")
        self.approvals = approvals


@dataclass(slots=True)
class _Job:
    """A call to make; `announced` once `started` is in the journal."""

    index: int
    call: ToolCall
    policy: ToolPolicy
    allowed: bool
    announced: bool = False


@dataclass(frozen=True, slots=True)
class _Noted:
    """A step that is to be written, with the moments of the process's clock at which it began and ended."""

    step: NewStep
    began: float
    ended: float | None


@dataclass(slots=True)
class _Batch:
    """What became of the calls of one model answer so far."""

    results: dict[str, str] = field(default_factory=dict)
    jobs: list[_Job] = field(default_factory=list)
    waiting: list[NewApproval] = field(default_factory=list)


class TurnSteps:
    """The journal of one run of a turn: `known` is what earlier runs left; without `write` nothing is kept."""

    def __init__(
        self, tools: Tools, clock: Clock, context: ToolContext, known: Journal, write: WriteSteps | None
    ) -> None:
        self._tools = tools
        self._clock = clock
        self._context = context
        self._known = known
        self._write = write
        self._noted: list[_Noted] = []
        self._writing = asyncio.Lock()
        self._under_way = 0
        self.kept = bool(known.steps)
        """Whether the journal holds anything of this turn."""

    def recorded_answer(self, index: int) -> tuple[str, dict[str, Any]] | None:
        """Return the model and its answer, as given to note_answer() in an earlier run, or None."""
        step = self._known.steps.get(index)
        if step is None or step.kind is not StepKind.MODEL or step.result is None:
            return None
        return step.name, step.result

    def note_answer(self, index: int, model: str, answer: dict[str, Any], began: float) -> None:
        """Have a model answer that asks for tools written before anything follows from it."""
        self._note(NewStep(index, StepKind.MODEL, model, StepStatus.FINISHED, answer), began, self._clock.monotonic())

    async def flush(self) -> None:
        """Return once all steps noted so far are in the journal. Raises LeaseLost."""
        async with self._writing:
            noted, self._noted = self._noted, []
            if not noted or self._write is None:
                return
            now = self._clock.monotonic()
            await self._write([_with_ages(one, now) for one in noted])
            self.kept = True

    async def call(self, first: int, calls: Sequence[ToolCall]) -> dict[str, str]:
        """Make the calls of one answer, numbered from `first`, and return what each gave, by its id.

        Raises TurnWaits once all that need no approval are made; LeaseLost.
        """
        batch = _Batch()
        for index, call in enumerate(calls, first):
            self._sort(batch, index, call)
        await self._announce([job for job in batch.jobs if job.policy.side_effects])
        batch.results.update(await self._make_all(batch.jobs))
        if batch.waiting:
            await self.flush()
            raise TurnWaits(batch.waiting)
        return batch.results

    def _sort(self, batch: _Batch, index: int, call: ToolCall) -> None:
        policy = self._tools.policy(call.name)
        said = self._from_journal(index, call, policy)
        allowed = False
        if said is None and policy.approval is not None:
            decision = self._known.decisions.get(_call_id(index))
            if self._write is None:
                said = NO_APPROVAL_HERE
            elif decision is None:
                batch.waiting.append(_to_approval(index, call, policy.approval))
                return
            elif decision.allows:
                allowed = True
            else:
                said = _refusal(decision)
                self._note_result(index, call, said, failed=True)
        if said is not None:
            batch.results[call.id] = said
        else:
            batch.jobs.append(_Job(index, call, policy, allowed))

    def _from_journal(self, index: int, call: ToolCall, policy: ToolPolicy) -> str | None:
        """Return what the model is to read if the call must not be made (again)."""
        step = self._known.steps.get(index)
        if step is None or step.kind is not StepKind.TOOL:
            return None
        if step.result is not None:
            return str(step.result["content"])
        if step.key is not None and policy.idempotency_argument is not None:
            return None
        self._note_result(index, call, UNKNOWN_OUTCOME, failed=True)
        return UNKNOWN_OUTCOME

    async def _announce(self, jobs: Sequence[_Job]) -> None:
        """Put `started` into the journal: from here on these calls may have been made."""
        if not jobs:
            return
        now = self._clock.monotonic()
        for job in jobs:
            key = self._context_of(job).key if job.policy.idempotency_argument is not None else None
            self._note(NewStep(job.index, StepKind.TOOL, job.call.name, StepStatus.STARTED, key=key), now, None)
            job.announced = True
        await self.flush()

    async def _make_all(self, jobs: Sequence[_Job]) -> dict[str, str]:
        gate = asyncio.Semaphore(TOOLS_AT_ONCE)
        self._under_way = len(jobs)
        try:
            async with asyncio.TaskGroup() as group:
                tasks = {
                    job.call.id: group.create_task(self._make(job, gate), name=f"tool-{job.call.id}") for job in jobs
                }
        except ExceptionGroup as errors:
            lost, others = errors.split(LeaseLost)
            # Being fenced out is more than any defect: nothing may be committed any more.
            raise (lost or others or errors).exceptions[0] from errors
        return {call_id: task.result() for call_id, task in tasks.items()}

    async def _make(self, job: _Job, gate: asyncio.Semaphore) -> str:
        async with gate:
            # A tool may have become known since: what it needs is decided by what is true when it is called.
            job.policy = self._tools.policy(job.call.name)
            if job.policy.approval is not None and not job.allowed:
                self._under_way -= 1
                self._note_result(job.index, job.call, NOT_APPROVED, failed=True)
                return NOT_APPROVED
            if job.policy.side_effects and not job.announced:
                await self._announce([job])
            began = self._clock.monotonic()
            result = await self._tools.call(job.call, self._context_of(job))
            self._under_way -= 1
            self._note_result(job.index, job.call, result.content, failed=result.is_error, began=began)
            if job.announced and self._under_way:
                # Others may take long: what is known of this one must not be lost with them.
                await self.flush()
            return result.content

    def _context_of(self, job: _Job) -> ToolContext:
        # The arguments are part of it, since an answer that was not journaled may be another one next time.
        said = json.dumps([job.call.name, job.call.arguments], sort_keys=True, default=str).encode("utf-8")
        digest = hashlib.sha256(said).hexdigest()[:16]
        return replace(self._context, key=f"{self._context.turn_id.hex}-{job.index}-{digest}")

    def _note_result(
        self, index: int, call: ToolCall, content: str, *, failed: bool, began: float | None = None
    ) -> None:
        status = StepStatus.FAILED if failed else StepStatus.FINISHED
        now = self._clock.monotonic()
        step = NewStep(index, StepKind.TOOL, call.name, status, {"content": content})
        self._note(step, now if began is None else began, now)

    def _note(self, step: NewStep, began: float, ended: float | None) -> None:
        if self._write is not None:
            self._noted.append(_Noted(step, began, ended))


def _with_ages(noted: _Noted, now: float) -> NewStep:
    ended = None if noted.ended is None else max(0.0, now - noted.ended)
    return replace(noted.step, started=max(0.0, now - noted.began), finished=ended)


def _call_id(index: int) -> str:
    """Return the id of an approval: models repeat the ids of their calls, numbers of steps are unique in a turn."""
    return f"call-{index}"


def _to_approval(index: int, call: ToolCall, approval: Approval) -> NewApproval:
    return NewApproval(_call_id(index), call.name, dict(call.arguments), approval.timeout, approval.on_timeout)


def _refusal(decision: Decision) -> str:
    if decision.verdict is Verdict.TIMED_OUT:
        return "Nobody approved this call in time; it was not made."
    comment = f" They say: {decision.comment}" if decision.comment else ""
    return f"A person refused this call; it was not made.{comment}"
