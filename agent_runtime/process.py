"""One running runtime: its parts built from settings, started together and stopped in stages.

Used by `serve` (a process of its own, or inside `abide dev`) and by the app's lifespan. Stages of the stop, each
logged: refuse new work → let turns finish → cancel the rest → save, release leases, write telemetry → close.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Final
from uuid import UUID

from agent_api.v1alpha1 import Agent
from agent_api.version import VERSION
from agent_runtime.access.gate import Gate, build_access
from agent_runtime.auth import KeyRing
from agent_runtime.beat import Beater
from agent_runtime.clock import Clock, SystemClock
from agent_runtime.context import RuntimeContext, Turnstile
from agent_runtime.hooks.code import load_class
from agent_runtime.hooks.extras import Extras, build_extras
from agent_runtime.llm.catalog import ModelPool
from agent_runtime.llm.port import ModelError
from agent_runtime.loop.engine import AgentEngine, Collaborators
from agent_runtime.loop.keeper import wait_event
from agent_runtime.settings import AuthMode, RuntimeSettings
from agent_runtime.supervisor import Pulse, Supervisor
from agent_runtime.telemetry.agent import AgentName, AgentTelemetry
from agent_runtime.telemetry.logs import get_logger
from agent_runtime.telemetry.metrics import RuntimeMetrics
from agent_runtime.telemetry.recorder import Recorder
from agent_runtime.telemetry.scrub import Scrubber, url_secrets
from agent_runtime.tools.catalog import AgentTools, build_tools
from agent_store.ports import Instrumented, Store

_LOG = get_logger("process")
SAVE_TIMEOUT: Final = 5.0
FLUSH_TIMEOUT: Final = 2.0
CLOSE_TIMEOUT: Final = 2.0
LAG_TICK: Final = 0.5


class Runtime:
    """All parts of one process. `start` and `stop` are called once each, in one event loop."""

    def __init__(self, context: RuntimeContext, beater: Beater) -> None:
        self.context = context
        self._beater = beater
        self._hurry = asyncio.Event()

    def start(self) -> None:
        """Start all loops; returns at once, readiness follows when Postgres answers."""
        for engine in self.context.engines.values():
            engine.start()
        for extras in self.context.extras.values():
            extras.start(self.context.supervisor)
        self.context.supervisor.start_loop("heartbeat", self._beater.beat_for_ever)
        self.context.supervisor.start_loop("telemetry", self._beater.flush_for_ever)
        self.context.supervisor.start_loop("lag", self._measure_lag)
        for number, access in enumerate(self.context.models.accesses):
            self.context.supervisor.start_loop(f"models-{number}", access.watch)
        if self.context.models.accesses:
            self.context.supervisor.spawn(self._begin_models(), name="begin-models")
        if any(tools.toolsets for tools in self.context.tools.values()):
            self.context.supervisor.spawn(self._begin_tools(), name="begin-tools")

    async def _begin_models(self) -> None:
        """Check models and load their libraries as soon as the process is ready, which must not wait for either."""
        await self.wait_ready()
        try:
            await self.context.models.begin()
        except ModelError as error:
            _LOG.error("library_missing", message=error.message)

    async def _begin_tools(self) -> None:
        """Look for tools once the process is ready; a turn that comes earlier waits shortly for what is found."""
        await self.wait_ready()
        for (namespace, name), tools in self.context.tools.items():
            for toolset in tools.toolsets:
                self.context.supervisor.start_loop(f"tool:{namespace}/{name}/{toolset.name}", toolset.watch)

    async def _measure_lag(self, pulse: Pulse) -> None:
        clock, lag = self.context.clock, self.context.metrics.lag
        while True:
            pulse()
            due = clock.monotonic() + LAG_TICK
            await clock.sleep(LAG_TICK)
            lag.observe(max(0.0, clock.monotonic() - due))

    async def wait_ready(self) -> None:
        """Return once the process is ready."""
        # Readiness has many causes and no event of its own; this asks only until it is first true.
        while not self.context.readiness().ok:  # noqa: ASYNC110
            await asyncio.sleep(0.01)

    def hurry(self) -> None:
        """Cut the drain short: what still runs is left to other processes."""
        self._hurry.set()

    async def drain(self, timeout: float) -> bool:
        """Refuse new messages, and let running turns finish for `timeout` seconds; True if all did."""
        engines = list(self.context.engines.values())
        for engine in engines:
            engine.stop_intake()
        _LOG.info("draining", running=sum(engine.statistics().running for engine in engines), seconds=timeout)

        async def wait_idle() -> None:
            await asyncio.gather(*(engine.wait_idle() for engine in engines))

        idle = asyncio.create_task(wait_idle(), name="wait-idle")
        hurry = asyncio.create_task(wait_event(self._hurry, timeout), name="wait-hurry")
        await asyncio.wait([idle, hurry], return_when=asyncio.FIRST_COMPLETED)
        finished = idle.done()
        for task in (idle, hurry):
            task.cancel()
        await asyncio.gather(idle, hurry, return_exceptions=True)
        _LOG.info("drained", finished=finished)
        return finished

    async def stop(self) -> None:
        """Save, release and close everything; after `drain`. Bounded in time also while Postgres is away."""
        engines = list(self.context.engines.values())
        for engine in engines:
            engine.hub.close()
        await asyncio.gather(*(engine.stop(save_timeout=SAVE_TIMEOUT) for engine in engines))
        await asyncio.gather(*(extras.end() for extras in self.context.extras.values()))
        await self.context.supervisor.stop_loops()
        with suppress(TimeoutError):
            async with asyncio.timeout(FLUSH_TIMEOUT):
                await self._beater.flush()
        await self.context.supervisor.stop_tasks()
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await self.context.gate.aclose()
                await self.context.models.aclose()
                for extras in self.context.extras.values():
                    await extras.aclose()
                for tools in self.context.tools.values():
                    await tools.aclose()
                await self.context.store.aclose()
        _LOG.info("stopped")


def build_scrubber(settings: RuntimeSettings, clock: Clock) -> Scrubber:
    """Return the scrubber that knows every secret of this process."""
    folders = [settings.api_keys_dir, settings.secrets_dir, settings.kubernetes_dir]
    if settings.encryption_keys_dir is not None:
        folders.append(settings.encryption_keys_dir)
    return Scrubber(clock, folders, values=url_secrets(settings.postgres_url))


def build_runtime(
    settings: RuntimeSettings, store: Store, *, clock: Clock | None = None, scrubber: Scrubber | None = None
) -> Runtime:
    """Build all parts; within a running event loop. Raises SettingsError when the manifest cannot be used."""
    agents = settings.load_agents()
    clock = clock or SystemClock()
    scrubber = scrubber or build_scrubber(settings, clock)
    recorder = Recorder(store, scrubber, clock)
    metrics = RuntimeMetrics(VERSION, _only(agents))
    if isinstance(store, Instrumented):
        store.observe(metrics.on_store_call)
    telemetries = {settings.id_of(agent): _telemetry(agent, settings, metrics, recorder, clock) for agent in agents}
    first = telemetries[settings.id_of(agents[0])]
    supervisor = Supervisor(clock, first.broke)
    models_changed = asyncio.Event()
    pool = ModelPool(settings.secrets_dir, clock, models_changed.set)
    extras = _extras(agents, settings, store, clock, telemetries, recorder)
    tools = {
        (agent.metadata.namespace, agent.metadata.name): build_tools(
            agent.spec.tools,
            settings.secrets_dir,
            clock,
            telemetries[settings.id_of(agent)],
            models_changed.set,
            memory=extras[agent.metadata.namespace, agent.metadata.name].memories,
            extra=extras[agent.metadata.namespace, agent.metadata.name].toolsets,
        )
        for agent in agents
    }
    engines = {
        (agent.metadata.namespace, agent.metadata.name): _engine(
            agent,
            settings,
            store,
            clock,
            supervisor,
            telemetries[settings.id_of(agent)],
            pool,
            tools[agent.metadata.namespace, agent.metadata.name],
            extras[agent.metadata.namespace, agent.metadata.name],
            models_changed.set,
        )
        for agent in agents
    }
    context = RuntimeContext(
        settings=settings,
        version=VERSION,
        clock=clock,
        supervisor=supervisor,
        store=store,
        engines=engines,
        gate=_gate(agents, settings, clock),
        scrubber=scrubber,
        metrics=metrics,
        recorder=recorder,
        models=pool,
        tools=tools,
        extras=extras,
        models_changed=models_changed,
        waiters=Turnstile(settings.bounds.waiters),
    )
    metrics.sample(context.gauges)
    return Runtime(context, Beater(context))


def _extras(
    agents: Sequence[Agent],
    settings: RuntimeSettings,
    store: Store,
    clock: Clock,
    telemetries: Mapping[UUID, AgentTelemetry],
    recorder: Recorder,
) -> dict[tuple[str, str], Extras]:
    kind = load_class(settings.agent_class) if settings.agent_class else None
    return {
        (agent.metadata.namespace, agent.metadata.name): build_extras(
            agent, settings.id_of(agent), settings, store, clock, telemetries[settings.id_of(agent)], recorder, kind
        )
        for agent in agents
    }


def _gate(agents: Sequence[Agent], settings: RuntimeSettings, clock: Clock) -> Gate:
    ways = {
        (agent.metadata.namespace, agent.metadata.name): build_access(
            agent,
            settings.secrets_dir,
            settings.kubernetes_url,
            settings.kubernetes_dir,
            clock,
            anybody=settings.auth is AuthMode.NONE,
        )
        for agent in agents
    }
    return Gate(KeyRing(settings.api_keys_dir, clock), ways)


def _only(agents: Sequence[Agent]) -> tuple[str, str]:
    """Return name and namespace of the one agent of the process, empty if it serves several."""
    return (agents[0].metadata.name, agents[0].metadata.namespace) if len(agents) == 1 else ("", "")


def _name(agent: Agent, settings: RuntimeSettings) -> AgentName:
    return AgentName(settings.id_of(agent), agent.metadata.namespace, agent.metadata.name)


def _telemetry(
    agent: Agent, settings: RuntimeSettings, metrics: RuntimeMetrics, recorder: Recorder, clock: Clock
) -> AgentTelemetry:
    models = tuple(model.display for model in agent.spec.models)
    tools = tuple(tool.name for tool in agent.spec.tools)
    telemetry = AgentTelemetry(_name(agent, settings), metrics, recorder, clock, models, tools)
    for model in agent.spec.models:
        if model.price is not None:
            telemetry.priced(model.display, model.price.currency)
    return telemetry


def _engine(
    agent: Agent,
    settings: RuntimeSettings,
    store: Store,
    clock: Clock,
    supervisor: Supervisor,
    telemetry: AgentTelemetry,
    pool: ModelPool,
    tools: AgentTools,
    extras: Extras,
    changed: Callable[[], None],
) -> AgentEngine:
    parts = Collaborators(
        store=store,
        models=pool.agent(agent.spec.models),
        tools=tools,
        clock=clock,
        supervisor=supervisor,
        telemetry=telemetry,
        hooks=extras.hooks,
        memories=extras.memories,
        changed=changed,
    )
    return AgentEngine(
        _name(agent, settings),
        agent.spec,
        instance=settings.instance,
        revision=settings.revision,
        bounds=settings.bounds,
        parts=parts,
    )
