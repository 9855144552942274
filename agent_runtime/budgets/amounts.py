"""Tokens and money: pairs (tokens, micros), money in whole millionths of the budget's currency."""

from decimal import ROUND_HALF_UP, Decimal
from typing import Final

from agent_api.v1alpha1 import BudgetLimit
from agent_store.ports import Spent

NOTHING: Final[Spent] = (0, 0)
MICROS: Final = 1_000_000


def micros(amount: str) -> int:
    """Return a decimal amount in millionths, half a millionth rounded up."""
    return int((Decimal(amount) * MICROS).to_integral_value(ROUND_HALF_UP))


def plus(one: Spent, other: Spent) -> Spent:
    """Return the sum."""
    return one[0] + other[0], one[1] + other[1]


def minus(one: Spent, other: Spent) -> Spent:
    """Return the difference; either part may be negative."""
    return one[0] - other[0], one[1] - other[1]


def limit_of(limit: BudgetLimit | None) -> Spent:
    """Return the limit as a pair; 0: no limit."""
    if limit is None:
        return NOTHING
    return limit.tokens, micros(limit.amount) if limit.amount is not None else 0


def percent_of(used: Spent, limit: Spent) -> int:
    """Return how much of a limit is used, of its nearer half: rounded down, so that 100 means used up."""
    return max((100 * part // whole for part, whole in zip(used, limit, strict=True) if whole), default=0)
