"""The driver with the real built-in models: what it makes of time, failures and defects."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from decimal import ROUND_CEILING, Decimal
from typing import ClassVar
from uuid import uuid4

import pytest

from agent_api.v1alpha1 import ScriptedReply, ScriptedToolCall
from agent_api.wire import TurnStatus
from agent_runtime.clock import SystemClock
from agent_runtime.llm.echo import EchoModel
from agent_runtime.llm.port import (
    ChatMessage,
    FailureKind,
    Model,
    ModelEnd,
    ModelError,
    ModelRequest,
    NotAsked,
    Price,
    TextDelta,
    ToolCall,
)
from agent_runtime.llm.scripted import ScriptedModel
from agent_runtime.loop.driver import ModelCall, Observer, TurnDriver, TurnWork, trim_messages
from agent_runtime.loop.machine import CancelRequested, Plan
from agent_runtime.loop.stream import TurnStream
from agent_runtime.tools.none import NoTools
from agent_runtime.tools.port import ToolContext, ToolPolicy, ToolResult
from agent_store.ports import NewMessage, Outcome
from agent_store.steps import Journal, NewStep, StepKind, StepRecord, StepStatus

CLOCK = SystemClock()


@dataclass
class Seen:
    """What the observer was told."""

    calls: list[ModelCall] = field(default_factory=list)
    defects: list[BaseException] = field(default_factory=list)

    def observer(self) -> Observer:
        return Observer(self.calls.append, lambda error, _trace: self.defects.append(error))


def scripted(*replies: str | ScriptedReply, timeout: float = 5.0, name: str = "scripted/scripted") -> ScriptedModel:
    return ScriptedModel(name, timeout, CLOCK, replies)


CONTEXT = ToolContext(uuid4(), "ada", "main", uuid4(), uuid4(), key="")


def work(*models: Model, turn_seconds: float = 5.0, steps_before: int = 0, max_steps: int = 5) -> TurnWork:
    return TurnWork(
        content="hello",
        history=(),
        system="You are a test.",
        history_limit=50,
        steps_before=steps_before,
        turn_seconds=turn_seconds,
        plan=Plan(tuple(model.display for model in models), max_steps, "sorry", retry_pause=0.01),
        context=CONTEXT,
    )


async def drive(*models: Model, seen: Seen | None = None, **settings: float) -> tuple[Outcome, TurnStream]:
    stream = TurnStream()
    stream.begin(1)
    driver = TurnDriver(models, NoTools(), CLOCK, (seen or Seen()).observer())
    outcome = await driver.prepare(work(*models, **settings), stream).run()  # type: ignore[arg-type]
    return outcome, stream


async def test_echo_replies_with_text_and_count() -> None:
    outcome, stream = await drive(EchoModel("echo/echo", 5.0, CLOCK))
    assert outcome.messages[-1].content == "hello [1]"
    assert "".join(stream.deltas) == "hello [1]"
    assert (outcome.input_tokens, outcome.output_tokens) == (1, 2)


async def test_a_call_to_any_tool_gives_the_model_an_error_and_the_loop_goes_on() -> None:
    ask = ScriptedReply(tool_calls=[ScriptedToolCall(name="search", arguments={"q": "x"})], content="looking")
    outcome, stream = await drive(scripted(ask, "nothing found"))
    assert outcome.status is TurnStatus.COMPLETED
    assert [line.role for line in outcome.messages] == ["assistant", "tool", "assistant"]
    assert outcome.messages[1].content.startswith("unknown tool 'search'")
    assert outcome.messages[2].content == "nothing found"
    assert outcome.steps == 2
    assert stream.attempt == 2, "what was said before the tool call is not the reply"
    assert "".join(stream.deltas) == "nothing found"


async def test_the_script_goes_on_where_the_session_left_it_and_starts_again() -> None:
    model = scripted("one", "two", "three")
    replies = [(await drive(model, steps_before=step))[0].messages[-1].content for step in range(4)]
    assert replies == ["one", "two", "three", "one"]


async def test_a_slow_first_token_fails_over_within_the_models_timeout() -> None:
    seen = Seen()
    slow = scripted(ScriptedReply(delay_seconds=30, content="late"), timeout=0.05, name="scripted/slow")
    outcome, _ = await drive(slow, EchoModel("echo/echo", 5.0, CLOCK), seen=seen)
    assert outcome.model == "echo/echo"
    assert [(call.model, call.failure) for call in seen.calls] == [
        ("scripted/slow", FailureKind.TIMEOUT),
        ("echo/echo", None),
    ]


@pytest.mark.parametrize(
    ("status", "tries", "error_type"),
    [
        (401, 1, "ModelAuthFailed"),
        (404, 1, "ModelNotFound"),
        (429, 2, "ModelRateLimited"),
        (503, 2, "ModelUnreachable"),
    ],
)
async def test_only_transient_errors_are_tried_again(status: int, tries: int, error_type: str) -> None:
    seen = Seen()
    outcome, stream = await drive(scripted(ScriptedReply(error=status)), seen=seen)
    assert (outcome.status, outcome.error_type) == (TurnStatus.FALLBACK, error_type)
    assert len(seen.calls) == tries
    assert "".join(stream.deltas) == outcome.messages[-1].content == "sorry"


async def test_a_turn_that_takes_too_long_fails_with_the_reason() -> None:
    outcome, _ = await drive(scripted(ScriptedReply(delay_seconds=30, content="late")), turn_seconds=0.05)
    assert (outcome.status, outcome.error_type) == (TurnStatus.FAILED, "TurnTimeout")
    assert outcome.messages[-1].content == "sorry"


class Prepared:
    """A model that has nothing to load, and nobody knows what it costs."""

    price: ClassVar[Price | None] = None

    async def prepare(self) -> None:
        return


@dataclass(frozen=True)
class OddModel(Prepared):
    """A model adapter that misbehaves as told."""

    how: str
    display: str = "odd/odd"
    timeout: float = 5.0
    stream_idle: float = 5.0

    async def stream(self, request: ModelRequest) -> AsyncGenerator[TextDelta | ModelEnd, None]:
        if self.how == "raises":
            raise RuntimeError("adapter defect with secret-value")
        yield TextDelta("half an ans")
        if self.how == "breaks off":
            return
        if self.how == "times out itself":
            raise TimeoutError
        while True:
            yield TextDelta("blah " * 10_000)


@pytest.mark.parametrize(
    ("how", "kind"),
    [
        ("raises", FailureKind.BROKEN),
        ("breaks off", FailureKind.BROKEN),
        ("times out itself", FailureKind.TIMEOUT),
        ("never stops", FailureKind.REFUSED),
    ],
)
async def test_a_misbehaving_adapter_costs_its_call_and_the_next_model_answers(how: str, kind: FailureKind) -> None:
    seen = Seen()
    outcome, stream = await drive(OddModel(how), EchoModel("echo/echo", 5.0, CLOCK), seen=seen)
    assert (outcome.status, outcome.model) == (TurnStatus.COMPLETED, "echo/echo")
    assert seen.calls[0].failure is kind
    assert "".join(stream.deltas) == "hello [1]", "half an answer is taken back"
    assert "secret-value" not in str(seen.calls)
    assert bool(seen.defects) == (how == "raises")


async def test_silence_between_tokens_is_bounded_and_work_without_words_is_none() -> None:
    seen = Seen()
    outcome, stream = await drive(PacedModel([("half", 30.0)]), EchoModel("echo/echo", 5.0, CLOCK), seen=seen)
    assert outcome.model == "echo/echo"
    assert (seen.calls[0].failure, seen.calls[0].message) == (
        FailureKind.TIMEOUT,
        "fell silent for 0.2 s in the middle of its answer",
    )
    assert seen.calls[0].first_token is not None
    assert "".join(stream.deltas) == "hello [1]"
    thinking = PacedModel([(word, 0.1) for word in ("", "", "", "", "at last")])
    outcome, _ = await drive(thinking, seen=seen)
    assert (outcome.status, outcome.messages[-1].content) == (TurnStatus.COMPLETED, "at last")


@dataclass(frozen=True)
class PacedModel(Prepared):
    """Says each word and then waits so many seconds."""

    words: Sequence[tuple[str, float]]
    display: str = "paced/paced"
    timeout: float = 0.2
    stream_idle: float = 0.2

    async def stream(self, request: ModelRequest) -> AsyncGenerator[TextDelta | ModelEnd, None]:
        for word, seconds in self.words:
            yield TextDelta(word)
            await CLOCK.sleep(seconds)
        yield ModelEnd()


@dataclass(frozen=True)
class SlowToLoad(PacedModel):
    """A model whose library takes longer to load than its provider may take to answer."""

    async def prepare(self) -> None:
        await CLOCK.sleep(0.3)


async def test_loading_a_models_library_is_not_the_providers_time() -> None:
    outcome, _ = await drive(SlowToLoad([("fine", 0.0)]))
    assert outcome.messages[-1].content == "fine"


@dataclass(frozen=True)
class Unloadable(PacedModel):
    """A model whose library is missing."""

    async def prepare(self) -> None:
        raise ModelError(FailureKind.BROKEN, "could not be called: its client library is missing")


async def test_a_model_that_cannot_be_loaded_is_passed_over() -> None:
    outcome, _ = await drive(Unloadable([]), EchoModel("echo/echo", 5.0, CLOCK))
    assert outcome.model == "echo/echo"


async def test_a_model_that_was_not_asked_is_passed_over_and_counts_as_no_call() -> None:
    seen = Seen()
    outcome, _ = await drive(BarredModel(), EchoModel("echo/echo", 5.0, CLOCK), seen=seen)
    assert outcome.model == "echo/echo"
    assert [(call.model, call.entry) for call in seen.calls] == [("echo/echo", 1)]
    outcome, _ = await drive(BarredModel(), seen=seen)
    assert (outcome.status, outcome.error_type) == (TurnStatus.FALLBACK, "ModelAuthFailed")
    assert outcome.error_message == "No model answered: barred/barred answers 401 since noon"


@dataclass(frozen=True)
class BarredModel(Prepared):
    """A model whose key is known to be refused."""

    display: str = "barred/barred"
    timeout: float = 5.0
    stream_idle: float = 5.0

    async def stream(self, request: ModelRequest) -> AsyncGenerator[TextDelta | ModelEnd, None]:
        raise NotAsked(FailureKind.AUTH_FAILED, "answers 401 since noon")
        yield ModelEnd()


@dataclass
class NarrowModel(Prepared):
    """A model that takes `fits` messages; it remembers what it was shown."""

    fits: int
    display: str = "narrow/narrow"
    timeout: float = 5.0
    stream_idle: float = 5.0
    shown: list[list[str]] = field(default_factory=list)

    async def stream(self, request: ModelRequest) -> AsyncGenerator[TextDelta | ModelEnd, None]:
        self.shown.append([message.content for message in request.messages])
        if len(request.messages) > self.fits:
            raise ModelError(FailureKind.REFUSED, "found it too long", about_message=True, too_long=True)
        yield TextDelta("fits")
        yield ModelEnd()


@pytest.mark.parametrize(("fits", "calls", "answered"), [(40, 1, True), (10, 2, True), (1, 5, True), (0, 5, False)])
async def test_a_conversation_too_long_for_the_model_is_shown_to_it_in_part(
    fits: int, calls: int, *, answered: bool
) -> None:
    model, seen = NarrowModel(fits), Seen()
    said = tuple(ChatMessage("user" if number % 2 else "assistant", f"line {number}") for number in range(19))
    stream = TurnStream()
    stream.begin(1)
    told = replace(work(model), history=said)
    outcome = await TurnDriver([model], NoTools(), CLOCK, seen.observer()).prepare(told, stream).run()
    assert outcome.status is (TurnStatus.COMPLETED if answered else TurnStatus.FALLBACK)
    assert len(model.shown) == len(seen.calls) == calls
    everything = [line.content for line in said] + ["hello"]
    assert all(shown == everything[-len(shown) :] for shown in model.shown)
    assert [len(shown) for shown in model.shown] == [20, 10, 5, 2, 1][:calls]


async def test_a_cancelled_turn_keeps_whole_steps_and_counts_the_one_under_way() -> None:
    ask = ScriptedReply(tool_calls=[ScriptedToolCall(name="t")])
    model = scripted(ask, ScriptedReply(delay_seconds=30))
    stream, seen = TurnStream(), Seen()
    stream.begin(1)
    run = TurnDriver((model,), NoTools(), CLOCK, seen.observer()).prepare(work(model), stream)
    task = asyncio.create_task(run.run())
    for _ in range(50):  # nothing here waits for anything but the loop, until the second call's delay
        await asyncio.sleep(0)
    assert len(seen.calls) == 1
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    outcome = run.end_with(CancelRequested())
    assert (outcome.status, outcome.steps) == (TurnStatus.CANCELLED, 2)
    assert [line.role for line in outcome.messages] == ["assistant", "tool"]


class BrokenTools(NoTools):
    async def call(self, call: ToolCall, context: ToolContext) -> ToolResult:
        raise RuntimeError("tools broke")


async def test_a_defect_of_the_runtime_fails_the_turn_and_is_reported() -> None:
    seen = Seen()
    model = scripted(ScriptedReply(tool_calls=[ScriptedToolCall(name="t")]))
    stream = TurnStream()
    stream.begin(1)
    driver = TurnDriver((model,), BrokenTools(), CLOCK, seen.observer())
    outcome = await driver.prepare(work(model), stream).run()
    assert (outcome.status, outcome.error_type) == (TurnStatus.FAILED, "InternalError")
    assert len(seen.defects) == 1


class CountingTools(NoTools):
    """Tools with side effects that take a key, and count."""

    def __init__(self) -> None:
        self.keys: list[str] = []

    def policy(self, name: str) -> ToolPolicy:
        return ToolPolicy(side_effects=name == "act", idempotency_argument="key")

    async def call(self, call: ToolCall, context: ToolContext) -> ToolResult:
        self.keys.append(f"{call.name} {context.key}")
        return ToolResult(f"did {call.arguments['n']}")


def journal_of(writes: Sequence[Sequence[NewStep]]) -> Journal:
    """Return what is in the journal after these writes."""
    steps: dict[int, StepRecord] = {}
    for write in writes:
        for one in write:
            if one.index not in steps or steps[one.index].status is StepStatus.STARTED:
                key = steps[one.index].key if one.index in steps else one.key
                at = datetime.now(UTC)
                steps[one.index] = StepRecord(one.index, one.kind, one.name, one.status, one.result, key, at, at)
    return Journal(steps)


async def test_a_turn_that_is_run_again_from_any_write_on_comes_to_the_same_end() -> None:
    seen, writes = Seen(), list[Sequence[NewStep]]()

    async def write(steps: Sequence[NewStep]) -> None:
        writes.append(steps)

    def asks(number: int, *names: str) -> ScriptedReply:
        calls = [ScriptedToolCall(name=name, arguments={"n": number}) for name in names]
        return ScriptedReply(content=f"step {number}", tool_calls=calls)

    replies = [asks(1, "act", "look"), asks(2, "look"), asks(3, "act", "act")]
    model = scripted(*replies, "done")

    async def run(known: Journal) -> tuple[Outcome, CountingTools, int]:
        tools, stream, before = CountingTools(), TurnStream(), len(seen.calls)
        stream.begin(1)
        driver = TurnDriver((model,), tools, CLOCK, seen.observer())
        told = replace(work(model), known=known, write_steps=write)
        return await driver.prepare(told, stream).run(), tools, len(seen.calls) - before

    whole, tools, asked = await run(Journal())
    assert (whole.status, asked, len(tools.keys)) == (TurnStatus.COMPLETED, 4, 5)
    first, made = list(writes), set(tools.keys)
    assert len(first) >= 5
    for cut in range(len(first) + 1):
        known = journal_of(first[:cut])
        again, tools, asked = await run(known)
        assert again == whole, "tokens and costs of recorded answers count as well"
        finished = [step for step in known.steps.values() if step.status is StepStatus.FINISHED]
        answers = sum(step.kind is StepKind.MODEL for step in finished)
        assert asked == 4 - answers
        assert len(tools.keys) == 5 - (len(finished) - answers), "what finished is not made again"
        assert set(tools.keys) <= made, "a call that is repeated has its own key"


def lines(*roles: str) -> list[NewMessage]:
    return [NewMessage(role, f"{role}{index}") for index, role in enumerate(roles)]


@pytest.mark.parametrize(
    ("limit", "history", "own", "expected"),
    [
        (50, ["user", "assistant"], [], ["user", "assistant", "user"]),
        (2, ["user", "assistant", "user", "assistant"], [], ["assistant", "user"]),
        (1, ["user", "assistant"], [], ["user"]),
        (1, ["user"], ["assistant", "tool"], ["user"]),
        (2, ["user"], ["assistant", "tool"], ["user"]),  # a result without its call is no use
        (3, ["user", "assistant"], ["assistant", "tool"], ["user", "assistant", "tool"]),
        (4, ["tool", "assistant"], ["assistant", "tool"], ["assistant", "user", "assistant", "tool"]),
        (3, ["user", "tool", "tool"], [], ["user"]),
    ],
)
def test_the_model_sees_the_newest_messages_and_always_the_question(
    limit: int, history: list[str], own: list[str], expected: list[str]
) -> None:
    told = TurnWork(
        "question",
        tuple(ChatMessage(line.role, line.content) for line in lines(*history)),
        "",
        limit,
        0,
        5.0,
        Plan(("m/m",), 5, "sorry"),
        CONTEXT,
    )
    seen = trim_messages(told, lines(*own))
    assert [message.role for message in seen] == expected
    assert len(seen) <= limit
    assert "question" in [message.content for message in seen]


PRICED = Price(Decimal("0.25"), Decimal("2.00"), "USD")


def priced(price: Price | None, *replies: str | ScriptedReply, name: str = "scripted/a") -> Model:
    model = scripted(*replies, name=name)
    return replace(model, price=price) if price is not None else Unpriced(model)


class Unpriced(Prepared):
    """Another model, of which nobody knows what it costs."""

    def __init__(self, inner: ScriptedModel) -> None:
        self.display, self.timeout, self.stream_idle = inner.display, inner.timeout, inner.stream_idle
        self.stream = inner.stream


CALLS_A_TOOL = ScriptedReply(content="one two three", tool_calls=[ScriptedToolCall(name="clock")])


async def test_a_turn_costs_what_all_its_calls_cost_rounded_up_to_a_millionth() -> None:
    seen = Seen()
    outcome, _ = await drive(priced(PRICED, CALLS_A_TOOL, "four"), seen=seen)
    first, second = seen.calls
    assert (first.cost, second.cost) == (
        PRICED.cost_of(first.input_tokens, 3),
        PRICED.cost_of(second.input_tokens, 1),
    )
    exact = Decimal("0.25") * outcome.input_tokens + 2 * 4
    assert outcome.cost_micros == exact.to_integral_value(ROUND_CEILING)
    assert outcome.currency == "USD"


async def test_without_a_price_for_each_call_the_cost_of_a_turn_is_unknown() -> None:
    outcome, _ = await drive(priced(None, "hello"))
    assert (outcome.cost_micros, outcome.currency) == (None, None)
    outcome, _ = await drive(scripted("hello"))
    assert (outcome.cost_micros, outcome.currency) == (None, None), "built-in models cost nothing in any currency"
