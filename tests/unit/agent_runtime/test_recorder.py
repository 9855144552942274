"""What is written to Postgres about an agent: aggregated, kept through outages, bounded."""

from collections.abc import Sequence
from uuid import UUID

import pytest

from agent_api.conditions import Reason
from agent_runtime.clock import ManualClock
from agent_runtime.telemetry.recorder import MOST_ERRORS, Recorder
from agent_runtime.telemetry.scrub import Scrubber
from agent_store.errors import StoreUnavailable
from agent_store.ports import ErrorRecord, Metric

AGENT = UUID(int=1)


class Writes:
    """The two writes of the store that the recorder uses; fails while `down`."""

    def __init__(self) -> None:
        self.metrics: list[Metric] = []
        self.errors: list[ErrorRecord] = []
        self.down = False
        self.refuses = ""

    async def record_metrics(self, metrics: Sequence[Metric]) -> None:
        if self.down:
            raise StoreUnavailable(Reason.CONNECTION_REFUSED, "down")
        self.metrics += metrics

    async def record_error(self, error: ErrorRecord) -> None:
        if self.down:
            raise StoreUnavailable(Reason.CONNECTION_REFUSED, "down")
        if error.error_type == self.refuses:
            raise ValueError("no such row")
        self.errors.append(error)


def made() -> tuple[Recorder, Writes]:
    writes, clock = Writes(), ManualClock()
    return Recorder(writes, Scrubber(clock, (), values={"hunter22"}), clock), writes  # type: ignore[arg-type]


async def test_samples_of_an_interval_become_one_row() -> None:
    recorder, writes = made()
    for value in (10.0, 30.0, 20.0):
        recorder.sample(AGENT, "turn_duration_ms", value, label="completed")
    recorder.sample(AGENT, "message_received")
    await recorder.flush()
    await recorder.flush()
    assert writes.metrics == [
        Metric(AGENT, "turn_duration_ms", 60.0, {"count": 3, "max": 30.0, "by": {"completed": 3}}),
        Metric(AGENT, "message_received", 1.0, {"count": 1, "max": 1.0}),
    ]


async def test_nothing_is_lost_while_postgres_is_away() -> None:
    recorder, writes = made()
    writes.down = True
    recorder.sample(AGENT, "message_received")
    recorder.error(AGENT, "Kind", "first")
    with pytest.raises(StoreUnavailable):
        await recorder.flush()
    recorder.sample(AGENT, "message_received")
    writes.down = False
    await recorder.flush()
    assert [(metric.value, metric.metadata["count"]) for metric in writes.metrics] == [(2.0, 2)]
    assert [error.message for error in writes.errors] == ["first"]
    assert not recorder.has_errors


async def test_errors_are_scrubbed_bounded_and_cut() -> None:
    recorder, writes = made()
    for number in range(MOST_ERRORS + 10):
        recorder.error(AGENT, "Kind", f"{number} hunter22 " + "x" * 5000, trace="hunter22 " + "y" * 50_000)
    assert recorder.dropped_errors == 10
    while recorder.has_errors:
        await recorder.flush()
    assert len(writes.errors) == MOST_ERRORS
    assert writes.errors[0].message.startswith("10 ")
    assert all("hunter22" not in error.message + error.stack_trace for error in writes.errors)
    assert max(len(error.message) for error in writes.errors) <= 2000


async def test_a_row_the_store_cannot_take_does_not_block_the_others() -> None:
    recorder, writes = made()
    writes.refuses = "Poison"
    recorder.error(AGENT, "Poison", "a")
    recorder.error(AGENT, "Kind", "b")
    await recorder.flush()
    assert [error.message for error in writes.errors] == ["b"]
