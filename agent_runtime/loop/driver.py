"""Performs what the turn machine asks for: model calls, tool calls, pauses, and the turn's deadline.

It does not know the store: the runner gives it the conversation, what earlier work on the turn left behind and a way
to write steps, and commits the outcome. What must not run twice is in `steps`.
"""

import asyncio
import traceback
from collections.abc import Callable, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

from agent_api.wire import TurnStatus
from agent_runtime.clock import Clock
from agent_runtime.history.tokens import newest_within
from agent_runtime.hooks.port import OWN_CODE_FAILED, HookFailed, TurnHooks
from agent_runtime.llm.port import (
    FREE,
    ChatMessage,
    Cost,
    FailureKind,
    Model,
    ModelEnd,
    ModelError,
    ModelRequest,
    NotAsked,
    TextDelta,
    ToolCall,
    add_costs,
)
from agent_runtime.loop.machine import (
    Broke,
    CallModel,
    CallTools,
    CancelRequested,
    DeadlinePassed,
    Effect,
    Finish,
    LoopEvent,
    ModelAnswered,
    ModelFailed,
    Pause,
    PauseElapsed,
    Plan,
    Refused,
    Started,
    ToolReturned,
    TriedTooOften,
    TurnState,
    advance,
    wire_call,
)
from agent_runtime.loop.steps import TurnSteps, TurnWaits, WriteSteps
from agent_runtime.loop.stream import TurnStream
from agent_runtime.records import replace
from agent_runtime.tools.port import ToolContext, Tools
from agent_store.errors import LeaseLost
from agent_store.ports import NewMessage, Outcome
from agent_store.steps import Journal, StepKind

NOTHING_KNOWN: Final = Journal()
MOST_REPLY_CHARS: Final = 1_000_000
"""A reply longer than this is a model that does not stop."""


@dataclass(frozen=True, slots=True)
class ModelCall:
    """What became of one model call: `failure` is None if it succeeded, `first_token` None if none came (seconds)."""

    model: str
    seconds: float
    failure: FailureKind | None
    message: str = ""
    first_token: float | None = None
    input_tokens: int = 0
    output_tokens: int = 0
    cost: Cost | None = FREE
    """None: no price is known."""
    entry: int = 0
    """Which of the plan's models it was."""
    error: ModelError | None = None
    session: str = ""
    """The session it was made for."""


@dataclass(frozen=True, slots=True)
class Observer:
    """Who is told what happened: every model call that was made, and defects with their traceback."""

    model_called: Callable[[ModelCall], None]
    broke: Callable[[BaseException, str], None]


@dataclass(frozen=True, slots=True)
class TurnWork:
    """All a turn's run needs to know. `history` is what the model saw before, oldest first."""

    content: str
    history: Sequence[ChatMessage]
    system: str
    history_limit: int
    steps_before: int
    turn_seconds: float
    plan: Plan
    context: ToolContext
    """For whom tools are called; each call gets a `key` of its own."""
    session: str = ""
    history_chars: int | None = None
    """So much of the history is shown at most, in characters; None: all that `history_limit` allows."""
    known: Journal = NOTHING_KNOWN
    """What earlier work on the turn left behind."""
    write_steps: WriteSteps | None = None
    """None: the turn is kept nowhere, so it has no journal and cannot wait for anybody."""


class TurnDriver:
    """Runs turns of one agent; holds no state between them."""

    def __init__(
        self,
        models: Sequence[Model],
        tools: Tools,
        clock: Clock,
        observer: Observer,
        hooks: TurnHooks | None = None,
    ) -> None:
        self._models = models
        self._tools = tools
        self._clock = clock
        self._observer = observer
        self._hooks = hooks

    def prepare(self, work: TurnWork, stream: TurnStream) -> "TurnRun":
        """Return a turn ready to run."""
        return TurnRun(self._models, self._tools, self._clock, self._observer, work, stream, self._hooks)


