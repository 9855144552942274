"""The local provider: a cluster of one node made of processes on this machine, without Docker."""

import json
import socket
from contextlib import AbstractContextManager
from pathlib import Path

from tests.cluster import archive, debian, machine, node
from tests.cluster.binaries import LOCAL, Binaries
from tests.cluster.commands import LOCK_TIMEOUT, daemon_environment, exclusive, lasting_problem, run
from tests.cluster.consent import ask
from tests.cluster.controlplane import ControlPlaneParts, Endpoints
from tests.cluster.errors import ClusterError, RequirementError
from tests.cluster.pki import Identity, require_openssl
from tests.cluster.processes import Daemons
from tests.cluster.progress import Progress
from tests.cluster.settings import BRIDGE, DNS_PORT, DNS_SERVICE_IP, NODE_IP, NODE_NAME, STORAGE_PROVISIONER, Paths

_ENDPOINTS = Endpoints(NODE_IP, api=6443, etcd=2379, peer=2380)
_KUBELET_PORT = 10250
_PORTS = (_ENDPOINTS.api, _ENDPOINTS.etcd, _ENDPOINTS.peer, _KUBELET_PORT, 10249, 10256, DNS_PORT)
_NODE_TIMEOUT = 120.0
# Starting afresh loses everything in the cluster, so a busy machine gets the time of a few missed node heartbeats.
_PATIENCE = 45.0
_DAEMONS = (
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubelet",
    "kube-proxy",
    "coredns",
    "provisioner",
    "containerd",
)
_RESOLV_CONFS = (Path("/etc/resolv.conf"), Path("/run/systemd/resolve/resolv.conf"))


