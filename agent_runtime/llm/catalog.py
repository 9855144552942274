"""From an Agent's `models` to the adapters that serve them, and to what is known of each."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from agent_api.v1alpha1 import ModelSpec
from agent_api.wire import ModelCheck
from agent_runtime.clock import Clock
from agent_runtime.llm.access import Access, Entry
from agent_runtime.llm.dialects import DIALECTS
from agent_runtime.llm.echo import EchoModel
from agent_runtime.llm.keys import KeyFile
from agent_runtime.llm.port import NO_PRICE, Model, ModelError
from agent_runtime.llm.provider import Library, ProviderModel, price_of
from agent_runtime.llm.scripted import ScriptedModel

AccessKey = tuple[str, str, str, str]


@dataclass(frozen=True, slots=True)
class AgentModels:
    """The models of one agent, in the order of its fallback chain."""

    specs: tuple[ModelSpec, ...]
    models: tuple[Model, ...]
    entries: tuple[Entry, ...]

    def called(self, index: int, error: ModelError | None, session: str = "", seconds: float = 0.0) -> None:
        """Note how a call of `models[index]` for a session ended, and after how many seconds."""
        self.entries[index].called(error, session, seconds)

    def left_alone(self) -> dict[str, bool]:
        """Return of each model that is not built in, by its display name, whether calls are not made now."""
        pairs = zip(self.specs, self.entries, strict=True)
        return {spec.display: entry.is_left_alone for spec, entry in pairs if entry.access is not None}

    def checks(self) -> list[ModelCheck]:
        """Return what is known of each."""
        return [
            entry.standing.to_check(spec.effective_name, spec.display)
            for spec, entry in zip(self.specs, self.entries, strict=True)
        ]


class ModelPool:
    """All models of the process. Agents that name the same provider, address and key share what is known of it."""

    def __init__(self, secrets: Path, clock: Clock, on_change: Callable[[], None]) -> None:
        self._secrets = secrets
        self._clock = clock
        self._on_change = on_change
        self._accesses: dict[AccessKey, Access] = {}
        self._library = Library()

    def agent(self, specs: Sequence[ModelSpec]) -> AgentModels:
        """Return the models of one agent."""
        entries = tuple(self._entry(spec) for spec in specs)
        models = tuple(self._model(spec, entry) for spec, entry in zip(specs, entries, strict=True))
        return AgentModels(tuple(specs), models, entries)

    @property
    def accesses(self) -> Sequence[Access]:
        """The ways to providers, each with a loop `watch` for the supervisor to run."""
        return tuple(self._accesses.values())

    async def begin(self) -> None:
        """Check all models now, and load what the first call would wait for. Raises ModelError when that cannot be."""
        for access in self._accesses.values():
            access.check_soon(at_once=True)
        for dialect in {access.dialect.chat: access.dialect for access in self._accesses.values()}.values():
            await self._library.load(dialect)

    async def aclose(self) -> None:
        """Close all connections."""
        for access in self._accesses.values():
            await access.aclose()

    def _entry(self, spec: ModelSpec) -> Entry:
        if spec.is_built_in:
            return Entry(spec.model or spec.provider, self._clock, self._on_change)
        return self._access(spec).entry(spec.model or "")

    def _access(self, spec: ModelSpec) -> Access:
        ref = spec.api_key_secret_ref
        url = DIALECTS[spec.provider].address(spec.base_url)
        key = (spec.provider, url, ref.name if ref else "", ref.key if ref else "")
        if key not in self._accesses:
            file = KeyFile(self._secrets, ref) if ref else None
            self._accesses[key] = Access(spec.provider, url, file, self._clock, self._on_change)
        return self._accesses[key]

    def _model(self, spec: ModelSpec, entry: Entry) -> Model:
        timeout, idle = float(spec.timeout_seconds), float(spec.stream_idle_seconds)
        match spec.provider:
            case "echo":
                return EchoModel(
                    spec.display,
                    timeout,
                    self._clock,
                    delay=spec.parameters.delay_seconds,
                    stream_idle=idle,
                    price=price_of(spec) or NO_PRICE,
                )
            case "scripted":
                replies = tuple(spec.parameters.replies)
                return ScriptedModel(
                    spec.display,
                    timeout,
                    self._clock,
                    replies,
                    delay=spec.parameters.delay_seconds,
                    stream_idle=idle,
                    price=price_of(spec) or NO_PRICE,
                )
        return ProviderModel(spec, entry, self._library)