class TurnRun:
    """One turn being driven."""

    def __init__(
        self,
        models: Sequence[Model],
        tools: Tools,
        clock: Clock,
        observer: Observer,
        work: TurnWork,
        stream: TurnStream,
        hooks: TurnHooks | None = None,
    ) -> None:
        self._hooks = hooks
        self._models = models
        self._tools = tools
        self._clock = clock
        self._observer = observer
        self._work = work
        self._stream = stream
        self._room = work.history_limit
        self.steps = TurnSteps(tools, clock, work.context, work.known, work.write_steps)
        self._state = TurnState(work.plan)
        self._first_token_at: float | None = None

    @property
    def user(self) -> str:
        """For whom the turn runs."""
        return self._work.context.user

    @property
    def chars(self) -> int:
        """How long all is that the model may be shown at first, in characters."""
        work = self._work
        return len(work.system) + len(work.content) + sum(len(message.content) for message in work.history)

    async def run(self) -> Outcome:
        """Return the turn's outcome; every failure is one.

        Raises TurnWaits if a person has to decide first; LeaseLost. If cancelled: the model or tool call under way ends
        and CancelledError passes through; no outcome is committed.
        """
        try:
            async with asyncio.timeout(self._work.turn_seconds) as deadline:
                if self._hooks is not None and (early := await self._begin(self._hooks)) is not None:
                    return early
                await self._tools.prepare()
                return await self._to_end(Started())
        except (LeaseLost, TurnWaits):
            raise
        except Exception as error:  # a defect must cost one turn, not the session
            if isinstance(error, TimeoutError) and deadline.expired():
                return self.end_with(DeadlinePassed(self._work.turn_seconds))
            self._observer.broke(error, traceback.format_exc())
            return self.end_with(Broke())

    def end_with(self, event: DeadlinePassed | Broke | CancelRequested | Refused | TriedTooOften) -> Outcome:
        """Return the outcome this event gives the turn where it stands; nothing must be under way."""
        (effect,) = self._feed(event)
        assert isinstance(effect, Finish)  # noqa: S101 - the machine answers these with an outcome in every phase
        self._say_what_stands(effect.outcome)
        return effect.outcome

    async def _begin(self, hooks: TurnHooks) -> Outcome | None:
        """Let the hooks say what the turn begins with; the outcome if they end it."""
        work = self._work
        try:
            prepared = await hooks.before(work.context, work.content, work.system)
        except HookFailed as error:
            lines = [NewMessage("assistant", work.plan.fallback)]
            outcome = Outcome(TurnStatus.FAILED, lines, None, 0, error_type=OWN_CODE_FAILED, error_message=str(error))
        else:
            if prepared.reply is None:
                self._work = replace(work, content=prepared.content, system=prepared.system)
                return None
            outcome = Outcome(TurnStatus.COMPLETED, [NewMessage("assistant", prepared.reply)], None, 0)
        self._say_what_stands(outcome)
        return outcome

    async def _to_end(self, event: LoopEvent) -> Outcome:
        """Feed the machine until it finishes."""
        effects = self._feed(event)
        while True:
            (effect,) = effects  # the machine asks for one thing at a time
            if isinstance(effect, Finish):
                self._say_what_stands(effect.outcome)
                return effect.outcome
            effects = await self._perform(effect)

    def _feed(self, event: LoopEvent) -> Sequence[Effect]:
        self._state, effects = advance(self._state, event)
        return effects

    async def _perform(self, effect: Effect) -> Sequence[Effect]:
        match effect:
            case CallModel():
                return await self._answer(effect)
            case Pause(call=call, seconds=seconds):
                await self._clock.sleep(seconds)
                return self._feed(PauseElapsed(call))
            case CallTools(calls=calls):
                results = await self.steps.call(self._next_step() + 1, calls)
                effects: Sequence[Effect] = ()
                for one in calls:
                    effects = self._feed(ToolReturned(one.id, results[one.id]))
                return effects
        raise AssertionError(f"not an effect to perform: {effect}")

    def _say_what_stands(self, outcome: Outcome) -> None:
        """Make the deltas of the last attempt say what the reply says, also if it is the fallback text."""
        reply = outcome.messages[-1].content if outcome.messages and outcome.messages[-1].role == "assistant" else ""
        if reply and "".join(self._stream.deltas) != reply:
            self._stream.restart()
            self._stream.add(reply)

    def _next_step(self) -> int:
        """Return the number of the present model step: steps are counted like the lines they become."""
        return len(self._state.lines)

    async def _answer(self, effect: CallModel) -> Sequence[Effect]:
        """Take the answer from the journal, or call the model; one that asks for tools is noted."""
        index = self._next_step()
        recorded = self.steps.recorded_answer(index)
        if recorded is not None:
            return self._feed(read_answer(effect.call, self._work.plan, *recorded))
        await self.steps.flush()  # what the model is about to read must not be lost
        began = self._clock.monotonic()
        answer = await self._call_model(effect)
        effects = self._feed(answer)
        if isinstance(answer, ModelAnswered) and any(isinstance(effect, CallTools) for effect in effects):
            self.steps.note_answer(index, self._models[effect.model].display, write_answer(answer), began)
        return effects

    async def _call_model(self, effect: CallModel) -> LoopEvent:
        while True:
            messages = trim_messages(replace(self._work, history_limit=self._room), self._state.lines)
            answer = await self._ask(effect, (*messages, *self._complaint()))
            if not isinstance(answer, ModelError):
                return answer
            if not answer.too_long or len(messages) == 1:
                return ModelFailed(effect.call, answer.kind, answer.message, answer.retryable, answer.retry_after)
            # Nobody says how many messages fit: half of those that did not, and no more for the rest of the turn.
            self._room = len(messages) // 2

    def _complaint(self) -> Sequence[ChatMessage]:
        """Return the reply that did not fit and what is wrong with it, for the model alone."""
        output, state = self._work.plan.output, self._state
        if output is None or not state.complaint:
            return ()
        draft = (ChatMessage("assistant", state.draft),) if state.draft.strip() else ()
        return (*draft, ChatMessage("user", output.complain(state.complaint)))

    @property
    def _system(self) -> str:
        output = self._work.plan.output
        return "\n\n".join(part for part in (self._work.system, output.instructions if output else "") if part)

    async def _ask(self, effect: CallModel, messages: Sequence[ChatMessage]) -> ModelAnswered | ModelError:
        """Show these messages to the model once, and tell the observer if it was called."""
        model = self._models[effect.model]
        self._stream.restart()
        request = ModelRequest(
            system=self._system,
            messages=messages,
            step=self._work.steps_before + effect.step,
            tools=self._tools.specs(),
        )
        started = self._clock.monotonic()
        self._first_token_at = None
        answer = await self._stream_model(model, request, effect.call)
        if not isinstance(answer, NotAsked):
            seconds = self._clock.monotonic() - started
            first_token = self._first_token_at - started if self._first_token_at is not None else None
            self._observer.model_called(
                _to_call(model.display, effect.model, seconds, answer, first_token, self._work.session)
            )
        return answer

    async def _stream_model(self, model: Model, request: ModelRequest, call: int) -> ModelAnswered | ModelError:
        parts: list[str] = []
        length = 0
        now = asyncio.get_running_loop().time
        patience = asyncio.timeout(None)
        try:
            await model.prepare()
            async with patience, aclosing(model.stream(request)) as items:
                patience.reschedule(now() + model.timeout)
                async for item in items:
                    # timeoutSeconds runs to the first token, streamIdleSeconds from each to the next.
                    patience.reschedule(now() + model.stream_idle)
                    if self._first_token_at is None:
                        self._first_token_at = self._clock.monotonic()
                    if isinstance(item, ModelEnd):
                        tokens = (item.input_tokens, item.output_tokens)
                        cost = model.price.cost_of(*tokens) if model.price else None
                        return ModelAnswered(call, "".join(parts), item.tool_calls, *tokens, cost=cost)
                    parts.append(item.text)
                    length += len(item.text)
                    if length > MOST_REPLY_CHARS:
                        message = f"did not stop after {MOST_REPLY_CHARS} characters"
                        return ModelError(FailureKind.REFUSED, message, state="does not stop")
                    self._tell(item)
        except TimeoutError:
            return self._too_slow(model, patience.expired())
        except ModelError as error:
            return error
        except Exception as error:  # an adapter's defect must not keep the next model from answering
            self._observer.broke(error, traceback.format_exc())
            return ModelError(
                FailureKind.BROKEN, "could not be called because of an internal error", state="cannot be called"
            )
        return ModelError(FailureKind.BROKEN, "ended its answer early", state="ends its answers early", retryable=True)

    def _too_slow(self, model: Model, expired: bool) -> ModelError:
        if not expired:
            return ModelError(FailureKind.TIMEOUT, "did not answer in time", state="does not answer in time")
        if self._first_token_at is None:
            return ModelError(
                FailureKind.TIMEOUT,
                f"gave no token within {model.timeout:g} s",
                state=f"does not answer within {model.timeout:g} s",
            )
        return ModelError(
            FailureKind.TIMEOUT,
            f"fell silent for {model.stream_idle:g} s in the middle of its answer",
            state=f"falls silent for {model.stream_idle:g} s in the middle of its answers",
        )

    def _tell(self, delta: TextDelta) -> None:
        if delta.text:
            self._stream.add(delta.text)


