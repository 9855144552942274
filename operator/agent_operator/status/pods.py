"""A pod as status needs it, parsed once from the API server's JSON."""

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final

from agent_api.labels import LABEL_REVISION
from agent_operator.resources.inputs import CONTAINER

MESSAGE_LIMIT: Final = 300


@dataclass(frozen=True, slots=True)
class Ended:
    """How a container ended. `message` holds its last words."""

    reason: str
    exit_code: int
    message: str
    at: datetime | None


@dataclass(frozen=True, slots=True)
class PodView:
    """One pod. Times are aware UTC; texts come from the kubelet and the scheduler as they are.

    `waiting` and `waiting_message` say why the container does not run; `ended` how its present or last run ended.
    `started` is when the present run began. `unscheduled` is the scheduler's message while no node takes the pod.
    """

    name: str
    uid: str
    version: int
    revision: str
    phase: str
    ip: str
    image: str
    memory_limit: str
    created_at: datetime
    deleting: bool
    ready: bool
    ready_at: datetime | None
    unscheduled: str | None
    unscheduled_at: datetime | None
    waiting: str
    waiting_message: str
    started: datetime | None
    restarts: int
    ended: Ended | None
    failed_reason: str

    @property
    def running(self) -> bool:
        """Whether the container runs now."""
        return self.started is not None

    @property
    def serving(self) -> bool:
        """Whether the Service sends messages to the pod."""
        return self.ready and not self.deleting

    @property
    def finished(self) -> bool:
        """Whether the pod is over, for example evicted: its Deployment replaces it."""
        return self.phase in ("Failed", "Succeeded")

    def same_as(self, other: "PodView") -> bool:
        """Whether nothing but the version differs."""
        return self == replace(other, version=self.version)


def parse_pod(body: dict[str, Any]) -> PodView:
    """Return the view of a live pod; absent parts read as not known yet."""
    metadata, spec, status = body["metadata"], body.get("spec") or {}, body.get("status") or {}
    container: dict[str, Any] = next(
        (item for item in spec.get("containers") or () if item.get("name") == CONTAINER), {}
    )
    state: dict[str, Any] = next(
        (item for item in status.get("containerStatuses") or () if item.get("name") == CONTAINER), {}
    )
    current = state.get("state") or {}
    waiting = current.get("waiting") or {}
    conditions = {item["type"]: item for item in status.get("conditions") or ()}
    ready, scheduled = conditions.get("Ready", {}), conditions.get("PodScheduled", {})
    unschedulable = scheduled.get("status") == "False" and scheduled.get("reason") == "Unschedulable"
    return PodView(
        name=metadata["name"],
        uid=metadata["uid"],
        version=int(metadata["resourceVersion"]),
        revision=(metadata.get("labels") or {}).get(LABEL_REVISION, ""),
        phase=status.get("phase", ""),
        ip=status.get("podIP", ""),
        image=container.get("image", ""),
        memory_limit=((container.get("resources") or {}).get("limits") or {}).get("memory", ""),
        created_at=parse_time(metadata["creationTimestamp"]) or datetime.fromtimestamp(0, UTC),
        deleting=bool(metadata.get("deletionTimestamp")),
        ready=ready.get("status") == "True",
        ready_at=parse_time(ready.get("lastTransitionTime")),
        unscheduled=_shorten(scheduled.get("message", "")) if unschedulable else None,
        unscheduled_at=parse_time(scheduled.get("lastTransitionTime")) if unschedulable else None,
        waiting=waiting.get("reason", ""),
        waiting_message=_shorten(waiting.get("message", "")),
        started=parse_time((current.get("running") or {}).get("startedAt")),
        restarts=int(state.get("restartCount", 0)),
        ended=_parse_ended(current.get("terminated") or (state.get("lastState") or {}).get("terminated")),
        failed_reason=status.get("reason", "") if status.get("phase") == "Failed" else "",
    )


def _parse_ended(terminated: dict[str, Any] | None) -> Ended | None:
    if not terminated:
        return None
    return Ended(
        reason=terminated.get("reason", ""),
        exit_code=int(terminated.get("exitCode", 0)),
        message=terminated.get("message", "")[-4 * MESSAGE_LIMIT :],
        at=parse_time(terminated.get("finishedAt")),
    )


def _shorten(text: str) -> str:
    return text if len(text) <= MESSAGE_LIMIT else text[: MESSAGE_LIMIT - 1] + "…"


def parse_time(text: str | None) -> datetime | None:
    """Return a Kubernetes timestamp as aware UTC; None stays None."""
    return datetime.fromisoformat(text).astimezone(UTC) if text else None
