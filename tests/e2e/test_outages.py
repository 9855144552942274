"""Postgres that stops, dies or freezes, on a real node: status tells it, nothing is lost, nothing restarts."""

import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from tests.e2e.kube import Client, Kube, agent, wait_for
from tests.e2e.surroundings import (
    History,
    brief,
    frozen,
    pods_of,
    restarts_of,
    watching,
    watching_pod,
)

SYSTEM = "abide-system"
POSTGRES = "abide-postgres"
ADDRESS = f"{POSTGRES}.{SYSTEM}.svc:5432"
OUTAGE_SECONDS = 60.0
MARGIN = 0.5
"""What kubectl itself takes to show a change."""


@dataclass
class Scene:
    """An agent with one pod, and what it said from the beginning of the outage on."""

    kube: Kube
    namespace: str
    client: Client
    pod: dict[str, Any]
    ready: History
    pod_ready: History

    def wait_told(self, begun: float, reasons: str, *, seconds: float) -> None:
        """Wait until the pod is unready and status says why: at most 5 s later."""
        unready_at = self.pod_ready.wait("^False", seconds=seconds, since=begun)
        told_at = self.ready.wait("^False/StateStoreUnreachable$", seconds=15, since=begun)
        assert told_at - unready_at <= 5 + MARGIN, self.ready.all(begun)
        conditions = brief(self.kube, "desk", self.namespace)
        assert conditions["StateStoreReady"] in [f"False/{reason}" for reason in reasons.split()]
        assert conditions["Degraded"] == "False/NotServing"
        assert conditions["ModelReachable"] == "True/Reachable"
        message = self.kube.condition("desk", self.namespace, "Ready")["message"]
        assert message.startswith(f"Postgres {ADDRESS} ")
        assert "New messages are refused with 503; acknowledged ones are kept and go on afterwards." in message

    def refuse(self) -> None:
        """Send a message that must be refused with 503 and the time to come again."""
        with self.kube.forward("desk", self.namespace, pod=self.pod["metadata"]["name"]) as url:
            answer = httpx.post(
                f"{url}/v1/agents/{self.namespace}/desk/sessions/refused/messages",
                json={"content": "too early"},
                headers=self.client.headers,
                timeout=30,
            )
        assert answer.status_code == 503, answer.text
        assert int(answer.headers["retry-after"]) > 0

    def unharmed(self) -> None:
        """Nothing restarted, nothing was rolled, and the probe was never the reason."""
        (pod,) = pods_of(self.kube, "desk", self.namespace)
        assert pod["metadata"]["uid"] == self.pod["metadata"]["uid"]
        assert restarts_of(pod) == 0
        assert not any("ProbeFailing" in state for state in self.ready.all()), self.ready.all()


@contextmanager
def serving(kube: Kube, namespace: str, *, delay: float = 0) -> Iterator[Scene]:
    """Yield an agent that serves and has answered once."""
    models = [{"name": "primary", "provider": "echo", "parameters": {"delaySeconds": delay}}]
    kube.apply(agent("desk", models=models), namespace)
    kube.wait_ready("desk", namespace)
    client = Client(kube, "desk", namespace)
    assert client.send("s", "before")["reply"] == {"content": "before [1]"}
    (pod,) = pods_of(kube, "desk", namespace)
    with (
        watching(kube, "agents.abide.dev", "desk", namespace) as ready,
        watching_pod(kube, pod["metadata"]["name"], namespace) as pod_ready,
    ):
        ready.wait("^True/Serving$", seconds=10)
        yield Scene(kube, namespace, client, pod, ready, pod_ready)


def acknowledge(client: Client, session: str, content: str) -> tuple[str, str]:
    """Send a message without waiting for its reply; return its key and turn."""
    key = uuid.uuid4().hex
    answer = client.request(
        "POST",
        f"/sessions/{session}/messages",
        json={"content": content},
        headers={"Idempotency-Key": key, "Prefer": "respond-async"},
    )
    assert answer.status_code == 202, answer.text
    return key, str(answer.json()["turn"]["id"])


