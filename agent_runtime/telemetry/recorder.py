"""What is written to `agent_metrics` and `agent_errors`: aggregated, bounded, kept while Postgres is away."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID

from agent_runtime.clock import Clock
from agent_runtime.telemetry.scrub import Scrubber
from agent_store.errors import StoreUnavailable
from agent_store.ports import ErrorRecord, Metric, TelemetryStore

FLUSH_SECONDS: Final = 4.0
"""Rows must be there at least every 5 s; the write itself takes time."""
MOST_ERRORS: Final = 256
"""Errors kept until Postgres takes them; beyond, the oldest are dropped and counted."""
MESSAGE_CHARS: Final = 2000
TRACE_CHARS: Final = 20_000
ERRORS_PER_FLUSH: Final = 64


@dataclass(slots=True)
class _Sum:
    total: float = 0.0
    count: int = 0
    highest: float = 0.0
    labels: dict[str, int] = field(default_factory=dict)

    def add(self, value: float, label: str | None) -> None:
        self.total += value
        self.count += 1
        self.highest = max(self.highest, value)
        if label is not None:
            self.labels[label] = self.labels.get(label, 0) + 1

    def merge(self, other: "_Sum") -> None:
        self.total += other.total
        self.count += other.count
        self.highest = max(self.highest, other.highest)
        for label, count in other.labels.items():
            self.labels[label] = self.labels.get(label, 0) + count


class Recorder:
    """Collects samples and errors of all agents of the process; `flush` writes them."""

    def __init__(self, store: TelemetryStore, scrubber: Scrubber, clock: Clock) -> None:
        self._store = store
        self._scrubber = scrubber
        self._clock = clock
        self._sums: dict[tuple[UUID, str], _Sum] = {}
        self._errors: deque[ErrorRecord] = deque(maxlen=MOST_ERRORS)
        self.dropped_errors = 0

    def sample(self, agent_id: UUID, metric_type: str, value: float = 1.0, *, label: str | None = None) -> None:
        """Add a sample. `label` (few distinct ones) is counted in the row's metadata under `by`."""
        self._sums.setdefault((agent_id, metric_type), _Sum()).add(value, label)

    def error(
        self, agent_id: UUID, error_type: str, message: str, *, trace: str = "", context: dict[str, Any] | None = None
    ) -> None:
        """Queue an error row, scrubbed and cut to a bounded length."""
        if len(self._errors) == MOST_ERRORS:
            self.dropped_errors += 1
        self._errors.append(
            ErrorRecord(
                agent_id=agent_id,
                error_type=error_type,
                message=self._scrubber.scrub(message)[:MESSAGE_CHARS],
                stack_trace=self._scrubber.scrub(trace)[-TRACE_CHARS:],
                context=context or {},
                occurred_at=self._clock.now(),
            )
        )

    @property
    def has_errors(self) -> bool:
        """Whether error rows wait to be written."""
        return bool(self._errors)

    async def flush(self) -> None:
        """Write everything collected. Raises StoreUnavailable; what was not written is kept and merged."""
        await self._flush_errors()
        sums, self._sums = self._sums, {}
        if not sums:
            return
        try:
            await self._store.record_metrics(_metrics(sums))
        except BaseException:
            # Counted twice is wrong, lost is worse: only a write whose fate is unknown can be counted twice.
            for key, earlier in sums.items():
                self._sums.setdefault(key, _Sum()).merge(earlier)
            raise

    async def _flush_errors(self) -> None:
        for _ in range(min(len(self._errors), ERRORS_PER_FLUSH)):
            error = self._errors[0]
            try:
                await self._store.record_error(error)
            except StoreUnavailable:
                raise
            except Exception:
                # A row the store cannot take would block all others for ever.
                self.dropped_errors += 1
            if self._errors and self._errors[0] is error:
                self._errors.popleft()


def _metrics(sums: dict[tuple[UUID, str], _Sum]) -> Sequence[Metric]:
    return [
        Metric(
            agent_id,
            metric_type,
            total.total,
            {"count": total.count, "max": total.highest, **({"by": total.labels} if total.labels else {})},
        )
        for (agent_id, metric_type), total in sums.items()
    ]
