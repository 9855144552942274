"""The turn machine: what each event leads to, and the laws that hold whatever the order of events."""

from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_api.wire import TurnStatus
from agent_runtime.llm.port import Cost, FailureKind, ToolCall, add_costs
from agent_runtime.loop.machine import (
    MOST_TOOL_CALLS,
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
    Phase,
    Plan,
    Started,
    ToolReturned,
    TriedTooOften,
    TurnState,
    advance,
)
from agent_store.ports import Outcome

PLAN = Plan(models=("a/1", "b/2"), max_steps=3, fallback="sorry")


def run(plan: Plan, *events: LoopEvent) -> tuple[TurnState, list[Effect]]:
    """Feed events and return the last state with all effects, in order."""
    state, effects = TurnState(plan), []
    for event in events:
        state, asked = advance(state, event)
        effects += asked
    return state, effects


def outcome_of(effects: Sequence[Effect]) -> Outcome:
    finishes = [effect for effect in effects if isinstance(effect, Finish)]
    assert len(finishes) == 1, effects
    return finishes[0].outcome


def test_a_text_answer_completes_the_turn() -> None:
    _, effects = run(PLAN, Started(), ModelAnswered(1, "hi", input_tokens=3, output_tokens=1))
    assert effects[0] == CallModel(call=1, model=0, step=0)
    outcome = outcome_of(effects)
    assert (outcome.status, outcome.model, outcome.steps) == (TurnStatus.COMPLETED, "a/1", 1)
    assert [(line.role, line.content) for line in outcome.messages] == [("assistant", "hi")]
    assert (outcome.input_tokens, outcome.output_tokens) == (3, 1)


def test_tool_results_are_stored_in_the_order_of_the_calls_and_lead_to_the_next_step() -> None:
    calls = (ToolCall("x", "one", {"n": 1}), ToolCall("y", "two"))
    _, effects = run(
        PLAN,
        Started(),
        ModelAnswered(1, "let me see", calls),
        ToolReturned("y", "second"),
        ToolReturned("x", "first"),
        ModelAnswered(2, "done"),
    )
    assert effects[1] == CallTools(calls)
    assert effects[2] == CallModel(call=2, model=0, step=1)
    outcome = outcome_of(effects)
    assert [(line.role, line.content, line.tool_call_id) for line in outcome.messages] == [
        ("assistant", "let me see", None),
        ("tool", "first", "x"),
        ("tool", "second", "y"),
        ("assistant", "done", None),
    ]
    assert outcome.messages[0].tool_calls[0] == {"id": "x", "name": "one", "arguments": {"n": 1}}
    assert outcome.steps == 2


def test_a_permanent_failure_goes_to_the_next_model_at_once() -> None:
    _, effects = run(
        PLAN, Started(), ModelFailed(1, FailureKind.AUTH_FAILED, "answered 401"), ModelAnswered(2, "from b")
    )
    assert effects[1] == CallModel(call=2, model=1, step=0)
    assert outcome_of(effects).model == "b/2"


def test_a_transient_failure_is_tried_once_more_after_a_pause() -> None:
    failed = ModelFailed(1, FailureKind.UNREACHABLE, "answered 503", retryable=True)
    _, effects = run(PLAN, Started(), failed, PauseElapsed(1), ModelAnswered(2, "back"))
    assert effects[1] == Pause(1, PLAN.retry_pause)
    assert effects[2] == CallModel(call=2, model=0, step=0)
    assert outcome_of(effects).model == "a/1"


def test_when_every_model_failed_users_get_the_fallback_and_the_first_cause_is_named() -> None:
    _, effects = run(
        PLAN,
        Started(),
        ModelFailed(1, FailureKind.AUTH_FAILED, "answered 401"),
        ModelFailed(2, FailureKind.TIMEOUT, "gave no token within 30 s"),
    )
    outcome = outcome_of(effects)
    assert (outcome.status, outcome.model, outcome.error_type) == (TurnStatus.FALLBACK, None, "ModelAuthFailed")
    assert outcome.error_message == "No model answered: a/1 answered 401; b/2 gave no token within 30 s"
    assert [line.content for line in outcome.messages] == ["sorry"]
    assert outcome.steps == 1


def test_later_steps_stay_with_the_model_that_works() -> None:
    _, effects = run(
        PLAN,
        Started(),
        ModelFailed(1, FailureKind.AUTH_FAILED, "answered 401"),
        ModelAnswered(2, "", (ToolCall("x", "t"),)),
        ToolReturned("x", "r"),
    )
    assert effects[-1] == CallModel(call=3, model=1, step=1)


