"""The cluster of `python3 -m tests.cluster up` does what the other end-to-end tests take for granted.

It is shared with them, so nothing here takes it down; everything lives in a namespace that is removed at the end.
"""

import json
import os
import re
import secrets
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.e2e

REPOSITORY = Path(__file__).resolve().parents[2]
RESTRICTED = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
    "runAsNonRoot": True,
    "seccompProfile": {"type": "RuntimeDefault"},
}


def run_tool(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.cluster", *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=550,
        check=False,
    )


class Namespace:
    """kubectl in one namespace that asks for the `restricted` Pod Security level."""

    def __init__(self, kubectl: str, kubeconfig: str, image: str) -> None:
        self.name = f"cluster-tool-{secrets.token_hex(4)}"
        self.image = image
        self._command = [kubectl, f"--namespace={self.name}"]
        self._environ = {**os.environ, "KUBECONFIG": kubeconfig}

    def try_kubectl(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self._command, *arguments],
            input=stdin,
            env=self._environ,
            capture_output=True,
            text=True,
            timeout=150,
            check=False,
        )

    def kubectl(self, *arguments: str, stdin: str = "") -> str:
        done = self.try_kubectl(*arguments, stdin=stdin)
        assert done.returncode == 0, f"kubectl {' '.join(arguments)}: {done.stderr}"
        return done.stdout

    def apply(self, *objects: dict[str, Any]) -> None:
        self.kubectl("apply", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        return subprocess.Popen([*self._command, *arguments], env=self._environ, stdout=subprocess.PIPE, text=True)

    def pod(self, name: str, program: str, *, restart: str = "Always", **container: Any) -> dict[str, Any]:
        """A pod that runs a Python program under the strictest Pod Security level."""
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "labels": {"app": name}},
            "spec": {
                "restartPolicy": restart,
                "terminationGracePeriodSeconds": 0,
                "securityContext": {"runAsUser": 12345, "runAsGroup": 12345, "fsGroup": 12345},
                "containers": [
                    {
                        "name": "main",
                        "image": self.image,
                        "imagePullPolicy": "IfNotPresent",
                        "command": ["python3", "-c", program],
                        "securityContext": RESTRICTED,
                        **container,
                    }
                ],
            },
        }


@pytest.fixture(scope="module")
def namespace() -> Iterator[Namespace]:
    for words in (("up",), ("images", "runtime")):
        done = run_tool(*words)
        assert done.returncode == 0, done.stderr
    kubeconfig, kubectl = (run_tool(*words).stdout.strip() for words in (("kubeconfig",), ("tool", "kubectl")))
    made = Namespace(kubectl, kubeconfig, done.stdout.split()[1])
    made.apply(
        {
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {"name": made.name, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}},
        }
    )
    try:
        yield made
    finally:
        made.kubectl("delete", "namespace", made.name, "--timeout=120s")


SERVE = """
import http.server
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(b"served")
    def log_message(self, *words):
        print("request", self.path, flush=True)
http.server.ThreadingHTTPServer(("", 8080), Handler).serve_forever()
"""


@pytest.fixture(scope="module")
def server(namespace: Namespace) -> str:
    """A restricted pod that serves HTTP behind the Service `web`; the value is the pod's name."""
    namespace.apply(
        namespace.pod(
            "server", SERVE, readinessProbe={"httpGet": {"path": "/ready", "port": 8080}, "periodSeconds": 1}
        ),
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "web"},
            "spec": {"selector": {"app": "server"}, "ports": [{"port": 80, "targetPort": 8080}]},
        },
    )
    namespace.kubectl("wait", "pod/server", "--for=condition=Ready", "--timeout=120s")
    return "server"


def fetch_inside(namespace: Namespace, pod: str, host: str) -> str:
    """Fetch a URL from inside a pod. Retried for as long as routes to a new Service may take to appear."""
    program = f"""
import time, urllib.request
deadline = time.monotonic() + 20
while True:
    try:
        print(urllib.request.urlopen("http://{host}/inside", timeout=5).read().decode())
        break
    except OSError:
        if time.monotonic() > deadline:
            raise
        time.sleep(0.2)
"""
    return namespace.kubectl("exec", pod, "--", "python3", "-c", program).strip()


