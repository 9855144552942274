"""Rows of `system_events`: what the operator did by itself. Written in the background, kept while Postgres is away."""

import asyncio
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID

import structlog

from agent_operator.status.text import scrub
from agent_store.errors import StoreError
from agent_store.ports import TelemetryStore

log = structlog.get_logger(__name__)

QUEUE_LIMIT: Final = 10_000
DEADLINE: Final = 10.0
RETRY_FIRST: Final = 1.0
RETRY_LIMIT: Final = 60.0


@dataclass(frozen=True, slots=True)
class Entry:
    """One row to write. `agent_id` is the id of the agent's rows."""

    agent_id: UUID | None
    event_type: str
    message: str
    details: dict[str, Any] = field(default_factory=dict)


class AuditTrail:
    """Takes note without blocking; `run` writes. What waits when the process ends is lost, its log line is not."""

    def __init__(self, store: TelemetryStore) -> None:
        self._store = store
        self._queue: asyncio.Queue[Entry] = asyncio.Queue(QUEUE_LIMIT)

    def note(self, entry: Entry) -> None:
        """Let the entry be written; it is logged, too, and dropped if very many wait already."""
        log.info("audit", event_type=entry.event_type, message=entry.message, **entry.details)
        try:
            self._queue.put_nowait(entry)
        except asyncio.QueueFull:
            log.warning("an audit row was dropped: too many wait for Postgres", event_type=entry.event_type)

    async def run(self) -> None:
        """Write in order until cancelled; one that cannot be written is tried again."""
        while True:
            entry = await self._queue.get()
            pause = RETRY_FIRST
            while not await self._write(entry):
                await asyncio.sleep(pause)
                pause = min(pause * 2, RETRY_LIMIT)

    async def _write(self, entry: Entry) -> bool:
        try:
            async with asyncio.timeout(DEADLINE):
                await self._store.record_event(entry.agent_id, entry.event_type, entry.message, entry.details)
        except (StoreError, TimeoutError, OSError) as exc:
            log.debug("an audit row could not be written; it is tried again", error=scrub(str(exc)))
            return False
        return True
