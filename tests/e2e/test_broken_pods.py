"""Pods that are killed, starve or freeze, on a real node: what status says, and that the chat goes on."""

import time
import uuid
from datetime import datetime
from typing import Any

import httpx
import pytest

from tests.e2e.kube import Client, Kube, agent, wait_for
from tests.e2e.surroundings import (
    brief,
    frozen,
    kill_processes,
    pods_of,
    restarts_of,
    status_of,
    watching,
    watching_pod,
)

MARGIN = 0.5
"""What kubectl itself takes to show a change."""
STARVED = {"resources": {"requests": {"memory": "32Mi"}, "limits": {"memory": "32Mi"}}}
"""Half of what the runtime's imports need."""
NO_IMAGE = {"image": "localhost:1/nobody/nothing:1"}
"""Nobody listens there: the pull fails at once."""


def container_of(pod: dict[str, Any]) -> dict[str, Any]:
    return next(iter(pod["status"].get("containerStatuses") or []), {})


def first_kill(pod: dict[str, Any]) -> float:
    """Return when the container's run ended (time.time), 0 if it did not yet."""
    container = container_of(pod)
    ended = (container.get("state") or {}).get("terminated") or (container.get("lastState") or {}).get("terminated")
    return datetime.fromisoformat(ended["finishedAt"]).timestamp() if ended else 0.0


def test_a_pod_that_is_killed_for_memory_again_and_again(kube: Kube, namespace: str) -> None:
    kube.apply(agent("desk", runtime=STARVED), namespace)
    with watching(kube, "agents.abide.dev", "desk", namespace) as ready:
        ended_at = wait_for(
            lambda: next((first_kill(pod) for pod in pods_of(kube, "desk", namespace)), 0.0),
            seconds=60,
            what="the first kill",
        )
        told_at = ready.wait("^False/OOMKilled$", seconds=15)
        # The kubelet tells when it ended in whole seconds.
        assert time.time() - (time.monotonic() - told_at) - ended_at <= 5 + 1 + MARGIN

        def looping() -> bool:
            return all(restarts_of(pod) >= 3 for pod in pods_of(kube, "desk", namespace))

        wait_for(looping, seconds=90, what="a few restarts")
        assert ready.all(told_at) == ["False/OOMKilled"]
        status = status_of(kube, "desk", namespace)
        assert (status["desiredReplicas"], status["readyReplicas"]) == (1, 0)
        assert brief(kube, "desk", namespace)["Degraded"] == "False/NotServing"
        message = kube.condition("desk", namespace, "Ready")["message"]
        assert message.startswith("Container runtime killed for memory (limit 32Mi) repeatedly since ")
        assert "Raise spec.runtime.resources.limits.memory." in message
        kube.apply(agent("desk"), namespace)
        ready.wait("^True/Serving$", seconds=60, since=told_at)
    assert Client(kube, "desk", namespace).send("s", "hello")["reply"] == {"content": "hello [1]"}


def test_the_chat_goes_on_after_the_node_kills_the_process(kube: Kube, namespace: str) -> None:
    kube.apply(agent("desk"), namespace)
    kube.wait_ready("desk", namespace)
    client = Client(kube, "desk", namespace)
    assert client.send("s", "before")["reply"] == {"content": "before [1]"}
    (pod,) = pods_of(kube, "desk", namespace)
    kill_processes(pod["metadata"]["uid"])
    assert client.send("s", "after")["reply"] == {"content": "after [2]"}

    def restarted() -> bool:
        (now,) = pods_of(kube, "desk", namespace)
        return restarts_of(now) == 1 and now["metadata"]["uid"] == pod["metadata"]["uid"]

    wait_for(restarted, seconds=30, what="the container's restart")
    kube.wait_condition("desk", namespace, "Ready", "True", "Serving", seconds=30)
    assert [one["content"] for one in client.history("s")] == ["before", "before [1]", "after", "after [2]"]


