"""What Postgres knows about agents, read for all of them at once: models, counters, the newest error.

Nothing waits for it: while Postgres is away the last known values stay, and reconciles go on.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final
from uuid import UUID

import structlog
from pydantic import TypeAdapter, ValidationError

from agent_api.v1alpha1 import LastError
from agent_api.wire import BudgetCheck, ModelCheck, ToolCheck
from agent_operator.keys import AgentKey
from agent_operator.status.observed import Facts
from agent_operator.status.text import scrub
from agent_store.errors import StoreError
from agent_store.ports import ErrorRecord, Heartbeat, TelemetryStore

log = structlog.get_logger(__name__)

READ_TIMEOUT: Final = 8.0
ERRORS_EVERY: Final = 5
COUNT_EVERY: Final = 30
"""With every so many readings the newest errors are read, and sessions counted: status can wait for both."""

_NOTHING: Final = Facts()
_CHECKS = TypeAdapter(tuple[ModelCheck, ...])
_TOOLS = TypeAdapter(tuple[ToolCheck, ...])
_BUDGETS = TypeAdapter(tuple[BudgetCheck, ...])


class FactsBoard:
    """Holds what was last read, and wakes the agents of which something changed."""

    def __init__(
        self,
        store: TelemetryStore,
        agents: Callable[[], Mapping[AgentKey, str]],
        wake: Callable[[AgentKey], None],
        *,
        interval: float,
        counters_interval: float,
    ) -> None:
        self._store = store
        self._agents = agents
        self._wake = wake
        self._interval = interval
        self._counters_interval = counters_interval
        self._facts: dict[UUID, Facts] = {}
        self._told: dict[UUID, tuple[Facts, float]] = {}
        self._errors: Mapping[UUID, ErrorRecord] = {}
        self._counts: Mapping[UUID, int] = {}
        self._readings = 0
        self._parser = ModelsParser()
        self._tools_parser = ToolsParser()
        self._failing = False

    def facts(self, agent_id: UUID) -> Facts:
        """Return what was last read about an agent."""
        return self._facts.get(agent_id, _NOTHING)

    @property
    def failing(self) -> bool:
        """Whether the last reading failed."""
        return self._failing

    async def run(self) -> None:
        """Read at every interval, until cancelled."""
        while True:
            await self.read()
            await asyncio.sleep(self._interval)

    async def read(self) -> None:
        """Read once. Never raises for Postgres: what was known stays."""
        try:
            async with asyncio.timeout(READ_TIMEOUT):
                heartbeats = await self._store.heartbeats()
                if self._readings % ERRORS_EVERY == 0:
                    self._errors = await self._store.last_errors()
                if self._readings % COUNT_EVERY == 0:
                    self._counts = await self._store.session_counts()
        except (StoreError, TimeoutError, OSError) as exc:
            if not self._failing:
                log.warning(
                    "heartbeats cannot be read; counters in status keep their last values", error=scrub(str(exc))
                )
            self._failing = True
            return
        if self._failing:
            log.info("heartbeats can be read again")
        self._failing = False
        self._readings += 1
        self._take(combine(heartbeats, self._errors, self._counts, self._parser, self._tools_parser))

    def _take(self, facts: dict[UUID, Facts]) -> None:
        """Wake the agents of which status has something new to say: of counters, once in `counters_interval`."""
        self._facts = facts
        now = asyncio.get_running_loop().time()
        agents = {UUID(uid): key for key, uid in self._agents().items()}
        told = {agent_id: one for agent_id, one in self._told.items() if agent_id in agents}
        for agent_id, key in agents.items():
            fresh = facts.get(agent_id, _NOTHING)
            before, at = told.get(agent_id, (_NOTHING, float("-inf")))
            counted = now - at >= self._counters_interval and _counters(fresh) != _counters(before)
            if counted or _news(fresh) != _news(before):
                told[agent_id] = (fresh, now)
                self._wake(key)
        self._told = told


def _news(facts: Facts) -> tuple[object, ...]:
    """Return what status tells at once: the kind of the newest error, and what each pod's models and tools can do."""
    error = facts.last_error.type if facts.last_error is not None else ""
    models = facts.models_by_pod or {}
    tools = facts.tools_by_pod or {}
    budgets = facts.budgets_by_pod or {}
    return (
        {pod: [(one.scope, one.ok, one.warns, one.limit) for one in checks] for pod, checks in budgets.items()},
        error,
        {pod: [(one.name, one.model, one.ok, one.reason) for one in checks] for pod, checks in models.items()},
        {pod: [(one.name, one.ok, one.message, one.tools) for one in checks] for pod, checks in tools.items()},
    )


def _counters(facts: Facts) -> tuple[object, ...]:
    return facts.sessions_by_pod, facts.sessions_total, facts.answering, facts.last_error, facts.budgets_by_pod


