"""Agents as they are read from the cluster: plain JSON, so that those of another version still show.

What others know of an agent (Events, pods, the operator's Deployment) is read best effort: a user who may only see
Agents gets an answer too.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final

from agent_api.labels import LABEL_AGENT
from agent_cli.cluster.kubectl import Cluster, list_objects
from agent_cli.cluster.targets import RESOURCE, get_agent
from agent_cli.errors import CliError
from agent_cli.output import parse_instant, stamp

OPERATOR_SELECTOR: Final = "--selector=app.kubernetes.io/name=abide,app.kubernetes.io/component=operator"
UNPROCESSED_AFTER: Final = timedelta(seconds=30)
"""An operator looks at a changed Agent within a second; half a minute of silence is no delay any more."""


@dataclass(frozen=True, slots=True)
class Happening:
    """One moment of an agent's timeline."""

    at: datetime
    what: str
    message: str = ""


def list_agents(cluster: Cluster, *, all_namespaces: bool = False) -> list[dict[str, Any]]:
    """Return the Agents of the namespace, or of all, by namespace and name. Raises CliError."""
    found = list_objects(cluster, RESOURCE, all_namespaces=all_namespaces)
    return sorted(found, key=lambda agent: (namespace_of(agent), name_of(agent)))


def read_agent(cluster: Cluster, name: str) -> tuple[Cluster, dict[str, Any]]:
    """Return the Agent, and the cluster with the namespace it was found in. Raises CliError."""
    agent = get_agent(cluster, name)
    return replace(cluster, namespace=namespace_of(agent)), agent


def list_pods(cluster: Cluster, name: str) -> list[dict[str, Any]]:
    """Return the agent's pods, oldest first. Raises CliError."""
    found = list_objects(cluster, "pods", f"--selector={LABEL_AGENT}={name}")
    return sorted(found, key=lambda pod: str(pod.get("metadata", {}).get("creationTimestamp", "")))


def read_events(cluster: Cluster, name: str, *, warnings_only: bool = False) -> list[Happening]:
    """Return the agent's Events, newest first; none if they cannot be read."""
    selector = f"--field-selector=involvedObject.kind=Agent,involvedObject.name={name}"
    if warnings_only:
        selector += ",type=Warning"
    try:
        found = list_objects(cluster, "events", selector)
    except CliError:
        return []
    return sorted(parse_events(found), key=lambda event: event.at, reverse=True)


def parse_events(events: Sequence[dict[str, Any]]) -> list[Happening]:
    """Return what Events (core/v1) tell, with the newest time each of them names."""
    told = []
    for event in events:
        series = event.get("series") or {}
        times = (series.get("lastObservedTime"), event.get("lastTimestamp"), event.get("eventTime"))
        at = next((instant for time in times if time and (instant := parse_instant(time))), None)
        if at is not None:
            told.append(Happening(at, str(event.get("reason", "")), str(event.get("message", ""))))
    return told


def list_operators(cluster: Cluster) -> list[dict[str, Any]] | None:
    """Return the operators' Deployments of the cluster; None if they cannot be seen."""
    try:
        return list_objects(cluster, "deployments.apps", OPERATOR_SELECTOR, all_namespaces=True)
    except CliError:
        return None


def silence(agent: dict[str, Any], operators: Sequence[dict[str, Any]] | None, now: datetime) -> str:
    """Return why the status is old, "" if nothing says that it is.

    Two signals are honest: no operator is available, or the spec changed a while ago and is not processed. That the
    status itself has not changed for long says nothing: an idle agent's status is not written.
    """
    if operators is not None and not operators:
        return "status is old: no operator is installed in this cluster that this user can see"
    if operators and not any(is_available(operator) for operator in operators):
        since = max((stamp(_unavailable_since(operator)) for operator in operators), default="-")
        return f"status is old: the operator is silent since {since}"
    changed = spec_changed_at(agent)
    if is_behind(agent) and changed is not None and now - changed > UNPROCESSED_AFTER:
        return f"status is old: the operator is silent since the spec was changed at {stamp(changed)}"
    return ""


def is_available(deployment: dict[str, Any]) -> bool:
    """Whether a Deployment has a pod that is ready."""
    return bool((deployment.get("status") or {}).get("availableReplicas"))


def _unavailable_since(deployment: dict[str, Any]) -> datetime | None:
    conditions = (deployment.get("status") or {}).get("conditions") or []
    times = [one.get("lastTransitionTime") for one in conditions if one.get("type") == "Available"]
    return parse_instant(times[0]) if times else None


def is_behind(agent: dict[str, Any]) -> bool:
    """Whether the spec changed since the status was written."""
    return observed_generation(agent) < generation(agent)


def spec_changed_at(agent: dict[str, Any]) -> datetime | None:
    """Return when somebody last wrote the Agent itself, not its status."""
    entries = agent.get("metadata", {}).get("managedFields") or []
    written = [parse_instant(entry.get("time")) for entry in entries if not entry.get("subresource")]
    created = parse_instant(agent.get("metadata", {}).get("creationTimestamp"))
    return max((instant for instant in (*written, created) if instant), default=None)


def name_of(agent: dict[str, Any]) -> str:
    """Return the object's name."""
    return str(agent.get("metadata", {}).get("name", ""))


def namespace_of(agent: dict[str, Any]) -> str:
    """Return the object's namespace."""
    return str(agent.get("metadata", {}).get("namespace", "default"))


def generation(agent: dict[str, Any]) -> int:
    """Return the generation of the spec."""
    return int(agent.get("metadata", {}).get("generation") or 0)


def observed_generation(agent: dict[str, Any]) -> int:
    """Return the generation the status is about."""
    return int((agent.get("status") or {}).get("observedGeneration") or 0)
