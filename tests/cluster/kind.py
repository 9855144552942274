"""The `kind` provider: a cluster of Docker containers made by kind. Written with care, not tried here (no Docker)."""

import shutil
from pathlib import Path

from tests.cluster.binaries import Binaries
from tests.cluster.commands import attempt, lasting_problem, run
from tests.cluster.current import cluster_problem, find_kubectl
from tests.cluster.errors import ClusterError, RequirementError
from tests.cluster.local import parse_images
from tests.cluster.progress import Progress
from tests.cluster.settings import CLUSTER_NAME, Paths

_NODE = f"{CLUSTER_NAME}-control-plane"
_CTR = ("docker", "exec", _NODE, "ctr", "--namespace=k8s.io")
_CREATE_TIMEOUT = 900.0
# Making it anew loses everything in it: a Docker engine that has just started gets time to start its containers.
_PATIENCE = 45.0


def docker_answers() -> bool:
    """Tell whether a Docker engine answers."""
    if shutil.which("docker") is None:
        return False
    try:
        return attempt(["docker", "info"], timeout=20).returncode == 0
    except ClusterError:
        return False


class KindCluster:
    """The kind cluster `abide`, with a kubeconfig of its own so that the user's stays as it is."""

    name = "kind"

    def __init__(self, paths: Paths, binaries: Binaries, progress: Progress) -> None:
        self._paths = paths
        self._binaries = binaries
        self._progress = progress

    @property
    def kubeconfig(self) -> str:
        return str(self._paths.kind_kubeconfig)

    def problem(self) -> str | None:
        """Return why the cluster is not healthy, or None."""
        if not self._paths.kind_kubeconfig.exists():
            return "it is not up"
        return cluster_problem(find_kubectl(self._binaries), self.kubeconfig)

    def up(self) -> None:
        """Make the cluster healthy; one that is not is made anew. Raises: RequirementError without Docker."""
        if not docker_answers():
            raise RequirementError("no Docker engine answers `docker info`: start Docker, or use CLUSTER=local")
        patience = _PATIENCE if self._paths.kind_kubeconfig.exists() else 0.0
        problem = lasting_problem(
            self.problem,
            patience=patience,
            waiting=lambda found: self._progress.say(f"the kind cluster is not healthy ({found})"),
        )
        if problem is None:
            self._progress.say(f"the kind cluster is up already: {self.kubeconfig}")
            return
        kind = self._kind()
        if self._exists(kind):
            self._progress.say(f"removing the kind cluster {CLUSTER_NAME} ({problem})")
            self._delete(kind)
        self._progress.say("making a kind cluster: 1-3 minutes, longer when the node image is fetched first")
        run(
            [kind, "create", "cluster", "--name", CLUSTER_NAME, "--kubeconfig", self.kubeconfig, "--wait", "180s"],
            timeout=_CREATE_TIMEOUT,
        )
        if problem := self.problem():
            raise ClusterError(f"the kind cluster is not healthy: {problem}; see `kind export logs`")
        self._progress.say(f"the kind cluster is up: {self.kubeconfig}")

    def down(self) -> None:
        """Delete the cluster and its kubeconfig. Idempotent."""
        if docker_answers():
            kind = self._kind()
            if self._exists(kind):
                self._delete(kind)
        elif self._paths.kind_kubeconfig.exists():
            raise RequirementError(
                "no Docker engine answers, so the kind cluster cannot be removed: start Docker first"
            )
        self._paths.kind_kubeconfig.unlink(missing_ok=True)
        self._progress.say("the kind cluster is down")

    def images(self) -> dict[str, str]:
        """Return the digest of each image the node holds, by name."""
        return parse_images(run([*_CTR, "images", "list"], timeout=60))

    def tag(self, name: str, other: str) -> None:
        """Give an image of the cluster another name."""
        run([*_CTR, "images", "tag", "--force", name, other], timeout=60)

    def load(self, reference: str) -> None:
        """Copy an image of the Docker engine into the node."""
        run([self._kind(), "load", "docker-image", reference, "--name", CLUSTER_NAME], timeout=600)

    def _kind(self) -> Path:
        if found := shutil.which("kind"):
            return Path(found)
        self._binaries.ensure(("kind",))
        return self._binaries.path("kind")

    def _exists(self, kind: Path) -> bool:
        return CLUSTER_NAME in run([kind, "get", "clusters"], timeout=60).split()

    def _delete(self, kind: Path) -> None:
        run([kind, "delete", "cluster", "--name", CLUSTER_NAME, "--kubeconfig", self.kubeconfig], timeout=300)
