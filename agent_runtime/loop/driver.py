"""Performs what the turn machine asks for: model calls, tool calls, pauses, and the turn's deadline.

It neither reads nor writes the store; the engine gives it the conversation and commits the outcome. Once tools with
side effects exist, their steps are journaled here: `started` committed before the call, `finished` before anything
depends on it.
"""

import asyncio
import traceback
from collections.abc import Callable, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Final

from agent_runtime.clock import Clock
from agent_runtime.llm.port import (
    ChatMessage,
    FailureKind,
    Model,
    ModelEnd,
    ModelError,
    ModelRequest,
    NotAsked,
    TextDelta,
    ToolCall,
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
    Started,
    ToolReturned,
    TriedTooOften,
    TurnState,
    advance,
)
from agent_runtime.loop.stream import TurnStream
from agent_runtime.tools.port import Tools
from agent_store.ports import NewMessage, Outcome

MOST_REPLY_CHARS: Final = 1_000_000
"""A reply longer than this is a model that does not stop."""
TOOLS_AT_ONCE: Final = 8


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
    session: str = ""


class TurnDriver:
    """Runs turns of one agent; holds no state between them."""

    def __init__(self, models: Sequence[Model], tools: Tools, clock: Clock, observer: Observer) -> None:
        self._models = models
        self._tools = tools
        self._clock = clock
        self._observer = observer

    def prepare(self, work: TurnWork, stream: TurnStream) -> "TurnRun":
        """Return a turn ready to run."""
        return TurnRun(self._models, self._tools, self._clock, self._observer, work, stream)


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
    ) -> None:
        self._models = models
        self._tools = tools
        self._clock = clock
        self._observer = observer
        self._work = work
        self._stream = stream
        self._room = work.history_limit
        self._state = TurnState(work.plan)
        self._first_token_at: float | None = None

    async def run(self) -> Outcome:
        """Return the turn's outcome; every failure is one.

        If cancelled: the model or tool call under way ends, nothing is committed, CancelledError passes through.
        """
        try:
            async with asyncio.timeout(self._work.turn_seconds) as deadline:
                return await self._to_end(Started())
        except Exception as error:  # a defect must cost one turn, not the session
            if isinstance(error, TimeoutError) and deadline.expired():
                return self.end_with(DeadlinePassed(self._work.turn_seconds))
            self._observer.broke(error, traceback.format_exc())
            return self.end_with(Broke())

    def end_with(self, event: DeadlinePassed | Broke | CancelRequested | TriedTooOften) -> Outcome:
        """Return the outcome this event gives the turn where it stands; nothing must be under way."""
        (effect,) = self._feed(event)
        assert isinstance(effect, Finish)  # noqa: S101 - the machine answers these with an outcome in every phase
        self._say_what_stands(effect.outcome)
        return effect.outcome

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
                return self._feed(await self._call_model(effect))
            case Pause(call=call, seconds=seconds):
                await self._clock.sleep(seconds)
                return self._feed(PauseElapsed(call))
            case CallTools(calls=calls):
                return await self._call_tools(calls)
        raise AssertionError(f"not an effect to perform: {effect}")

    def _say_what_stands(self, outcome: Outcome) -> None:
        """Make the deltas of the last attempt say what the reply says, also if it is the fallback text."""
        reply = outcome.messages[-1].content if outcome.messages and outcome.messages[-1].role == "assistant" else ""
        if reply and "".join(self._stream.deltas) != reply:
            self._stream.restart()
            self._stream.add(reply)

    async def _call_model(self, effect: CallModel) -> LoopEvent:
        while True:
            messages = trim_messages(replace(self._work, history_limit=self._room), self._state.lines)
            answer = await self._ask(effect, messages)
            if not isinstance(answer, ModelError):
                return answer
            if not answer.too_long or len(messages) == 1:
                return ModelFailed(effect.call, answer.kind, answer.message, answer.retryable)
            # Nobody says how many messages fit: half of those that did not, and no more for the rest of the turn.
            self._room = len(messages) // 2

    async def _ask(self, effect: CallModel, messages: Sequence[ChatMessage]) -> ModelAnswered | ModelError:
        """Show these messages to the model once, and tell the observer if it was called."""
        model = self._models[effect.model]
        self._stream.restart()
        request = ModelRequest(
            system=self._work.system,
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
                        return ModelAnswered(
                            call, "".join(parts), item.tool_calls, item.input_tokens, item.output_tokens
                        )
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

    async def _call_tools(self, calls: Sequence[ToolCall]) -> Sequence[Effect]:
        gate = asyncio.Semaphore(TOOLS_AT_ONCE)

        async def call_one(call: ToolCall) -> ToolReturned:
            async with gate:
                return ToolReturned(call.id, (await self._tools.call(call)).content)

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(call_one(call), name=f"tool-{call.id}") for call in calls]
        effects: Sequence[Effect] = ()
        for task in tasks:
            effects = self._feed(task.result())
        return effects


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
    answered = ModelCall(model, seconds, None, "", first_token, answer.input_tokens, answer.output_tokens)
    return replace(answered, entry=entry, session=session)


def trim_messages(work: TurnWork, lines: Iterable[NewMessage]) -> tuple[ChatMessage, ...]:
    """Return what the model sees: the newest `history_limit` messages, this turn's user message always among them.

    A tool result whose call was cut away is cut too, since providers refuse results without calls.
    """
    asked = ChatMessage("user", work.content)
    own = [chat_message(line) for line in lines]
    room = work.history_limit - 1
    if len(own) >= room:
        return (asked, *_without_loose_results(own[len(own) - room :] if room else []))
    before = list(work.history)[-(room - len(own)) :]
    return (*_without_loose_results(before), asked, *own)


def _without_loose_results(messages: Sequence[ChatMessage]) -> Sequence[ChatMessage]:
    first = next((index for index, message in enumerate(messages) if message.role != "tool"), len(messages))
    return messages[first:]


def chat_message(line: NewMessage) -> ChatMessage:
    """Return a line of the turn as the model sees it."""
    calls = tuple(ToolCall(call["id"], call["name"], call["arguments"]) for call in line.tool_calls)
    return ChatMessage(line.role, line.content, calls, line.tool_call_id)
