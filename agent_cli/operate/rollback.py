"""`abide rollback`: an older revision's spec written back, as if its author had applied it again."""

import sys
from dataclasses import dataclass
from typing import Any

from agent_cli.cluster.agents import read_agent
from agent_cli.cluster.kubectl import Cluster, Conflict, ObjectNotFound, get_object, write_object
from agent_cli.cluster.targets import agent_label, find_condition
from agent_cli.errors import CliError, UsageError
from agent_cli.operate.history import print_diff
from agent_cli.operate.revisions import (
    Revision,
    carry_over,
    comparable,
    current_revision,
    find_changes,
    find_revision,
    read_revisions,
    rollback_target,
)
from agent_cli.operate.switch import Waiting, wait_serving
from agent_cli.output import note


@dataclass(frozen=True, slots=True)
class Plan:
    """What a rollback writes. `inlined` says why the prompt is written inline, "" if it is not."""

    spec: dict[str, Any]
    inlined: str = ""


def run_rollback(cluster: Cluster, name: str, to: str | None, *, yes: bool, waiting: Waiting) -> None:
    """Write an older spec back, after showing the difference. Raises CliError, also when it does not serve in time."""
    cluster, agent = read_agent(cluster, name)
    revisions = read_revisions(cluster, agent)
    target = find_revision(revisions, to, agent) if to else rollback_target(revisions, agent)
    plan = plan_rollback(target, agent, _present_prompt(cluster, target))
    where = f"revision {target.number} ({target.name})"
    current = current_revision(revisions, agent)
    before = comparable(agent.get("spec") or {}, current.prompt if current else None)
    after = comparable(plan.spec, target.prompt)
    if not any(find_changes(before, after)) and plan.spec == agent.get("spec"):
        print(f"Agent {agent_label(agent)}: its spec is that of {where} already")
        return
    print_diff(before, after, "now", where)
    if plan.inlined:
        note(plan.inlined)
    if not yes and not confirm(f"Roll agent {agent_label(agent)} back to {where}?"):
        raise CliError(f"Agent {agent_label(agent)} was left as it is.")
    agent = _write(cluster, agent, plan)
    print(f"Agent {agent_label(agent)}: the spec is that of {where} again", flush=True)
    if waiting.timeout is not None:
        if plan.spec.get("suspend") or plan.spec.get("replicas", 1) == 0:
            note("it is stopped, so there is nothing to wait for")
            return
        seconds, agent = wait_serving(cluster, agent, waiting)
        ready = find_condition(agent, "Ready")
        print(f"Agent {agent_label(agent)}: Ready=True {ready.get('reason', '')} after {seconds:.1f} s")


def plan_rollback(target: Revision, agent: dict[str, Any], present_prompt: str | None) -> Plan:
    """Return the spec to write: the old one with what makes no revision (replicas, suspend, …) as it is now.

    `present_prompt` is what the ConfigMap that the old spec names holds now; None: it is gone, or none is named.
    Raises CliError when the operator kept no spec of that revision.
    """
    if target.spec is None:
        raise CliError(
            f"Revision {target.number} ({target.name}) was made by an older operator that kept no spec; "
            "apply its manifest again instead."
        )
    spec = carry_over(target.spec, agent.get("spec") or {})
    source = spec.get("systemPromptFrom")
    if source is None or target.prompt is None or present_prompt == target.prompt:
        return Plan(spec)
    del spec["systemPromptFrom"]
    spec["systemPrompt"] = target.prompt
    ref = source.get("configMapKeyRef") or {}
    what = "is gone" if present_prompt is None else "has another text now"
    return Plan(
        spec,
        f"the prompt is written inline (spec.systemPrompt): ConfigMap {ref.get('name')}, key {ref.get('key')}, {what}",
    )


def _present_prompt(cluster: Cluster, target: Revision) -> str | None:
    ref = ((target.spec or {}).get("systemPromptFrom") or {}).get("configMapKeyRef")
    if not ref:
        return None
    try:
        found = get_object(cluster, "configmap", str(ref.get("name", "")))
    except ObjectNotFound:
        return None
    text = (found.get("data") or {}).get(ref.get("key"))
    return str(text) if text is not None else None


def _write(cluster: Cluster, agent: dict[str, Any], plan: Plan) -> dict[str, Any]:
    metadata = {name: value for name, value in agent["metadata"].items() if name != "managedFields"}
    document = {name: value for name, value in agent.items() if name != "status"} | {"metadata": metadata}
    try:
        return write_object(cluster, document | {"spec": plan.spec})
    except Conflict as error:
        raise CliError(
            f"Agent {agent_label(agent)} was changed by somebody else in the meantime, so nothing was written; "
            "run the rollback again to see the difference as it is now."
        ) from error


def confirm(question: str) -> bool:
    """Ask a yes-no question on the terminal; no is the default. Raises UsageError without a terminal."""
    if sys.stdin is None or not sys.stdin.isatty():
        raise UsageError("There is no terminal to ask at: give --yes to roll back without being asked.")
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")
