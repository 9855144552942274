"""`abide status`: how agents are. One agent in at most 15 lines with the next command; a table of many."""

import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from agent_cli.cluster.agents import (
    Happening,
    is_behind,
    list_agents,
    list_operators,
    name_of,
    namespace_of,
    observed_generation,
    read_agent,
    read_events,
    silence,
)
from agent_cli.cluster.kubectl import Cluster
from agent_cli.cluster.targets import agent_label, find_condition
from agent_cli.operate.advice import next_command
from agent_cli.output import Cell, OutputFormat, age, emit, note, one_line, parse_instant, print_table, stamp

WIDTH_WITHOUT_TERMINAL: Final = 400
LINES_MAX: Final = 15
MESSAGE_LINES: Final = 4
ABNORMAL_MAX: Final = 3
TIMELINE_MAX: Final = 4
TIMELINE_READ: Final = 20
LABEL_WIDTH: Final = 16
HEALTHY: Final = frozenset(
    {
        ("Accepted", "True", "Valid"),
        ("Progressing", "False", "UpToDate"),
        ("Degraded", "False", "AllWell"),
        ("StateStoreReady", "True", "Connected"),
        ("ModelReachable", "True", "Reachable"),
        ("ChannelsReady", "True", "Connected"),
        ("ToolsReady", "True", "Connected"),
        ("Suspended", "False", "NotSuspended"),
    }
)
"""Conditions as they should be. A reason decides too: Progressing is also False when a rollout failed."""
SAYS_NOTHING: Final = ("Degraded", "False", "NotServing")
"""Degraded is about agents that serve; of one that does not, Ready tells everything."""


def run_status(cluster: Cluster, name: str, output: OutputFormat) -> None:
    """Print how one agent is. Raises CliError when it cannot be read."""
    cluster, agent = read_agent(cluster, name)
    old = silence(agent, list_operators(cluster), datetime.now(UTC))
    moments = timeline(agent, read_events(cluster, name))
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else WIDTH_WITHOUT_TERMINAL
    lines = render_status(agent, width=width, old=old, moments=moments)
    emit(output, describe(agent, old=old, moments=moments), lambda: print("\n".join(lines)))


def run_fleet(cluster: Cluster, output: OutputFormat, *, all_namespaces: bool) -> None:
    """Print how all agents are. Raises CliError."""
    agents = list_agents(cluster, all_namespaces=all_namespaces)
    now = datetime.now(UTC)
    operators = list_operators(cluster)
    old = {agent_label(agent): silence(agent, operators, now) for agent in agents}

    def table() -> None:
        if not agents:
            here = f"in namespace {cluster.namespace}" if cluster.namespace else "in kubectl's current namespace"
            note(
                "there are no agents in this cluster" if all_namespaces else f"there are no agents {here}; -A lists all"
            )
            return
        columns = ["NAME", "READY", "REASON", "MODEL", "UP", "SESSIONS", "AGE"]
        rows = [fleet_row(agent, now) for agent in agents]
        if all_namespaces:
            columns.insert(0, "NAMESPACE")
            rows = [[namespace_of(agent), *row] for agent, row in zip(agents, rows, strict=True)]
        print_table(columns, rows)
        for told in sorted({text for text in old.values() if text}):
            note(told)

    emit(output, {"items": [describe(agent, old=old[agent_label(agent)]) for agent in agents]}, table)


def fleet_row(agent: dict[str, Any], now: datetime) -> list[str | Cell]:
    """Return an agent's line of the table."""
    status, ready = agent.get("status") or {}, find_condition(agent, "Ready")
    value, reason = str(ready.get("status", "Unknown")), str(ready.get("reason", "no status"))
    degraded = find_condition(agent, "Degraded")
    if value == "True" and degraded.get("status") == "True" and degraded.get("reason") != reason:
        reason = f"{reason}, {degraded.get('reason', '')}"
    style = {"True": "green", "False": "red"}.get(value, "yellow")
    return [
        name_of(agent),
        Cell(value, style),
        reason,
        str((status.get("model") or {}).get("configured") or "-"),
        f"{status.get('readyReplicas', 0)}/{status.get('desiredReplicas', 0)}",
        str((status.get("sessions") or {}).get("total", 0)),
        age(parse_instant(agent.get("metadata", {}).get("creationTimestamp")), now),
    ]