class LocalCluster:
    """The cluster in `paths.state`. Only one can run on a machine: the node's address and rules are fixed."""

    name = "local"

    def __init__(self, paths: Paths, binaries: Binaries, progress: Progress) -> None:
        self._paths = paths
        self._state = paths.state
        self._binaries = binaries
        self._progress = progress
        self._parts = ControlPlaneParts(self._state, binaries)
        self._daemons = Daemons(self._state)
        self._socket = self._state / "containerd.sock"
        self._environ = daemon_environment(binaries.path("containerd").parent)

    @property
    def kubeconfig(self) -> str:
        return str(self._parts.kubeconfig("admin"))

    def problem(self) -> str | None:
        """Return why the cluster is not healthy, or None. Takes well under a second if it is; changes nothing."""
        return self._broken() or self._unready()

    def _broken(self) -> str | None:
        """Return what makes the cluster one that must be made anew, or None."""
        try:
            record = json.loads((self._state / "complete.json").read_text())
        except (OSError, ValueError):
            return "it is not up"
        if record != self._record(record.get("snapshotter", "")):
            return "it runs other versions than this repository asks for"
        if dead := self._daemons.dead():
            return f"{', '.join(dead)} ended"
        if len(self._daemons.known()) != len(_DAEMONS):
            return "its pid files are gone"
        return None if machine.node_address_exists() else f"the address {NODE_IP} is gone"

    def _unready(self) -> str | None:
        """Return what does not answer as it should, perhaps because the machine is busy, or None."""
        if not self._node_is_ready():
            return "the node is not ready"
        return None if self._dns_answers() else "the name service does not answer"

    def up(self) -> None:
        """Make the cluster healthy: leave it alone if it is, else remove what is left of it and start afresh.

        Raises: RequirementError before anything is changed, ClusterError when a part does not come up.
        """
        problem = self._broken() or lasting_problem(
            self._unready,
            patience=_PATIENCE,
            waiting=lambda found: self._progress.say(
                f"{found}: waiting up to {_PATIENCE:.0f} s before starting afresh"
            ),
        )
        if problem is None:
            self._progress.say(f"the local cluster is up already: {self.kubeconfig}")
            return
        self._require()
        self._binaries.ensure(LOCAL)
        with self._no_build():
            if left := machine.find_leftovers(self._paths):
                self._progress.say(f"removing what is left of an earlier cluster ({problem}): {'; '.join(left)}")
                machine.clean(self._paths)
        try:
            self._start()
        except RequirementError:
            machine.clean(self._paths)
            raise
        except ClusterError as error:
            raise ClusterError(
                f"{error}; the logs are in {self._state / 'log'}, and `down` removes everything"
            ) from error
        self._progress.say(f"the local cluster is up: {self.kubeconfig}")

    def down(self) -> None:
        """Remove the cluster and everything it left on the machine. Raises: ClusterError when something stays."""
        if not machine.find_leftovers(self._paths):
            self._progress.say("the local cluster is down: nothing of it is on this machine")
            return
        debian.require_root()
        with self._no_build():
            self._progress.say(f"removing {'; '.join(machine.find_leftovers(self._paths))}")
            machine.clean(self._paths)
            if left := machine.find_leftovers(self._paths):
                raise ClusterError(f"still there after removing the cluster: {'; '.join(left)}")
        self._progress.say("the local cluster is down")

    def _no_build(self) -> AbstractContextManager[None]:
        """Wait for a running image build, which cleaning would end, and keep others from starting."""
        return exclusive(
            self._paths.image_lock,
            waiting=lambda: self._progress.say("waiting for an image build to end"),
            timeout=LOCK_TIMEOUT,
        )

    @property
    def node(self) -> str:
        return f"{NODE_NAME} ({NODE_IP})"

    def images(self) -> dict[str, str]:
        """Return the digest of each image containerd holds, by name."""
        return parse_images(self._ctr("images", "list", timeout=30))

    def load(self, image: Path) -> None:
        """Import an image archive under the name it carries."""
        self._ctr("images", "import", "--local", "--snapshotter", self._snapshotter(), str(image), timeout=600)

    def tag(self, name: str, other: str) -> None:
        """Give an image of the cluster another name."""
        self._ctr("images", "tag", "--force", name, other, timeout=30)

    def _record(self, snapshotter: str) -> dict[str, str]:
        return {"binaries": self._binaries.key(), "snapshotter": snapshotter}

    def _snapshotter(self) -> str:
        return str(json.loads((self._state / "snapshotter.json").read_text()))

    def _require(self) -> None:
        """Check all requirements, then ask for and install what is missing."""
        debian.require_root()
        if pids := machine.foreign_kubelets(self._paths.binaries):
            raise RequirementError(
                f"this machine is a Kubernetes node already (kubelet, process {pids[0]}): use that with CLUSTER=current"
            )
        if not machine.cgroup_roots(machine.read_mountinfo()):
            raise RequirementError("no cgroup file system is mounted: mount one on /sys/fs/cgroup")
        missing = debian.missing_packages()
        ask(
            [
                *([f"install the Debian packages {' '.join(missing)}"] if missing else []),
                f"add the address {NODE_IP} to lo, the bridge {BRIDGE}, cgroups and iptables rules until `down`",
            ]
        )
        debian.install(missing, self._progress)
        require_openssl()

    def _start(self) -> None:
        say = self._progress.say
        machine.prepare(self._state)
        self._require_free_ports()
        snapshotter = "overlayfs" if machine.overlay_works(self._state) else "native"
        (self._state / "snapshotter.json").write_text(json.dumps(snapshotter))
        self._parts.prepare(_ENDPOINTS, _identities())
        self._parts.start_storage(_ENDPOINTS)
        self._start_containerd(snapshotter)
        self._parts.start_api(_ENDPOINTS, *self._api_flags())
        say("API server ready")
        self._parts.start_controllers()
        self._start_scheduler()
        self._start_kubelet()
        self._start_proxy()
        self._apply(node.base_objects())
        self._start_name_service()
        self._start_provisioner()
        wait = self._daemons.wait_until
        wait(self._node_is_ready, what="the node to be ready", timeout=_NODE_TIMEOUT)
        wait(self._parts.has_default_service_account, what="the default service account", timeout=_NODE_TIMEOUT)
        wait(self._dns_answers, what="the name service to answer", timeout=_NODE_TIMEOUT)
        say("node ready")
        (self._state / "complete.json").write_text(json.dumps(self._record(snapshotter)))

    def _api_flags(self) -> tuple[str, ...]:
        pki = self._parts.authority
        return (
            "--enable-admission-plugins=NodeRestriction",
            f"--kubelet-client-certificate={pki.path('admin.crt')}",
            f"--kubelet-client-key={pki.path('admin.key')}",
            f"--kubelet-certificate-authority={pki.certificate}",
            "--kubelet-preferred-address-types=InternalIP",
        )

    def _start_scheduler(self) -> None:
        config = self._parts.kubeconfig("scheduler")
        self._start_daemon(
            "kube-scheduler",
            f"--kubeconfig={config}",
            f"--authentication-kubeconfig={config}",
            f"--authorization-kubeconfig={config}",
            "--leader-elect=false",
            "--secure-port=0",
        )

    def _start_containerd(self, snapshotter: str) -> None:
        config = self._write("containerd.toml", node.containerd_config(self._state, snapshotter))
        self._write("cni/10-abide.conflist", node.cni_config(self._state))
        self._start_daemon("containerd", f"--config={config}", "--log-level=warn")
        image = self._state / "pause.tar"
        archive.write_program_image(image, node.PAUSE_IMAGE, self._binaries.path("pause"))
        self._daemons.wait_until(self._containerd_answers, what="containerd to answer", timeout=_NODE_TIMEOUT)
        self.load(image)

    def _start_kubelet(self) -> None:
        found = node.choose_resolv_conf([(path, path.read_text()) for path in _RESOLV_CONFS if path.is_file()])
        resolv_conf = found or self._write("resolv.conf", "")
        config = self._write("kubelet.json", node.kubelet_config(self._state, resolv_conf))
        self._start_daemon(
            "kubelet",
            f"--config={config}",
            f"--kubeconfig={self._parts.kubeconfig('kubelet')}",
            f"--hostname-override={NODE_NAME}",
            f"--node-ip={NODE_IP}",
            f"--root-dir={self._state / 'kubelet'}",
            f"--cert-dir={self._state / 'kubelet-pki'}",
        )

    def _start_proxy(self) -> None:
        config = self._write("proxy.json", node.proxy_config(self._parts.kubeconfig("proxy")))
        self._start_daemon("kube-proxy", f"--config={config}", f"--hostname-override={NODE_NAME}")

    def _start_name_service(self) -> None:
        # This runs on the machine, so a name server on a loopback address is as good as any.
        upstream = _RESOLV_CONFS[0] if "nameserver" in _RESOLV_CONFS[0].read_text() else None
        config = self._write("Corefile", node.corefile(self._parts.kubeconfig("coredns"), upstream))
        self._start_daemon("coredns", f"-conf={config}")

    def _start_provisioner(self) -> None:
        volumes = self._state / "volumes"
        volumes.mkdir()
        self._start_daemon(
            "provisioner",
            f"-kubeconfig={self._parts.kubeconfig('provisioner')}",
            f"-name={STORAGE_PROVISIONER}",
            f"-root={volumes}",
        )

    def _start_daemon(self, name: str, *arguments: str) -> None:
        self._daemons.start(name, [self._binaries.path(name), *arguments], self._environ)

    def _write(self, name: str, content: str) -> Path:
        path = self._state / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        return path

    def _apply(self, objects: list[dict[str, object]]) -> None:
        text = json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
        done = self._parts.kubectl("apply", "--server-side", "--filename=-", stdin=text)
        if done.returncode:
            raise ClusterError(f"the base objects were refused: {done.stderr.strip()}")

    def _ctr(self, *arguments: str, timeout: float) -> str:
        command: list[str | Path] = [
            self._binaries.path("ctr"),
            f"--address={self._socket}",
            "--namespace=k8s.io",
            *arguments,
        ]
        return run(command, timeout=timeout, environ=self._environ)

    def _containerd_answers(self) -> bool:
        try:
            self._ctr("version", timeout=10)
        except ClusterError:
            return False
        return True

    def _node_is_ready(self) -> bool:
        path = "jsonpath={.status.conditions[?(@.type=='Ready')].status}"
        return self._parts.read("node", NODE_NAME, "--output", path) == "True"

    def _dns_answers(self) -> bool:
        """Ask the name service through its Service address, as pods do: kube-proxy and CoreDNS both work."""
        query = dns_query("kubernetes.default.svc.cluster.local")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(1.0)
            try:
                client.sendto(query, (DNS_SERVICE_IP, 53))
                answer = client.recv(512)
            except OSError:
                return False
        return dns_has_answer(query, answer)

    def _require_free_ports(self) -> None:
        for port in _PORTS:
            with socket.socket() as listener:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    listener.bind((NODE_IP, port))
                except OSError as error:
                    raise RequirementError(
                        f"port {port} is taken by a program that listens on all addresses: stop it "
                        f"(`ss -lptn sport = {port}` names it)"
                    ) from error


