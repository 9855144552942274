"""The arithmetic of budgets: amounts, accounts, what turns are expected to use and what they used."""

from datetime import UTC, date, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_api.v1alpha1 import Agent, BudgetLimit
from agent_api.wire import TurnStatus
from agent_runtime.budgets.account import Account
from agent_runtime.budgets.amounts import limit_of, micros, percent_of
from agent_runtime.budgets.turns import REPLY_TOKENS, TurnBudgets
from agent_store.ports import BudgetStanding, NewMessage, Outcome, Owner

OWNER = Owner("pod-1", 1)
TODAY = date(2026, 1, 31)
OPENAI = {
    "provider": "openai",
    "model": "gpt-5-mini",
    "apiKeySecretRef": {"name": "llm", "key": "openai"},
    "price": {"inputPerMillion": "1", "outputPerMillion": "10", "currency": "USD"},
}


def account(tokens: int = 1000, money: int = 0) -> Account:
    return Account("agent", TODAY, OWNER, (tokens, money))


def standing(held: int, used: int = 0) -> BudgetStanding:
    return BudgetStanding(TODAY, (held, 0), (used, 0), (0, 0), datetime(2026, 2, 1, tzinfo=UTC), 3600.0)


@pytest.mark.parametrize(
    ("amount", "expected"), [("20.00", 20_000_000), ("0.000001", 1), ("999999999.999999", 999_999_999_999_999)]
)
def test_money_is_whole_millionths(amount: str, expected: int) -> None:
    assert micros(amount) == expected
    assert limit_of(BudgetLimit(amount=amount, tokens=7)) == (7, expected)


@pytest.mark.parametrize(
    ("used", "limit", "percent"),
    [
        ((99, 0), (100, 0), 99),
        ((999, 0), (1000, 0), 99),
        ((1, 5), (100, 10), 50),
        ((7, 7), (0, 0), 0),
        ((3, 0), (2, 0), 150),
    ],
)
def test_a_hundred_percent_means_used_up(used: Any, limit: Any, percent: int) -> None:
    assert percent_of(used, limit) == percent


def test_limits_in_words() -> None:
    assert BudgetLimit(amount="20.00", tokens=5).display == "20.00 USD, 5 tokens"
    assert BudgetLimit(tokens=5).display == "5 tokens"


def test_an_account_without_an_answer_is_repeated_as_it_was() -> None:
    one = account()
    one.hold((10, 0))
    one.settle((10, 0), (30, 0))
    first = one.begin(1)
    one.hold((5, 0))
    one.settle((5, 0), (4, 0))
    again = one.begin(2)
    assert (again.serial, again.spent) == (first.serial, first.spent) == (1, (30, 0))
    one.told(standing(held=100, used=30), now=1.0)
    assert (one.unsettled, one.used_now) == ((4, 0), (34, 0))
    assert one.begin(3).spent == (4, 0)


def test_what_is_idle_is_given_back() -> None:
    one = account()
    one.hold((10, 0))
    one.settle((10, 0), (30, 0))
    asked = one.begin(1)
    assert asked.want == (30, 0)  # the next interval may be like this one
    one.told(standing(held=30, used=30), now=1.0)
    assert one.is_dirty
    assert one.begin(2).want == (0, 0)
    one.told(standing(held=0, used=30), now=2.0)
    assert not one.is_dirty
    assert one.is_empty


def test_no_interval_reserves_much_of_a_limit() -> None:
    one = account(tokens=1000)
    one.hold((1, 0))
    one.settle((1, 0), (900, 0))
    assert one.begin(1).want == (50, 0)


@given(
    st.lists(st.tuples(st.integers(1, 300), st.integers(0, 400), st.integers(0, 500)), max_size=30),
    st.integers(1, 2000),
)
def test_turns_hold_no_more_than_the_slice(turns: list[tuple[int, int, int]], limit: int) -> None:
    one = account(tokens=limit)
    running: list[tuple[tuple[int, int], int]] = []
    for number, (expected, spent, granted) in enumerate(turns, 1):
        amount = (expected, 0) if one.fits((expected, 0)) else one.rest((expected, 0))
        if amount is not None:
            one.hold(amount)
            running.append((amount, spent))
        beyond = sum(max(0, cost - kept[0]) for kept, cost in running)
        assert one.holds[0] <= max(0, one.slice[0] - one.unsettled[0]) + beyond
        if len(running) > 3:
            kept, cost = running.pop(0)
            one.settle(kept, (cost, 0))
        one.begin(number)
        one.told(standing(held=max(granted, one.holds[0]), used=0), now=float(number))
    for kept, cost in running:
        one.settle(kept, (cost, 0))
    assert (one.holds, one.holders) == ((0, 0), 0)


def budgets(*models: dict[str, Any]) -> TurnBudgets:
    spec = {"systemPrompt": "?", "models": list(models or (OPENAI,)), "budget": {"perDay": {"amount": "20"}}}
    agent = Agent.model_validate({"metadata": {"name": "a"}, "spec": spec})
    assert agent.spec.budget is not None
    settled: list[Any] = []
    ledger: Any = SimpleNamespace(settle=lambda hold, spent: settled.append(spent))
    telemetry: Any = SimpleNamespace()
    return TurnBudgets(agent.spec, agent.spec.budget, ledger, telemetry)


def outcome(model: str | None = "openai/gpt-5-mini", **more: Any) -> Outcome:
    return Outcome(TurnStatus.COMPLETED, [NewMessage("assistant", "x" * 400)], model, 1, **more)


def test_before_the_first_turn_a_guess_is_held_and_afterwards_the_largest_lately() -> None:
    made = budgets()
    assert made.expect(4000) == (1000 + REPLY_TOKENS, 1000 + 10 * REPLY_TOKENS)
    made.settle(SimpleNamespace(), outcome(input_tokens=2000, output_tokens=40, cost_micros=2400, currency="USD"))  # type: ignore[arg-type]
    assert made.expect(40) == (2040, 2400)
    for _ in range(40):
        made.settle(SimpleNamespace(), outcome(input_tokens=10, output_tokens=10, cost_micros=110, currency="USD"))  # type: ignore[arg-type]
    tokens, money = made.expect(40)
    assert 20 <= tokens < 200
    assert 110 <= money < 400


def test_money_counts_in_the_currency_of_the_budget_only() -> None:
    made = budgets()
    assert made.spent_by(outcome(input_tokens=5, output_tokens=5, cost_micros=70, currency="USD"), 0) == (10, 70)
    assert made.spent_by(outcome(input_tokens=5, output_tokens=5, cost_micros=70, currency="EUR"), 0) == (10, 0)


def test_a_provider_that_counts_nothing_is_estimated() -> None:
    assert budgets().spent_by(outcome(), 4000) == (1000 + 100, 1000 + 10 * 100)


def test_built_in_models_and_turns_without_a_reply_cost_nothing() -> None:
    assert budgets().spent_by(outcome("echo/echo"), 4000) == (0, 0)
    assert budgets().spent_by(outcome(None), 4000) == (0, 0)
