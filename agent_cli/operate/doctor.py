"""`abide doctor`: whether an installation is sound, seen from the outside. Each check stands for itself."""

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from enum import StrEnum
from typing import Any, Final

from agent_api.labels import GROUP, PLURAL
from agent_api.version import VERSION
from agent_cli.cluster.agents import OPERATOR_SELECTOR, is_available, list_agents, name_of, namespace_of
from agent_cli.cluster.kubectl import (
    Cluster,
    Forbidden,
    ForwardFailed,
    ObjectNotFound,
    find_kubectl,
    get_object,
    list_objects,
    open_port_forward,
    run,
)
from agent_cli.cluster.targets import agent_label, find_condition
from agent_cli.errors import FAILED, CliError
from agent_cli.operate.advice import next_command
from agent_cli.output import Cell, OutputFormat, emit, note, one_line

OPERATOR_PORT: Final = 8080
HTTP_TIMEOUT: Final = 10.0
ANSWER_MAX: Final = 4 * 1024 * 1024
AGENTS_SHOWN: Final = 10
FIELDS_SHOWN: Final = 3
QUOTA_FULL: Final = Decimal("0.9")
INSTALL: Final = "helm upgrade --install abide <chart> -n abide-system --create-namespace"


class Level(StrEnum):
    """How a check ended."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


STYLES: Final[Mapping[Level, str]] = {Level.OK: "green", Level.WARN: "yellow", Level.FAIL: "red"}


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found, and what to do about it unless it is well."""

    check: str
    level: Level
    message: str
    remedy: str = ""


Findings = Iterator[Finding]


def run_doctor(
    environ: Mapping[str, str],
    output: OutputFormat,
    *,
    namespace: str | None = None,
    context: str | None = None,
    kubeconfig: str | None = None,
) -> None:
    """Print what every check finds; exit with 1 if one fails."""
    findings = list(examine(environ, namespace=namespace, context=context, kubeconfig=kubeconfig))
    value = {
        "version": VERSION,
        "ok": all(found.level is not Level.FAIL for found in findings),
        "checks": [
            {"check": one.check, "level": one.level.value, "message": one.message, "remedy": one.remedy or None}
            for one in findings
        ],
    }
    emit(output, value, lambda: _print(findings))
    if not value["ok"]:
        sys.exit(FAILED)


def examine(
    environ: Mapping[str, str], *, namespace: str | None, context: str | None, kubeconfig: str | None
) -> Findings:
    """Yield what is found, from the outside in; what cannot be asked without the step before it is left out."""
    try:
        cluster = Cluster(find_kubectl(environ), namespace, context, kubeconfig)
    except CliError as error:
        yield Finding(
            "kubectl", Level.FAIL, error.lines[0], "install kubectl, or name it with KUBECTL=/path/to/kubectl"
        )
        return
    try:
        versions = json.loads(run(cluster, ["version", "--output=json"]))
    except (CliError, ValueError) as error:
        told = error.lines[0] if isinstance(error, CliError) else "kubectl answered no JSON"
        yield Finding("cluster", Level.FAIL, told, "check `kubectl cluster-info`, or choose another --context")
        return
    client, server = (
        str((versions.get(key) or {}).get("gitVersion", "?")) for key in ("clientVersion", "serverVersion")
    )
    yield Finding("kubectl", Level.OK, f"{cluster.kubectl} {client}")
    yield Finding("cluster", Level.OK, f"Kubernetes {server} answers")
    yield from _guarded("crd", lambda: check_crd(get_object(cluster, "crd", f"{PLURAL}.{GROUP}")))
    operators: list[dict[str, Any]] = []
    yield from _guarded("operator", lambda: _examine_operators(cluster, operators))
    for operator in operators:
        if is_available(operator):
            yield from _guarded("operator", lambda operator=operator: _ask_operator(cluster, operator))  # type: ignore[misc]
    agents: list[dict[str, Any]] = []
    yield from _guarded("agents", lambda: _examine_agents(cluster, agents))
    yield from _guarded("quotas", lambda: _examine_quotas(cluster, {namespace_of(agent) for agent in agents}))


def _guarded(check: str, find: Callable[[], Findings]) -> Findings:
    """Yield what a check finds; a check that may not look, or cannot, says so instead."""
    try:
        yield from list(find())
    except Forbidden as error:
        yield Finding(check, Level.WARN, f"not checked: {error.lines[0]}", "ask somebody with more rights to run this")
    except ObjectNotFound as error:
        yield Finding(check, Level.FAIL, error.lines[0].removeprefix("Error from server (NotFound): "), INSTALL)
    except CliError as error:
        yield Finding(check, Level.WARN, f"not checked: {error.lines[0]}", "run this again")


