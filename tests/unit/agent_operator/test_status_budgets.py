"""What status says of budgets: what pods tell of them → conditions, usage, Events."""

from datetime import timedelta
from typing import Any

import pytest

from agent_api.v1alpha1 import AgentStatus
from agent_api.wire import BudgetCheck
from agent_operator.events import BUDGET_WARNING, find_happenings
from agent_operator.health.facts import combine
from agent_operator.status.observed import Facts, Observation
from agent_operator.status.summary import build_status, decide, dump_status, parse_status
from agent_store.ports import Heartbeat
from tests.unit.agent_operator.makers import AGENT_ID, NOW, at, health, make_agent, observe, ready_pod

MIDNIGHT = NOW.replace(hour=0, minute=0, second=0) + timedelta(days=1)
BUDGET = {"perDay": {"amount": "20.00", "tokens": 500}, "perUserDay": {"tokens": 50}}
OPENAI = {"provider": "openai", "model": "gpt-5-mini", "apiKeySecretRef": {"name": "llm", "key": "openai"}}
PRICE = {"inputPerMillion": "0.25", "outputPerMillion": "2.00", "currency": "USD"}


def check(percent: int, *, limit: str = "20.00 USD, 500 tokens", scope: Any = "agent") -> BudgetCheck:
    return BudgetCheck(
        scope=scope, ok=percent < 100, warns=percent >= 80, limit=limit, used_percent=percent, resets_at=MIDNIGHT
    )


def seen(*checks: BudgetCheck, by: str = "heartbeat", model: Any = None, **changes: Any) -> Observation:
    """Return an observation in which the one pod says this of its budgets."""
    agent, pod = make_agent(budget=BUDGET, models=[model or {"provider": "echo"}]), ready_pod()
    given: dict[str, Any] = {"budget": agent.spec.budget, "models": tuple(agent.spec.models), **changes}
    if by == "heartbeat":
        given["facts"] = Facts(budgets_by_pod={pod.name: checks})
    else:
        given["probes"] = {pod.uid: health().model_copy(update={"budgets": list(checks)})}
    return observe(pod, **given)


def status_of(observation: Observation, previous: AgentStatus | None = None) -> AgentStatus:
    status = build_status(observation, previous or AgentStatus())
    assert parse_status(dump_status(status)) == status
    return status


def said(status: AgentStatus) -> dict[str, str]:
    found = {condition.type: condition for condition in status.conditions}
    return {type_: f"{found[type_].status}/{found[type_].reason}" for type_ in ("Ready", "Degraded")}


def message(status: AgentStatus, type_: str = "Ready") -> str:
    return next(condition.message for condition in status.conditions if condition.type == type_)


@pytest.mark.parametrize("by", ["probe", "heartbeat"])
def test_an_agent_whose_budget_is_used_up_does_not_serve(by: str) -> None:
    status = status_of(seen(check(103), by=by))
    assert said(status) == {"Ready": "False/BudgetExhausted", "Degraded": "False/NotServing"}
    assert message(status) == (
        "The agent's budget of the day (20.00 USD, 500 tokens) is used up since 2026-11-20T14:02:11Z. New messages are "
        "answered with messages.budget until 2026-11-21T00:00:00Z, when the next day begins. Raise spec.budget.perDay, "
        "or wait until then. docs/reasons/BudgetExhausted.md"
    )


def test_it_serves_again_when_the_next_day_begins() -> None:
    spent = status_of(seen(check(103)))
    assert said(status_of(seen(check(103), now=MIDNIGHT), spent))["Ready"] == "True/Serving"
    assert status_of(seen(check(103), now=MIDNIGHT), spent).usage.budgets[0].used_percent == 0


def test_the_instant_stays_while_it_lasts() -> None:
    first = status_of(seen(check(100)))
    assert message(status_of(seen(check(104), now=at(60)), first)) == message(first)


def test_another_limit_counts_only_where_it_is_the_specs() -> None:
    assert said(status_of(seen(check(103, limit="1.00 USD"))))["Ready"] == "True/Serving"


def test_a_user_without_budget_leaves_the_agent_serving() -> None:
    status = status_of(seen(check(10), check(120, limit="50 tokens", scope="user")))
    assert said(status) == {"Ready": "True/Serving", "Degraded": "False/AllWell"}
    assert [(one.scope, one.used_percent, one.warning) for one in status.usage.budgets] == [
        ("Agent", 10, False),
        ("User", 120, True),
    ]


def test_without_a_budget_nothing_is_said() -> None:
    assert status_of(observe(ready_pod())).usage.budgets == []


def test_what_no_pod_says_any_more_is_last_known_until_the_day_ends() -> None:
    before = status_of(seen(check(42)))
    assert status_of(seen(), before).usage.budgets[0].used_percent == 42
    assert status_of(seen(now=MIDNIGHT), before).usage.budgets[0].used_percent == 0


def test_money_without_a_price_degrades() -> None:
    status = status_of(seen(check(1), model=OPENAI, configured_model="openai/gpt-5-mini"))
    assert said(status)["Degraded"] == "True/PriceUnknown"
    assert message(status, "Degraded").startswith(
        "openai/gpt-5-mini has no price in USD: what it costs is not counted since 2026-11-20T14:02:11Z. Users notice "
        "nothing; the amount in spec.budget does not limit it. Write its price in USD into spec.models[0].price."
    )


@pytest.mark.parametrize("currency", ["USD", "EUR"])
def test_a_price_counts_in_the_currency_of_the_budget(currency: str) -> None:
    status = status_of(seen(check(1), model={**OPENAI, "price": {**PRICE, "currency": currency}}))
    assert (said(status)["Degraded"] == "False/AllWell") is (currency == "USD")


def test_a_warning_comes_once_a_day() -> None:
    little, much, more = (status_of(seen(check(percent))) for percent in (79, 80, 90))
    (warning,) = [one for one in find_happenings(little, much) if one.reason == BUDGET_WARNING]
    assert not warning.normal
    assert warning.message.startswith("80 % of the agent's budget of the day (20.00 USD, 500 tokens) is used.")
    assert not [one for one in find_happenings(much, more) if one.reason == BUDGET_WARNING]
    silent = status_of(seen(), much)
    assert not [one for one in find_happenings(silent, more) if one.reason == BUDGET_WARNING]


def test_percents_are_counters_and_warnings_are_written_at_once() -> None:
    first = status_of(seen(check(10))).model_copy(update={"observed_at": NOW})
    assert decide(status_of(seen(check(11)), first), first, at(5), counters_interval=60).status is None
    assert decide(status_of(seen(check(81)), first), first, at(5), counters_interval=60).status is not None


@pytest.mark.parametrize(
    ("raw", "percents"),
    [
        ([check(7).model_dump(mode="json", by_alias=True)], [7]),
        ([{"scope": "galaxy"}], None),
        ("?", None),
        (None, None),
    ],
)
def test_heartbeats_of_any_version_are_read(raw: Any, percents: list[int] | None) -> None:
    beat = Heartbeat(AGENT_ID, "pod", NOW, {"budgets": raw})
    found = (combine([beat], {}, {})[AGENT_ID].budgets_by_pod or {}).get("pod")
    assert (found and [one.used_percent for one in found]) == percents
