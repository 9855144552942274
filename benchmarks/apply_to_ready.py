"""`kubectl apply` of an Agent until it is Ready, beside a bare Deployment of the same pods until it is available.

    KUBECONFIG=… python -m benchmarks.apply_to_ready [--quick] [--pairs 10] [--namespace NAME]

The bare Deployment is the agent's own one under another name: the pod template that the operator made, with ConfigMap,
Secrets and ServiceAccount kept from a first agent, so that image, probes, mounts and database are the same and the
images are on the node. What remains between the two is the operator: writing the children and reporting status. Each
pair measures both, in turns first and second; everything is removed again, and waited for, between measurements.
"""

import argparse
import copy
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final
from uuid import uuid4

from benchmarks import common
from benchmarks.common import Report, Sample, Target

READY_SECONDS: Final = 120.0
AGENTS: Final = "agents.abide.dev"
AIM: Final = 1.3
LABEL: Final = "abide-bench"


class ClusterError(Exception):
    """kubectl refused or did not answer; the message is its own."""


def main() -> None:
    """Measure and print."""
    made = common.parser(__doc__)
    made.add_argument("--pairs", type=int, default=10)
    made.add_argument("--namespace", help="measure here; default: a namespace of its own, removed afterwards")
    made.add_argument("--kubectl", default=os.environ.get("KUBECTL", "kubectl"))
    options = made.parse_args()
    if options.quick:
        options.pairs = 1
    if shutil.which(options.kubectl) is None:
        made.error(f"{options.kubectl} was not found: give --kubectl or set KUBECTL")
    measure(options).publish(options.json)


def measure(options: argparse.Namespace) -> Report:
    """Measure pairs and describe them."""
    kube = Kubectl(options.kubectl)
    times: dict[str, list[float]] = {"agent": [], "deployment": []}
    with namespace_of(kube, options.namespace) as namespace, template_of(kube, namespace) as template:
        contestants: dict[str, Callable[[int], float]] = {
            "agent": lambda number: time_agent(kube, namespace, f"measured-{number}"),
            "deployment": lambda number: time_deployment(kube, namespace, template, f"bare-{number}"),
        }
        for number in range(options.pairs):
            order = list(contestants)
            for name in order if number % 2 == 0 else order[::-1]:
                times[name].append(contestants[name](number))
            common.progress(f"pair {number + 1}: " + ", ".join(f"{name} {times[name][-1]:.2f} s" for name in order))
    return describe(times)


def describe(times: Mapping[str, list[float]]) -> Report:
    """Return rows and target."""
    report = Report("apply_to_ready")
    for name, seconds in times.items():
        sample = Sample(seconds)
        report.rows.append(
            {
                "what": name,
                "median s": round(sample.median, 3),
                "min s": round(min(seconds), 3),
                "max s": round(max(seconds), 3),
                "spread": f"{sample.spread:.0%}",
                "runs": len(seconds),
            }
        )
    ratios = Sample([mine / bare for mine, bare in zip(times["agent"], times["deployment"], strict=True)])
    report.targets.append(Target("Agent to Ready over bare Deployment to available", ratios.median, at_most=AIM))
    report.notes.append(f"the ratio is the median over {len(ratios.values)} pairs, spread {ratios.spread:.0%}")
    return report


class Kubectl:
    """kubectl with the environment's KUBECONFIG."""

    def __init__(self, program: str) -> None:
        self._program = program

    def run(self, *arguments: str, stdin: str | None = None, timeout: float = 60.0) -> str:
        """Return its stdout. Raises ClusterError."""
        done = subprocess.run(
            [self._program, *arguments], input=stdin, capture_output=True, text=True, timeout=timeout, check=False
        )
        if done.returncode:
            raise ClusterError(f"kubectl {' '.join(arguments)}: {done.stderr.strip()[-1000:]}")
        return done.stdout

    def get(self, namespace: str, resource: str, name: str) -> dict[str, Any]:
        """Return an object."""
        found: dict[str, Any] = json.loads(self.run("get", resource, name, f"--namespace={namespace}", "--output=json"))
        return found

    def apply(self, document: Mapping[str, Any]) -> None:
        """Apply an object as a user does."""
        self.run("apply", "--filename=-", stdin=json.dumps(document))

    def wait(self, namespace: str, what: str, condition: str) -> None:
        """Wait for a condition. Raises ClusterError after READY_SECONDS."""
        limit = f"--timeout={READY_SECONDS:.0f}s"
        self.run("wait", what, f"--for={condition}", f"--namespace={namespace}", limit, timeout=READY_SECONDS + 30)


