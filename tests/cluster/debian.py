"""The machine's programs the local cluster needs, and their installation from Debian packages."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.commands import run, with_system_path
from tests.cluster.errors import ClusterError, RequirementError
from tests.cluster.progress import Progress

_SEARCHED = with_system_path({})["PATH"]


def _on_path(name: str) -> Callable[[], bool]:
    return lambda: shutil.which(name, path=_SEARCHED) is not None


def _is_any_file(*paths: str) -> Callable[[], bool]:
    return lambda: any(Path(path).is_file() for path in paths)


@dataclass(frozen=True)
class Package:
    """A Debian package and how to see that what it brings is there, wherever it came from."""

    name: str
    is_there: Callable[[], bool]


NODE_PACKAGES = (
    Package("openssl", _on_path("openssl")),
    Package("iproute2", _on_path("ip")),
    Package("mount", _on_path("mount")),
    Package("iptables", _on_path("iptables")),
    Package("conntrack", _on_path("conntrack")),
    Package("runc", _on_path("runc")),
    Package("containernetworking-plugins", _is_any_file("/usr/lib/cni/bridge", "/opt/cni/bin/bridge")),
)
IMAGE_PACKAGES = (
    Package("buildah", _on_path("buildah")),
    Package("mmdebstrap", _on_path("mmdebstrap")),
    Package("debian-archive-keyring", _is_any_file("/usr/share/keyrings/debian-archive-keyring.gpg")),
    Package("git", _on_path("git")),
)


def missing_packages(packages: tuple[Package, ...] = NODE_PACKAGES + IMAGE_PACKAGES) -> list[str]:
    """Return the names of those whose programs are not there. Raises: RequirementError where none can be installed."""
    missing = [package.name for package in packages if not package.is_there()]
    if missing and shutil.which("apt-get", path=_SEARCHED) is None:
        raise RequirementError(f"these programs are missing and there is no apt-get: install {', '.join(missing)}")
    return missing


def install(names: list[str], progress: Progress) -> None:
    """Install packages with apt-get. Raises: RequirementError when that fails."""
    if not names:
        return
    progress.say(f"installing Debian packages: {' '.join(names)}")
    environ = {**with_system_path(), "DEBIAN_FRONTEND": "noninteractive"}
    command = ["apt-get", "--yes", "--quiet", "-o", "DPkg::Lock::Timeout=300"]
    try:
        run([*command, "update"], timeout=600, environ=environ)
        run([*command, "install", "--no-install-recommends", *names], timeout=1200, environ=environ)
    except ClusterError as error:
        raise RequirementError(
            f"apt-get could not install {' '.join(names)}: install them by hand ({error})"
        ) from error
    if left := missing_packages():
        raise RequirementError(f"{', '.join(left)} was installed but its programs are not found: install it by hand")


def require_root() -> None:
    """Raises: RequirementError for other users: a node mounts, routes and makes cgroups."""
    if os.geteuid() != 0:
        raise RequirementError("the local cluster needs root: run this with sudo, or use Docker and CLUSTER=kind")
