"""A real Kubernetes API server on etcd, without a node: for tests that read and write objects.

`ControlPlane` needs no root and shares nothing with the cluster of `up`, which is built from the same parts. Objects
behave as in any cluster (validation, defaults, server-side apply, watches, RBAC); nothing runs pods. With
`controllers=True` the controller-manager runs too: garbage collection, Deployments, default service accounts.
"""

import contextlib
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from tests.cluster.binaries import Binaries
from tests.cluster.commands import attempt, daemon_environment
from tests.cluster.errors import ClusterError
from tests.cluster.pki import Authority, Identity, require_openssl
from tests.cluster.processes import Daemons
from tests.cluster.progress import Progress
from tests.cluster.settings import API_SERVICE_IP, POD_CIDR, REPOSITORY, SERVICE_CIDR, paths_from_environment

READY_TIMEOUT = 120.0
_PORT_ATTEMPTS = 3


@dataclass(frozen=True)
class Endpoints:
    """Where a control plane listens: one address and three ports on it."""

    host: str
    api: int
    etcd: int
    peer: int

    @property
    def url(self) -> str:
        return f"https://{self.host}:{self.api}"

    @property
    def etcd_url(self) -> str:
        return f"http://{self.host}:{self.etcd}"

    @property
    def peer_url(self) -> str:
        return f"http://{self.host}:{self.peer}"


def free_endpoints(host: str = "127.0.0.1") -> Endpoints:
    """Return three ports that were free a moment ago."""
    with contextlib.ExitStack() as held:
        ports = []
        for _ in range(3):
            listener = held.enter_context(socket.socket())
            listener.bind((host, 0))
            ports.append(int(listener.getsockname()[1]))
    return Endpoints(host, *ports)


class ControlPlaneParts:
    """etcd, the API server and what else was asked for, in one directory. Knows how to start them, and their files."""

    def __init__(self, directory: Path, binaries: Binaries) -> None:
        self.directory = directory
        self.authority = Authority(directory / "pki")
        self.daemons = Daemons(directory)
        self._binaries = binaries
        self._environ = daemon_environment()

    def kubeconfig(self, name: str) -> Path:
        return self.directory / f"{name}.kubeconfig"

    def prepare(self, endpoints: Endpoints, identities: dict[str, Identity]) -> None:
        """Make certificates and kubeconfigs: `admin`, `apiserver`, `controller-manager` and the given ones."""
        self.authority.create()
        served = ("localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", API_SERVICE_IP)
        everyone = {
            "admin": Identity("admin", group="system:masters"),
            "apiserver": Identity("kube-apiserver", names=(*served, endpoints.host)),
            "controller-manager": Identity("system:kube-controller-manager"),
            **identities,
        }
        for name, identity in everyone.items():
            self.authority.issue(name, identity)
            if name != "apiserver":
                self.kubeconfig(name).touch(mode=0o600)
                self.kubeconfig(name).write_text(self.authority.kubeconfig(name, endpoints.url))

    def start_storage(self, endpoints: Endpoints) -> None:
        """Start etcd. It does not wait for the disk: the data is gone with the directory anyway."""
        self.daemons.start(
            "etcd",
            [
                self._binaries.path("etcd"),
                f"--data-dir={self.directory / 'etcd'}",
                "--unsafe-no-fsync",
                "--log-level=warn",
                f"--listen-client-urls={endpoints.etcd_url}",
                f"--advertise-client-urls={endpoints.etcd_url}",
                f"--listen-peer-urls={endpoints.peer_url}",
                f"--initial-advertise-peer-urls={endpoints.peer_url}",
                f"--initial-cluster=default={endpoints.peer_url}",
            ],
            self._environ,
        )

    def start_api(self, endpoints: Endpoints, *flags: str) -> None:
        """Start the API server and wait until it is ready; it waits for etcd itself."""
        path = self.authority.path
        self.daemons.start(
            "kube-apiserver",
            [
                self._binaries.path("kube-apiserver"),
                f"--etcd-servers={endpoints.etcd_url}",
                f"--bind-address={endpoints.host}",
                f"--advertise-address={endpoints.host}",  # else it looks for a default route, which may be missing
                f"--secure-port={endpoints.api}",
                f"--cert-dir={self.directory / 'apiserver'}",
                f"--tls-cert-file={path('apiserver.crt')}",
                f"--tls-private-key-file={path('apiserver.key')}",
                f"--client-ca-file={self.authority.certificate}",
                "--service-account-issuer=https://kubernetes.default.svc",
                f"--service-account-key-file={path('service-accounts.pub')}",
                f"--service-account-signing-key-file={path('service-accounts.key')}",
                f"--service-cluster-ip-range={SERVICE_CIDR}",
                "--authorization-mode=Node,RBAC",
                "--allow-privileged=true",
                *flags,
            ],
            self._environ,
        )
        self.daemons.wait_until(self.is_ready, what="the API server to be ready", timeout=READY_TIMEOUT)

    def start_controllers(self) -> None:
        """Start the controller-manager. The API server must be ready: it exits otherwise."""
        config = self.kubeconfig("controller-manager")
        self.daemons.start(
            "kube-controller-manager",
            [
                self._binaries.path("kube-controller-manager"),
                f"--kubeconfig={config}",
                f"--authentication-kubeconfig={config}",
                f"--authorization-kubeconfig={config}",
                f"--service-account-private-key-file={self.authority.path('service-accounts.key')}",
                f"--root-ca-file={self.authority.certificate}",
                "--use-service-account-credentials",
                # It makes an account for each controller when it starts: four seconds at the default rate.
                "--kube-api-qps=400",
                "--kube-api-burst=800",
                "--leader-elect=false",
                "--secure-port=0",
                "--allocate-node-cidrs",
                f"--cluster-cidr={POD_CIDR}",
                f"--flex-volume-plugin-dir={self.directory / 'flexvolume'}",
            ],
            self._environ,
        )

    def kubectl(self, *arguments: str, stdin: str | None = None) -> "subprocess.CompletedProcess[str]":
        """Run kubectl as admin, whatever its exit code. Raises: ClusterError after a minute."""
        argv: list[str | Path] = [
            self._binaries.path("kubectl"),
            f"--kubeconfig={self.kubeconfig('admin')}",
            f"--cache-dir={self.directory / 'kubectl-cache'}",
            *arguments,
        ]
        return attempt(argv, timeout=60, stdin=stdin, environ=self._environ)

    def read(self, *arguments: str) -> str | None:
        """Return what `kubectl get` prints, or None when there is no answer within a few seconds."""
        try:
            done = self.kubectl("get", *arguments, "--request-timeout=3s")
        except ClusterError:
            return None
        return done.stdout if done.returncode == 0 else None

    def is_ready(self) -> bool:
        return self.read("--raw", "/readyz") is not None

    def has_default_service_account(self) -> bool:
        """Tell whether pods can be made in `default`: the controller-manager works."""
        return self.read("serviceaccount", "default") is not None


