"""Keeps the tables of Postgres bounded: partitions made ahead, retention applied, dead processes and pods forgotten."""

import asyncio
from typing import Final

import structlog

from agent_operator.status.text import scrub
from agent_store.errors import StoreError
from agent_store.ports import TelemetryStore

log = structlog.get_logger(__name__)

EVERY_SECONDS: Final = 3600.0
AGAIN_SECONDS: Final = 60.0
TIMEOUT: Final = 120.0


async def keep_house(store: TelemetryStore) -> None:
    """Maintain the store once an hour, a minute after a failure, until cancelled. Never raises for Postgres."""
    while True:
        try:
            async with asyncio.timeout(TIMEOUT):
                await store.maintain()
        except (StoreError, TimeoutError, OSError) as exc:
            log.warning("the tables could not be maintained; trying again in a minute", error=scrub(str(exc)))
            await asyncio.sleep(AGAIN_SECONDS)
        else:
            await asyncio.sleep(EVERY_SECONDS)