def test_a_tool_loop_ends_at_max_steps() -> None:
    events: list[LoopEvent] = [Started()]
    for call in range(1, 4):
        events += [ModelAnswered(call, "", (ToolCall("x", "t"),)), ToolReturned("x", "r")]
    _, effects = run(PLAN, *events)
    assert sum(isinstance(effect, CallModel) for effect in effects) == 3
    outcome = outcome_of(effects)
    assert (outcome.status, outcome.error_type, outcome.steps) == (TurnStatus.FAILED, "StepLimit", 3)
    assert outcome.messages[-1].content == "sorry"


def test_a_turn_that_used_up_its_tokens_calls_no_tool_but_may_answer() -> None:
    plan = replace(PLAN, most_tokens=10)
    call = (ToolCall("x", "one"),)
    _, effects = run(
        plan,
        Started(),
        ModelAnswered(1, "", call, input_tokens=5, output_tokens=4),
        ToolReturned("x", "seen"),
        ModelAnswered(2, "", call, input_tokens=1),
    )
    outcome = outcome_of(effects)
    assert (outcome.status, outcome.error_type, outcome.input_tokens) == (TurnStatus.FAILED, "TokenLimit", 6)
    assert [line.role for line in outcome.messages] == ["assistant", "tool", "assistant"], "whole steps only"
    _, effects = run(plan, Started(), ModelAnswered(1, "long", input_tokens=50))
    assert outcome_of(effects).status is TurnStatus.COMPLETED


def test_an_answer_of_an_earlier_run_names_the_model_that_gave_it() -> None:
    call = (ToolCall("x", "one"),)
    _, effects = run(
        PLAN, Started(), ModelAnswered(1, "", call, model=1), ToolReturned("x", "seen"), ModelAnswered(2, "done")
    )
    assert effects[2] == CallModel(call=2, model=1, step=1), "the turn stays with it"
    assert outcome_of(effects).model == "b/2"


def test_too_many_tools_at_once_count_as_a_failure_of_the_model() -> None:
    calls = tuple(ToolCall(str(n), "t") for n in range(MOST_TOOL_CALLS + 1))
    _, effects = run(PLAN, Started(), ModelAnswered(1, "", calls))
    assert effects[-1] == CallModel(call=2, model=1, step=0)


def test_repeated_tool_call_ids_are_told_apart() -> None:
    state, effects = run(PLAN, Started(), ModelAnswered(1, "", (ToolCall("x", "one"), ToolCall("x", "two"))))
    asked = effects[-1]
    assert isinstance(asked, CallTools)
    assert len({call.id for call in asked.calls}) == 2
    assert state.phase is Phase.TOOLS


@pytest.mark.parametrize(
    ("event", "status", "error_type"),
    [
        (DeadlinePassed(5), TurnStatus.FAILED, "TurnTimeout"),
        (CancelRequested(), TurnStatus.CANCELLED, "Cancelled"),
        (Broke(), TurnStatus.FAILED, "InternalError"),
        (TriedTooOften(3), TurnStatus.FAILED, "TooManyAttempts"),
    ],
)
@pytest.mark.parametrize(
    "before",
    [
        (),
        (Started(),),
        (Started(), ModelAnswered(1, "", (ToolCall("x", "t"),))),
        (Started(), ModelFailed(1, FailureKind.UNREACHABLE, "answered 500", retryable=True)),
    ],
)
def test_the_outside_can_end_a_turn_in_every_phase(
    before: tuple[LoopEvent, ...], event: LoopEvent, status: TurnStatus, error_type: str
) -> None:
    _, effects = run(PLAN, *before, event)
    outcome = outcome_of(effects)
    assert (outcome.status, outcome.error_type) == (status, error_type)
    replies = [line.content for line in outcome.messages if line.role == "assistant"]
    assert replies == ([] if status is TurnStatus.CANCELLED else ["sorry"])


def test_answers_to_calls_that_were_given_up_change_nothing() -> None:
    before, _ = run(PLAN, Started(), ModelFailed(1, FailureKind.TIMEOUT, "gave no token"))
    after, effects = advance(before, ModelAnswered(1, "too late"))
    assert (after, tuple(effects)) == (before, ())


