"""A real API server with the CRD, objects as an operator leaves them, and `abide` as a person runs it there."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

COMMAND_SECONDS = 60.0
TIME = "2026-01-02T14:02:11Z"
HEALTHY = {
    "Ready": ("True", "Serving"),
    "Accepted": ("True", "Valid"),
    "Progressing": ("False", "UpToDate"),
    "Degraded": ("False", "AllWell"),
    "StateStoreReady": ("True", "Connected"),
    "ModelReachable": ("True", "Reachable"),
    "Suspended": ("False", "NotSuspended"),
}


@dataclass
class World:
    """One namespace of an API server, and the two commands that people use."""

    kubectl_path: str
    kubeconfig: Path
    home: Path
    namespace: str = ""
    environ: dict[str, str] = field(default_factory=dict)

    def kubectl(self, *arguments: str, stdin: str | None = None, check: bool = True) -> str:
        """Run kubectl in the namespace and return what it printed."""
        where = [f"--namespace={self.namespace}"] if self.namespace else []
        command = [self.kubectl_path, f"--kubeconfig={self.kubeconfig}", *where, *arguments]
        done = subprocess.run(
            command,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
            env=self._environ,
        )
        assert not check or done.returncode == 0, f"{arguments}: {done.stderr}"
        return done.stdout

    @property
    def _environ(self) -> dict[str, str]:
        return {"PATH": os.environ["PATH"], "HOME": str(self.home), **self.environ}

    def abide(
        self, *arguments: str, stdin: str = "", program: str = "abide", **environ: str
    ) -> "subprocess.CompletedProcess[str]":
        """Run the command line in the namespace, without a terminal."""
        command = [str(Path(sys.executable).with_name(program)), *arguments]
        settings = {"KUBECTL": self.kubectl_path, "KUBECONFIG": str(self.kubeconfig)}
        return subprocess.run(
            command,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
            cwd=self.home,
            env=self._environ | settings | environ,
        )

    def ask(self, *arguments: str) -> Any:
        """Run a reading command with `-o json` and return its answer."""
        done = self.abide(*arguments, "-n", self.namespace, "-o", "json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def make(self, document: dict[str, Any]) -> dict[str, Any]:
        """Create an object."""
        return dict(json.loads(self.kubectl("create", "-f", "-", "-o", "json", stdin=json.dumps(document))))

    def make_agent(self, name: str = "bot", **spec: Any) -> dict[str, Any]:
        """Create an Agent on the echo model."""
        content = {"systemPrompt": "Be kind.", "models": [{"provider": "echo"}], **spec}
        if "systemPromptFrom" in content:
            del content["systemPrompt"]
        document = {"apiVersion": "abide.dev/v1alpha1", "kind": "Agent", "metadata": {"name": name}, "spec": content}
        return self.make(document)

    def agent(self, name: str = "bot") -> dict[str, Any]:
        """Return an Agent as it is."""
        return dict(json.loads(self.kubectl("get", "agents.abide.dev", name, "-o", "json")))

    def report(self, name: str = "bot", conditions: dict[str, tuple[str, str]] | None = None, **status: Any) -> None:
        """Write an Agent's status as an operator would; Ready's message names its reason."""
        found = self.agent(name)
        generation = found["metadata"]["generation"]
        told = [
            {
                "type": kind, "status": value, "reason": reason, "message": f"{reason} since {TIME}.",
                "lastTransitionTime": TIME, "observedGeneration": generation,
            }
            for kind, (value, reason) in (HEALTHY | (conditions or {})).items()
        ]  # fmt: skip
        full = {
            "observedGeneration": generation,
            "conditions": told,
            "desiredReplicas": 1,
            "readyReplicas": 1,
            "endpoint": f"http://agent-{name}.{self.namespace}.svc:8080",
            "model": {"configured": "echo/echo", "answering": "echo/echo"},
            "sessions": {"active": 1, "total": 5},
            **status,
        }
        patch = json.dumps({"status": full})
        self.kubectl("patch", "agents.abide.dev", name, "--subresource=status", "--type=merge", f"--patch={patch}")

    def keep_revision(self, number: int, revision: str, name: str = "bot", prompt: str | None = None) -> None:
        """Keep the Agent's present spec as a revision, as the operator does."""
        spec = self.agent(name)["spec"]
        ran = {key: value for key, value in spec.items() if key not in ("replicas", "suspend", "systemPromptFrom")}
        ran |= {"systemPrompt": prompt or spec.get("systemPrompt", "")}
        self.make(
            {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {
                    "name": f"agent-{name}-{revision}",
                    "labels": {"abide.dev/agent": name, "abide.dev/revision": revision},
                    "annotations": {"abide.dev/revision-number": str(number)},
                },
                "immutable": True,
                "data": {"spec.json": json.dumps(spec), "agent.json": json.dumps({"kind": "Agent", "spec": ran})},
            }
        )
        self.report(name, revision={"current": revision, "ready": revision})

    def change(self, name: str = "bot", **spec: Any) -> None:
        """Merge fields into an Agent's spec."""
        self.kubectl("patch", "agents.abide.dev", name, "--type=merge", f"--patch={json.dumps({'spec': spec})}")
