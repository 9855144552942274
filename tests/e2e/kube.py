"""kubectl, helm and HTTP as a user has them; every wait is on a condition and has a deadline."""

import json
import os
import re
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar

import httpx
import yaml

T = TypeVar("T")


def wait_for(check: Callable[[], T | None], *, seconds: float, what: str) -> T:
    """Return the first truthy result of `check`, asked 5 times a second, or fail after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        result = check()
        if result:
            return result
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {what}")
        time.sleep(0.2)


@dataclass
class Kube:
    """A cluster reached by kubectl."""

    kubectl: str
    helm: str
    kubeconfig: str

    @property
    def environ(self) -> dict[str, str]:
        """The environment of a user who works with this cluster."""
        path = f"{os.path.dirname(self.kubectl)}:{os.environ['PATH']}"
        return {**os.environ, "KUBECONFIG": self.kubeconfig, "PATH": path}

    def try_run(
        self, *arguments: str, stdin: str | None = None, timeout: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """Run kubectl and return what it said, whatever its exit code."""
        return subprocess.run(
            [self.kubectl, *arguments],
            input=stdin,
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def run(self, *arguments: str, stdin: str | None = None, timeout: float = 120) -> str:
        """Run kubectl and return its output; fail the test when it fails."""
        result = self.try_run(*arguments, stdin=stdin, timeout=timeout)
        assert result.returncode == 0, f"kubectl {' '.join(arguments)}: {result.stderr}{result.stdout}"
        return result.stdout

    def get(self, kind: str, name: str, namespace: str) -> dict[str, Any] | None:
        """Return the object, or None where there is none."""
        result = self.try_run("get", kind, name, "-n", namespace, "-o", "json", "--ignore-not-found")
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout) if result.stdout.strip() else None

    def items(self, kind: str, namespace: str, selector: str = "") -> list[dict[str, Any]]:
        """Return the objects of a kind."""
        found = self.run("get", kind, "-n", namespace, "-l", selector, "-o", "json")
        return list(json.loads(found)["items"])

    def apply(self, manifest: dict[str, Any] | str, namespace: str) -> str:
        """Apply as `kubectl apply -f -` does."""
        text = manifest if isinstance(manifest, str) else yaml.safe_dump(manifest)
        return self.run("apply", "-n", namespace, "-f", "-", stdin=text)

    def refuse(self, manifest: dict[str, Any], namespace: str) -> str:
        """Apply a manifest that must be refused and return the words of the refusal."""
        result = self.try_run("apply", "-n", namespace, "-f", "-", stdin=yaml.safe_dump(manifest))
        assert result.returncode != 0, f"accepted: {manifest}"
        return result.stderr

    def wait_ready(self, name: str, namespace: str, seconds: int = 90) -> None:
        """Wait as a user does, with `kubectl wait`."""
        self.run(
            "wait",
            "--for=condition=Ready",
            f"agents.abide.dev/{name}",
            "-n",
            namespace,
            f"--timeout={seconds}s",
            timeout=seconds + 30,
        )

    def condition(self, name: str, namespace: str, condition: str) -> dict[str, Any]:
        """Return one condition of an Agent, {} while it is absent."""
        agent = self.get("agents.abide.dev", name, namespace) or {}
        conditions = agent.get("status", {}).get("conditions", [])
        return next((found for found in conditions if found["type"] == condition), {})

    def wait_condition(
        self, name: str, namespace: str, condition: str, status: str, reason: str, *, seconds: float
    ) -> dict[str, Any]:
        """Wait until the condition has this status and reason."""

        def check() -> dict[str, Any] | None:
            found = self.condition(name, namespace, condition)
            return found if (found.get("status"), found.get("reason")) == (status, reason) else None

        return wait_for(check, seconds=seconds, what=f"{condition}={status}/{reason} of agent {namespace}/{name}")

    def pod(self, name: str, namespace: str) -> dict[str, Any]:
        """Return the agent's one ready pod."""

        def check() -> dict[str, Any] | None:
            for pod in self.items("pods", namespace, f"abide.dev/agent={name}"):
                ready = any(
                    c["type"] == "Ready" and c["status"] == "True" for c in pod.get("status", {}).get("conditions", [])
                )
                if ready and "deletionTimestamp" not in pod["metadata"]:
                    return pod
            return None

        return wait_for(check, seconds=90, what=f"a ready pod of {namespace}/{name}")

    def api_key(self, name: str, namespace: str) -> str:
        """Return the agent's generated API key as the README shows."""
        encoded = self.run(
            "get", "secret", f"agent-{name}-api", "-n", namespace, "-o", "go-template={{.data.key | base64decode}}"
        )
        return encoded.strip()

    def sql(self, query: str) -> list[list[str]]:
        """Run psql in the embedded Postgres pod; rows of text columns."""
        out = self.run(
            "exec", "-n", "abide-system", "abide-postgres-0", "--",
            "psql", "-U", "abide", "-d", "abide", "-At", "-F", "\x1f", "-c", query,
        )  # fmt: skip
        return [line.split("\x1f") for line in out.splitlines() if line]

    @contextmanager
    def forward(self, name: str, namespace: str, *, pod: str = "") -> Iterator[str]:
        """Forward a free local port to the agent's Service, or to one of its pods; yields its URL."""
        target = f"pod/{pod}" if pod else f"svc/agent-{name}"
        process = subprocess.Popen(
            [self.kubectl, "port-forward", "-n", namespace, target, ":8080"],
            env=self.environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            found = re.search(r"127\.0\.0\.1:(\d+)", line)
            if found is None:
                raise httpx.ConnectError(f"port-forward: {line}{process.stdout.read()}")
            yield f"http://127.0.0.1:{found[1]}"
        finally:
            process.terminate()
            process.wait(10)
            process.stdout.close()


@dataclass
class Client:
    """An HTTP client of one agent that asks again with the same key while pods come and go, as a careful user would."""

    kube: Kube
    name: str
    namespace: str
    user: str | None = None
    key: str = field(default="")

    def __post_init__(self) -> None:
        self.key = self.key or self.kube.api_key(self.name, self.namespace)

    def as_user(self, user: str) -> Self:
        """Return the same client for another user."""
        return type(self)(self.kube, self.name, self.namespace, user, self.key)

    @property
    def headers(self) -> dict[str, str]:
        """Key and user."""
        return {"Authorization": f"Bearer {self.key}", **({"Abide-User": self.user} if self.user else {})}

    def request(self, method: str, path: str, *, seconds: float = 90, **options: Any) -> httpx.Response:
        """Send one request below the agent's path, again while nobody can answer (no connection, 502-504)."""
        headers = {**self.headers, **options.pop("headers", {})}

        def attempt() -> httpx.Response | None:
            try:
                with self.kube.forward(self.name, self.namespace) as url:
                    answer = httpx.request(
                        method,
                        f"{url}/v1/agents/{self.namespace}/{self.name}{path}",
                        headers=headers,
                        timeout=70,
                        **options,
                    )
            except httpx.TransportError:
                return None
            return None if answer.status_code in (502, 503, 504) else answer

        return wait_for(attempt, seconds=seconds, what=f"an answer to {method} {path}")

    def send(self, session: str, content: str, key: str | None = None, *, seconds: float = 90) -> dict[str, Any]:
        """Send a message and return the answer; it must be a reply."""
        answer = self.request(
            "POST",
            f"/sessions/{session}/messages",
            json={"content": content},
            headers={"Idempotency-Key": key or uuid.uuid4().hex},
            seconds=seconds,
        )
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def history(self, session: str) -> list[dict[str, Any]]:
        """Return the session's messages."""
        answer = self.request("GET", f"/sessions/{session}/messages?limit=200")
        assert answer.status_code == 200, answer.text
        return list(answer.json()["items"])


def agent(name: str, **spec: Any) -> dict[str, Any]:
    """Return an Agent manifest on the echo model, with some fields of the spec replaced."""
    base = {"systemPrompt": "You are brief.", "models": [{"name": "primary", "provider": "echo", "model": "echo"}]}
    merged = {key: value for key, value in {**base, **spec}.items() if value is not None}
    return {"apiVersion": "abide.dev/v1alpha1", "kind": "Agent", "metadata": {"name": name}, "spec": merged}
