"""What is written about agents for people, in Postgres, and its upkeep."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from agent_store.codec import jsonb, text
from agent_store.ports import ErrorRecord, Heartbeat, Metric
from agent_store.postgres.base import Part
from agent_store.postgres.rows import read_error, read_heartbeat

RETENTION_SECONDS = 30 * 86400.0


class PostgresTelemetry(Part):
    """TelemetryStore over the time series and abide.agent_heartbeats. Appending is not repeated after a lost answer."""

    async def record_metrics(self, metrics: Sequence[Metric]) -> None:
        """See agent_store.ports.TelemetryStore.record_metrics."""
        if not metrics:
            return
        await self._db.run(
            "record_metrics",
            [metric.agent_id for metric in metrics],
            [text(metric.metric_type) for metric in metrics],
            [metric.value for metric in metrics],
            [jsonb(metric.metadata) for metric in metrics],
            point="record_metrics.1",
            repeatable=False,
        )

    async def record_error(self, error: ErrorRecord) -> None:
        """See agent_store.ports.TelemetryStore.record_error."""
        await self._db.run(
            "record_error",
            error.agent_id,
            text(error.error_type),
            text(error.message),
            text(error.stack_trace),
            jsonb(error.context),
            error.occurred_at,
            point="record_error.1",
            repeatable=False,
        )

    async def beat(self, agent_id: UUID, pod: str, details: dict[str, Any]) -> None:
        """See agent_store.ports.TelemetryStore.beat."""
        await self._db.run("beat", agent_id, pod, jsonb(details), point="beat.1")

    async def heartbeats(self, agent_ids: Sequence[UUID] | None = None) -> list[Heartbeat]:
        """See agent_store.ports.TelemetryStore.heartbeats."""
        return [read_heartbeat(row) for row in await self._db.run("heartbeats", agent_ids, point="heartbeats.1")]

    async def last_errors(self, agent_ids: Sequence[UUID] | None = None) -> dict[UUID, ErrorRecord]:
        """See agent_store.ports.TelemetryStore.last_errors."""
        rows = await self._db.run("last_errors", agent_ids, point="last_errors.1")
        return {row["agent_id"]: read_error(row) for row in rows}

    async def list_errors(
        self, agent_id: UUID, *, error_type: str | None = None, before: tuple[datetime, UUID] | None, limit: int
    ) -> list[ErrorRecord]:
        """See agent_store.ports.TelemetryStore.list_errors."""
        moment, error_id = before or (None, None)
        wanted = None if error_type is None else text(error_type)
        rows = await self._db.run("list_errors", agent_id, wanted, moment, error_id, limit, point="list_errors.1")
        return [read_error(row) for row in rows]

    async def session_counts(self, agent_ids: Sequence[UUID] | None = None) -> dict[UUID, int]:
        """See agent_store.ports.TelemetryStore.session_counts."""
        rows = await self._db.run("session_counts", agent_ids, point="session_counts.1")
        return {row["agent_id"]: row["sessions"] for row in rows}

    async def record_event(self, agent_id: UUID | None, event_type: str, message: str, details: dict[str, Any]) -> None:
        """See agent_store.ports.TelemetryStore.record_event."""
        await self._db.run(
            "record_event",
            agent_id,
            text(event_type),
            text(message),
            jsonb(details),
            point="record_event.1",
            repeatable=False,
        )

    async def maintain(self, *, keep: float = RETENTION_SECONDS) -> None:
        """Make coming partitions, drop those older than `keep` seconds, and forget what is long dead or erased.

        Idempotent; any process may call it about once an hour, at the same time as others. Raises StoreUnavailable.
        """
        await self._db.run("maintain_ensure_partitions", point="maintain.1")
        await self._db.run("maintain_drop_old_partitions", keep, point="maintain.2")
        await self._db.run("maintain_forget_instances", point="maintain.3")
        await self._db.run("maintain_forget_pods", point="maintain.4")
        await self._db.run("maintain_erase_again", point="maintain.5")
        await self._db.run("maintain_forget_erased", point="maintain.6")
