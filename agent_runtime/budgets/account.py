"""What one process knows of one budget on one day: pure arithmetic, no I/O.

    limit ≥ used + slices of all processes         kept by the store, whatever processes do
    slice ≥ unsettled + holds of turns under way   kept here, but for turns that need more than they held

So a budget is overspent by no more than what turns under way use beyond their holds.
"""

from dataclasses import dataclass
from datetime import date
from typing import Final

from agent_runtime.budgets.amounts import NOTHING, minus, plus
from agent_store.ports import BudgetAccount, BudgetStanding, Owner, Spent

HORIZON_SHARE: Final = 20
"""A process reserves for the next interval at most one part in so many of a limit, besides what its turns hold."""


@dataclass(slots=True, eq=False)
class Account:
    """One budget as one owner of slices sees it.

    `unsettled` is what was used since the last account that the store has counted; `sending` the part of it in an
    account whose answer is not known: that account is repeated as it was. `waiting` is what turns want to hold.
    """

    scope: str
    day: date
    owner: Owner
    limit: Spent
    serial: int = 0
    slice: Spent = NOTHING
    unsettled: Spent = NOTHING
    sending: Spent | None = None
    holds: Spent = NOTHING
    holders: int = 0
    waiting: Spent = NOTHING
    recent: Spent = NOTHING
    used: Spent = NOTHING
    told_at: float = float("-inf")
    retired: bool = False

    @property
    def free(self) -> Spent:
        """What the slice has left for further turns; negative after turns that needed more than they held."""
        return minus(minus(self.slice, self.unsettled), self.holds)

    @property
    def used_now(self) -> Spent:
        """What was used as far as this process knows."""
        return plus(self.used, self.unsettled)

    @property
    def is_exhausted(self) -> bool:
        """Whether nothing is left, as far as this process knows."""
        return any(limit and used >= limit for used, limit in zip(self.used_now, self.limit, strict=True))

    @property
    def is_dirty(self) -> bool:
        """Whether the store should hear of it."""
        news = (self.unsettled, self.waiting, self.recent)
        return self.sending is not None or self.slice != self.want or any(part != NOTHING for part in news)

    @property
    def is_empty(self) -> bool:
        """Whether nothing would be lost by forgetting it."""
        nothing = (self.slice, self.unsettled, self.waiting, self.recent)
        return not self.holders and self.sending is None and all(part == NOTHING for part in nothing)

    @property
    def want(self) -> Spent:
        """The slice to ask for: what turns hold and wait for, and as much as was used in the last interval."""
        spare = NOTHING if self.retired else self.recent
        parts = zip(plus(self.holds, self.waiting), spare, self.limit, strict=True)
        tokens, money = (held + min(spare, limit // HORIZON_SHARE) if limit else 0 for held, spare, limit in parts)
        return tokens, money

    def fits(self, amount: Spent) -> bool:
        """Whether the slice has room for it."""
        return all(not limit or free >= part for part, free, limit in zip(amount, self.free, self.limit, strict=True))

    def rest(self, amount: Spent) -> Spent | None:
        """Return as much of `amount` as there is room for, None if there is no room at all."""
        if not self.fits((1, 1)):
            return None
        tokens, money = (
            min(part, free) if limit else 0 for part, free, limit in zip(amount, self.free, self.limit, strict=True)
        )
        return tokens, money

    def hold(self, amount: Spent) -> None:
        """Keep room for a turn."""
        self.holds = plus(self.holds, amount)
        self.holders += 1

    def settle(self, amount: Spent, spent: Spent) -> None:
        """Give the room of a turn back, and note what it used."""
        self.holds = minus(self.holds, amount)
        self.holders -= 1
        self.unsettled = plus(self.unsettled, spent)

    def begin(self, serial: int) -> BudgetAccount:
        """Return the account to send; `serial` is used unless an earlier one is still without answer."""
        if self.sending is None:
            self.serial, self.sending = serial, self.unsettled
            self.recent = self.sending
        return BudgetAccount(self.day, self.scope, self.serial, self.sending, self.slice, self.want, self.limit)

    def told(self, standing: BudgetStanding, now: float) -> None:
        """Take the store's answer to the account that was begun."""
        self.unsettled = minus(self.unsettled, self.sending or NOTHING)
        self.sending = None
        self.slice, self.used, self.told_at = standing.held, standing.used, now
