"""Pods as Prometheus' own discovery shows them, for a Prometheus that was built without it, as Debian's is.

The shipped scrape configuration is used as it is: its selectors choose the pods, its relabelling makes the labels. Only
who lists the pods is another.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

Json = dict[str, Any]
ListPods = Callable[[str], list[Json]]
"""Lists pods by a label selector."""


def to_targets(pod: Json) -> Iterator[Json]:
    """Yield a target for each container port of a pod that has an address, as `role: pod` does."""
    metadata, status = pod["metadata"], pod.get("status", {})
    address = status.get("podIP")
    if not address:
        return
    labels = {
        "__meta_kubernetes_namespace": metadata["namespace"],
        "__meta_kubernetes_pod_name": metadata["name"],
        "__meta_kubernetes_pod_ip": address,
        "__meta_kubernetes_pod_phase": status.get("phase", ""),
        "__meta_kubernetes_pod_node_name": pod["spec"].get("nodeName", ""),
    }
    for container in pod["spec"]["containers"]:
        for port in container.get("ports", ()):
            named = {
                "__meta_kubernetes_pod_container_name": container["name"],
                "__meta_kubernetes_pod_container_port_name": port.get("name", ""),
                "__meta_kubernetes_pod_container_port_number": str(port["containerPort"]),
            }
            yield {"targets": [f"{address}:{port['containerPort']}"], "labels": {**labels, **named}}


def selectors_of(job: Json) -> list[str]:
    """Return the label selectors of a job. Every discovery must be of pods, by labels, in all namespaces."""
    chosen = []
    for discovery in job["kubernetes_sd_configs"]:
        assert discovery.keys() == {"role", "selectors"}, discovery
        assert discovery["role"] == "pod"
        (selector,) = discovery["selectors"]
        assert selector.keys() == {"role", "label"}
        assert selector["role"] == "pod"
        chosen.append(str(selector["label"]))
    return chosen


class Discovery:
    """Writes what `list_pods` finds for each job into files that Prometheus reads."""

    def __init__(self, folder: Path, jobs: list[Json], list_pods: ListPods) -> None:
        self._list_pods = list_pods
        self._jobs = {str(job["job_name"]): job for job in jobs}
        self._files: Mapping[str, Path] = {name: folder / f"{name}.json" for name in self._jobs}
        folder.mkdir(parents=True, exist_ok=True)

    def jobs(self) -> list[Json]:
        """Return the jobs with the files in place of Kubernetes; relabelling stays."""
        found = []
        for name, job in self._jobs.items():
            changed = deepcopy(job)
            del changed["kubernetes_sd_configs"]
            changed["file_sd_configs"] = [{"files": [str(self._files[name])], "refresh_interval": "1s"}]
            found.append(changed)
        return found

    def refresh(self) -> None:
        """List the pods again."""
        for name, job in self._jobs.items():
            pods = [pod for selector in selectors_of(job) for pod in self._list_pods(selector)]
            targets = [target for pod in pods for target in to_targets(pod)]
            fresh = self._files[name].with_suffix(".new")
            fresh.write_text(json.dumps(targets))
            fresh.rename(self._files[name])