class ModelsParser:
    """Reads `details.models` of heartbeats; what a pod repeats word for word is not read twice."""

    def __init__(self) -> None:
        self._known: dict[tuple[UUID, str], tuple[Any, tuple[ModelCheck, ...]]] = {}

    def parse(self, beats: Iterable[Heartbeat]) -> dict[tuple[UUID, str], tuple[ModelCheck, ...]]:
        """Return the checks by agent and pod; what a runtime of another version writes reads as nothing."""
        fresh: dict[tuple[UUID, str], tuple[Any, tuple[ModelCheck, ...]]] = {}
        for beat in beats:
            raw = beat.details.get("models")
            if not raw:
                continue
            key = (beat.agent_id, beat.pod)
            known = self._known.get(key)
            fresh[key] = known if known is not None and known[0] == raw else (raw, _parse_models(raw))
        self._known = fresh
        return {key: checks for key, (_, checks) in fresh.items()}


def _parse_models(raw: Any) -> tuple[ModelCheck, ...]:
    try:
        return _CHECKS.validate_python(raw)
    except ValidationError:
        return ()


class ToolsParser:
    """Reads `details.tools` of heartbeats in the same way."""

    def __init__(self) -> None:
        self._known: dict[tuple[UUID, str], tuple[Any, tuple[ToolCheck, ...]]] = {}

    def parse(self, beats: Iterable[Heartbeat]) -> dict[tuple[UUID, str], tuple[ToolCheck, ...]]:
        """Return the checks by agent and pod; what a runtime of another version writes reads as nothing."""
        fresh: dict[tuple[UUID, str], tuple[Any, tuple[ToolCheck, ...]]] = {}
        for beat in beats:
            if raw := beat.details.get("tools"):
                known = self._known.get((beat.agent_id, beat.pod))
                same = known is not None and known[0] == raw
                fresh[beat.agent_id, beat.pod] = known if known is not None and same else (raw, _parse_tools(raw))
        self._known = fresh
        return {key: checks for key, (_, checks) in fresh.items()}


def _parse_budgets(raw: Any) -> tuple[BudgetCheck, ...]:
    try:
        return _BUDGETS.validate_python(raw)
    except ValidationError:
        return ()


def _parse_tools(raw: Any) -> tuple[ToolCheck, ...]:
    try:
        return _TOOLS.validate_python(raw)
    except ValidationError:
        return ()


def combine(
    heartbeats: Iterable[Heartbeat],
    errors: Mapping[UUID, ErrorRecord],
    counts: Mapping[UUID, int],
    parser: ModelsParser | None = None,
    tools_parser: ToolsParser | None = None,
) -> dict[UUID, Facts]:
    """Return the facts of each agent that has any."""
    beats: dict[UUID, list[Heartbeat]] = {}
    for beat in sorted(heartbeats, key=lambda beat: beat.at):
        beats.setdefault(beat.agent_id, []).append(beat)
    models = (parser or ModelsParser()).parse(beat for one in beats.values() for beat in one)
    tools = (tools_parser or ToolsParser()).parse(beat for one in beats.values() for beat in one)
    return {
        agent_id: Facts(
            sessions_by_pod={beat.pod: _number(beat.details, "sessions", "active") for beat in beats.get(agent_id, ())},
            sessions_total=counts.get(agent_id, 0),
            answering=_newest_model(beats.get(agent_id, [])),
            last_error=_to_last_error(errors.get(agent_id)),
            models_by_pod={
                beat.pod: checks for beat in beats.get(agent_id, ()) if (checks := models.get((agent_id, beat.pod)))
            },
            tools_by_pod={
                beat.pod: found for beat in beats.get(agent_id, ()) if (found := tools.get((agent_id, beat.pod)))
            },
            budgets_by_pod={
                beat.pod: budgets
                for beat in beats.get(agent_id, ())
                if (raw := beat.details.get("budgets")) and (budgets := _parse_budgets(raw))
            },
        )
        for agent_id in {*beats, *errors, *counts}
    }


def _within(details: Mapping[str, Any], section: str, name: str) -> Any:
    """Return `details[section][name]`, None where a runtime of another version writes something else."""
    part = details.get(section)
    return part.get(name) if isinstance(part, Mapping) else None


def _number(details: Mapping[str, Any], section: str, name: str) -> int:
    value = _within(details, section, name)
    return value if isinstance(value, int) and value >= 0 else 0


def _newest_model(beats: list[Heartbeat]) -> str | None:
    """Return the model that answered last, as the newest heartbeat that knows one says."""
    models = (_within(beat.details, "model", "answering") for beat in reversed(beats))
    return next((str(model) for model in models if model), None)


def _to_last_error(error: ErrorRecord | None) -> LastError | None:
    if error is None or error.occurred_at is None:
        return None
    # Whole seconds: that is what status keeps, and comparing must find it equal.
    at = error.occurred_at.replace(microsecond=0)
    return LastError(time=at, type=scrub(error.error_type, limit=200), message=scrub(error.message, limit=1000))