def test_a_second_up_changes_nothing_and_takes_under_five_seconds(namespace: Namespace) -> None:
    before = namespace.kubectl("get", "namespace", "kube-system", "-o", "jsonpath={.metadata.uid}")
    begin = time.monotonic()
    done = run_tool("up")
    seconds = time.monotonic() - begin
    assert done.returncode == 0, done.stderr
    assert seconds < 5
    assert namespace.kubectl("get", "namespace", "kube-system", "-o", "jsonpath={.metadata.uid}") == before


def test_status_says_that_the_cluster_is_healthy() -> None:
    done = run_tool("status")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^healthy +yes$", done.stdout, re.MULTILINE)


def test_image_that_did_not_change_is_not_built_again() -> None:
    first = run_tool("images", "postgres")
    assert first.returncode == 0, first.stderr
    second = run_tool("images", "postgres")
    assert second.stderr.strip().endswith(" is unchanged"), second.stderr


def test_restricted_pod_is_reached_by_name_and_by_cluster_address(namespace: Namespace, server: str) -> None:
    namespace.apply(namespace.pod("client", "import signal; signal.pause()"))
    namespace.kubectl("wait", "pod/client", "--for=condition=Ready", "--timeout=120s")
    address = namespace.kubectl("get", "service", "web", "-o", "jsonpath={.spec.clusterIP}")
    assert fetch_inside(namespace, "client", f"web.{namespace.name}.svc.cluster.local") == "served"
    assert fetch_inside(namespace, "client", address) == "served"
    # A pod must also reach itself through its own Service.
    assert fetch_inside(namespace, server, "web") == "served"


def test_logs_show_what_a_pod_wrote(namespace: Namespace, server: str) -> None:
    assert "request /ready" in namespace.kubectl("logs", server)


def test_port_forward_reaches_a_pod(namespace: Namespace, server: str) -> None:
    with namespace.start("port-forward", f"pod/{server}", ":8080", "--address=127.0.0.1") as forward:
        watchdog = threading.Timer(60, forward.kill)
        watchdog.start()
        try:
            assert forward.stdout is not None
            found = re.search(r"127\.0\.0\.1:(\d+)", forward.stdout.readline())
            assert found, "port-forward ended without saying its port"
            with urllib.request.urlopen(f"http://127.0.0.1:{found[1]}/forwarded", timeout=20) as answer:
                assert answer.read() == b"served"
        finally:
            watchdog.cancel()
            forward.kill()


def test_privileged_pod_is_refused_in_a_restricted_namespace(namespace: Namespace) -> None:
    pod = namespace.pod("privileged", "", securityContext={"privileged": True})
    done = namespace.try_kubectl("apply", "-f", "-", stdin=json.dumps(pod))
    assert done.returncode != 0
    assert "violates PodSecurity" in done.stderr


def test_claim_gets_a_volume_that_outlives_its_pod_and_goes_with_the_claim(namespace: Namespace) -> None:
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "data"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
    }
    namespace.apply(claim)

    def finish(name: str, program: str) -> str:
        pod = namespace.pod(name, program, restart="Never", volumeMounts=[{"name": "data", "mountPath": "/data"}])
        pod["spec"]["volumes"] = [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}]
        namespace.apply(pod)
        namespace.kubectl("wait", f"pod/{name}", "--for=jsonpath={.status.phase}=Succeeded", "--timeout=120s")
        said = namespace.kubectl("logs", name).strip()
        namespace.kubectl("delete", "pod", name, "--timeout=60s")
        return said

    finish("writer", "open('/data/kept', 'w').write('kept')")
    assert finish("reader", "print(open('/data/kept').read())") == "kept"
    volume = namespace.kubectl("get", "pvc", "data", "-o", "jsonpath={.spec.volumeName}")
    namespace.kubectl("delete", "pvc", "data", "--timeout=60s")
    namespace.kubectl("wait", f"pv/{volume}", "--for=delete", "--timeout=60s")


def test_container_over_its_memory_limit_ends_as_oom_killed(namespace: Namespace) -> None:
    limits = {"limits": {"memory": "48Mi"}, "requests": {"memory": "48Mi"}}
    namespace.apply(namespace.pod("greedy", "bytes([1]) * (256 << 20)", resources=limits))
    reason = "jsonpath={.status.containerStatuses[0].lastState.terminated.reason}"
    namespace.kubectl("wait", "pod/greedy", f"--for={reason}=OOMKilled", "--timeout=120s")
