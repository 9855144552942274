"""What the process consists of, handed to its edges."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from agent_api.wire import CheckResult, HealthOut
from agent_runtime import health
from agent_runtime.auth import KeyRing
from agent_runtime.clock import Clock
from agent_runtime.errors import NotFound, Overloaded
from agent_runtime.health import AgentHealth
from agent_runtime.loop.engine import AgentEngine
from agent_runtime.settings import RuntimeSettings
from agent_runtime.supervisor import Supervisor
from agent_runtime.telemetry.metrics import RuntimeMetrics
from agent_runtime.telemetry.recorder import Recorder
from agent_runtime.telemetry.scrub import Scrubber
from agent_store.ports import Store


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
    keys: KeyRing
    scrubber: Scrubber
    metrics: RuntimeMetrics
    recorder: Recorder
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
        return self._health(self.checks())

    def checks(self) -> list[CheckResult]:
        """Return the checks of readiness."""
        agents = [
            AgentHealth(engine.agent.name, engine.store_contact(), engine.lease_held, engine.draining)
            for engine in self.engines.values()
        ]
        return health.readiness(self.supervisor.stuck(), agents)

    def _health(self, checks: list[CheckResult]) -> HealthOut:
        return HealthOut(ok=health.is_ok(checks), version=self.version, revision=self.settings.revision, checks=checks)