@pytest.mark.parametrize(
    ("runtime", "cause", "shown"),
    [(STARVED, "OOMKilled", "OOMKilled"), (NO_IMAGE, "ImagePullFailed", "ErrImagePull|ImagePullBackOff")],
    ids=["memory", "image"],
)
def test_only_the_new_revision_is_broken(
    kube: Kube, namespace: str, runtime: dict[str, Any], cause: str, shown: str
) -> None:
    kube.apply(agent("desk"), namespace)
    kube.wait_ready("desk", namespace)
    (old,) = pods_of(kube, "desk", namespace)
    with watching(kube, "agents.abide.dev", "desk", namespace) as ready:
        ready.wait("^True/Serving$", seconds=10)
        kube.apply(agent("desk", runtime=runtime), namespace)

        def new_pod() -> str:
            names = [pod["metadata"]["name"] for pod in pods_of(kube, "desk", namespace)]
            return next((name for name in names if name != old["metadata"]["name"]), "")

        name = wait_for(new_pod, seconds=30, what="a pod of the new revision")
        with watching_pod(kube, name, namespace) as pod:
            shown_at = pod.wait(shown, seconds=60)
            told_at = ready.wait("^True/RolloutFailed$", seconds=15)
        assert told_at - shown_at <= 5 + MARGIN
        conditions = brief(kube, "desk", namespace)
        assert conditions["Progressing"] == "False/RolloutFailed"
        assert conditions["Degraded"] == f"True/{cause}"
        status = status_of(kube, "desk", namespace)
        assert (status["desiredReplicas"], status["readyReplicas"]) == (1, 1)
        message = kube.condition("desk", namespace, "Ready")["message"]
        assert message.startswith(f"Revision {status['revision']['current']} does not become ready since ")
        assert f"revision {status['revision']['ready']} keeps serving." in message
        assert Client(kube, "desk", namespace).send("s", "hello")["reply"] == {"content": "hello [1]"}
        mended_at = time.monotonic()
        kube.apply(agent("desk"), namespace)
        ready.wait("^True/Serving$", seconds=60, since=mended_at)
        assert not any(state.startswith("False") for state in ready.all()), ready.all()

    def only_the_old_one() -> bool:
        return [one["metadata"]["uid"] for one in pods_of(kube, "desk", namespace)] == [old["metadata"]["uid"]]

    wait_for(only_the_old_one, seconds=60, what="the broken pod to go")


def test_one_of_two_pods_freezes_and_the_other_takes_its_sessions_over(kube: Kube, namespace: str) -> None:
    delay = 3.0
    slow = [{"name": "primary", "provider": "echo", "parameters": {"delaySeconds": delay}}]
    kube.apply(agent("desk", models=slow, replicas=2), namespace)
    kube.wait_ready("desk", namespace)

    def both_ready() -> bool:
        return bool(status_of(kube, "desk", namespace).get("readyReplicas") == 2)

    wait_for(both_ready, seconds=60, what="two ready pods")
    broken, healthy = pods_of(kube, "desk", namespace)
    client = Client(kube, "desk", namespace)
    path = f"/v1/agents/{namespace}/desk"
    with (
        watching(kube, "agents.abide.dev", "desk", namespace) as ready,
        watching_pod(kube, broken["metadata"]["name"], namespace) as pod,
        kube.forward("desk", namespace, pod=healthy["metadata"]["name"]) as other,
    ):
        ready.wait("^True/Serving$", seconds=10)
        pod.wait("^True", seconds=10)
        with kube.forward("desk", namespace, pod=broken["metadata"]["name"]) as url:
            accepted = httpx.post(
                f"{url}{path}/sessions/s/messages",
                json={"content": "hello"},
                headers={**client.headers, "Prefer": "respond-async", "Idempotency-Key": uuid.uuid4().hex},
                timeout=30,
            )
        assert accepted.status_code == 202, accepted.text
        turn = accepted.json()["turn"]["id"]
        with frozen(broken["metadata"]["uid"]) as thaw:
            frozen_at = time.monotonic()

            def answered() -> dict[str, Any] | None:
                found = httpx.get(f"{other}{path}/turns/{turn}", headers=client.headers, timeout=30).json()
                return dict(found) if found["turn"]["status"] == "completed" else None

            outcome = wait_for(answered, seconds=30, what="the reply by the other pod")
            # Within 10 s it is taken over; then the model takes its time again.
            assert time.monotonic() - frozen_at <= 10 + delay + MARGIN
            assert outcome["reply"] == {"content": "hello [1]"}
            assert outcome["turn"]["attempts"] == 2
            unready_at = pod.wait("^False", seconds=30, since=frozen_at)
            told_at = ready.wait("^True/ProbeFailing$", seconds=15, since=frozen_at)
            assert told_at - unready_at <= 5 + MARGIN
            assert brief(kube, "desk", namespace)["Degraded"] == "True/ProbeFailing"
            message = kube.condition("desk", namespace, "Ready")["message"]
            assert message.startswith("1 of 2 pods: ")
            assert "its sessions were taken over." in message
            status = status_of(kube, "desk", namespace)
            assert (status["desiredReplicas"], status["readyReplicas"]) == (2, 1)
            thawed_at = thaw()
        ready.wait("^True/Serving$", seconds=60, since=thawed_at)
        assert not any(state.startswith("False") for state in ready.all()), ready.all()
    assert [one["content"] for one in client.history("s")] == ["hello", "hello [1]"]
