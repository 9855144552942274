"""Loops that fail are started again, and stuck ones are seen."""

import asyncio

from agent_runtime.clock import ManualClock
from agent_runtime.supervisor import RESTART_PAUSE, Pulse, Supervisor


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_a_loop_that_fails_is_reported_and_started_again() -> None:
    clock, crashes, starts = ManualClock(), [], []  # type: ignore[var-annotated]
    supervisor = Supervisor(clock, lambda error, trace: crashes.append((str(error), "RuntimeError" in trace)))

    async def body(pulse: Pulse) -> None:
        starts.append(clock.monotonic())
        raise RuntimeError("defect")

    supervisor.start_loop("loop", body)
    await settle()
    await clock.advance(RESTART_PAUSE)
    await supervisor.stop_loops()
    assert starts == [0, RESTART_PAUSE]
    assert crashes == [("defect", True)] * 2


async def test_a_loop_that_does_not_pulse_is_stuck() -> None:
    clock = ManualClock()
    supervisor = Supervisor(clock, lambda *_: None)

    async def moving(pulse: Pulse) -> None:
        while True:
            pulse()
            await clock.sleep(1)

    async def still(pulse: Pulse) -> None:
        await asyncio.Event().wait()

    supervisor.start_loop("moving", moving, stalled_after=5)
    supervisor.start_loop("still", still, stalled_after=5)
    await settle()
    assert supervisor.stuck() == []
    await clock.advance(6)
    assert supervisor.stuck() == ["still"]
    await supervisor.stop_loops()
    assert supervisor.stuck() == []


async def test_spawned_work_is_awaited_and_its_failure_is_reported() -> None:
    crashes: list[str] = []
    supervisor = Supervisor(ManualClock(), lambda error, _trace: crashes.append(str(error)))
    ended: list[str] = []

    async def fails() -> None:
        raise ValueError("broken")

    async def waits() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("cleaned up")

    supervisor.spawn(fails(), name="fails")
    supervisor.spawn(waits(), name="waits")
    await settle()
    await supervisor.stop_tasks()
    assert crashes == ["broken"]
    assert ended == ["cleaned up"]