def time_agent(kube: Kubectl, namespace: str, name: str) -> float:
    """Return the seconds from apply to Ready of a new Agent; it is gone, with its pods, on return."""
    try:
        return timed(kube, namespace, agent(namespace, name), f"{AGENTS}/{name}", "condition=Ready")
    finally:
        remove(kube, namespace, AGENTS, name, f"abide.dev/agent={name}")


def time_deployment(kube: Kubectl, namespace: str, template: Mapping[str, Any], name: str) -> float:
    """Return the seconds from apply to Available of the bare Deployment; it is gone, with its pods, on return."""
    document = bare_deployment(template, name)
    try:
        return timed(kube, namespace, document, f"deployment/{name}", "condition=Available")
    finally:
        remove(kube, namespace, "deployment", name, f"{LABEL}={name}")


def timed(kube: Kubectl, namespace: str, document: Mapping[str, Any], what: str, condition: str) -> float:
    """Apply and wait; both contestants pay for the same two calls of kubectl."""
    started = time.perf_counter()
    kube.apply(document)
    kube.wait(namespace, what, condition)
    return time.perf_counter() - started


def remove(kube: Kubectl, namespace: str, resource: str, name: str, selector: str) -> None:
    """Delete an object and wait until its pods are gone."""
    kube.run("delete", resource, name, f"--namespace={namespace}", "--ignore-not-found", timeout=READY_SECONDS)
    arguments = ["get", "pods", f"--namespace={namespace}", f"--selector={selector}", "--output=name"]
    deadline = time.monotonic() + READY_SECONDS
    while kube.run(*arguments).strip():
        if time.monotonic() > deadline:
            raise ClusterError(f"pods of {name} are still there after {READY_SECONDS:g} s")
        time.sleep(0.2)


def agent(namespace: str, name: str) -> dict[str, Any]:
    """Return the Agent that is measured: the smallest one, on echo, as users get it by default (its one row stays)."""
    made = common.agent_manifest(name, {"provider": "echo"})
    made["metadata"]["namespace"] = namespace
    return made


def bare_deployment(found: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return the agent's Deployment under another name, with a label of its own and no owner.

    The operator's labels are left out, so that it neither selects nor reports these pods.
    """
    labels = {LABEL: name}
    spec = copy.deepcopy(found["spec"])
    spec["selector"] = {"matchLabels": labels}
    spec["template"]["metadata"] = {**_without(spec["template"]["metadata"], "creationTimestamp"), "labels": labels}
    namespace = found["metadata"]["namespace"]
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "spec": spec,
    }


@contextmanager
def template_of(kube: Kubectl, namespace: str) -> Iterator[dict[str, Any]]:
    """Yield the Deployment of a first agent that stays Ready, and so its ConfigMap, Secrets and ServiceAccount do."""
    name = "template"
    try:
        kube.apply(agent(namespace, name))
        kube.wait(namespace, f"{AGENTS}/{name}", "condition=Ready")
        yield _without(kube.get(namespace, "deployment", f"agent-{name}"), "status")
    finally:
        remove(kube, namespace, AGENTS, name, f"abide.dev/agent={name}")


@contextmanager
def namespace_of(kube: Kubectl, wanted: str | None) -> Iterator[str]:
    """Yield the wanted namespace, or one that is made and removed."""
    if wanted is not None:
        yield wanted
        return
    namespace = f"abide-bench-{uuid4().hex[:8]}"
    kube.run("create", "namespace", namespace)
    try:
        yield namespace
    finally:
        kube.run("delete", "namespace", namespace, "--wait=false")


def _without(found: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in found.items() if name not in names}


if __name__ == "__main__":
    main()