def describe(agent: dict[str, Any], *, old: str = "", moments: Sequence[Happening] | None = None) -> dict[str, Any]:
    """Return what the command knows of an agent, in the shape docs/cli.md describes."""
    status, ready = agent.get("status") or {}, find_condition(agent, "Ready")
    spec = agent.get("spec") or {}
    return {
        "namespace": namespace_of(agent),
        "name": name_of(agent),
        "ready": ready.get("status", "Unknown"),
        "reason": ready.get("reason", ""),
        "message": ready.get("message", ""),
        "since": ready.get("lastTransitionTime"),
        "old": old or None,
        "conditions": [
            {key: one.get(key) for key in ("type", "status", "reason", "message", "lastTransitionTime")}
            for one in status.get("conditions") or []
        ],
        "model": {key: (status.get("model") or {}).get(key) or None for key in ("configured", "answering")},
        "replicas": {"desired": status.get("desiredReplicas", 0), "ready": status.get("readyReplicas", 0)},
        "suspend": bool(spec.get("suspend", False)),
        "revision": {key: (status.get("revision") or {}).get(key) or None for key in ("current", "ready")},
        "sessions": {key: (status.get("sessions") or {}).get(key, 0) for key in ("active", "total")},
        "endpoint": status.get("endpoint") or None,
        "runtimeVersion": status.get("runtimeVersion") or None,
        "lastError": status.get("lastError"),
        "observedAt": status.get("observedAt"),
        "next": next_command(agent),
    } | (
        {}
        if moments is None
        else {"timeline": [{"time": stamp(one.at), "what": one.what, "message": one.message} for one in moments]}
    )


def timeline(agent: dict[str, Any], events: Sequence[Happening]) -> list[Happening]:
    """Return what happened last, newest first: changes of conditions and Events that say something else."""
    told = {event.what: event.at for event in sorted(events, key=lambda event: event.at)}
    changes = [
        # A condition keeps its time when only its reason changes; the Event tells when that was.
        Happening(
            max(at, told.get(str(condition.get("reason")), at)),
            f"{condition.get('type')}={condition.get('status')} {condition.get('reason', '')}",
        )
        for condition in (agent.get("status") or {}).get("conditions") or []
        if (at := parse_instant(condition.get("lastTransitionTime"))) is not None
    ]
    reasons = {change.what.rpartition(" ")[2] for change in changes}
    others = [Happening(event.at, event.what, event.message) for event in events if event.what not in reasons]
    return sorted([*changes, *others], key=lambda moment: moment.at, reverse=True)[:TIMELINE_READ]


def render_status(
    agent: dict[str, Any], *, width: int = 120, old: str = "", moments: Sequence[Happening] | None = None
) -> list[str]:
    """Return the lines of an Agent's status: at most LINES_MAX, each at most `width` characters."""
    status = agent.get("status") or {}
    conditions = [condition for condition in status.get("conditions") or [] if condition.get("type") != "Ready"]
    abnormal = [condition for condition in conditions if _identity(condition) not in HEALTHY | {SAYS_NOTHING}]
    head = [_headline(agent), *_message(agent, width)]
    if old:
        head.append(f"  {old}")
    rows = _model_rows(agent, status)
    rows += [(condition["type"], _condition_text(condition)) for condition in abnormal[:ABNORMAL_MAX]]
    if error := status.get("lastError"):
        rows.append(("last error", f"{_clock(error.get('time'))} {error.get('type', '')}: {error.get('message', '')}"))
    last = [*_rows([("next", next_command(agent))])]
    room = LINES_MAX - len(head) - len(rows) - len(last)
    rows += _timeline_rows(timeline(agent, []) if moments is None else moments)[: max(0, min(room, TIMELINE_MAX))]
    body = _rows(rows)[: LINES_MAX - len(head) - len(last)]
    # The next command is to be pasted: it is never cut.
    return [shorten(line, width) for line in [*head, *body]] + last