def reply_to(client: Client, turn: str) -> str:
    """Wait for the reply to a turn."""

    def check() -> str | None:
        answer = client.request("GET", f"/turns/{turn}").json()
        return str(answer["reply"]["content"]) if answer["turn"]["status"] == "completed" else None

    return wait_for(check, seconds=60, what="the reply to an acknowledged message")


def postgres_is_ready(kube: Kube) -> bool:
    found = kube.get("statefulset", POSTGRES, SYSTEM)
    return found is not None and found["status"].get("readyReplicas", 0) == 1


def test_postgres_is_stopped_for_a_minute(kube: Kube, namespace: str) -> None:
    kube.apply(agent("leaving"), namespace)
    with serving(kube, namespace, delay=4) as scene:
        running = acknowledge(scene.client, "s", "runs")
        waiting = acknowledge(scene.client, "s", "waits")
        begun = time.monotonic()
        kube.run("scale", "statefulset", POSTGRES, "-n", SYSTEM, "--replicas=0")
        try:
            scene.wait_told(begun, "ConnectionRefused Timeout", seconds=40)
            scene.refuse()
            # Deleting an agent needs no Postgres.
            kube.run("delete", "agents.abide.dev/leaving", "-n", namespace, "--timeout=20s")
            told_at = time.monotonic()

            def a_minute_is_over() -> bool:
                assert kube.condition("desk", namespace, "Ready")["reason"] == "StateStoreUnreachable"
                return time.monotonic() - begun >= OUTAGE_SECONDS

            wait_for(a_minute_is_over, seconds=OUTAGE_SECONDS + 20, what="the end of the outage")
            assert set(scene.ready.all(told_at)) <= {"False/StateStoreUnreachable"}
        finally:
            kube.run("scale", "statefulset", POSTGRES, "-n", SYSTEM, "--replicas=1")
        wait_for(lambda: postgres_is_ready(kube), seconds=120, what="Postgres to be ready")
        back_at = time.monotonic()
        assert scene.ready.wait("^True/Serving$", seconds=30, since=begun) - back_at <= 10
        assert reply_to(scene.client, running[1]) == "runs [2]"
        assert reply_to(scene.client, waiting[1]) == "waits [3]"
        assert scene.client.send("s", "waits", waiting[0])["turn"]["id"] == waiting[1]
        assert [one["content"] for one in scene.client.history("s")] == [
            "before", "before [1]", "runs", "runs [2]", "waits", "waits [3]",
        ]  # fmt: skip
        scene.unharmed()


def test_postgres_is_killed(kube: Kube, namespace: str) -> None:
    with serving(kube, namespace, delay=2) as scene:
        _, turn = acknowledge(scene.client, "s", "runs")
        begun = time.monotonic()
        kube.run("delete", "pod", f"{POSTGRES}-0", "-n", SYSTEM, "--grace-period=0", "--force")
        wait_for(lambda: postgres_is_ready(kube), seconds=120, what="Postgres to be ready")
        back_at = time.monotonic()
        assert reply_to(scene.client, turn) == "runs [2]"

        def serves() -> bool:
            return brief(kube, "desk", namespace)["Ready"] == "True/Serving"

        # It may have been so short that nobody noticed; if not, it is over soon after.
        wait_for(serves, seconds=10 - min(9.0, time.monotonic() - back_at), what="the agent to serve again")
        assert set(scene.ready.all(begun)) <= {"True/Serving", "False/StateStoreUnreachable", "False/Starting"}
        assert scene.client.send("s", "after")["reply"] == {"content": "after [3]"}
        scene.unharmed()


def test_postgres_is_frozen(kube: Kube, namespace: str) -> None:
    with serving(kube, namespace, delay=2) as scene:
        database = kube.get("pod", f"{POSTGRES}-0", SYSTEM)
        assert database is not None
        _, turn = acknowledge(scene.client, "s", "runs")
        begun = time.monotonic()
        with frozen(database["metadata"]["uid"]) as thaw:
            scene.wait_told(begun, "Timeout", seconds=40)
            back_at = thaw()
        assert scene.ready.wait("^True/Serving$", seconds=30, since=back_at) - back_at <= 10
        assert reply_to(scene.client, turn) == "runs [2]"
        assert [one["content"] for one in scene.client.history("s")] == ["before", "before [1]", "runs", "runs [2]"]
        scene.unharmed()
