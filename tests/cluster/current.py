"""The `current` provider: whatever cluster the user's kubeconfig points at. It is never changed by this tool."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from tests.cluster.binaries import Binaries
from tests.cluster.commands import attempt, with_system_path
from tests.cluster.errors import RequirementError
from tests.cluster.progress import Progress


def user_kubeconfig(environ: Mapping[str, str], home: Path) -> str:
    """Return what kubectl would read: KUBECONFIG, which may be a list of paths, else ~/.kube/config."""
    return environ.get("KUBECONFIG") or str(home / ".kube" / "config")


def cluster_problem(kubectl: Path, kubeconfig: str) -> str | None:
    """Return why the cluster of a kubeconfig cannot be used, or None. Credential plugins work as for kubectl."""
    environ = {**with_system_path(), "KUBECONFIG": kubeconfig}
    ready = attempt([kubectl, "get", "--raw", "/readyz", "--request-timeout=10s"], timeout=30, environ=environ)
    if ready.returncode:
        said = (ready.stderr.strip().splitlines() or ["no answer"])[-1]
        return f"its API server is not ready ({said})"
    path = "jsonpath={.items[*].status.conditions[?(@.type=='Ready')].status}"
    nodes = attempt([kubectl, "get", "nodes", "-o", path, "--request-timeout=10s"], timeout=30, environ=environ)
    if nodes.returncode == 0 and "True" not in nodes.stdout.split():
        return "none of its nodes is ready"
    return None  # an account that may not list nodes can still use the cluster


def find_kubectl(binaries: Binaries) -> Path:
    """Return kubectl: the machine's if there is one (its credential plugins fit), else ours, built if need be."""
    if found := shutil.which("kubectl"):
        return Path(found)
    binaries.ensure(("kubectl",))
    return binaries.path("kubectl")


class CurrentCluster:
    """The user's own cluster."""

    name = "current"

    def __init__(self, binaries: Binaries, progress: Progress) -> None:
        self._binaries = binaries
        self._progress = progress

    @property
    def kubeconfig(self) -> str:
        return user_kubeconfig(os.environ, Path.home())

    def problem(self) -> str | None:
        """Return why the cluster cannot be used, or None."""
        return cluster_problem(find_kubectl(self._binaries), self.kubeconfig)

    def up(self) -> None:
        """Check that the cluster answers. Raises: RequirementError when it does not."""
        if problem := self.problem():
            raise RequirementError(f"the cluster of {self.kubeconfig} cannot be used: {problem}")
        self._progress.say(f"using the current cluster untouched: {self.kubeconfig}")

    def down(self) -> None:
        """Leave the cluster as it is."""
        self._progress.say("the current cluster is left as it is")
