"""The whole status of an Agent, and whether it is worth a write."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from pydantic import ValidationError

from agent_api.v1alpha1 import (
    AgentStatus,
    Health,
    HealthCheck,
    ModelStatus,
    RevisionStatus,
    SessionCounts,
    ToolStatus,
    Usage,
)
from agent_api.wire import HealthOut, ModelCheck
from agent_operator.resources.inputs import selector_labels
from agent_operator.resources.service import build_endpoint
from agent_operator.status.budgets import view_budgets
from agent_operator.status.causes import is_serving
from agent_operator.status.conditions import build_conditions
from agent_operator.status.models import find_checks
from agent_operator.status.observed import Observation
from agent_operator.status.pods import PodView
from agent_operator.status.text import scrub
from agent_operator.status.tools import view_tools

CHECKS_LIMIT: Final = 32
MODEL_CHECK: Final = "model/"
"""Before the name of a model in `health.checks`."""


@dataclass(frozen=True, slots=True)
class Decision:
    """The status to write (None: what is there is right), and in how many seconds a held-back one is due."""

    status: AgentStatus | None
    due_in: float | None = None


def parse_status(raw: dict[str, Any] | None) -> AgentStatus:
    """Return a live status; one that somebody else broke reads as empty and is written anew."""
    try:
        return AgentStatus.model_validate(raw or {})
    except ValidationError:
        return AgentStatus()


def dump_status(status: AgentStatus) -> dict[str, Any]:
    """Return the status as the API server keeps it."""
    return status.model_dump(mode="json", by_alias=True, exclude_none=True)


def build_status(observation: Observation, previous: AgentStatus) -> AgentStatus:
    """Return everything status says; what is not known (any more) keeps its last value."""
    serving = [pod for pod in observation.pods if is_serving(pod, observation.now)]
    facts = observation.facts
    current = observation.revision or previous.revision.current
    ready = current if any(pod.revision == current for pod in serving) else previous.revision.ready
    return AgentStatus(
        observed_generation=observation.generation,
        conditions=build_conditions(observation, previous),
        desired_replicas=observation.desired,
        # A rollout has one pod more for a moment, a suspended agent one that still ends: neither is worth a write.
        ready_replicas=min(len(serving), observation.desired),
        selector=",".join(f"{key}={value}" for key, value in selector_labels(observation.name).items()),
        endpoint=build_endpoint(observation.name, observation.namespace),
        runtime_version=_runtime_version(observation, serving) or previous.runtime_version,
        revision=RevisionStatus(current=current, ready=ready),
        model=ModelStatus(
            configured=observation.configured_model or previous.model.configured,
            answering=previous.model.answering if facts.answering is None else facts.answering,
        ),
        sessions=SessionCounts(
            active=_sessions_active(observation, previous),
            total=previous.sessions.total if facts.sessions_total is None else facts.sessions_total,
        ),
        health=_health(observation, previous),
        tools=_tools(observation, previous),
        last_error=facts.last_error or previous.last_error,
        usage=_usage(observation, previous),
        observed_at=previous.observed_at,
    )


def _sessions_active(observation: Observation, previous: AgentStatus) -> int:
    """Return the sessions in the memory of living pods."""
    alive = [pod.name for pod in observation.pods if not pod.finished]
    if not alive:
        return 0
    known = observation.facts.sessions_by_pod
    return previous.sessions.active if known is None else sum(known.get(name, 0) for name in alive)


def _runtime_version(observation: Observation, serving: list[PodView]) -> str:
    """Return the version that serves, the wanted revision's first."""
    for pod in sorted(serving, key=lambda pod: pod.revision != observation.revision):
        probe = observation.probes.get(pod.uid)
        if isinstance(probe, HealthOut):
            return probe.version
    return ""


def _health(observation: Observation, previous: AgentStatus) -> Health:
    """Return the checks of a pod that is not well, else of one that is, its models included; else the last known."""
    pods = sorted((pod for pod in observation.pods if not pod.deleting), key=lambda pod: (pod.ready, pod.name))
    answers = (observation.probes.get(pod.uid) for pod in pods)
    answer = next((probe for probe in answers if isinstance(probe, HealthOut)), None)
    told = [found for pod in pods if (found := find_checks(observation, pod))]
    models = min(told, key=lambda checks: all(check.ok is not False for check in checks), default=())
    known = [check for check in previous.health.checks if check.name.startswith(MODEL_CHECK)]
    own = [check for check in previous.health.checks if not check.name.startswith(MODEL_CHECK)]
    if answer is not None:
        own = [
            HealthCheck(name=scrub(check.name, limit=60), ok=check.ok, message="" if check.ok else scrub(check.message))
            for check in answer.checks
        ]
    if models:
        known = [_model_check(check) for check in models if check.ok is not None]
    return Health(checks=list({check.name: check for check in (*own, *known)}.values())[:CHECKS_LIMIT])


def _usage(observation: Observation, previous: AgentStatus) -> Usage:
    """Return where the budgets stand; what no pod says is last known, until the next day begins."""
    before = {
        (budget.scope, budget.limit): budget
        for budget in previous.usage.budgets
        if budget.resets_at is not None and budget.resets_at > observation.now
    }
    found = view_budgets(observation).budgets
    return Usage(
        budgets=[
            budget if budget.resets_at is not None else before.get((budget.scope, budget.limit), budget)
            for budget in found
        ]
    )


def _tools(observation: Observation, previous: AgentStatus) -> list[ToolStatus]:
    """Return what became of spec.tools; of entries that no pod knows now, the last known."""
    if not observation.tools:
        return [] if observation.configured_model else previous.tools
    before = {tool.name: tool for tool in previous.tools}
    views = view_tools(observation).tools
    found = (view.status if view.ok is not None else before.get(view.status.name) for view in views)
    return [tool for tool in found if tool is not None]


def _model_check(check: ModelCheck) -> HealthCheck:
    message = "" if check.ok else f"{check.model} {check.message or check.reason}"
    return HealthCheck(name=f"{MODEL_CHECK}{scrub(check.name, limit=60)}", ok=bool(check.ok), message=scrub(message))


def decide(fresh: AgentStatus, previous: AgentStatus, now: datetime, *, counters_interval: float) -> Decision:
    """Return what to write: conditions and facts at once, counters at most every `counters_interval` seconds.

    `observedAt` moves only together with counters or checks: alone it is no reason to write.
    """
    fresh = fresh.model_copy(update={"observed_at": previous.observed_at})
    if fresh == previous:
        return Decision(None)
    counters_changed = _counters(fresh) != _counters(previous)
    if _without_counters(fresh) == _without_counters(previous) and previous.observed_at is not None:
        wait = previous.observed_at + timedelta(seconds=counters_interval) - now
        if wait > timedelta(0):
            return Decision(None, due_in=wait.total_seconds())
    if counters_changed or fresh.health != previous.health:
        fresh = fresh.model_copy(update={"observed_at": now.replace(microsecond=0)})
    return Decision(fresh)


def _counters(status: AgentStatus) -> tuple[object, ...]:
    return (status.sessions, status.model.answering, status.last_error, status.usage)


def _without_counters(status: AgentStatus) -> AgentStatus:
    """Return the part of status whose changes are written at once; of the newest error that is its type."""
    return status.model_copy(
        update={
            "sessions": SessionCounts(),
            "model": ModelStatus(configured=status.model.configured),
            "last_error": status.last_error.type if status.last_error else None,
            "usage": tuple((budget.scope, budget.limit, budget.warning) for budget in status.usage.budgets),
        }
    )
