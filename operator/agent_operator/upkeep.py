"""The database's housekeeping, once an hour: partitions of the coming weeks, retention, traces of dead processes."""

import asyncio
from typing import Final

import structlog

from agent_operator.status.text import scrub
from agent_store.errors import StoreError
from agent_store.ports import TelemetryStore

log = structlog.get_logger(__name__)

INTERVAL: Final = 3600.0
RETRY: Final = 60.0
DEADLINE: Final = 300.0


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