def shorten(text: str, width: int) -> str:
    """Return text on one line, cut to `width` characters with an ellipsis."""
    line = " ".join(text.split()) if "\n" in text else text
    return line if len(line) <= width else line[: width - 1] + "…"


def _rows(rows: Sequence[tuple[str, str]]) -> list[str]:
    return [f"  {name:<{LABEL_WIDTH}} {text}" for name, text in rows]


def _headline(agent: dict[str, Any]) -> str:
    ready = find_condition(agent, "Ready")
    if not ready:
        return f"Agent {agent_label(agent)}: no status yet"
    since = _clock(ready.get("lastTransitionTime"))
    # The instant is of the status; the reason may be younger, and its message says since when.
    return f"Agent {agent_label(agent)}: Ready={ready.get('status')} since {since}, {ready.get('reason', '')}"


def _message(agent: dict[str, Any], width: int) -> list[str]:
    message = one_line(str(find_condition(agent, "Ready").get("message", "")))
    # What stands in it, cause and remedy, is to be read whole.
    lines = textwrap.wrap(message, max(20, width - 2), break_long_words=False, break_on_hyphens=False)
    if len(lines) > MESSAGE_LINES:
        lines[MESSAGE_LINES - 1 :] = [shorten(" ".join(lines[MESSAGE_LINES - 1 :]), max(20, width - 2))]
    return [f"  {line}" for line in lines]


def _model_rows(agent: dict[str, Any], status: dict[str, Any]) -> list[tuple[str, str]]:
    model, revision, sessions = status.get("model") or {}, status.get("revision") or {}, status.get("sessions") or {}
    answering = f", answering {model['answering']}" if model.get("answering") else ""
    behind = (
        f"; spec {agent.get('metadata', {}).get('generation')} is not processed yet, this is about "
        f"{observed_generation(agent)}"
        if is_behind(agent)
        else ""
    )
    current, ready = revision.get("current") or "?", revision.get("ready") or "none"
    serving = "" if current == ready else f", ready {ready}"
    pods = f"{status.get('readyReplicas', 0)} of {status.get('desiredReplicas', 0)} ready"
    runtime = f"runtime {status.get('runtimeVersion') or '?'}"
    # The two are counted at different times, so one is not always a part of the other.
    in_memory = f"{sessions.get('total', 0)} kept, {sessions.get('active', 0)} in memory"
    return [
        ("model", f"{model.get('configured') or '?'}{answering}"),
        ("replicas", f"{pods}, revision {current}{serving}, {runtime}{behind}"),
        ("sessions", f"{in_memory}; {status.get('endpoint') or 'no endpoint yet'}"),
    ]


def _identity(condition: Mapping[str, Any]) -> tuple[str, str, str]:
    kind, status, reason = (str(condition.get(name, "")) for name in ("type", "status", "reason"))
    return kind, status, reason


def _condition_text(condition: Mapping[str, Any]) -> str:
    text = f"{condition.get('status')} {condition.get('reason', '')}: {condition.get('message', '')}"
    return one_line(text).rstrip(": ")


def _timeline_rows(moments: Sequence[Happening]) -> list[tuple[str, str]]:
    told = [f"{stamp(moment.at)} {moment.what}: {one_line(moment.message)}".rstrip(": ") for moment in moments]
    return [("timeline" if index == 0 else "", text) for index, text in enumerate(told)]


def _clock(instant: object) -> str:
    """Return an instant as it is written in UTC, without the fraction of the second."""
    text = str(instant or "?")
    return text.split(".")[0].removesuffix("Z") + "Z" if text != "?" else text
