"""Housekeeping: the database's, once an hour, and paying debts, the rows of deleted agents that are still there."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Final
from uuid import UUID

import structlog

from agent_operator.errors import OperatorError
from agent_operator.keys import AgentKey
from agent_operator.reconcile.debts import Debts
from agent_operator.reconcile.deletion import STATE_ERASED
from agent_operator.reconcile.erasure import Eraser
from agent_operator.resources.debt import Debt
from agent_operator.status.text import scrub
from agent_operator.telemetry.audit import Entry
from agent_store.errors import StoreError
from agent_store.ports import TelemetryStore

log = structlog.get_logger(__name__)

INTERVAL: Final = 3600.0
RETRY: Final = 60.0
DEADLINE: Final = 300.0
DEBTS_INTERVAL: Final = 600.0
"""Between two looks for debts that this process did not record itself."""
DEBTS_RETRY_FIRST: Final = 2.0
DEBTS_RETRY_LIMIT: Final = 60.0
ERASE_STEP: Final = 10.0


class Upkeep:
    """Calls the store's maintenance; a failure is tried again and stops nothing."""

    def __init__(self, store: TelemetryStore, *, interval: float = INTERVAL, retry: float = RETRY) -> None:
        self._store = store
        self._interval = interval
        self._retry = retry
        self._failing = False

    async def run(self) -> None:
        """Maintain at every interval, until cancelled. The first time is at once."""
        while True:
            done = await self._maintain()
            await asyncio.sleep(self._interval if done else self._retry)

    async def _maintain(self) -> bool:
        try:
            async with asyncio.timeout(DEADLINE):
                await self._store.maintain()
        except (StoreError, TimeoutError, OSError) as exc:
            if not self._failing:
                log.warning("the database could not be maintained; it is tried again", error=scrub(str(exc)))
            self._failing = True
            return False
        self._failing = False
        log.info("the database was maintained")
        return True


class DebtCollector:
    """Erases the rows of deleted agents that Postgres could not be asked to erase then.

    A debt is struck off only after nothing was left, so that it is paid by the next operator if this one ends.
    """

    def __init__(
        self,
        debts: Debts,
        eraser: Eraser,
        audit: Callable[[Entry], None],
        *,
        interval: float = DEBTS_INTERVAL,
        retry_first: float = DEBTS_RETRY_FIRST,
        retry_limit: float = DEBTS_RETRY_LIMIT,
    ) -> None:
        self._debts = debts
        self._eraser = eraser
        self._audit = audit
        self._interval = interval
        self._retry_first = retry_first
        self._retry_limit = retry_limit
        self.owed = 0

    async def run(self) -> None:
        """Pay what is recorded, until cancelled: at once, whenever something is recorded, and every `interval`."""
        pause = self._retry_first
        while True:
            self._debts.recorded.clear()
            if await self._pay_all():
                pause = self._retry_first
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._interval):
                        await self._debts.recorded.wait()
            else:
                await asyncio.sleep(pause)
                pause = min(pause * 2, self._retry_limit)

    async def _pay_all(self) -> bool:
        """Pay all debts; False if something is left to try again."""
        try:
            debts = await self._debts.list()
            self.owed = len(debts)
            for debt, object_uid in debts:
                await self._pay(debt)
                await self._debts.strike_off(debt, object_uid)
                self.owed -= 1
        except (StoreError, OperatorError, TimeoutError, OSError) as exc:
            log.info("rows of deleted agents are still owed", agents=self.owed, error=scrub(str(exc)))
            return False
        return True

    async def _pay(self, debt: Debt) -> None:
        key = AgentKey(debt.namespace, debt.name)
        async with asyncio.timeout(DEADLINE):
            ids = await self._eraser.find_ids(key, debt.uid, debt.adopted_id)
            while not await self._eraser.erase(ids, budget=ERASE_STEP):
                log.info("erasing the rows of a deleted agent", agent=str(key))
        message = f"The rows of agent {key}, deleted earlier, were erased (owed since {debt.recorded_at})."
        details = {"namespace": debt.namespace, "name": debt.name, "uid": debt.uid, "owedSince": debt.recorded_at}
        self._audit(Entry(UUID(debt.uid), STATE_ERASED, message, details))
