"""Plain values for the operator's unit tests."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from agent_api import labels
from agent_api.v1alpha1 import Agent
from agent_api.wire import CheckResult, HealthOut
from agent_operator.resources.inputs import AgentInputs
from agent_operator.status.observed import ACCEPTED, Observation
from agent_operator.status.pods import PodView, parse_pod

NOW = datetime(2026, 11, 20, 14, 2, 11, tzinfo=UTC)
UID = "0b54ed5f-64b1-44d3-a9f6-3d3a1c06d3b1"
AGENT_ID = UUID(UID)
REVISION = "0123456789"
POSTGRES_URL = "postgresql://abide:hunter2hunter2@postgres.abide-system.svc:5432/abide"


def make_agent(name: str = "support", namespace: str = "shop", **spec: Any) -> Agent:
    """Return a valid Agent; keyword arguments are wire names of spec fields."""
    content = {"systemPrompt": "Be kind.", "models": [{"provider": "echo"}], **spec}
    if "systemPromptFrom" in spec:
        del content["systemPrompt"]
    return Agent.model_validate({"metadata": {"name": name, "namespace": namespace, "uid": UID}, "spec": content})


def make_inputs(agent: Agent | None = None, **changes: Any) -> AgentInputs:
    """Return builder inputs for an agent."""
    agent = agent or make_agent()
    values: dict[str, Any] = {
        "agent": agent,
        "uid": UID,
        "prompt": agent.spec.system_prompt or "Be kind.",
        "runtime_image": "abide/runtime:1.2.3",
        "postgres_url": POSTGRES_URL,
        **changes,
    }
    return AgentInputs(**values)


def at(seconds: float) -> datetime:
    """Return an instant `seconds` after NOW."""
    return NOW + timedelta(seconds=seconds)


def stamp(when: datetime | None) -> str | None:
    """Return a Kubernetes timestamp."""
    return when.strftime("%Y-%m-%dT%H:%M:%SZ") if when else None


def make_pod(
    name: str = "agent-support-1",
    *,
    revision: str = REVISION,
    phase: str = "Running",
    ready: bool = False,
    ready_at: datetime | None = None,
    running_since: datetime | None = None,
    waiting: tuple[str, str] | None = None,
    ended: dict[str, Any] | None = None,
    last_ended: dict[str, Any] | None = None,
    restarts: int = 0,
    unschedulable: str | None = None,
    deleting: bool = False,
    ip: str = "10.1.2.3",
    version: int = 7,
) -> PodView:
    """Return a pod as the API server would show it, parsed."""
    return parse_pod(
        pod_body(
            name, revision=revision, phase=phase, ready=ready, ready_at=ready_at, running_since=running_since,
            waiting=waiting, ended=ended, last_ended=last_ended, restarts=restarts, unschedulable=unschedulable,
            deleting=deleting, ip=ip, version=version,
        )
    )  # fmt: skip


def pod_body(name: str = "agent-support-1", **given: Any) -> dict[str, Any]:
    """Return a pod's JSON."""
    state: dict[str, Any] = {}
    if given.get("waiting"):
        state = {"waiting": {"reason": given["waiting"][0], "message": given["waiting"][1]}}
    elif given.get("ended"):
        state = {"terminated": given["ended"]}
    elif given.get("running_since"):
        state = {"running": {"startedAt": stamp(given["running_since"])}}
    unschedulable = given.get("unschedulable")
    scheduled = (
        {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": unschedulable,
         "lastTransitionTime": stamp(at(-50))}
        if unschedulable
        else {"type": "PodScheduled", "status": "True", "lastTransitionTime": stamp(at(-50))}
    )  # fmt: skip
    return {
        "metadata": {
            "name": name,
            "namespace": "shop",
            "uid": f"uid-{name}",
            "resourceVersion": str(given.get("version", 7)),
            "creationTimestamp": stamp(at(-60)),
            "labels": {labels.LABEL_AGENT: "support", labels.LABEL_REVISION: given.get("revision", REVISION)},
            **({"deletionTimestamp": stamp(NOW)} if given.get("deleting") else {}),
        },
        "spec": {
            "containers": [
                {"name": "runtime", "image": "abide/runtime:1.2.3", "resources": {"limits": {"memory": "256Mi"}}}
            ]
        },
        "status": {
            "phase": given.get("phase", "Running"),
            "podIP": given.get("ip", "10.1.2.3"),
            "conditions": [
                {
                    "type": "Ready",
                    "status": "True" if given.get("ready") else "False",
                    "lastTransitionTime": stamp(given.get("ready_at") or at(-60)),
                },
                scheduled,
            ],
            "containerStatuses": [
                {
                    "name": "runtime",
                    "restartCount": given.get("restarts", 0),
                    "state": state,
                    "lastState": {"terminated": given["last_ended"]} if given.get("last_ended") else {},
                }
            ],
        },
    }


def ended(reason: str, code: int, *, when: datetime, message: str = "") -> dict[str, Any]:
    """Return a terminated container state."""
    return {"reason": reason, "exitCode": code, "finishedAt": stamp(when), "message": message}


def ready_pod(name: str = "agent-support-1", *, revision: str = REVISION) -> PodView:
    """Return a pod that serves."""
    return make_pod(name, revision=revision, ready=True, ready_at=at(-20), running_since=at(-30))


def health(*failed: tuple[str, str, str], version: str = "1.2.3") -> HealthOut:
    """Return what a runtime says of itself; `failed` are (check, reason, message)."""
    broken = {name: CheckResult(name=name, ok=False, reason=reason, message=text) for name, reason, text in failed}
    checks = [broken.get(name, CheckResult(name=name, ok=True)) for name in ("loop", "store", "lease")]
    return HealthOut(ok=not broken, version=version, checks=checks)


def observe(*pods: PodView, **changes: Any) -> Observation:
    """Return an observation of these pods."""
    values: dict[str, Any] = {
        "now": NOW,
        "name": "support",
        "namespace": "shop",
        "generation": 3,
        "verdict": ACCEPTED,
        "suspended": False,
        "desired": 1,
        "revision": REVISION,
        "configured_model": "echo/echo",
        "models": tuple(make_agent().spec.models),
        "store": "pg.shop:5432",
        "pods": pods,
        **changes,
    }
    return Observation(**values)
