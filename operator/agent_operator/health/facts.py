"""What Postgres knows about agents, read for all of them at once: counters, the answering model, the newest error.

Nothing waits for it: while Postgres is away the last known values stay, and reconciles go on.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final
from uuid import UUID

import structlog

from agent_api.v1alpha1 import LastError
from agent_operator.keys import AgentKey
from agent_operator.status.observed import Facts
from agent_operator.status.text import scrub
from agent_store.errors import StoreError
from agent_store.ports import ErrorRecord, Heartbeat, TelemetryStore

log = structlog.get_logger(__name__)

READ_TIMEOUT: Final = 8.0
COUNT_EVERY: Final = 6
"""Sessions are counted with every sixth reading only: status shows them once a minute at most."""

_NOTHING: Final = Facts()


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
        self._counts: dict[UUID, int] = {}
        self._readings = 0
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
                errors = await self._store.last_errors()
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
        self._take(combine(heartbeats, errors, self._counts))

    def _take(self, facts: dict[UUID, Facts]) -> None:
        """Wake the agents of which status has something new to say: of counters, once in `counters_interval`."""
        self._facts = facts
        now = asyncio.get_running_loop().time()
        agents = {UUID(uid): key for key, uid in self._agents().items()}
        told = {agent_id: one for agent_id, one in self._told.items() if agent_id in agents}
        for agent_id, key in agents.items():
            fresh = facts.get(agent_id, _NOTHING)
            before, at = told.get(agent_id, (_NOTHING, float("-inf")))
            if fresh != before and (now - at >= self._counters_interval or _error_type(fresh) != _error_type(before)):
                told[agent_id] = (fresh, now)
                self._wake(key)
        self._told = told


def _error_type(facts: Facts) -> str:
    return facts.last_error.type if facts.last_error is not None else ""


def combine(
    heartbeats: Iterable[Heartbeat], errors: Mapping[UUID, ErrorRecord], counts: Mapping[UUID, int]
) -> dict[UUID, Facts]:
    """Return the facts of each agent that has any."""
    beats: dict[UUID, list[Heartbeat]] = {}
    for beat in sorted(heartbeats, key=lambda beat: beat.at):
        beats.setdefault(beat.agent_id, []).append(beat)
    return {
        agent_id: Facts(
            sessions_by_pod={beat.pod: _number(beat.details, "sessions", "active") for beat in beats.get(agent_id, ())},
            sessions_total=counts.get(agent_id, 0),
            answering=_newest_model(beats.get(agent_id, [])),
            last_error=_to_last_error(errors.get(agent_id)),
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