def check_crd(crd: Mapping[str, Any]) -> Findings:
    """Yield whether the cluster's definition of Agents is established and knows the fields that this version knows."""
    from agent_api.crdgen import build_crd
    from agent_api.schema import walk_fields

    conditions = (crd.get("status") or {}).get("conditions") or []
    if not any(one.get("type") == "Established" and one.get("status") == "True" for one in conditions):
        yield Finding(
            "crd", Level.FAIL, f"{PLURAL}.{GROUP} is not established", f"kubectl describe crd {PLURAL}.{GROUP}"
        )
        return
    ours, theirs = build_crd()["spec"]["versions"], (crd.get("spec") or {}).get("versions") or []
    fields = [
        {
            path
            for version in versions
            for path, _ in walk_fields(version["schema"]["openAPIV3Schema"]["properties"]["spec"])
        }
        for versions in (ours, theirs)
    ]
    missing, unknown = sorted(fields[0] - fields[1]), sorted(fields[1] - fields[0])
    if missing:
        yield Finding(
            "crd", Level.FAIL, f"older than this command: it lacks {_some(missing)}", f"upgrade the chart: {INSTALL}"
        )
    elif unknown:
        yield Finding(
            "crd", Level.WARN, f"newer than this command: it also has {_some(unknown)}", "pip install --upgrade abide"
        )
    else:
        yield Finding("crd", Level.OK, f"{PLURAL}.{GROUP} has all fields of version {VERSION}")


def _some(paths: Sequence[str]) -> str:
    shown = ", ".join(f"spec.{path}" for path in paths[:FIELDS_SHOWN])
    return shown + (f" and {len(paths) - FIELDS_SHOWN} more" if len(paths) > FIELDS_SHOWN else "")


def _examine_operators(cluster: Cluster, found: list[dict[str, Any]]) -> Findings:
    found += list_objects(cluster, "deployments.apps", OPERATOR_SELECTOR, all_namespaces=True)
    yield from check_operators(found)


def check_operators(operators: Sequence[dict[str, Any]]) -> Findings:
    """Yield whether there is an operator, whether it is available, and whether it is of this version."""
    if not operators:
        yield Finding("operator", Level.FAIL, "there is none in this cluster", INSTALL)
    for operator in operators:
        where = f"{namespace_of(operator)}/{name_of(operator)}"
        if is_available(operator):
            yield Finding("operator", Level.OK, f"Deployment {where} is available")
        else:
            look = f"kubectl describe pods -n {namespace_of(operator)} -l app.kubernetes.io/component=operator"
            yield Finding("operator", Level.FAIL, f"Deployment {where} has no ready pod, so no status moves", look)
        version = str((operator["metadata"].get("labels") or {}).get("app.kubernetes.io/version", "?"))
        if version != VERSION:
            told = f"operator {where} is {version}, this command is {VERSION}"
            yield Finding("versions", Level.WARN, told, "use one version of both: upgrade the older one")
        else:
            yield Finding("versions", Level.OK, f"operator and command are {VERSION}")


def _ask_operator(cluster: Cluster, operator: dict[str, Any]) -> Findings:
    from dataclasses import replace

    cluster = replace(cluster, namespace=namespace_of(operator))
    pods = [pod for pod in list_objects(cluster, "pods", OPERATOR_SELECTOR) if _is_ready(pod)]
    if not pods:
        return
    try:
        ready, metrics = _fetch(cluster, name_of(pods[0]))
    except ForwardFailed as error:
        yield Finding("operator", Level.WARN, f"not asked: {error.lines[0]}", "the right to create pods/portforward")
        return
    yield from check_readiness(ready)
    yield from check_store(metrics)


def _is_ready(pod: Mapping[str, Any]) -> bool:
    conditions = (pod.get("status") or {}).get("conditions") or []
    return any(one.get("type") == "Ready" and one.get("status") == "True" for one in conditions)


def _fetch(cluster: Cluster, pod: str) -> tuple[str, str]:
    """Return what /readyz and /metrics of the operator's pod say. Raises ForwardFailed."""
    import httpx

    forward = open_port_forward(cluster, f"pod/{pod}", OPERATOR_PORT)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{forward.port}", trust_env=False, timeout=HTTP_TIMEOUT) as http:
            return tuple(http.get(path).text[:ANSWER_MAX] for path in ("/readyz", "/metrics"))  # type: ignore[return-value]
    except httpx.HTTPError as error:
        raise ForwardFailed(f"the operator's pod {pod} does not answer: {type(error).__name__}") from error
    finally:
        forward.close()


def check_readiness(text: str) -> Findings:
    """Yield what the operator's /readyz says."""
    try:
        answer = json.loads(text)
        failed = [f"{one['name']}: {one['message']}" for one in answer["checks"] if not one["ok"]]
    except (ValueError, KeyError, TypeError):
        yield Finding("operator", Level.WARN, "its /readyz does not answer as an operator's", "compare the versions")
        return
    if failed:
        yield Finding("operator", Level.FAIL, f"it is not ready: {'; '.join(failed)}", "read its log")
    else:
        yield Finding("operator", Level.OK, "its /readyz says ready")


