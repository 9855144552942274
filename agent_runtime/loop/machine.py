"""One turn as a pure machine: `advance(state, event) -> (state, effects)`.

    IDLE ── Started ──► CALLING ── text ──────────────────────────► DONE (completed)
                        │  ▲  └── tool calls ──► TOOLS ── all back ──► CALLING (next step) …
                        │  └───── PauseElapsed ── PAUSED
                        └─ failure: same model again after a pause, then the next model, then DONE (fallback)

A step is one model answer; trying again or falling back to another model stays within the step. Steps are bounded by
`max_steps`, tries by the number of models, so every turn ends. Events that do not fit the state (an answer to a call
that was given up, anything after the outcome) change nothing: whatever the order of events, there is one outcome.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from agent_api.wire import TurnStatus
from agent_runtime.llm.port import FREE, Cost, FailureKind, ToolCall, add_costs
from agent_runtime.loop.contract import ReplyContract
from agent_runtime.records import replace
from agent_store.ports import NewMessage, Outcome

MOST_TOOL_CALLS: Final = 32
"""Tool calls of one step; a model that wants more at once is not making sense."""


class Phase(StrEnum):
    """What the turn waits for."""

    IDLE = "idle"
    CALLING = "calling"
    PAUSED = "paused"
    TOOLS = "tools"
    DONE = "done"


@dataclass(frozen=True, slots=True)
class Plan:
    """What bounds a turn: the chain of models (as `provider/model`), its limits, and what users read if it fails."""

    models: Sequence[str]
    max_steps: int
    fallback: str
    most_tokens: int = 0
    """Once the model calls used so many tokens, in and out, no tool is called any more; 0: no limit."""
    output: ReplyContract | None = None
    """What replies must be, if not any text; a model whose reply does not fit is asked once more."""
    tries_per_model: int = 2
    retry_pause: float = 0.25
    longest_pause: float = 1.0
    """A provider that wants a longer pause is left for the next model;"""
    last_pause: float = 10.0
    """where there is none, users wait for it so long."""


@dataclass(frozen=True, slots=True)
class Failure:
    """One model call that failed."""

    model: str
    kind: FailureKind
    message: str
    retryable: bool


# ---- events


@dataclass(frozen=True, slots=True)
class Started:
    """The turn may begin."""


@dataclass(frozen=True, slots=True)
class ModelAnswered:
    """The model call with this number succeeded."""

    call: int
    text: str
    tool_calls: Sequence[ToolCall] = ()
    input_tokens: int = 0
    output_tokens: int = 0
    model: int | None = None
    """Which of the plan's models answered, if not the one that was asked last: the answer is of an earlier run."""
    cost: Cost | None = FREE
    """None: no price is known."""


@dataclass(frozen=True, slots=True)
class ModelFailed:
    """The model call with this number failed. `retry_after`: for how many seconds the model takes no further one."""

    call: int
    kind: FailureKind
    message: str
    retryable: bool = False
    retry_after: float | None = None


@dataclass(frozen=True, slots=True)
class ToolReturned:
    """A tool of the present step gave its result."""

    call_id: str
    content: str


@dataclass(frozen=True, slots=True)
class PauseElapsed:
    """The pause before the call with this number is over."""

    call: int


@dataclass(frozen=True, slots=True)
class DeadlinePassed:
    """The turn took longer than it may."""

    seconds: float


@dataclass(frozen=True, slots=True)
class CancelRequested:
    """The user wants no answer any more."""


@dataclass(frozen=True, slots=True)
class Broke:
    """A defect of the runtime ended the work on this turn."""


@dataclass(frozen=True, slots=True)
class Refused:
    """The turn may not begin; users read `text`."""

    error_type: str
    message: str
    text: str


@dataclass(frozen=True, slots=True)
class TriedTooOften:
    """The processes that ran this turn ended again and again."""

    attempts: int


LoopEvent = (
    Started
    | ModelAnswered
    | ModelFailed
    | ToolReturned
    | PauseElapsed
    | DeadlinePassed
    | CancelRequested
    | Broke
    | Refused
    | TriedTooOften
)

# ---- effects


@dataclass(frozen=True, slots=True)
class CallModel:
    """Call `plan.models[model]`; the answer carries `call`. `step` counts from 0 within the turn."""

    call: int
    model: int
    step: int


