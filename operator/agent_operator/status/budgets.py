"""Where an agent's budgets stand, as its pods last said, and models whose cost nobody knows.

All pods of an agent share its budget, so what one of them saw used up is used up, until the next day begins or the
limit is changed.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from agent_api.conditions import Reason
from agent_api.v1alpha1 import Budget, BudgetStatus
from agent_api.wire import BudgetCheck, HealthOut
from agent_operator.status.causes import Cause
from agent_operator.status.observed import Observation
from agent_operator.status.pods import PodView
from agent_operator.status.text import instant


@dataclass(frozen=True, slots=True)
class BudgetsView:
    """`budgets` as status shows them; `exhausted` says that no turn may begin, `unpriced` that money is not counted."""

    budgets: tuple[BudgetStatus, ...] = ()
    exhausted: Cause | None = None
    unpriced: Cause | None = None


def view_budgets(observation: Observation) -> BudgetsView:
    """Return where the budgets of the spec stand; a limit that only other revisions have does not count."""
    budget = observation.budget
    if budget is None:
        return BudgetsView()
    limits = {"agent": budget.per_day, "user": budget.per_user_day}
    told = [check for pod in observation.pods if not pod.finished for check in _find_checks(observation, pod)]
    found = []
    for scope, limit in limits.items():
        if limit is None:
            continue
        checks = [one for one in told if one.scope == scope and one.limit == limit.display]
        newest = max(checks, key=lambda check: check.used_percent, default=BudgetCheck(scope="agent"))
        found.append(
            BudgetStatus(
                scope="Agent" if scope == "agent" else "User",
                limit=limit.display,
                used_percent=newest.used_percent,
                warning=newest.warns,
                resets_at=newest.resets_at,
            )
        )
    spent = [check for check in told if check.scope == "agent" and not check.ok]
    limit = budget.per_day
    exhausted = [check for check in spent if limit is not None and check.limit == limit.display]
    return BudgetsView(tuple(found), _exhausted(exhausted[0]) if exhausted else None, _unpriced(observation, budget))


def _find_checks(observation: Observation, pod: PodView) -> Iterator[BudgetCheck]:
    """Yield what a pod said of the present day: in its newest heartbeat, or when it was asked."""
    probe = observation.probes.get(pod.uid)
    asked = tuple(probe.budgets) if isinstance(probe, HealthOut) else ()
    for check in (observation.facts.budgets_by_pod or {}).get(pod.name) or asked:
        if check.resets_at is not None and check.resets_at > observation.now:
            yield check


def _exhausted(check: BudgetCheck) -> Cause:
    until = f"{instant(check.resets_at)}" if check.resets_at is not None else "the next day"
    return Cause(
        Reason.BUDGET_EXHAUSTED,
        f"The agent's budget of the day ({check.limit}) is used up since {{since}}.",
        f"New messages are answered with messages.budget until {until}, when the next day begins.",
        "Raise spec.budget.perDay, or wait until then.",
        None,
    )


def _unpriced(observation: Observation, budget: Budget) -> Cause | None:
    """Return that money is limited and what some model costs is not known; built-in models cost nothing."""
    for currency in budget.currencies:
        without = [
            (index, model)
            for index, model in enumerate(observation.models)
            if not model.is_built_in and (model.price is None or model.price.currency != currency)
        ]
        if without:
            index, model = without[0]
            more = f" ({len(without) - 1} more have none either)" if len(without) > 1 else ""
            return Cause(
                Reason.PRICE_UNKNOWN,
                f"{model.display} has no price in {currency}{more}: what it costs is not counted since {{since}}.",
                "Users notice nothing; the amount in spec.budget does not limit it.",
                f"Write its price in {currency} into spec.models[{index}].price.",
                None,
            )
    return None