def _to_call(
    model: str,
    entry: int,
    seconds: float,
    answer: ModelAnswered | ModelError,
    first_token: float | None,
    session: str,
) -> ModelCall:
    if isinstance(answer, ModelError):
        failed = ModelCall(model, seconds, answer.kind, answer.message, first_token, error=answer)
        return replace(failed, entry=entry, session=session)
    tokens = (answer.input_tokens, answer.output_tokens)
    answered = ModelCall(model, seconds, None, "", first_token, *tokens, answer.cost)
    return replace(answered, entry=entry, session=session)


def write_answer(answer: ModelAnswered) -> dict[str, Any]:
    """Return a model answer as the journal keeps it; read_answer() reads it."""
    return {
        "text": answer.text,
        "calls": [wire_call(call) for call in answer.tool_calls],
        "inputTokens": answer.input_tokens,
        "outputTokens": answer.output_tokens,
        "cost": [str(answer.cost.amount), answer.cost.currency] if answer.cost is not None else None,
    }


def read_answer(call: int, plan: Plan, model: str, answer: dict[str, Any]) -> ModelAnswered:
    """Return the answer to call number `call` that `model` gave in an earlier run."""
    return ModelAnswered(
        call,
        answer["text"],
        tuple(ToolCall(one["id"], one["name"], one["arguments"]) for one in answer["calls"]),
        answer["inputTokens"],
        answer["outputTokens"],
        model=list(plan.models).index(model) if model in plan.models else None,
        cost=Cost(Decimal(answer["cost"][0]), answer["cost"][1]) if answer["cost"] is not None else None,
    )