@dataclass(frozen=True, slots=True)
class CallTools:
    """Call these tools, in any order; each gives one ToolReturned."""

    calls: Sequence[ToolCall]


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait, then say PauseElapsed with this number."""

    call: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Finish:
    """The turn has its outcome."""

    outcome: Outcome


Effect = CallModel | CallTools | Pause | Finish

# ---- state


@dataclass(frozen=True, slots=True)
class TurnState:
    """Where a turn stands. `lines` are the messages it adds, whole steps only."""

    plan: Plan
    phase: Phase = Phase.IDLE
    steps: int = 0
    model: int = 0
    tries: int = 0
    call: int = 0
    lines: tuple[NewMessage, ...] = ()
    text: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    results: Mapping[str, str] = field(default_factory=dict)
    failures: tuple[Failure, ...] = ()
    input_tokens: int = 0
    output_tokens: int = 0
    cost: Cost | None = FREE
    draft: str = ""
    """A reply that did not fit, and `complaint` why; both are shown to the model once, and kept nowhere."""
    complaint: str = ""


Advance = tuple[TurnState, Sequence[Effect]]


def advance(state: TurnState, event: LoopEvent) -> Advance:
    """Return the next state and what must be done now; total, and without effect once the turn is done."""
    if state.phase is Phase.DONE:
        return state, ()
    match event:
        case Started() if state.phase is Phase.IDLE:
            return _begin_step(state)
        case ModelAnswered(call=call) if state.phase is Phase.CALLING and call == state.call:
            return _on_answer(state, event)
        case ModelFailed(call=call) if state.phase is Phase.CALLING and call == state.call:
            return _on_failure(state, event)
        case PauseElapsed(call=call) if state.phase is Phase.PAUSED and call == state.call:
            return _call(state)
        case ToolReturned() if state.phase is Phase.TOOLS:
            return _on_tool(state, event)
        case DeadlinePassed(seconds=seconds):
            return _fail(state, "TurnTimeout", f"The turn took longer than {seconds:g} s (limits.turnSeconds).")
        case CancelRequested():
            return _finish(state, TurnStatus.CANCELLED, error=("Cancelled", "The turn was cancelled."))
        case Broke():
            return _fail(state, "InternalError", "An internal error ended the turn; the operator of the agent sees it.")
        case Refused(error_type=error_type, message=message, text=text):
            lines = (*state.lines, NewMessage("assistant", text))
            return _finish(state, TurnStatus.FAILED, lines=lines, error=(error_type, message))
        case TriedTooOften(attempts=attempts):
            return _fail(
                state,
                "TooManyAttempts",
                f"The process that ran this turn ended {attempts} times before it had an outcome; it is not run again.",
            )
    return state, ()


def _begin_step(state: TurnState) -> Advance:
    if state.steps >= state.plan.max_steps:
        limit = state.plan.max_steps
        return _fail(state, "StepLimit", f"The turn needed more than {limit} model calls (limits.maxSteps).")
    return _call(replace(state, steps=state.steps + 1, tries=0, failures=(), tool_calls=(), text="", results={}))


def _call(state: TurnState) -> Advance:
    state = replace(state, phase=Phase.CALLING, call=state.call + 1, tries=state.tries + 1)
    return state, (CallModel(state.call, state.model, state.steps - 1),)


def _on_answer(state: TurnState, event: ModelAnswered) -> Advance:
    if len(event.tool_calls) > MOST_TOOL_CALLS:
        message = f"asked for {len(event.tool_calls)} tools at once; at most {MOST_TOOL_CALLS} are called"
        return _on_failure(state, ModelFailed(event.call, FailureKind.REFUSED, message))
    state = replace(
        state,
        model=state.model if event.model is None else event.model,
        text=event.text,
        tool_calls=_with_unique_ids(event.tool_calls),
        input_tokens=state.input_tokens + event.input_tokens,
        output_tokens=state.output_tokens + event.output_tokens,
        cost=add_costs(state.cost, event.cost),
    )
    if state.tool_calls:
        used = state.input_tokens + state.output_tokens
        if state.plan.most_tokens and used >= state.plan.most_tokens:
            limit = state.plan.most_tokens
            message = f"The turn used {used} tokens and was not done; at most {limit} are allowed (limits.turnTokens)."
            return _fail(state, "TokenLimit", message)
        return replace(state, phase=Phase.TOOLS), (CallTools(state.tool_calls),)
    if state.plan.output is not None:
        text, problem = state.plan.output.read(state.text)
        if problem:
            return _on_misfit(state, problem)
        state = replace(state, text=text)
    lines = (*state.lines, NewMessage("assistant", state.text))
    return _finish(state, TurnStatus.COMPLETED, lines=lines, model=state.plan.models[state.model])


def _on_misfit(state: TurnState, problem: str) -> Advance:
    if state.complaint:
        message = f"The model's reply did not fit spec.output.schema, also when it was asked again: {problem}."
        return _fail(state, "OutputInvalid", message)
    return _begin_step(replace(state, draft=state.text, complaint=problem))


def _with_unique_ids(calls: Sequence[ToolCall]) -> tuple[ToolCall, ...]:
    """Results are told apart by id, and models were seen to repeat or omit them, or to put in what is no text."""
    if len({call.id for call in calls if call.id.isprintable()} - {""}) == len(calls):
        return tuple(calls)
    return tuple(replace(call, id=f"call-{index}") for index, call in enumerate(calls))


def _on_failure(state: TurnState, event: ModelFailed) -> Advance:
    failure = Failure(state.plan.models[state.model], event.kind, event.message, event.retryable)
    state = replace(state, failures=(*state.failures, failure))
    is_last = state.model + 1 == len(state.plan.models)
    pause = max(state.plan.retry_pause, event.retry_after or 0.0)
    worth_it = pause <= (state.plan.last_pause if is_last else state.plan.longest_pause)
    if event.retryable and worth_it and state.tries < state.plan.tries_per_model:
        return replace(state, phase=Phase.PAUSED), (Pause(state.call, pause),)
    if not is_last:
        # The next steps of the turn stay with the model that works, instead of waiting for the broken one again.
        return _call(replace(state, model=state.model + 1, tries=0))
    first = state.failures[0]
    return _finish(
        state,
        TurnStatus.FALLBACK,
        lines=(*state.lines, NewMessage("assistant", state.plan.fallback)),
        error=(first.kind, _all_failed(state.failures)),
    )


def _all_failed(failures: Sequence[Failure]) -> str:
    last_words = {failure.model: failure.message for failure in failures}
    return "No model answered: " + "; ".join(f"{model} {message}" for model, message in last_words.items())


def _on_tool(state: TurnState, event: ToolReturned) -> Advance:
    known = {call.id for call in state.tool_calls}
    if event.call_id not in known or event.call_id in state.results:
        return state, ()
    state = replace(state, results={**state.results, event.call_id: event.content})
    if len(state.results) < len(known):
        return state, ()
    return _begin_step(replace(state, lines=(*state.lines, *_step_lines(state))))


def _step_lines(state: TurnState) -> tuple[NewMessage, ...]:
    asked = NewMessage("assistant", state.text, tool_calls=tuple(wire_call(call) for call in state.tool_calls))
    answered = (NewMessage("tool", state.results[call.id], tool_call_id=call.id) for call in state.tool_calls)
    return asked, *answered


def wire_call(call: ToolCall) -> dict[str, Any]:
    """Return a tool call as it is stored: {id, name, arguments}."""
    return {"id": call.id, "name": call.name, "arguments": call.arguments}


def _fail(state: TurnState, error_type: str, message: str) -> Advance:
    lines = (*state.lines, NewMessage("assistant", state.plan.fallback))
    return _finish(state, TurnStatus.FAILED, lines=lines, error=(error_type, message))


def _finish(
    state: TurnState,
    status: TurnStatus,
    *,
    lines: tuple[NewMessage, ...] | None = None,
    model: str | None = None,
    error: tuple[str, str] | None = None,
) -> Advance:
    outcome = Outcome(
        status=status,
        messages=state.lines if lines is None else lines,
        model=model,
        steps=state.steps,
        error_type=error[0] if error else None,
        error_message=error[1] if error else None,
        input_tokens=state.input_tokens,
        output_tokens=state.output_tokens,
        cost_micros=state.cost.micros if state.cost is not None and state.cost.currency else None,
        currency=state.cost.currency if state.cost is not None and state.cost.currency else None,
    )
    return replace(state, phase=Phase.DONE), (Finish(outcome),)
