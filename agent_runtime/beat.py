"""What the process writes about itself every few seconds: heartbeats, and the telemetry collected since."""

from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from typing import Any, Final

from agent_runtime.context import RuntimeContext
from agent_runtime.health import is_ok
from agent_runtime.loop.engine import AgentEngine
from agent_runtime.loop.keeper import wait_event
from agent_runtime.supervisor import Pulse
from agent_runtime.telemetry.logs import get_logger
from agent_runtime.telemetry.recorder import FLUSH_SECONDS
from agent_store.errors import StoreError, StoreUnavailable

_LOG = get_logger("beat")
BEAT_SECONDS: Final = 3.0
"""Between the 2 and 5 s after which readers count a heartbeat as late."""
LEAST_SECONDS: Final = 0.5
"""Between two heartbeats; a model's change is told at once otherwise."""
ERROR_SECONDS: Final = 1.0
"""Errors are written sooner than metrics: somebody is looking for them."""


def heartbeat_details(context: RuntimeContext, engine: AgentEngine, started_at: datetime) -> Mapping[str, Any]:
    """Return the `details` of a heartbeat row: what status shows about a pod.

    Shape: {version, revision, instance, epoch, startedAt, ready, draining, runningTurns, sessions: {active},
    model: {configured, answering}, checks: [{name, ok, reason, message}],
    models: [{name, model, ok, reason, message, since, checkedAt}],
    tools: [{name, type, ok, reason, message, since, tools}],
    budgets: [{scope, ok, warns, limit, usedPercent, resetsAt}]}.
    """
    statistics = engine.statistics()
    checks = context.checks()
    return {
        "version": context.version,
        "revision": engine.revision,
        "instance": context.settings.instance,
        "epoch": statistics.epoch,
        "startedAt": started_at.isoformat(),
        "ready": is_ok(checks),
        "draining": engine.draining,
        "runningTurns": statistics.running,
        "sessions": {"active": statistics.sessions},
        "model": {"configured": engine.spec.models[0].display, "answering": engine.telemetry.answering},
        "checks": [check.model_dump() for check in checks],
        "models": [check.model_dump(mode="json", by_alias=True) for check in engine.models.checks()],
        "budgets": [check.model_dump(mode="json", by_alias=True) for check in engine.budget_checks()],
        "tools": [check.model_dump(mode="json", by_alias=True) for check in engine.tools.checks()],
    }


class Beater:
    """Writes heartbeats and telemetry until stopped; while Postgres is away nothing is lost but heartbeats."""

    def __init__(self, context: RuntimeContext) -> None:
        self._context = context
        self._started_at = context.clock.now()
        self._broken: set[tuple[AgentEngine, str, str]] = set()

    async def beat_for_ever(self, pulse: Pulse) -> None:
        """Write the heartbeat of every agent, every BEAT_SECONDS and when what is known of a model changed."""
        while True:
            pulse()
            if any(engine.lease_held for engine in self._context.engines.values()):
                self._context.models_changed.clear()
                await self.beat_once()
                await self._context.clock.sleep(LEAST_SECONDS)
                await wait_event(self._context.models_changed, BEAT_SECONDS - LEAST_SECONDS)
            else:
                await self._context.clock.sleep(0.5)

    async def beat_once(self) -> None:
        """Write one heartbeat per agent; failures are left to the lease's loop to notice."""
        for engine in self._context.engines.values():
            self._note_broken_models(engine)
            with suppress(StoreError):
                details = heartbeat_details(self._context, engine, self._started_at)
                await self._context.store.beat(engine.agent.id, self._context.settings.pod_name, dict(details))

    def _note_broken_models(self, engine: AgentEngine) -> None:
        """Leave an error row for each model or tool that broke since the last time, which may be before any user."""
        before = {one for one in self._broken if one[0] is engine}
        now = set()
        for check in engine.models.checks():
            if check.ok is False:
                now.add((engine, check.name, check.reason))
                if (engine, check.name, check.reason) not in before:
                    engine.telemetry.model_broken(check.model, check.reason, check.message)
        for tool in engine.tools.checks():
            if tool.ok is False:
                now.add((engine, f"tool/{tool.name}", tool.reason))
                if (engine, f"tool/{tool.name}", tool.reason) not in before:
                    engine.telemetry.tool_broken(tool.name, tool.reason, tool.message)
        self._broken = (self._broken - before) | now

    async def flush_for_ever(self, pulse: Pulse) -> None:
        """Write metrics every FLUSH_SECONDS and errors within a second."""
        clock = self._context.clock
        flushed_at = clock.monotonic()
        while True:
            pulse()
            await clock.sleep(ERROR_SECONDS)
            if self._context.recorder.has_errors or clock.monotonic() - flushed_at >= FLUSH_SECONDS - ERROR_SECONDS:
                flushed_at = clock.monotonic()
                await self.flush()

    async def flush(self) -> None:
        """Write what was collected; what cannot be written now is kept."""
        try:
            await self._context.recorder.flush()
        except StoreUnavailable as error:
            _LOG.info("telemetry_kept", reason=error.reason.value)
