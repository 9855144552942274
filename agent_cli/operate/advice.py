"""Which command helps next: from an Agent's status to one line that can be pasted."""

from collections.abc import Callable, Mapping
from typing import Any, Final

from agent_api.conditions import Reason
from agent_api.labels import ANNOTATION_ADOPT_STATE, LABEL_AGENT
from agent_cli.cluster.agents import name_of, namespace_of
from agent_cli.cluster.targets import RESOURCE, find_condition

FOR_REASON: Final[Mapping[str, str]] = {
    Reason.SUSPENDED: "abide start {name} -n {namespace} --wait",
    Reason.SCALED_TO_ZERO: "abide start {name} -n {namespace} --wait",
    Reason.STARTING: "abide logs {name} -n {namespace} -f",
    Reason.ROLLING_OUT: "abide logs {name} -n {namespace} -f",
    Reason.INVALID_SPEC: "kubectl edit {resource} {name} -n {namespace}",
    Reason.UNKNOWN_PARAMETER: "kubectl edit {resource} {name} -n {namespace}",
    Reason.MODEL_NOT_FOUND: "kubectl edit {resource} {name} -n {namespace}",
    Reason.OOM_KILLED: "kubectl edit {resource} {name} -n {namespace}   (raise spec.runtime.resources.limits.memory)",
    Reason.NAME_CONFLICT: "kubectl get all,configmaps,secrets -n {namespace} -l {label}!={name} | grep agent-{name}",
    Reason.IMAGE_PULL_FAILED: "kubectl describe pods -n {namespace} -l {label}={name}",
    Reason.UNSCHEDULABLE: "kubectl describe pods -n {namespace} -l {label}={name}",
    Reason.POD_FORBIDDEN: "kubectl describe replicasets -n {namespace} -l {label}={name}",
    Reason.QUOTA_EXCEEDED: "kubectl describe resourcequotas -n {namespace}",
    Reason.CRASH_LOOP: "abide logs {name} -n {namespace} --previous",
    Reason.PROBE_FAILING: "abide logs {name} -n {namespace} --since 10m",
    Reason.ROLLOUT_FAILED: "abide rollback {name} -n {namespace}   (abide diff {name} shows what changed)",
    Reason.MODEL_RATE_LIMITED: "abide errors {name} -n {namespace} --since 1h",
    Reason.MODEL_UNREACHABLE: "abide errors {name} -n {namespace} --since 1h",
    Reason.MODEL_REFUSED: "abide errors {name} -n {namespace} --since 1h",
    Reason.SERVING_ON_FALLBACK: "abide errors {name} -n {namespace} --since 1h",
    Reason.FALLBACK_ONLY: "abide errors {name} -n {namespace} --since 1h",
    Reason.STATE_ADOPTION_REFUSED: "kubectl annotate {resource} {name} -n {namespace} {adopt}-",
    Reason.STATE_STORE_UNREACHABLE: "abide doctor",
    Reason.CONNECTION_REFUSED: "abide doctor",
    Reason.TIMEOUT: "abide doctor",
    Reason.AUTH_FAILED: "abide doctor",
    Reason.TLS_FAILED: "abide doctor",
    Reason.CONNECTION_LIMIT: "abide doctor",
    Reason.READ_ONLY: "abide doctor",
    Reason.SCHEMA_TOO_OLD: "abide doctor",
    Reason.ENCRYPTION_KEY_MISMATCH: "kubectl get secrets -n {namespace}   (Ready names the Secret and the key)",
    Reason.UNKNOWN: "abide doctor",
}
TELLING: Final = ("Ready", "Degraded", "Progressing", "ModelReachable")
"""Conditions whose reason decides what helps, the most telling first."""


def next_command(agent: dict[str, Any]) -> str:
    """Return the command that helps now."""
    if not find_condition(agent, "Ready"):
        return "abide doctor"
    for kind in TELLING:
        reason = str(find_condition(agent, kind).get("reason", ""))
        if reason in _FROM_SPEC:
            return _FROM_SPEC[reason](agent, str(find_condition(agent, kind).get("message", "")))
        if reason in FOR_REASON:
            return _fill(agent, FOR_REASON[reason])
    if find_condition(agent, "Ready").get("status") == "True":
        return _fill(agent, 'abide chat {name} -n {namespace} "hello"')
    return _fill(agent, "abide logs {name} -n {namespace} --since 10m")


def _fill(agent: dict[str, Any], command: str) -> str:
    return command.format(
        name=name_of(agent),
        namespace=namespace_of(agent),
        resource=RESOURCE,
        label=LABEL_AGENT,
        adopt=ANNOTATION_ADOPT_STATE,
    )


def _secret_command(agent: dict[str, Any], message: str) -> str:
    """Return how to put the key there that a message names; its value comes from stdin, so no shell remembers it."""
    namespace, spec = namespace_of(agent), agent.get("spec") or {}
    refs = [model.get("apiKeySecretRef") or {} for model in spec.get("models") or []]
    variables = (spec.get("runtime") or {}).get("env") or []
    refs += [(variable.get("valueFrom") or {}).get("secretKeyRef") or {} for variable in variables]
    tools = [tool.get("mcp") or tool.get("http") or {} for tool in spec.get("tools") or []]
    headers = [header for tool in tools for header in tool.get("headersFrom") or []]
    refs += [header.get("secretKeyRef") or {} for header in headers]
    for ref in refs:
        name, key = str(ref.get("name", "")), str(ref.get("key", ""))
        if name and f"{namespace}/{name}" in message and (_is_absent(message) or key in message):
            make = f"kubectl create secret generic {name} -n {namespace} --from-file={key}=/dev/stdin"
            return make if _is_absent(message) else _merge(make, f"secret {name} -n {namespace}")
    return _fill(agent, "kubectl describe {resource} {name} -n {namespace}")


def _tool_command(agent: dict[str, Any], message: str) -> str:
    """Return how to correct the header that a tool's server refuses, or else where to read what it did."""
    if " into Secret " in message:
        return _secret_command(agent, message)
    return _fill(agent, "abide errors {name} -n {namespace} --since 1h")


def _is_absent(message: str) -> bool:
    """Return whether a message is about an object that is not there, rather than about what is in it."""
    return "does not exist" in message


def _merge(make: str, which: str) -> str:
    """Return how to put what `make` makes into an object that is there. `kubectl apply` could remove its other keys."""
    return f"{make} --dry-run=client -o yaml | kubectl patch {which} --patch-file=/dev/stdin"


def _config_map_command(agent: dict[str, Any], message: str) -> str:
    ref = ((agent.get("spec") or {}).get("systemPromptFrom") or {}).get("configMapKeyRef") or {}
    if not ref:
        return _fill(agent, "kubectl describe {resource} {name} -n {namespace}")
    name, key, namespace = ref.get("name", ""), ref.get("key", ""), namespace_of(agent)
    make = f"kubectl create configmap {name} -n {namespace} --from-file={key}=prompt.txt"
    return _merge(make, f"configmap {name} -n {namespace}") if "has no key" in message else make


_FROM_SPEC: Final[Mapping[str, Callable[[dict[str, Any], str], str]]] = {
    Reason.SECRET_MISSING: _secret_command,
    Reason.MODEL_AUTH_FAILED: _secret_command,
    Reason.TOOL_DOWN: _tool_command,
    Reason.CONFIG_MAP_MISSING: _config_map_command,
}
