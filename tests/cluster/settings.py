"""Where the cluster tool keeps things, and the fixed addresses and names of the local cluster."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.errors import RequirementError

REPOSITORY = Path(__file__).resolve().parents[2]

CLUSTER_NAME = "abide"
NODE_NAME = "node-1"
NODE_IP = "10.245.0.1"
POD_CIDR = "10.244.0.0/16"
NODE_POD_CIDR = "10.244.0.0/24"
SERVICE_CIDR = "10.96.0.0/16"
API_SERVICE_IP = "10.96.0.1"
DNS_SERVICE_IP = "10.96.0.10"
DNS_PORT = 10053
BRIDGE = "abide0"
CNI_NETWORK = "abide"
CGROUP = "abide"
BUILD_CGROUP = "abide-images"
STORAGE_PROVISIONER = "abide.dev/directories"

# A Unix socket's path holds at most 107 bytes (unix(7)); the longest one below the state directory takes 50 of them.
_MAX_STATE_PATH = 57


@dataclass(frozen=True)
class Paths:
    """The directories of the tool. All of them outlive a clone of the repository."""

    cache: Path

    @property
    def cluster(self) -> Path:
        return self.cache / "cluster"

    @property
    def binaries(self) -> Path:
        """Built programs, one directory for each state of their sources."""
        return self.cluster / "binaries"

    @property
    def toolchain(self) -> Path:
        """A private virtual environment that holds Go where the machine has none."""
        return self.cluster / "go"

    @property
    def state(self) -> Path:
        """Everything of the running local cluster. `down` removes it."""
        return self.cluster / "state"

    @property
    def images(self) -> Path:
        """Image layers, archives and their stamps."""
        return self.cluster / "images"

    @property
    def image_lock(self) -> Path:
        """Held while images are built or loaded."""
        return self.images / "lock"

    @property
    def record(self) -> Path:
        """Which provider is up."""
        return self.cluster / "provider.json"

    @property
    def kind_kubeconfig(self) -> Path:
        return self.cluster / "kind.kubeconfig"


def paths_from_environment(environ: Mapping[str, str] = os.environ) -> Paths:
    """Return the paths below ABIDE_CACHE_DIR, else XDG_CACHE_HOME/abide, else ~/.cache/abide.

    Raises: RequirementError when the directory is relative or so long that sockets below it could not be bound.
    """
    if chosen := environ.get("ABIDE_CACHE_DIR"):
        cache = Path(chosen)
    elif base := environ.get("XDG_CACHE_HOME"):
        cache = Path(base) / "abide"
    else:
        cache = Path.home() / ".cache" / "abide"
    if not cache.is_absolute():
        raise RequirementError(f"the cache directory {cache} is relative: set ABIDE_CACHE_DIR to an absolute path")
    paths = Paths(cache)
    if len(os.fsencode(paths.state)) > _MAX_STATE_PATH:
        raise RequirementError(
            f"the cache directory {cache} is too long for Unix sockets below it: "
            f"set ABIDE_CACHE_DIR to a path of at most {_MAX_STATE_PATH - len('/cluster/state')} characters"
        )
    return paths