class ControlPlane:
    """An API server for tests on free loopback ports, in a directory of its own.

    `start` returns when it is ready (a few seconds) and `stop` removes what it wrote; both may be called twice. When
    the process that started it dies, however that happens, its daemons are ended too. Also a context manager.
    """

    def __init__(self, directory: Path, *, controllers: bool = False, progress: Progress | None = None) -> None:
        """`directory` is made if missing and must not hold another control plane that runs."""
        self._directory = directory.resolve()
        self._controllers = controllers
        self._binaries = Binaries(paths_from_environment(), progress or Progress())
        self._parts = ControlPlaneParts(self._directory, self._binaries)
        self._endpoints: Endpoints | None = None
        self._guard: subprocess.Popen[bytes] | None = None

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig; the file exists between `start` and `stop`."""
        return self._parts.kubeconfig("admin")

    @property
    def url(self) -> str:
        """The API server's address. Raises: ClusterError before `start`."""
        if self._endpoints is None:
            raise ClusterError("the control plane is not started: call start() first")
        return self._endpoints.url

    def start(self) -> None:
        """Start and wait until ready. Builds the binaries first where they are missing (minutes, once).

        Raises: RequirementError when something must be installed first, ClusterError when a daemon fails.
        """
        if self._endpoints is not None:
            return
        require_openssl()
        self._binaries.ensure(("etcd", "kube-apiserver", "kubectl", "kube-controller-manager"))
        self._directory.mkdir(parents=True, exist_ok=True)
        for remaining in reversed(range(_PORT_ATTEMPTS)):
            endpoints = free_endpoints()
            try:
                self._start(endpoints)
            except BaseException as error:
                self.stop()
                # Between choosing a port and listening on it somebody else may take it.
                if remaining and "address already in use" in str(error):
                    continue
                raise
            self._endpoints = endpoints
            return

    def _start(self, endpoints: Endpoints) -> None:
        self._guard = subprocess.Popen(
            [sys.executable, "-m", "tests.cluster.guard", str(self._directory)],
            stdin=subprocess.PIPE,
            cwd=REPOSITORY,
            start_new_session=True,
        )
        self._parts.prepare(endpoints, {})
        self._parts.start_storage(endpoints)
        # A loopback address is no endpoint of the Service `kubernetes`, and nobody would use it without a node.
        flags = ["--endpoint-reconciler-type=none"]
        if not self._controllers:
            # Nobody makes the service accounts that this admission plugin asks for.
            flags.append("--disable-admission-plugins=ServiceAccount")
        self._parts.start_api(endpoints, *flags)
        if self._controllers:
            self._parts.start_controllers()
            ready = self._parts.has_default_service_account
            self._parts.daemons.wait_until(ready, what="the default service account", timeout=READY_TIMEOUT)

    def stop(self) -> None:
        """End the daemons and remove their files; the logs stay in `log/`."""
        self._endpoints = None
        self._parts.daemons.kill()
        if self._guard is not None:
            assert self._guard.stdin is not None
            self._guard.stdin.close()
            self._guard.wait(timeout=30)
            self._guard = None
        for name in ("pki", "etcd", "apiserver", "kubectl-cache", "flexvolume", "run"):
            shutil.rmtree(self._directory / name, ignore_errors=True)
        for path in self._directory.glob("*.kubeconfig"):
            path.unlink()

    def __enter__(self) -> "ControlPlane":
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()
