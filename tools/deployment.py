"""What `make up` knows about a deployment without touching anything: fingerprints, and words for states.

Pure functions over the JSON that kubectl and helm print; `tools/up.py` does the rest.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RELEASE = "abide"
NAMESPACE = "abide-system"
AGENT = "assistant"
AGENT_NAMESPACE = "default"
MADE_LABEL = "abide.dev/made-by"
MADE_BY = "make-up"


def chart_fingerprint(chart: Path, values: Mapping[str, Any]) -> str:
    """Return a hash over every file of a chart (names and contents) and the values it is installed with."""
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode())
    for path in sorted(path for path in chart.rglob("*") if path.is_file()):
        content = path.read_bytes()
        digest.update(f"\0{path.relative_to(chart)}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:16]


def release_description(fingerprint: str) -> str:
    """Return the description a release made from this fingerprint carries (`helm history` shows it)."""
    return f"make up, inputs {fingerprint}"


@dataclass(frozen=True)
class Release:
    """What helm says about a release."""

    status: str
    description: str

    @property
    def is_interrupted(self) -> bool:
        """Whether an earlier helm was killed in the middle; helm then refuses to go on by itself."""
        return self.status.startswith("pending-") or self.status == "uninstalling"


def parse_release(text: str) -> Release:
    """Read `helm status -o json`."""
    info = json.loads(text)["info"]
    return Release(str(info["status"]), str(info.get("description", "")))


def parse_image_tags(text: str) -> dict[str, str]:
    """Return {target: tag} from the lines `target repository:tag` that `tests.cluster images` prints."""
    pairs = (line.split() for line in text.splitlines())
    return {pair[0]: pair[1].rsplit(":", 1)[1] for pair in pairs if len(pair) == 2 and ":" in pair[1]}


def image_values(tags: Mapping[str, str], environ: Mapping[str, str]) -> dict[str, Any]:
    """Return chart values for the images just built (one tag each), or for those the environment names."""
    images = {target: {"image": {"tag": tag}} for target, tag in tags.items()}
    values: dict[str, Any] = {target: images[target] for target in ("operator", "runtime") if target in images}
    if "postgres" in images:
        values["postgres"] = {"embedded": images["postgres"]}
    shared = {"registry": environ.get("ABIDE_IMAGE_REGISTRY", ""), "tag": environ.get("ABIDE_IMAGE_TAG", "")}
    if given := {name: value for name, value in shared.items() if value}:
        values["image"] = given
    return values


def is_ready(workload: Mapping[str, Any]) -> bool:
    """Tell whether a Deployment or StatefulSet has all pods of its present spec ready."""
    status, wanted = workload.get("status", {}), workload["spec"].get("replicas", 1)
    return bool(
        status.get("observedGeneration", 0) >= workload["metadata"]["generation"]
        and status.get("updatedReplicas", 0) == status.get("readyReplicas", 0) == wanted
    )


def pods_in_words(pods: Iterable[Mapping[str, Any]]) -> str:
    """Return one line about the pods that are not ready: `abide-postgres-0: ContainerCreating, …`."""
    return ", ".join(f"{pod['metadata']['name']}: {words}" for pod in pods if (words := _pod_in_words(pod)))


def _pod_in_words(pod: Mapping[str, Any]) -> str:
    status = pod.get("status", {})
    if "deletionTimestamp" in pod["metadata"]:
        return "ending"
    if any(c["type"] == "Ready" and c["status"] == "True" for c in status.get("conditions", [])):
        return ""
    for container in status.get("containerStatuses", []):
        state = container.get("state", {})
        for kind in ("waiting", "terminated"):
            if kind in state:
                return " ".join(filter(None, [state[kind].get("reason", kind), state[kind].get("message", "")]))[:200]
        if not container.get("ready"):
            return "running, not ready yet"
    scheduled: Mapping[str, Any] = next((c for c in status.get("conditions", []) if c["type"] == "PodScheduled"), {})
    return str(scheduled.get("message") or status.get("phase", "unknown"))[:200]


@dataclass(frozen=True)
class AgentState:
    """What status says about an Agent: `reason` and `message` of Ready, for its present generation or not yet."""

    is_ready: bool
    reason: str
    message: str

    @property
    def words(self) -> str:
        """One line for the terminal."""
        return f"{self.reason}: {self.message}" if self.message else self.reason


def agent_state(agent: Mapping[str, Any]) -> AgentState:
    """Read an Agent as kubectl prints it."""
    status = agent.get("status") or {}
    ready: Mapping[str, Any] = next((c for c in status.get("conditions", []) if c["type"] == "Ready"), {})
    if not ready or status.get("observedGeneration", 0) < agent["metadata"]["generation"]:
        return AgentState(False, "Waiting", "the operator has not looked at it yet")
    return AgentState(ready["status"] == "True", ready["reason"], ready.get("message", ""))


def change_in_words(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> str:
    """Return what an apply did to an object, by its state before and after (each an object or nothing)."""
    ids = [
        [(found["metadata"]["uid"], found["metadata"]["generation"]) for found in state] for state in (before, after)
    ]
    if ids[0] == ids[1]:
        return "unchanged"
    return "changed" if before else "created"


def next_steps(kubeconfig: str, directories: Iterable[str], root: str) -> str:
    """Return what to try, as commands that can be pasted."""
    key = "{{.data.key | base64decode}}"
    path = f"/v1/agents/{AGENT_NAMESPACE}/{AGENT}/sessions/demo/messages"
    return f"""What to try next (paste the first two lines, the rest builds on them):

  cd {root}
  export KUBECONFIG={kubeconfig} PATH={":".join(directories)}:$PATH

  kubectl get agents.abide.dev
  kubectl describe agents.abide.dev {AGENT}
  abide status {AGENT}
  abide chat {AGENT}

  kubectl port-forward svc/agent-{AGENT} 8080 &
  key=$(kubectl get secret agent-{AGENT}-api -o go-template='{key}')
  curl -s http://127.0.0.1:8080{path} \\
    -H "Authorization: Bearer $key" -H 'Content-Type: application/json' -d '{{"content": "hello"}}'

  kubectl exec -n {NAMESPACE} -it {RELEASE}-postgres-0 -- psql -U abide -d abide -c 'TABLE abide.active_agents'
  kubectl delete pod -l abide.dev/agent={AGENT}    # then chat again: it goes on where it was

  make down    # removes everything"""