def _identities() -> dict[str, Identity]:
    return {
        "scheduler": Identity("system:kube-scheduler"),
        "kubelet": Identity(f"system:node:{NODE_NAME}", group="system:nodes", names=(NODE_NAME, NODE_IP)),
        "proxy": Identity("system:kube-proxy"),
        # These two are roles that a cluster gives by objects; here they are part of the machinery, like the tool.
        "coredns": Identity("coredns", group="system:masters"),
        "provisioner": Identity("provisioner", group="system:masters"),
    }


def parse_images(listed: str) -> dict[str, str]:
    """Return {name: digest} from what `ctr images list` prints: a heading, then name, type, digest and more."""
    rows = [line.split() for line in listed.splitlines()[1:]]
    return {row[0]: row[2] for row in rows if len(row) > 2}


def dns_query(name: str) -> bytes:
    """Return a query for the IPv4 address of a name (RFC 1035, section 4)."""
    header = b"\x0a\xb1\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00"
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return header + labels + b"\x00\x00\x01\x00\x01"


def dns_has_answer(query: bytes, answer: bytes) -> bool:
    """Tell whether a message answers the query without error and with at least one record."""
    return len(answer) >= 12 and answer[:2] == query[:2] and answer[3] & 0x0F == 0 and answer[6:8] != b"\x00\x00"
