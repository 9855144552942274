"""Metrics about each Agent, as its status says: at most MOST_SERIES for an Agent, whatever becomes of it.

Status is read again only when the Agent changed, so that scraping a large idle fleet costs no more than joining texts.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from agent_api.conditions import ConditionType
from agent_operator.keys import AgentKey

AgentState = tuple[AgentKey, int, bytes]
"""An Agent's key, its version, and its content as JSON."""

AGENT_LABELS: Final = ("agent", "agent_namespace")
_VALUES: Final = {"True": 1, "False": 0}
UNKNOWN: Final = "Unknown"


@dataclass(frozen=True, slots=True)
class Family:
    """One metric about Agents: all are gauges. `most` is the number of its series for one Agent."""

    name: str
    labels: tuple[str, ...]
    text: str
    most: int = 1

    @property
    def head(self) -> str:
        """The lines before its samples."""
        return f"# HELP {self.name} {self.text}\n# TYPE {self.name} gauge\n"


READY: Final = Family(
    "abide_agent_ready",
    (*AGENT_LABELS, "reason"),
    "1 if the Agent serves, 0 if not, -1 if that is not known; the reason is that of its condition Ready.",
)
CONDITION: Final = Family(
    "abide_agent_condition",
    (*AGENT_LABELS, "type", "reason"),
    "1 if the condition is True, 0 if it is False, -1 if it is Unknown; Ready is in abide_agent_ready.",
    most=len(ConditionType) - 1,
)
DESIRED: Final = Family("abide_agent_replicas_desired", AGENT_LABELS, "Pods that should run.")
READY_REPLICAS: Final = Family("abide_agent_replicas_ready", AGENT_LABELS, "Pods that serve.")
INFO: Final = Family(
    "abide_agent_info",
    (*AGENT_LABELS, "model", "revision", "version"),
    "The Agent's primary model, the revision its spec asks for, and the version of its runtime, as labels.",
)
FAMILIES: Final = (READY, CONDITION, DESIRED, READY_REPLICAS, INFO)
MOST_SERIES: Final = sum(family.most for family in FAMILIES)


class AgentStates:
    """Renders the state of all Agents in Prometheus' text format."""

    def __init__(self) -> None:
        self._agents: Callable[[], Iterable[AgentState]] = tuple
        self._known: dict[AgentKey, tuple[int, tuple[str, ...]]] = {}

    def read_from(self, agents: Callable[[], Iterable[AgentState]]) -> None:
        """Read the Agents from here at each scrape."""
        self._agents = agents

    def render(self) -> str:
        """Return all samples with their heads."""
        known = {}
        for key, version, content in self._agents():
            before = self._known.get(key)
            known[key] = before if before and before[0] == version else (version, render_agent(key, content))
        self._known = known
        parts = []
        for index, family in enumerate(FAMILIES):
            parts.append(family.head)
            parts.extend(texts[index] for _, texts in known.values())
        return "".join(parts)


def render_agent(key: AgentKey, content: bytes) -> tuple[str, ...]:
    """Return the lines of one Agent, a text for each of FAMILIES."""
    body = json.loads(content)
    status = body.get("status") or {}
    labels = {"agent": key.name, "agent_namespace": key.namespace}
    conditions = {str(one.get("type")): one for one in status.get("conditions") or ()}
    ready = conditions.pop(ConditionType.READY.value, {})
    info = {
        "model": str((status.get("model") or {}).get("configured") or ""),
        "revision": str((status.get("revision") or {}).get("current") or ""),
        "version": str(status.get("runtimeVersion") or ""),
    }
    return (
        _line(READY, {**labels, "reason": str(ready.get("reason") or UNKNOWN)}, _value(ready)),
        "".join(_condition_lines(labels, conditions)),
        _line(DESIRED, labels, int(status.get("desiredReplicas") or 0)),
        _line(READY_REPLICAS, labels, int(status.get("readyReplicas") or 0)),
        _line(INFO, {**labels, **info}, 1),
    )


def _condition_lines(labels: dict[str, str], conditions: dict[str, dict[str, Any]]) -> Iterator[str]:
    for condition in ConditionType:
        if found := conditions.get(condition.value):
            named = {**labels, "type": condition.value, "reason": str(found.get("reason") or UNKNOWN)}
            yield _line(CONDITION, named, _value(found))


def _value(condition: dict[str, Any]) -> int:
    """Return a condition as a number; an Agent without status is not known to serve."""
    return _VALUES.get(str(condition.get("status")), -1)


def _line(family: Family, labels: dict[str, str], value: int) -> str:
    inside = ",".join(f'{name}="{_escape(text)}"' for name, text in labels.items())
    return f"{family.name}{{{inside}}} {value}\n"


def _escape(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
