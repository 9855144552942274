"""Kubernetes Events about agents: one per reason and agent in five minutes, written in the background, best effort."""

import asyncio
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import structlog

from agent_api import labels
from agent_api.conditions import ConditionType, Reason
from agent_api.v1alpha1 import AgentStatus, Condition
from agent_operator.errors import OperatorError
from agent_operator.kube.port import EVENT, Cluster, Object

log = structlog.get_logger(__name__)

WINDOW_SECONDS: Final = 300.0
QUEUE_LIMIT: Final = 1000
REMEMBERED_LIMIT: Final = 20_000
NOTE_LIMIT: Final = 1024
BUDGET_WARNING: Final = "BudgetWarning"
_CONTROLLER: Final = "abide.dev/operator"

_NORMAL: Final = frozenset(
    (
        Reason.SERVING,
        Reason.SERVING_ON_FALLBACK,
        Reason.VALID,
        Reason.ROLLING_OUT,
        Reason.SUSPENDED,
        Reason.SCALED_TO_ZERO,
        Reason.STARTING,
    )
)
_TOLD: Final = (ConditionType.READY, ConditionType.PROGRESSING, ConditionType.DEGRADED)
_SILENT: Final = frozenset((Reason.UP_TO_DATE, Reason.ALL_WELL, Reason.NOT_SERVING, Reason.UNKNOWN))


@dataclass(frozen=True, slots=True)
class Happening:
    """One thing worth an Event."""

    reason: str
    message: str
    normal: bool


def find_happenings(before: AgentStatus, after: AgentStatus) -> Iterator[Happening]:
    """Yield what changed in a way people want to see in `kubectl describe`, each reason once."""
    known = {condition.type: condition for condition in before.conditions}
    told: set[str] = set()
    for condition in after.conditions:
        if condition.type in _TOLD and _is_news(condition, known.get(condition.type)) and condition.reason not in told:
            told.add(condition.reason)
            yield Happening(condition.reason, condition.message, condition.reason in _NORMAL)
    yield from _find_budget_warnings(before, after)


def _find_budget_warnings(before: AgentStatus, after: AgentStatus) -> Iterator[Happening]:
    """Yield that most of the agent's budget of the day is used, once a day; of its users metrics tell."""
    warned = {(budget.scope, budget.resets_at) for budget in before.usage.budgets if budget.warning}
    for budget in after.usage.budgets:
        if budget.scope == "Agent" and budget.warning and (budget.scope, budget.resets_at) not in warned:
            message = (
                f"{budget.used_percent} % of the agent's budget of the day ({budget.limit}) is used. Once all of it "
                "is, new messages are answered with messages.budget until the next day. Raise spec.budget.perDay if "
                "that is not meant."
            )
            yield Happening(BUDGET_WARNING, message, normal=False)


def _is_news(condition: Condition, before: Condition | None) -> bool:
    if condition.reason in _SILENT:
        return False
    return before is None or (before.status, before.reason) != (condition.status, condition.reason)


def build_event(agent: Object, happening: Happening, now: datetime, instance: str) -> dict[str, Any]:
    """Build the Event (events.k8s.io/v1); its time has microseconds, as the API asks."""
    metadata = agent["metadata"]
    note = happening.message if len(happening.message) <= NOTE_LIMIT else happening.message[: NOTE_LIMIT - 1] + "…"
    return {
        "apiVersion": EVENT.api_version,
        "kind": EVENT.name,
        "metadata": {"name": f"{metadata['name']}.{uuid.uuid4().hex[:16]}", "namespace": metadata["namespace"]},
        "eventTime": now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "reportingController": _CONTROLLER,
        "reportingInstance": instance[:128],
        "regarding": {
            "apiVersion": labels.API_VERSION,
            "kind": labels.KIND,
            "name": metadata["name"],
            "namespace": metadata["namespace"],
            "uid": metadata["uid"],
        },
        "action": "Reconcile",
        "reason": happening.reason,
        "note": note,
        "type": "Normal" if happening.normal else "Warning",
    }


class EventRecorder:
    """Takes note of changed status without blocking; `run` writes the Events."""

    def __init__(
        self,
        cluster: Cluster,
        instance: str,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        on_drop: Callable[[], None] = lambda: None,
    ) -> None:
        self._cluster = cluster
        self._instance = instance
        self._now = now
        self._on_drop = on_drop
        self._queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue(QUEUE_LIMIT)
        self._recent: OrderedDict[tuple[str, str], datetime] = OrderedDict()

    def __call__(self, agent: Object, before: AgentStatus, after: AgentStatus) -> None:
        """Note what is new, unless the same reason was noted for this agent in the last five minutes."""
        now = self._now()
        for happening in find_happenings(before, after):
            if self._is_due((agent["metadata"]["uid"], happening.reason), now):
                try:
                    self._queue.put_nowait(build_event(agent, happening, now, self._instance))
                except asyncio.QueueFull:
                    self._on_drop()

    def tell(self, agent: Object, reason: str, message: str, *, normal: bool) -> None:
        """Note something that status does not say, under the same limit."""
        now = self._now()
        if self._is_due((agent["metadata"]["uid"], reason), now):
            try:
                self._queue.put_nowait(build_event(agent, Happening(reason, message, normal), now, self._instance))
            except asyncio.QueueFull:
                self._on_drop()

    def _is_due(self, key: tuple[str, str], now: datetime) -> bool:
        while self._recent:
            oldest, at = next(iter(self._recent.items()))
            if (now - at).total_seconds() < WINDOW_SECONDS and len(self._recent) < REMEMBERED_LIMIT:
                break
            del self._recent[oldest]
        if key in self._recent:
            return False
        self._recent[key] = now
        return True

    async def run(self) -> None:
        """Write Events until cancelled; one that cannot be written is dropped: status says the same."""
        while True:
            body = await self._queue.get()
            try:
                await self._cluster.create(EVENT, body)
            except OperatorError as exc:
                self._on_drop()
                log.debug("an Event could not be written", reason=body["reason"], error=str(exc))
