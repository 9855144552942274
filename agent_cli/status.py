"""`abide status`: what status says, in at most 15 lines, with the next command.

The Agent is read as plain JSON, so that a status written by another version still shows.
"""

import json
import shutil
import sys
from collections.abc import Mapping
from typing import Any, Final

from agent_cli.kubectl import Cluster, find_kubectl
from agent_cli.targets import agent_label, find_condition, get_agent

WIDTH_WITHOUT_TERMINAL: Final = 400
LINES_MAX: Final = 15
ABNORMAL_MAX: Final = 5
TIMELINE_MAX: Final = 4
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


def render_status(agent: dict[str, Any], *, width: int = 120) -> list[str]:
    """Return the lines of an Agent's status, each at most `width` characters."""
    status = agent.get("status") or {}
    conditions = [condition for condition in status.get("conditions") or [] if condition.get("type") != "Ready"]
    abnormal = [condition for condition in conditions if _identity(condition) not in HEALTHY | {SAYS_NOTHING}]
    healthy = [condition for condition in conditions if _identity(condition) in HEALTHY]
    rows: list[tuple[str, str]] = []
    rows += _model_rows(agent, status)
    rows += [(condition["type"], _condition_text(condition)) for condition in abnormal[:ABNORMAL_MAX]]
    if healthy:
        rows.append(("all well", ", ".join(f"{c['type']}={c.get('reason', '')}" for c in healthy)))
    timeline = _timeline(status.get("conditions") or [])
    if timeline:
        rows.append(("timeline", timeline))
    if error := status.get("lastError"):
        rows.append(("last error", f"{_clock(error.get('time'))} {error.get('type', '')}: {error.get('message', '')}"))
    rows.append(("next", next_command(agent)))
    lines = [_headline(agent), *_message(agent), *(f"  {name:<15} {text}" for name, text in rows)]
    return [shorten(line, width) for line in lines][:LINES_MAX]


def next_command(agent: dict[str, Any]) -> str:
    """Return the command that helps now."""
    metadata = agent.get("metadata", {})
    name, namespace = metadata.get("name", ""), metadata.get("namespace", "default")
    ready = find_condition(agent, "Ready")
    reason = ready.get("reason", "")
    if ready.get("status") == "True":
        return f'abide chat {name} -n {namespace} "hello"'
    if not ready:
        return "kubectl get pods -A -l app.kubernetes.io/name=abide   (is the operator running?)"
    if reason == "Suspended":
        return (
            f'kubectl patch agents.abide.dev {name} -n {namespace} --type=merge -p \'{{"spec":{{"suspend":false}}}}\''
        )
    if reason == "ScaledToZero":
        return f"kubectl scale agents.abide.dev {name} -n {namespace} --replicas=1"
    if reason in ("SecretMissing", "ConfigMapMissing", "InvalidSpec", "NameConflict"):
        return f"kubectl describe agents.abide.dev {name} -n {namespace}"
    return f"kubectl logs -n {namespace} deployment/agent-{name} --tail=50"


def shorten(text: str, width: int) -> str:
    """Return text on one line, cut to `width` characters with an ellipsis."""
    line = " ".join(text.split()) if "\n" in text else text
    return line if len(line) <= width else line[: width - 1] + "…"


def _headline(agent: dict[str, Any]) -> str:
    ready = find_condition(agent, "Ready")
    if not ready:
        return f"Agent {agent_label(agent)}: no status yet"
    since = _clock(ready.get("lastTransitionTime"))
    return f"Agent {agent_label(agent)}: Ready={ready.get('status')} {ready.get('reason', '')} since {since}"


def _message(agent: dict[str, Any]) -> list[str]:
    message = str(find_condition(agent, "Ready").get("message", ""))
    return [f"  {message}"] if message else []


def _model_rows(agent: dict[str, Any], status: dict[str, Any]) -> list[tuple[str, str]]:
    model, revision, sessions = status.get("model") or {}, status.get("revision") or {}, status.get("sessions") or {}
    answering = f", answering {model['answering']}" if model.get("answering") else ""
    generation = agent.get("metadata", {}).get("generation", 0)
    observed = status.get("observedGeneration", 0)
    behind = f"; spec {generation} is not processed yet, this is about {observed}" if observed < generation else ""
    ready_revision = f", ready {revision['ready']}" if revision.get("ready") else ""
    pods = f"{status.get('readyReplicas', 0)} of {status.get('desiredReplicas', 0)} ready"
    running = (
        f"revision {revision.get('current') or '?'}{ready_revision}, runtime {status.get('runtimeVersion') or '?'}"
    )
    return [
        ("model", f"{model.get('configured', '?')}{answering}"),
        ("pods", f"{pods}, {running}{behind}"),
        ("sessions", f"{sessions.get('total', 0)}, {sessions.get('active', 0)} of them in memory"),
        ("endpoint", str(status.get("endpoint") or "none yet")),
    ]


def _identity(condition: dict[str, Any]) -> tuple[str, str, str]:
    kind, status, reason = (str(condition.get(name, "")) for name in ("type", "status", "reason"))
    return kind, status, reason


def _condition_text(condition: dict[str, Any]) -> str:
    return f"{condition.get('status')} {condition.get('reason', '')}: {condition.get('message', '')}".rstrip(": ")


def _timeline(conditions: list[dict[str, Any]]) -> str:
    changes = sorted(conditions, key=lambda condition: str(condition.get("lastTransitionTime", "")), reverse=True)
    return "; ".join(
        f"{_clock(change.get('lastTransitionTime'))} {change.get('type')}={change.get('reason', '')}"
        for change in changes[:TIMELINE_MAX]
    )


def _clock(instant: object) -> str:
    """Return an instant as it is written in UTC, without the fraction of the second."""
    text = str(instant or "?")
    return text.split(".")[0].removesuffix("Z") + "Z" if text != "?" else text


def run_status(
    name: str,
    namespace: str | None,
    context: str | None,
    kubeconfig: str | None,
    output: str,
    environ: Mapping[str, str],
) -> None:
    """Print the status of an agent as `text`, `json` or `yaml`. Raises CliError when it cannot be read."""
    agent = get_agent(Cluster(find_kubectl(environ), namespace, context, kubeconfig), name)
    match output:
        case "json":
            print(json.dumps(agent, indent=2))
        case "yaml":
            import yaml

            print(yaml.safe_dump(agent, sort_keys=False, allow_unicode=True), end="")
        case _:
            width = shutil.get_terminal_size().columns if sys.stdout.isatty() else WIDTH_WITHOUT_TERMINAL
            print("\n".join(render_status(agent, width=width)))
