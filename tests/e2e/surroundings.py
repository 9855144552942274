"""What lies around an agent: a model provider on this machine, the node's processes, and what status said over time."""

import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.e2e.kube import Kube, wait_for

READY_PATH: Final = (
    '{.status.conditions[?(@.type=="Ready")].status}/{.status.conditions[?(@.type=="Ready")].reason}{"\\n"}'
)
POD_PATH: Final = (
    '{.status.conditions[?(@.type=="Ready")].status} '
    "{.status.containerStatuses[*].state.waiting.reason} "
    "{.status.containerStatuses[*].state.terminated.reason} "
    '{.status.containerStatuses[*].lastState.terminated.reason}{"\\n"}'
)


# ---- addresses


def find_host_address(kube: Kube) -> str:
    """Return an address of this machine that pods reach."""
    path = '{.items[0].status.addresses[?(@.type=="InternalIP")].address}'
    node = kube.run("get", "nodes", "-o", f"jsonpath={path}").split()[0]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        # Nothing is sent: connecting a datagram socket only picks the route, and with it our own address.
        probe.connect((node, 9))
        return str(probe.getsockname()[0])


def expose(kube: Kube, namespace: str, port: int, *, name: str = "model") -> str:
    """Make a Service that leads to a port of this machine; return what an Agent names as baseURL."""
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {"ports": [{"name": "http", "port": port, "targetPort": port}]},
    }
    slice_ = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": name, "labels": {"kubernetes.io/service-name": name}},
        "addressType": "IPv4",
        "endpoints": [{"addresses": [find_host_address(kube)], "conditions": {"ready": True}}],
        "ports": [{"name": "http", "port": port, "protocol": "TCP"}],
    }
    kube.apply(service, namespace)
    kube.apply(slice_, namespace)
    return f"http://{name}.{namespace}.svc:{port}/v1"


# ---- processes of the node


def find_processes(pod_uid: str) -> list[int]:
    """Return the processes of a pod's containers, which this machine sees as the node's or as those of a node in it."""
    marks = (f"pod{pod_uid}", f"pod{pod_uid.replace('-', '_')}")
    found: list[int] = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal():
            continue
        try:
            groups, name = (folder / "cgroup").read_text(), (folder / "comm").read_text().strip()
        except OSError:
            continue
        if name != "pause" and any(mark in groups for mark in marks):
            found.append(int(folder.name))
    assert found, f"no process of pod {pod_uid} on this machine: run these tests where the node's processes are"
    return found


def kill_processes(pod_uid: str) -> None:
    """End the processes of a pod's containers as a node would: at once."""
    for pid in find_processes(pod_uid):
        _send(pid, signal.SIGKILL)


@contextmanager
def frozen(pod_uid: str) -> Iterator[Callable[[], float]]:
    """Stop the processes of a pod's containers for the length of the block, or until the yielded function is called.

    The function returns when it let them go on (time.monotonic).
    """
    pids = find_processes(pod_uid)
    for pid in pids:
        _send(pid, signal.SIGSTOP)

    def thaw() -> float:
        for pid in pids:
            _send(pid, signal.SIGCONT)
        return time.monotonic()

    try:
        yield thaw
    finally:
        thaw()


def _send(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


# ---- what was said over time


@dataclass
class History:
    """Every state a watch showed, with the instant (time.monotonic) it was seen."""

    what: str
    seen: list[tuple[float, str]] = field(default_factory=list)

    def all(self, since: float = 0.0) -> list[str]:
        """Return the distinct states from an instant on, in order, without repetition."""
        states = [state for at, state in list(self.seen) if at >= since]
        return [state for index, state in enumerate(states) if not index or states[index - 1] != state]

    def wait(self, wanted: str, *, seconds: float, since: float = 0.0) -> float:
        """Wait for a state that matches the pattern, seen at `since` or later; return when it was first seen."""

        def check() -> float | None:
            return next((at for at, state in list(self.seen) if at >= since and re.search(wanted, state)), None)

        try:
            return wait_for(check, seconds=seconds, what=f"{self.what}: {wanted}")
        except AssertionError as error:
            raise AssertionError(f"{error}; seen: {self.all(since)}") from None


@contextmanager
def watching(kube: Kube, kind: str, name: str, namespace: str, path: str = READY_PATH) -> Iterator[History]:
    """Watch one object for the length of the block, as `kubectl get --watch` shows it."""
    process = subprocess.Popen(
        [kube.kubectl, "get", kind, name, "-n", namespace, "--watch", "-o", f"jsonpath={path}"],
        env=kube.environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    history = History(f"{kind} {namespace}/{name}")
    assert process.stdout is not None
    assert process.stderr is not None
    stdout = process.stdout

    def read() -> None:
        for line in stdout:
            history.seen.append((time.monotonic(), " ".join(line.split())))

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        yield history
    finally:
        process.terminate()
        process.wait(10)
        reader.join(10)
        process.stdout.close()
        process.stderr.close()


def watching_pod(kube: Kube, pod: str, namespace: str) -> AbstractContextManager[History]:
    """Watch a pod: `<ready> <why its container waits> <how it ended> <how it ended before>`, without what is absent."""
    return watching(kube, "pods", pod, namespace, POD_PATH)


# ---- shortcuts


def pods_of(kube: Kube, name: str, namespace: str) -> list[dict[str, Any]]:
    """Return the agent's pods that are not being deleted."""
    found = kube.items("pods", namespace, f"abide.dev/agent={name}")
    return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]


def restarts_of(pod: dict[str, Any]) -> int:
    """Return how often the pod's container was restarted."""
    return sum(int(one["restartCount"]) for one in pod["status"].get("containerStatuses") or ())


def status_of(kube: Kube, name: str, namespace: str) -> dict[str, Any]:
    """Return the Agent's status."""
    found = kube.get("agents.abide.dev", name, namespace)
    assert found is not None
    return dict(found.get("status") or {})


def brief(kube: Kube, name: str, namespace: str) -> dict[str, str]:
    """Return `status/reason` of each condition."""
    conditions = status_of(kube, name, namespace).get("conditions") or []
    return {one["type"]: f"{one['status']}/{one['reason']}" for one in conditions}
