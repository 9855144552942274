"""What the process consists of, handed to its edges."""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from agent_api.wire import CheckResult, HealthOut, ModelCheck, ToolCheck
from agent_runtime import health
from agent_runtime.access.gate import Gate
from agent_runtime.clock import Clock
from agent_runtime.errors import NotFound, Overloaded
from agent_runtime.health import AgentHealth
from agent_runtime.hooks.extras import Extras
from agent_runtime.llm.catalog import ModelPool
from agent_runtime.loop.engine import AgentEngine
from agent_runtime.settings import RuntimeSettings
from agent_runtime.supervisor import Supervisor
from agent_runtime.telemetry.metrics import ProcessGauges, RuntimeMetrics
from agent_runtime.telemetry.recorder import Recorder
from agent_runtime.telemetry.scrub import Scrubber
from agent_runtime.tools.catalog import AgentTools
from agent_store.ports import Instrumented, Store


@dataclass(slots=True)
class Turnstile:
    """Bounds how many requests wait at once."""

    limit: int
    inside: int = 0

    @contextmanager
    def enter(self) -> Iterator[None]:
        """Count a waiting request. Raises Overloaded at the limit."""
        if self.inside >= self.limit:
            raise Overloaded(f"{self.limit} requests wait for replies already.", retry_after=1.0)
        self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1


@dataclass(frozen=True, slots=True)
class RuntimeContext:
    """The collaborators of one process."""

    settings: RuntimeSettings
    version: str
    clock: Clock
    supervisor: Supervisor
    store: Store
    engines: Mapping[tuple[str, str], AgentEngine]
    gate: Gate
    scrubber: Scrubber
    metrics: RuntimeMetrics
    recorder: Recorder
    models: ModelPool
    tools: Mapping[tuple[str, str], AgentTools]
    extras: Mapping[tuple[str, str], Extras]
    models_changed: asyncio.Event
    """Set when what is known of a model or a tool changed; whoever tells of it clears it."""
    waiters: Turnstile = field(default_factory=lambda: Turnstile(4096))

    def engine(self, namespace: str, name: str) -> AgentEngine:
        """Return the engine that serves an agent. Raises NotFound."""
        engine = self.engines.get((namespace, name))
        if engine is None:
            raise NotFound("agent")
        return engine

    def liveness(self) -> HealthOut:
        """Return what /livez says."""
        return self._health(health.liveness(self.supervisor.stuck()))

    def readiness(self) -> HealthOut:
        """Return what /readyz says."""
        models = [check for engine in self.engines.values() for check in engine.models.checks()]
        tools = [check for engine in self.engines.values() for check in engine.tools.checks()]
        budgets = [check for engine in self.engines.values() for check in engine.budget_checks()]
        return self._health(self.checks(), models, tools).model_copy(update={"budgets": budgets})

    def checks(self) -> list[CheckResult]:
        """Return the checks of readiness."""
        agents = [
            AgentHealth(engine.agent.name, engine.store_contact(), engine.lease_held, engine.draining)
            for engine in self.engines.values()
        ]
        own = [check for extras in self.extras.values() for check in extras.checks()]
        return [*health.readiness(self.supervisor.stuck(), agents), *own]

    def refresh_gauges(self) -> None:
        """Bring the gauges of all agents to what is true now; called before a scrape."""
        ready = health.is_ok(self.checks())
        for engine in self.engines.values():
            statistics = engine.statistics()
            engine.telemetry.ready(ready, lease_held=statistics.lease_held)
            engine.telemetry.running(statistics.running)
            engine.telemetry.sessions(statistics.sessions)
            engine.telemetry.models(engine.models.checks())
            engine.telemetry.models_left_alone(engine.models.left_alone())
            engine.telemetry.tools(engine.tools.checks())
            engine.telemetry.budgets(engine.budget_checks())

    def gauges(self) -> ProcessGauges:
        """Return what metrics show of the process itself."""
        pool = self.store.statistics() if isinstance(self.store, Instrumented) else None
        return ProcessGauges(
            pool_open=pool.open if pool else 0,
            pool_idle=pool.idle if pool else 0,
            pool_limit=self.settings.postgres_connections,
            waiting_requests=self.waiters.inside,
            dropped_errors=self.recorder.dropped_errors,
        )

    def _health(
        self, checks: list[CheckResult], models: Sequence[ModelCheck] = (), tools: Sequence[ToolCheck] = ()
    ) -> HealthOut:
        return HealthOut(
            ok=health.is_ok(checks),
            version=self.version,
            revision=self.settings.revision,
            checks=checks,
            models=list(models),
            tools=list(tools),
        )
