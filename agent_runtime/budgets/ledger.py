"""Lets turns begin while budgets last: reserves slices of them in the store, and accounts for what was used.

A turn holds what it is expected to use before its first model call. The store is asked only when the slice has no room,
and told once a second what was used. Where nothing is left but what other turns hold, a turn waits for them a while.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Final, Literal
from uuid import UUID

from agent_api.v1alpha1 import Budget
from agent_api.wire import BudgetCheck
from agent_runtime.budgets.account import Account
from agent_runtime.budgets.amounts import NOTHING, limit_of, minus, percent_of, plus
from agent_runtime.clock import Clock
from agent_runtime.loop.keeper import wait_event
from agent_runtime.supervisor import Pulse
from agent_runtime.telemetry.logs import get_logger
from agent_store.errors import LeaseLost, StoreError
from agent_store.ports import BudgetStanding, BudgetStore, Owner, Spent

_LOG = get_logger("budgets")
AGENT: Final = "agent"
USER: Final = "user:"
SETTLE_SECONDS: Final = 1.0
"""What was used is accounted for this long afterwards: so much a process that dies may leave uncounted at most."""
READ_SECONDS: Final = 10.0
"""How often a process without turns looks what others used."""
FRESH_SECONDS: Final = 1.0
"""So long the store's word that nothing is left is believed without asking again."""
PATIENCE_SECONDS: Final = 30.0
"""So long a turn waits for what other turns hold."""
BEGUN_PATIENCE_SECONDS: Final = 5.0
"""And so long a turn that goes on in any case."""
RETRY_SECONDS: Final = 0.25
MOST_ACCOUNTS: Final = 500
"""Budgets of one statement."""
KEEP_DAYS: Final = 35

Scope = Literal["agent", "user"]


