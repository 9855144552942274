"""What one agent has beside models and tools: memories and own code, built, started and ended together."""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

import abide
from agent_api.v1alpha1 import Agent
from agent_api.wire import CheckResult
from agent_runtime.clock import Clock
from agent_runtime.hooks.code import OwnCode, RuntimeServices
from agent_runtime.hooks.toolset import OwnToolset
from agent_runtime.hooks.turns import AgentHooks, build_hooks
from agent_runtime.memory.embedding import HttpEmbedder
from agent_runtime.memory.memories import AgentMemories, OnError
from agent_runtime.settings import RuntimeSettings
from agent_runtime.supervisor import Supervisor
from agent_runtime.telemetry.agent import AgentTelemetry
from agent_runtime.telemetry.recorder import Recorder
from agent_runtime.tools.toolset import Toolset
from agent_store.ports import MemoryStore


@dataclass(frozen=True, slots=True)
class Extras:
    """The extras of one agent; each is None where it has none."""

    name: str
    memories: AgentMemories | None = None
    code: OwnCode | None = None
    toolset: OwnToolset | None = None
    hooks: AgentHooks | None = None

    @property
    def toolsets(self) -> Sequence[Toolset]:
        """Sources of tools beside spec.tools."""
        return () if self.toolset is None else (self.toolset,)

    def start(self, supervisor: Supervisor) -> None:
        """Start what goes on in the background."""
        if self.memories is not None:
            supervisor.start_loop(f"memories:{self.name}", self.memories.tend_for_ever)
        if self.code is not None and self.toolset is not None:
            supervisor.spawn(self.code.begin(self.toolset.load), name=f"own-code:{self.name}")

    def checks(self) -> Sequence[CheckResult]:
        """Return what readiness depends on."""
        return () if self.code is None else (self.code.check(),)

    async def end(self) -> None:
        """End own code, after the last turn; bounded in time."""
        if self.code is not None:
            await self.code.end()

    async def aclose(self) -> None:
        """Close connections."""
        if self.memories is not None:
            await self.memories.aclose()


def build_extras(
    agent: Agent,
    agent_id: UUID,
    settings: RuntimeSettings,
    store: MemoryStore,
    clock: Clock,
    telemetry: AgentTelemetry,
    recorder: Recorder,
    kind: type[abide.Agent] | None,
) -> Extras:
    """Build the extras of one agent; `kind` is the class of own code."""

    def on_error(error_type: str, message: str, trace: str = "") -> None:
        telemetry.error(error_type, message, trace=trace)

    memories = _memories(agent, agent_id, settings, store, clock, on_error) if agent.spec.memories.enabled else None
    code: OwnCode | None = None
    toolset: OwnToolset | None = None
    if kind is not None:
        services = RuntimeServices(
            agent,
            memories,
            on_metric=lambda metric_type, value: recorder.sample(agent_id, metric_type, value),
            on_error=on_error,
        )
        code = OwnCode(kind, services, clock, on_error)
        toolset = OwnToolset(code, clock, on_error)
    name = f"{agent.metadata.namespace}/{agent.metadata.name}"
    return Extras(name, memories, code, toolset, build_hooks(memories, code))


def _memories(
    agent: Agent, agent_id: UUID, settings: RuntimeSettings, store: MemoryStore, clock: Clock, on_error: OnError
) -> AgentMemories:
    spec = agent.spec.memories
    embedder = HttpEmbedder(spec.embedding, settings.secrets_dir) if spec.embedding is not None else None
    return AgentMemories(agent_id, spec, store, clock, embedder=embedder, on_error=on_error)