CALLS = st.integers(0, 12)
TOOLS = st.lists(st.builds(ToolCall, st.sampled_from(["x", "y", "z"]), st.just("t")), max_size=3)
EVENTS = st.one_of(
    st.just(Started()),
    st.builds(ModelAnswered, CALLS, st.text(max_size=3), TOOLS),
    st.builds(ModelFailed, CALLS, st.sampled_from(FailureKind), st.just("failed"), st.booleans()),
    st.builds(ToolReturned, st.sampled_from(["x", "y", "z", "call-0", "call-1"]), st.text(max_size=3)),
    st.builds(PauseElapsed, CALLS),
)
ENDINGS = st.sampled_from([DeadlinePassed(1), CancelRequested(), Broke()])


@settings(max_examples=300, derandomize=True)
@given(st.lists(EVENTS, max_size=40), ENDINGS, st.lists(EVENTS, max_size=5))
def test_any_order_of_events_ends_in_exactly_one_outcome(
    events: list[LoopEvent], ending: LoopEvent, late: list[LoopEvent]
) -> None:
    state, effects = run(PLAN, *events, ending, *late)
    assert state.phase is Phase.DONE
    outcome = outcome_of(effects)
    assert outcome.status.is_final
    assert outcome.steps <= PLAN.max_steps
    asked = {call["id"] for line in outcome.messages for call in line.tool_calls}
    answered = {line.tool_call_id for line in outcome.messages if line.role == "tool"}
    assert asked == answered, "a call without its result would be refused by a provider"


@settings(max_examples=300, derandomize=True)
@given(st.data(), st.integers(1, 4), st.integers(1, 3))
def test_a_turn_whose_every_effect_is_answered_ends_by_itself(data: st.DataObject, steps: int, models: int) -> None:
    plan = Plan(models=tuple(f"m/{n}" for n in range(models)), max_steps=steps, fallback="sorry")
    state, effects = advance(TurnState(plan), Started())
    most = steps * models * plan.tries_per_model * 2 + steps * 4 + 2
    for _ in range(most):
        (effect,) = effects
        if isinstance(effect, Finish):
            assert effect.outcome.status.is_final
            return
        event: LoopEvent
        match effect:
            case CallModel(call=call):
                event = data.draw(
                    st.one_of(
                        st.builds(ModelAnswered, st.just(call), st.just("t"), TOOLS),
                        st.builds(
                            ModelFailed, st.just(call), st.just(FailureKind.TIMEOUT), st.just("f"), st.booleans()
                        ),
                    )
                )
            case Pause(call=call):
                event = PauseElapsed(call)
            case CallTools(calls=calls):
                for one in calls[:-1]:
                    state, effects = advance(state, ToolReturned(one.id, "r"))
                    assert not effects
                event = ToolReturned(calls[-1].id, "r")
        state, effects = advance(state, event)
    raise AssertionError(f"still going after {most} events")


def test_the_pause_a_provider_wants_is_kept_where_users_need_not_wait_long() -> None:
    def after(retry_after: float, *before: LoopEvent, call: int = 1) -> Effect:
        failed = ModelFailed(call, FailureKind.RATE_LIMITED, "answered 429", retryable=True, retry_after=retry_after)
        return run(PLAN, Started(), *before, failed)[1][-1]

    assert after(0.5) == Pause(1, 0.5)
    assert after(0.1) == Pause(1, PLAN.retry_pause)
    assert after(5) == CallModel(call=2, model=1, step=0), "another model answers sooner"
    on_to_last = ModelFailed(1, FailureKind.TIMEOUT, "gave no token")
    assert after(5, on_to_last, call=2) == Pause(2, 5), "there is no other model"
    finish = after(60, on_to_last, call=2)
    assert isinstance(finish, Finish)
    assert finish.outcome.status is TurnStatus.FALLBACK


def test_costs_of_one_currency_add_up_and_others_do_not() -> None:
    one, two = Cost(Decimal("0.4"), "USD"), Cost(Decimal("0.7"), "USD")
    assert add_costs(one, two) == Cost(Decimal("1.1"), "USD")
    assert add_costs(one, Cost()) == one
    assert add_costs(one, Cost(Decimal(1), "EUR")) is None
    assert add_costs(one, None) is None
    asks = ModelAnswered(1, "", (ToolCall("c", "clock"),), cost=one)
    _, effects = run(PLAN, Started(), asks, ToolReturned("c", "noon"), ModelAnswered(2, "hi", cost=two))
    outcome = outcome_of(effects)
    assert (outcome.cost_micros, outcome.currency) == (2, "USD")
    _, effects = run(PLAN, Started(), asks, ToolReturned("c", "noon"), ModelAnswered(2, "hi", cost=None))
    assert outcome_of(effects).cost_micros is None