@dataclass(frozen=True, slots=True)
class Hold:
    """Room kept for one turn, in each budget it falls under."""

    parts: tuple[tuple[Account, Spent], ...]


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a turn may not begin. `message` is fit for the caller."""

    scope: Scope
    message: str


class BudgetLedger:
    """The budgets of one agent in one process. Belongs to one event loop.

    `owner` tells under which lease slices are held now, None while there is none; `changed` is called when a budget is
    used up or has room again.
    """

    def __init__(
        self,
        agent_id: UUID,
        budget: Budget,
        store: BudgetStore,
        clock: Clock,
        *,
        owner: Callable[[], Owner | None],
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self._agent_id = agent_id
        self._budget = budget
        self._store = store
        self._clock = clock
        self._owner = owner
        self._changed = changed
        self._limits: dict[Scope, Spent] = {"agent": limit_of(budget.per_day), "user": limit_of(budget.per_user_day)}
        self._day: date | None = None
        self._day_ends = float("-inf")
        self._resets_at: datetime | None = None
        self._accounts: dict[str, Account] = {}
        self._retired: list[Account] = []
        self._used: Spent = NOTHING
        self._read_at = float("-inf")
        self._top_user = 0
        self._serial = 0
        self._begun = 0
        self._done = 0
        self._asking = asyncio.Lock()
        self._news = asyncio.Event()
        self._wake = asyncio.Event()
        self._told_ok = True

    # ---- turns

    async def admit(self, user: str, expected: Spent, *, patience: float = PATIENCE_SECONDS) -> Hold | Refusal:
        """Keep room for a turn that is expected to use so much, or say why it may not begin.

        A turn begins with less room than expected if no more is left. Every Hold must be settled. Raises
        StoreUnavailable, LeaseLost: nothing is kept then.
        """
        deadline = self._clock.monotonic() + patience
        while True:
            self._news.clear()
            accounts = await self._find_accounts(user)
            hold = _try_hold(accounts, expected)
            if hold is not None:
                return hold
            if (refusal := self._refuse(accounts, fresh=True)) is not None:
                return refusal
            await self._ask_for(accounts, expected)
            if any(account.retired for account in accounts):
                continue
            hold = _try_hold(accounts, expected) or _try_rest(accounts, expected)
            if hold is not None:
                return hold
            if (refusal := self._refuse(accounts, fresh=False)) is not None:
                return refusal
            if self._clock.monotonic() >= deadline:
                return self._refusal(accounts[0], "is held by turns that still run")
            await wait_event(self._news, RETRY_SECONDS)

    async def admit_anyway(self, user: str, expected: Spent) -> Hold:
        """Keep room for a turn that may not be refused: maybe less than expected, maybe none. Raises like admit()."""
        found = await self.admit(user, expected, patience=BEGUN_PATIENCE_SECONDS)
        if isinstance(found, Hold):
            return found
        accounts = await self._find_accounts(user)
        for account in accounts:
            account.hold(NOTHING)
        return Hold(tuple((account, NOTHING) for account in accounts))

    def settle(self, hold: Hold, spent: Spent | None) -> None:
        """Note what a turn used; None: it is not known, and counts as what was kept for it."""
        for account, amount in hold.parts:
            account.settle(amount, amount if spent is None else spent)
        self._note_usage()
        self._news.set()
        self._wake.set()

    # ---- upkeep

    async def keep(self, pulse: Pulse) -> None:
        """Account for what was used, and look what others used, for ever."""
        forgotten: date | None = None
        while True:
            pulse()
            await wait_event(self._wake, READ_SECONDS)
            await self._clock.sleep(SETTLE_SECONDS)
            self._wake.clear()
            try:
                await self._tidy()
                if self._day != forgotten:
                    await self._store.forget_budgets(self._agent_id, self._budget.time_zone, keep_days=KEEP_DAYS)
                    forgotten = self._day
            except StoreError as error:
                _LOG.info("budget_unsettled", reason=type(error).__name__)
                self._wake.set()

    async def aclose(self, *, timeout: float) -> None:
        """Account for everything and give all slices back, within `timeout` seconds; what fails counts as used."""
        self._retire_all()
        try:
            async with asyncio.timeout(timeout):
                while self._dirty():
                    await self._account()
        except (StoreError, TimeoutError) as error:
            _LOG.warning("budget_not_given_back", error=type(error).__name__)

    async def _tidy(self) -> None:
        if self._owner() is None:
            return
        await self._find_day()
        self._look_at_lease()
        if self._dirty():
            await self._account()
            if self._dirty():
                self._wake.set()
        if self._limits["agent"] != NOTHING and self._clock.monotonic() - self._read_at >= READ_SECONDS:
            await self._read()

    # ---- what is known

    def checks(self) -> list[BudgetCheck]:
        """Return where the budgets stand; what other processes used is known with a delay of some seconds."""
        found = []
        today = self._clock.monotonic() < self._day_ends
        if self._budget.per_day is not None:
            percent = percent_of(self._used_by_agent(), self._limits["agent"]) if today else 0
            found.append(self._check("agent", self._budget.per_day.display, percent))
        if self._budget.per_user_day is not None:
            found.append(self._check("user", self._budget.per_user_day.display, self._top_user if today else 0))
        return found

    def _check(self, scope: Scope, limit: str, percent: int) -> BudgetCheck:
        return BudgetCheck(
            scope=scope,
            ok=percent < 100,
            warns=percent >= self._budget.warn_percent,
            limit=limit,
            used_percent=percent,
            resets_at=self._resets_at,
        )

    def _used_by_agent(self) -> Spent:
        account = self._accounts.get(AGENT)
        return self._used if account is None else plus(self._used, account.unsettled)

    def _note_usage(self) -> None:
        users = (account for scope, account in self._accounts.items() if scope != AGENT)
        limit = self._limits["user"]
        self._top_user = max(self._top_user, *(percent_of(one.used_now, limit) for one in users), 0)
        ok = percent_of(self._used_by_agent(), self._limits["agent"]) < 100
        if ok != self._told_ok:
            self._told_ok = ok
            self._changed()

    # ---- accounts

    async def _find_accounts(self, user: str) -> list[Account]:
        await self._find_day()
        owner = self._look_at_lease()
        if owner is None:
            raise LeaseLost("the lease is not held")
        scopes: tuple[tuple[Scope, str], ...] = (("agent", AGENT), ("user", f"{USER}{user}"))
        return [self._find(kind, scope, owner) for kind, scope in scopes if self._limits[kind] != NOTHING]

    def _find(self, kind: Scope, scope: str, owner: Owner) -> Account:
        account = self._accounts.get(scope)
        if account is None:
            assert self._day is not None  # noqa: S101 - found before any account is
            account = self._accounts[scope] = Account(scope, self._day, owner, self._limits[kind])
        return account

    async def _find_day(self) -> None:
        """Learn which day it is; at its end all accounts are closed, and turns count for the day they began on."""
        if self._clock.monotonic() < self._day_ends:
            return
        await self._read()

    async def _read(self) -> None:
        standing = await self._store.read_budget(self._agent_id, AGENT, self._budget.time_zone)
        now = self._clock.monotonic()
        if standing.day != self._day:
            self._retire_all()
            self._top_user = 0
            self._day, self._resets_at = standing.day, standing.resets_at
        self._day_ends, self._read_at, self._used = now + standing.seconds_left, now, standing.used
        self._note_usage()

    def _look_at_lease(self) -> Owner | None:
        """Return the present owner; accounts of an earlier one are closed."""
        owner = self._owner()
        if owner is not None and any(account.owner != owner for account in self._accounts.values()):
            self._retire_all()
        return owner

    def _retire_all(self) -> None:
        for account in self._accounts.values():
            account.retired = True
            self._retired.append(account)
        self._accounts = {}

    def _refuse(self, accounts: Sequence[Account], *, fresh: bool) -> Refusal | None:
        now = self._clock.monotonic()
        for account in accounts:
            if account.is_exhausted and (not fresh or now - account.told_at < FRESH_SECONDS):
                return self._refusal(account, "is used up")
        return None

    def _refusal(self, account: Account, what: str) -> Refusal:
        scope: Scope = "agent" if account.scope == AGENT else "user"
        whose = "The agent's budget" if scope == "agent" else "The user's budget"
        until = f"; the next day begins at {self._resets_at:%Y-%m-%dT%H:%M:%SZ}" if self._resets_at else ""
        return Refusal(scope, f"{whose} of the day {what}{until}.")

    # ---- asking the store

    async def _ask_for(self, accounts: Sequence[Account], expected: Spent) -> None:
        """Return once the store was asked for room for this turn, maybe together with others."""
        begun = self._begun
        for account in accounts:
            account.waiting = plus(account.waiting, expected)
        try:
            async with self._asking:
                if self._done <= begun:
                    await self._round(accounts)
        finally:
            for account in accounts:
                account.waiting = minus(account.waiting, expected)

    async def _account(self) -> None:
        async with self._asking:
            await self._round(())

    async def _round(self, first: Sequence[Account]) -> None:
        """Send the accounts of this turn and all others that have news, by owner: old ones before the present."""
        self._begun += 1
        number = self._begun
        others = [one for one in (*self._retired, *self._accounts.values()) if one.is_dirty and one not in first]
        others.sort(key=lambda one: one.waiting == NOTHING)  # turns wait for these
        chosen = [*first, *others[: MOST_ACCOUNTS - len(first)]]
        try:
            for owner in sorted({one.owner for one in chosen}, key=lambda owner: owner.epoch):
                await self._send(owner, [one for one in chosen if one.owner == owner])
        finally:
            self._forget_empty()
        self._done = number
        self._news.set()

    async def _send(self, owner: Owner, accounts: Sequence[Account]) -> None:
        begun = []
        for account in accounts:
            self._serial += 1
            begun.append(account.begin(self._serial))
        standings = await self._store.account_budgets(self._agent_id, owner, self._budget.time_zone, begun)
        now = self._clock.monotonic()
        for account, standing in zip(accounts, standings, strict=True):
            account.told(standing, now)
            self._take(account, standing, now)
        self._note_usage()

    def _take(self, account: Account, standing: BudgetStanding, now: float) -> None:
        if account.scope == AGENT and account.day == self._day:
            self._used, self._read_at = standing.used, now

    def _dirty(self) -> bool:
        return any(account.is_dirty for account in (*self._retired, *self._accounts.values()))

    def _forget_empty(self) -> None:
        self._retired = [account for account in self._retired if not account.is_empty]
        empty = [scope for scope, account in self._accounts.items() if scope != AGENT and account.is_empty]
        for scope in empty:
            # A turn that waits for this very answer still has the account; the next one gets another.
            self._accounts.pop(scope).retired = True


def _try_hold(accounts: Sequence[Account], expected: Spent) -> Hold | None:
    if not all(account.fits(expected) for account in accounts):
        return None
    for account in accounts:
        account.hold(expected)
    return Hold(tuple((account, expected) for account in accounts))


def _try_rest(accounts: Sequence[Account], expected: Spent) -> Hold | None:
    rests = [account.rest(expected) for account in accounts]
    parts = tuple((account, rest) for account, rest in zip(accounts, rests, strict=True) if rest is not None)
    if len(parts) < len(accounts):
        return None
    for account, rest in parts:
        account.hold(rest)
    return Hold(parts)