def with_spent(outcome: Outcome, journal: Journal) -> Outcome:
    """Return the outcome of a turn that was not run again, with what the model calls in its journal used."""
    answers = [
        step.result for step in journal.steps.values() if step.kind is StepKind.MODEL and step.result is not None
    ]
    cost: Cost | None = FREE
    for answer in answers:
        cost = add_costs(cost, Cost(Decimal(answer["cost"][0]), answer["cost"][1]) if answer["cost"] else None)
    known = cost if cost is not None and cost.currency else None
    return replace(
        outcome,
        input_tokens=outcome.input_tokens + sum(answer["inputTokens"] for answer in answers),
        output_tokens=outcome.output_tokens + sum(answer["outputTokens"] for answer in answers),
        cost_micros=None if known is None else known.micros,
        currency=None if known is None else known.currency,
    )


def trim_messages(work: TurnWork, lines: Iterable[NewMessage]) -> tuple[ChatMessage, ...]:
    """Return what the model sees: the newest `history_limit` messages, this turn's user message always among them.

    Of the history before this turn no more than `history_chars` characters.

    A tool result whose call was cut away is cut too, since providers refuse results without calls.
    """
    asked = ChatMessage("user", work.content)
    own = [chat_message(line) for line in lines]
    room = work.history_limit - 1
    if len(own) >= room:
        return (asked, *_without_loose_results(own[len(own) - room :] if room else []))
    before: Sequence[ChatMessage] = list(work.history)[-(room - len(own)) :]
    if work.history_chars is not None:
        before = newest_within(before, work.history_chars)
    return (*_without_loose_results(before), asked, *own)


def _without_loose_results(messages: Sequence[ChatMessage]) -> Sequence[ChatMessage]:
    first = next((index for index, message in enumerate(messages) if message.role != "tool"), len(messages))
    return messages[first:]


def chat_message(line: NewMessage) -> ChatMessage:
    """Return a line of the turn as the model sees it."""
    calls = tuple(ToolCall(call["id"], call["name"], call["arguments"]) for call in line.tool_calls)
    return ChatMessage(line.role, line.content, calls, line.tool_call_id)
