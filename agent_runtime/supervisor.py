"""The process's task tree: every task has a name, an owner that sees it fail, and an end in stages.

Loops run for ever and are started again, with back-off, should a defect end them; they pulse to show that they move.
Turns and other one-off work are spawned here too, so that no request owns them.
"""

import asyncio
import traceback
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from dataclasses import dataclass
from typing import Any, Final

from agent_runtime.clock import Clock
from agent_runtime.telemetry.logs import get_logger

_LOG = get_logger("supervisor")
STALLED_AFTER: Final = 60.0
"""Seconds without a pulse after which a loop counts as stuck: every wait in it has a shorter deadline."""
RESTART_PAUSE: Final = 1.0

OnCrash = Callable[[BaseException, str], None]
Pulse = Callable[[], None]


@dataclass(slots=True)
class _Loop:
    task: asyncio.Task[None]
    pulsed_at: float
    stalled_after: float
    restarts: int = 0


class Supervisor:
    """Owns all tasks of the process. Not thread-safe; used within one event loop."""

    def __init__(self, clock: Clock, on_crash: OnCrash) -> None:
        self._clock = clock
        self._on_crash = on_crash
        self._loops: dict[str, _Loop] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

    def start_loop(
        self, name: str, body: Callable[[Pulse], Awaitable[None]], *, stalled_after: float = STALLED_AFTER
    ) -> None:
        """Run `body(pulse)` until stopped; it calls `pulse` at least every `stalled_after` seconds."""
        task = asyncio.get_running_loop().create_task(self._keep_running(name, body), name=name)
        self._loops[name] = _Loop(task, self._clock.monotonic(), stalled_after)

    def spawn(self, work: Coroutine[Any, Any, None], *, name: str) -> asyncio.Task[None]:
        """Run `work` to its end; a failure is reported as a defect."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._on_done)
        return task

    def stuck(self) -> list[str]:
        """Return the names of loops that have ended or do not move."""
        now = self._clock.monotonic()
        return [
            name for name, loop in self._loops.items() if loop.task.done() or now - loop.pulsed_at > loop.stalled_after
        ]

    async def stop_loops(self, names: Iterable[str] | None = None) -> None:
        """Cancel these loops (None: all) and wait for their end."""
        chosen = list(self._loops) if names is None else [name for name in names if name in self._loops]
        await _end([self._loops.pop(name).task for name in chosen])

    async def stop_tasks(self) -> None:
        """Cancel all spawned work and wait for its end."""
        await _end(list(self._tasks))

    async def _keep_running(self, name: str, body: Callable[[Pulse], Awaitable[None]]) -> None:
        def pulse() -> None:
            if name in self._loops:
                self._loops[name].pulsed_at = self._clock.monotonic()

        while True:
            try:
                await body(pulse)
                _LOG.error("loop_returned", loop=name)
            except Exception as error:  # one defect must not silence the process
                self._on_crash(error, traceback.format_exc())
            if name in self._loops:
                self._loops[name].restarts += 1
            await self._clock.sleep(RESTART_PAUSE)

    def _on_done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._on_crash(error, "".join(traceback.format_exception(error)))


async def _end(tasks: list[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