def check_store(metrics: str) -> Findings:
    """Yield whether the operator can use Postgres and has brought its schema up to date, as its metrics tell."""
    values = {}
    for line in metrics.splitlines():
        name, _, value = line.partition(" ")
        values[name] = value.strip()
    reachable, migrated = (values.get(f"abide_operator_{name}") for name in ("store_reachable", "migrations_done"))
    if reachable is None:
        yield Finding(
            "postgres", Level.WARN, "the operator does not tell whether it can use Postgres", "compare versions"
        )
    elif float(reachable) != 1:
        remedy = "check that Postgres runs and the Secret with its URL is right; the operator's log tells the cause"
        yield Finding("postgres", Level.FAIL, "the operator cannot use Postgres", remedy)
    elif migrated is not None and float(migrated) != 1:
        yield Finding(
            "postgres", Level.FAIL, "the schema is not up to date", "the operator's log tells why; `abide migrate`"
        )
    else:
        yield Finding("postgres", Level.OK, "the operator can use Postgres, and its schema is up to date")


def _examine_agents(cluster: Cluster, found: list[dict[str, Any]]) -> Findings:
    found += list_agents(cluster, all_namespaces=cluster.namespace is None)
    yield from check_agents(found)


def check_agents(agents: Sequence[dict[str, Any]]) -> Findings:
    """Yield which agents are not well, and which run another version."""
    wanted = [agent for agent in agents if not _is_stopped(agent)]
    bad = [agent for agent in wanted if find_condition(agent, "Ready").get("status") != "True"]
    for agent in bad[:AGENTS_SHOWN]:
        ready = find_condition(agent, "Ready")
        told = f"{agent_label(agent)} is not ready: {ready.get('reason', 'no status yet')}: {ready.get('message', '')}"
        yield Finding("agents", Level.FAIL, told.rstrip(": "), next_command(agent))
    if len(bad) > AGENTS_SHOWN:
        yield Finding("agents", Level.FAIL, f"{len(bad) - AGENTS_SHOWN} more are not ready", "abide status -A")
    degraded = [agent for agent in wanted if find_condition(agent, "Degraded").get("status") == "True"]
    for agent in degraded[:AGENTS_SHOWN]:
        condition = find_condition(agent, "Degraded")
        told = f"{agent_label(agent)} is degraded: {condition.get('reason', '')}: {condition.get('message', '')}"
        yield Finding("agents", Level.WARN, told.rstrip(": "), next_command(agent))
    if not bad and not degraded:
        stopped = len(agents) - len(wanted)
        suffix = f", {stopped} stopped on purpose" if stopped else ""
        yield Finding("agents", Level.OK, f"{len(wanted)} of {len(wanted)} are ready{suffix}")
    others = sorted(
        f"{agent_label(agent)} ({version})"
        for agent in wanted
        if (version := (agent.get("status") or {}).get("runtimeVersion")) and version != VERSION
    )
    if others:
        some = ", ".join(others[:FIELDS_SHOWN]) + (" …" if len(others) > FIELDS_SHOWN else "")
        yield Finding(
            "versions", Level.WARN, f"runtimes of another version than {VERSION}: {some}", "upgrade the chart"
        )


def _is_stopped(agent: Mapping[str, Any]) -> bool:
    spec = agent.get("spec") or {}
    return bool(spec.get("suspend")) or spec.get("replicas", 1) == 0


def _examine_quotas(cluster: Cluster, namespaces: set[str]) -> Findings:
    quotas = list_objects(cluster, "resourcequotas", all_namespaces=cluster.namespace is None)
    yield from check_quotas([quota for quota in quotas if namespace_of(quota) in namespaces])


def check_quotas(quotas: Sequence[dict[str, Any]]) -> Findings:
    """Yield which ResourceQuotas of agents' namespaces are almost used up."""
    full = []
    for quota in quotas:
        status = quota.get("status") or {}
        for resource, hard in (status.get("hard") or {}).items():
            used = (status.get("used") or {}).get(resource, "0")
            if (share := _share(used, hard)) is not None and share >= QUOTA_FULL:
                full.append(f"{namespace_of(quota)}/{name_of(quota)} {resource}: {used} of {hard}")
    for told in full[:AGENTS_SHOWN]:
        yield Finding("quotas", Level.WARN, told, "raise the quota, or lower requests and limits of agents there")
    if not full:
        yield Finding("quotas", Level.OK, f"{len(quotas)} in agents' namespaces, none almost used up")


def _share(used: str, hard: str) -> Decimal | None:
    from agent_api.v1alpha1 import quantity

    try:
        limit = quantity(hard)
        return quantity(used) / limit if limit else None
    except (InvalidOperation, KeyError):
        return None


def _print(findings: Sequence[Finding]) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
    for found in findings:
        cell = Cell(found.level.value, STYLES[found.level])
        head = Text(f"{cell.text:<4}  ", style=cell.style if console.is_terminal else "")
        console.print(head.append(Text(f"{found.check:<9} {one_line(found.message)}", style="")))
        if found.remedy and found.level is not Level.OK:
            print(f"      {'':<9} → {found.remedy}")
    counts = {level: sum(found.level is level for found in findings) for level in Level}
    note(f"{counts[Level.OK]} ok, {counts[Level.WARN]} warn, {counts[Level.FAIL]} fail")
