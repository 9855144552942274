"""`abide start` and `abide stop`: one field of the spec, and if asked waiting for what comes of it."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from agent_api.conditions import Reason
from agent_cli.cluster.agents import generation, list_pods, name_of, observed_generation, read_agent
from agent_cli.cluster.kubectl import Cluster, patch_object
from agent_cli.cluster.targets import HOPELESS, RESOURCE, agent_label, find_condition, get_agent, ready_reason
from agent_cli.errors import CliError
from agent_cli.operate.advice import next_command

POLL_SECONDS: Final = 0.5
STOPPED: Final = frozenset({Reason.SUSPENDED, Reason.SCALED_TO_ZERO})


@dataclass(frozen=True, slots=True)
class Waiting:
    """How long to wait for an outcome; None: not at all."""

    timeout: float | None
    monotonic: Callable[[], float] = field(default=time.monotonic)
    sleep: Callable[[float], None] = field(default=time.sleep)


def run_start(cluster: Cluster, name: str, waiting: Waiting) -> None:
    """Resume an agent. Idempotent. Raises CliError, also when it is not ready in time."""
    cluster, agent = read_agent(cluster, name)
    changes, told = start_changes(agent)
    if changes:
        agent = patch_object(cluster, RESOURCE, name, {"spec": changes})
    print(f"Agent {agent_label(agent)}: {told}", flush=True)
    if waiting.timeout is not None:
        seconds, agent = wait_serving(cluster, agent, waiting)
        ready = find_condition(agent, "Ready")
        print(f"Agent {agent_label(agent)}: Ready=True {ready.get('reason', '')} after {seconds:.1f} s")


def run_stop(cluster: Cluster, name: str, waiting: Waiting) -> None:
    """Suspend an agent: its pods end, its state stays. Idempotent. Raises CliError, also when pods remain in time."""
    cluster, agent = read_agent(cluster, name)
    if (agent.get("spec") or {}).get("suspend"):
        print(f"Agent {agent_label(agent)}: was suspended already", flush=True)
    else:
        agent = patch_object(cluster, RESOURCE, name, {"spec": {"suspend": True}})
        print(f"Agent {agent_label(agent)}: suspended; running turns finish, the state is kept", flush=True)
    if waiting.timeout is not None:
        seconds = wait_stopped(cluster, agent, waiting)
        print(f"Agent {agent_label(agent)}: no pods are left after {seconds:.1f} s")


def start_changes(agent: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Return what to write into the spec so that the agent runs, and what to tell about it."""
    spec = agent.get("spec") or {}
    changes: dict[str, Any] = {}
    told = []
    if spec.get("suspend"):
        changes["suspend"] = False
        told.append("resumed")
    if spec.get("replicas", 1) == 0:
        changes["replicas"] = 1
        told.append("replicas raised from 0 to 1")
    return changes, "; ".join(told) or f"was started already ({spec.get('replicas', 1)} replicas wanted)"


def wait_serving(cluster: Cluster, agent: dict[str, Any], waiting: Waiting) -> tuple[float, dict[str, Any]]:
    """Wait until the present spec serves; return the seconds it took, and the Agent.

    Raises CliError at once when only a person can mend it, and at the deadline.
    """
    wanted, begun = generation(agent), waiting.monotonic()
    while True:
        agent = get_agent(cluster, name_of(agent))
        processed = observed_generation(agent) >= wanted
        if processed and find_condition(agent, "Ready").get("status") == "True" and not _rolling(agent):
            return waiting.monotonic() - begun, agent
        if processed and (given_up := _given_up(agent)):
            raise CliError(given_up)
        _pause(agent, waiting, begun)


def wait_stopped(cluster: Cluster, agent: dict[str, Any], waiting: Waiting) -> float:
    """Wait until status says stopped and no pod is left; return the seconds it took. Raises CliError."""
    wanted, begun = generation(agent), waiting.monotonic()
    while True:
        agent = get_agent(cluster, name_of(agent))
        told = observed_generation(agent) >= wanted and ready_reason(agent) in STOPPED
        if told and not list_pods(cluster, name_of(agent)):
            return waiting.monotonic() - begun
        _pause(agent, waiting, begun)


def _rolling(agent: dict[str, Any]) -> bool:
    progressing = find_condition(agent, "Progressing")
    revision = (agent.get("status") or {}).get("revision") or {}
    behind = revision.get("current") != revision.get("ready")
    return behind or progressing.get("status") == "True" or progressing.get("reason") == Reason.ROLLOUT_FAILED


def _given_up(agent: dict[str, Any]) -> str:
    """Return why no waiting helps, "" if it may."""
    progressing = find_condition(agent, "Progressing")
    if progressing.get("reason") == Reason.ROLLOUT_FAILED:
        return _sentence(agent, "RolloutFailed", str(progressing.get("message", "")))
    if ready_reason(agent) in HOPELESS:
        return _sentence(agent, ready_reason(agent), str(find_condition(agent, "Ready").get("message", "")))
    return ""


def _sentence(agent: dict[str, Any], reason: str, message: str) -> str:
    told = f"{reason}: {message.rstrip('. ')}" if message else reason
    return f"Agent {agent_label(agent)} is not served: {told}. Next: {next_command(agent)}"


def _pause(agent: dict[str, Any], waiting: Waiting, begun: float) -> None:
    """Sleep before the next look. Raises CliError when the time is up."""
    timeout = waiting.timeout or 0.0
    if waiting.monotonic() - begun + POLL_SECONDS > timeout:
        ready = find_condition(agent, "Ready")
        seen = f"Ready={ready.get('status', 'Unknown')} {ready.get('reason', 'no status yet')}"
        raise CliError(
            f"Agent {agent_label(agent)} is not there within {timeout:g} s; it is {seen}. Next: {next_command(agent)}"
        )
    waiting.sleep(POLL_SECONDS)
