"""What the local cluster changes on the machine outside its directories, and how that is undone.

Everything here is found by name, not from memory, so it also works for what a killed run of another clone left.
"""

import contextlib
import json
import os
import re
import shutil
from pathlib import Path

from tests.cluster.commands import attempt, run, wait_until
from tests.cluster.errors import ClusterError, RequirementError
from tests.cluster.processes import Daemons, Identity, find_processes, identify, kill_all
from tests.cluster.settings import BRIDGE, BUILD_CGROUP, CGROUP, CNI_NETWORK, NODE_IP, POD_CIDR, SERVICE_CIDR, Paths

_TIMEOUT = 30.0
_FIREWALLS = ("iptables", "ip6tables")
_TABLES = ("nat", "filter", "mangle")
# Folders outside the state directory that cannot be chosen.
_CNI_RESULTS = Path("/var/lib/cni/results")
_LOG_LINKS = Path("/var/log/containers")
_SHIM_SOCKETS = Path("/run/containerd/s")
_SYSCTL = Path("/proc/sys")
_CGROUPS = (CGROUP, BUILD_CGROUP)
_DAEMON_NAMES = frozenset(
    {
        "etcd",
        "kube-apiserver",
        "kube-controller-manager",
        "kube-scheduler",
        "kubelet",
        "kube-proxy",
        "coredns",
        "provisioner",
        "containerd",
        "containerd-shim-runc-v2",
    }
)
# What kubelet and kube-proxy set. net.ipv4.ip_forward is left as it is: other programs may rely on it by now.
_KERNEL_SETTINGS = (
    "kernel/keys/root_maxbytes",
    "kernel/keys/root_maxkeys",
    "kernel/panic",
    "kernel/panic_on_oops",
    "net/bridge/bridge-nf-call-iptables",
    "net/ipv4/conf/all/route_localnet",
    "vm/overcommit_memory",
    "vm/panic_on_oom",
)


# ---------------------------------------------------------------------------------------------------- pure parts


def removal_rules(saved: str) -> str:
    """Return input for `iptables-restore --noflush` that removes the cluster's chains and rules, or "".

    `saved` is one table as `iptables-save` prints it. The cluster's are all chains KUBE-*, and the CNI-* chains whose
    rules name its network; nothing else is touched, so other programs may change their rules at the same time.
    """
    table = next((line for line in saved.splitlines() if line.startswith("*")), "")
    rules = [line for line in saved.splitlines() if line.startswith("-A ")]
    declared = {line[1:].split()[0] for line in saved.splitlines() if line.startswith(":")}
    named = [rule for rule in rules if f'name: \\"{CNI_NETWORK}\\"' in rule]
    ours = {chain for rule in named for chain in re.findall(r"\bCNI-[0-9a-f]{24}\b", rule)}
    ours |= {chain for chain in declared if chain.startswith("KUBE-")}
    ours &= declared
    if not ours:
        return ""
    jumps = [
        f"-D {rule[3:]}" for rule in rules if rule.split()[1] not in ours and not ours.isdisjoint(_targets_of(rule))
    ]
    # Declaring a chain empties it; that has to come before any is deleted because they refer to each other.
    emptied = [f":{chain} - [0:0]" for chain in sorted(ours)]
    deleted = [f"-X {chain}" for chain in sorted(ours)]
    return "\n".join([table, *emptied, *jumps, *deleted, "COMMIT", ""])


def _targets_of(rule: str) -> set[str]:
    return set(re.findall(r"(?:-j|-g) (\S+)", rule))


def parse_mounts(mountinfo: str) -> list[tuple[str, str]]:
    """Return (mount point, file system type) of each line of proc_pid_mountinfo(5), in mount order."""
    mounts = []
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        point = re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), left.split()[4])
        mounts.append((point, right.split()[0]))
    return mounts


def mounts_below(mountinfo: str, directory: Path) -> list[str]:
    """Return the mount points at or below a directory, the latest first, which is the order to unmount them in."""
    points = [point for point, _ in parse_mounts(mountinfo)]
    return [point for point in reversed(points) if Path(point).is_relative_to(directory)]


def cgroup_roots(mountinfo: str) -> list[Path]:
    """Return the mount points of all cgroup hierarchies, of version 1 and 2."""
    points = [point for point, kind in parse_mounts(mountinfo) if kind in {"cgroup", "cgroup2"}]
    return [Path(point) for point in dict.fromkeys(points)]  # a mount may hide another one at the same place


# ---------------------------------------------------------------------------------------------------- observing


def read_mountinfo() -> str:
    return Path("/proc/self/mountinfo").read_text()


def foreign_kubelets(binaries: Path) -> list[int]:
    """Return the process ids of kubelets that do not come from our binaries: the machine is a node already."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                program = Path(os.readlink(entry / "exe"))
                # A kubelet in a container, as of kind, has a mount namespace of its own and does not concern us.
                same_root = os.readlink(entry / "ns/mnt") == os.readlink("/proc/self/ns/mnt")
                if program.name in {"kubelet", "k3s"} and same_root and not program.is_relative_to(binaries):
                    found.append(int(entry.name))
    return found


def find_leftovers(paths: Paths) -> list[str]:
    """Return what of a local cluster or an image build is still on the machine, in words; nothing is changed."""
    found = []
    if processes := find_processes(paths.binaries, _DAEMON_NAMES, paths.state):
        found.append(f"{len(processes)} daemons")
    if processes := _group_processes(CGROUP):
        found.append(f"{len(processes)} container processes")
    if processes := _group_processes(BUILD_CGROUP):
        found.append(f"{len(processes)} build processes")
    mountinfo = read_mountinfo()
    if mounts := mounts_below(mountinfo, paths.state) + mounts_below(mountinfo, paths.images):
        found.append(f"{len(mounts)} mounts")
    if _bridge_exists():
        found.append(f"link {BRIDGE}")
    if node_address_exists():
        found.append(f"address {NODE_IP}")
    if tables := [f"{table} ({firewall})" for firewall, table, _ in _firewall_removals()]:
        found.append(f"rules in {', '.join(tables)}")
    if groups := [root / name for root in cgroup_roots(mountinfo) for name in _CGROUPS if (root / name).exists()]:
        found.append(f"{len(groups)} cgroups")
    if paths.state.exists():
        found.append(f"directory {paths.state}")
    return found


# ---------------------------------------------------------------------------------------------------- preparing


def prepare(state: Path) -> None:
    """Set up kernel, address and cgroups for a node, and note the kernel settings that will change.

    Raises: RequirementError when the kernel cannot filter what passes a bridge.
    """
    for module in ("overlay", "br_netfilter"):
        with contextlib.suppress(ClusterError):  # built in, or the machine may not load modules
            attempt(["modprobe", module], timeout=_TIMEOUT)
    before = {name: _read(_SYSCTL / name) for name in _KERNEL_SETTINGS}
    state.mkdir(parents=True, exist_ok=True)
    (state / "kernel.json").write_text(json.dumps(before))
    # Without it an answer between two pods passes the bridge with the pod's address instead of the Service's.
    filtering = _SYSCTL / "net/bridge/bridge-nf-call-iptables"
    if not filtering.exists():
        raise RequirementError("the kernel module br_netfilter is not loaded: run `modprobe br_netfilter`")
    filtering.write_text("1")
    # On `lo`, because not every kernel has dummy links. A node address of its own keeps all ports of the machine free.
    run(["ip", "address", "replace", f"{NODE_IP}/32", "dev", "lo"], timeout=_TIMEOUT)
    # Rules rewrite Service addresses after a route was chosen, and a machine may have no default route. The kernel
    # removes this one together with the address.
    run(["ip", "route", "replace", SERVICE_CIDR, "dev", "lo", "src", NODE_IP], timeout=_TIMEOUT)
    for root in cgroup_roots(read_mountinfo()):
        group = root / CGROUP
        group.mkdir(exist_ok=True)
        # A new group of cpuset version 1 has no processors and no memory until it is given some.
        for name in ("cpuset.cpus", "cpuset.mems"):
            if (group / name).exists() and (root / name).exists():
                (group / name).write_text((root / name).read_text())


def overlay_works(directory: Path) -> bool:
    """Tell whether overlay mounts can be made in a directory; they cannot where it is on one itself."""
    base = directory / "overlay-try"
    shutil.rmtree(base, ignore_errors=True)
    for name in ("lower", "upper", "work", "merged"):
        (base / name).mkdir(parents=True)
    options = f"lowerdir={base}/lower,upperdir={base}/upper,workdir={base}/work"
    done = attempt(["mount", "-t", "overlay", "overlay", "-o", options, base / "merged"], timeout=_TIMEOUT)
    if done.returncode == 0:
        run(["umount", base / "merged"], timeout=_TIMEOUT)
    shutil.rmtree(base, ignore_errors=True)
    return done.returncode == 0


# ---------------------------------------------------------------------------------------------------- cleaning


def clean(paths: Paths) -> None:
    """Remove everything a local cluster or a build left on the machine, the state directory last. Idempotent.

    Nothing is asked to end politely: all it could save is removed next, and what is stopped must not start anew.
    Raises: ClusterError when something cannot be removed.
    """
    state = paths.state
    shim_sockets = _shim_sockets(state)
    _kill_daemons(state, paths.binaries)
    end_builds(paths.images)
    unmount(state)
    for firewall, _, rules in _firewall_removals():
        run([f"{firewall}-restore", "--noflush"], timeout=_TIMEOUT, stdin=rules)
    _remove_links()
    _remove_groups(CGROUP)
    _restore_kernel_settings(state / "kernel.json")
    for path in [*shim_sockets, *_cni_results(), *_log_links(state)]:
        path.unlink(missing_ok=True)
    for folder in (_CNI_RESULTS, _CNI_RESULTS.parent, _LOG_LINKS, _SHIM_SOCKETS, _SHIM_SOCKETS.parent):
        with contextlib.suppress(OSError):  # missing, or others use it
            folder.rmdir()
    if state.exists():
        if mounts := mounts_below(read_mountinfo(), state):  # deleting through a mount would delete others' files
            raise ClusterError(f"{mounts[0]} cannot be unmounted: see `fuser -vm {mounts[0]}`")
        shutil.rmtree(state)


def build_group() -> Path:
    """Make the cgroup of an image build and return it: whatever a build starts can be found and ended there.

    A build tool that is killed leaves the processes of its steps and their mounts behind.
    """
    group = cgroup_roots(read_mountinfo())[0] / BUILD_CGROUP
    group.mkdir(exist_ok=True)
    return group


def end_builds(images: Path) -> None:
    """End the processes of image builds and remove their mounts. Idempotent; no build may be wanted any more."""
    _kill_group(BUILD_CGROUP)
    unmount(images)
    _remove_groups(BUILD_CGROUP)


def _kill_daemons(state: Path, binaries: Path) -> None:
    # From the top down, so that nobody restarts what was just ended: kubelet and containerd, shims, containers.
    Daemons(state).kill()
    for _ in range(3):
        if not kill_all(find_processes(binaries, _DAEMON_NAMES, state)):
            break
    _kill_group(CGROUP)


def _kill_group(name: str) -> None:
    # A fork in between needs another round.
    what = f"the processes in the cgroups {name} to end"
    wait_until(lambda: kill_all(_group_processes(name)) == 0, what=what, timeout=_TIMEOUT, interval=0.05)


def _group_processes(name: str) -> list[Identity]:
    pids = set()
    for root in cgroup_roots(read_mountinfo()):
        for directory, _, _ in os.walk(root / name):
            pids |= set(_read(Path(directory) / "cgroup.procs").split())
    return [identity for pid in pids if (identity := identify(int(pid))) is not None]


def _shim_sockets(state: Path) -> list[Path]:
    """Return the sockets of shims that were killed: they are kept outside containerd's directories."""
    sockets = []
    for pattern in ("*/*/bootstrap.json", "*/*/address"):
        for path in (state / "containerd-state" / "io.containerd.runtime.v2.task").glob(pattern):
            sockets += [Path(found) for found in re.findall(rf"unix://({_SHIM_SOCKETS}/[0-9a-f]+)", _read(path))]
    return sockets


def unmount(directory: Path) -> None:
    """Unmount everything at and below a directory, as far as that is possible; busy mounts go when they are free."""
    for _ in range(10):  # mounts may be stacked; each round takes one of every stack
        points = mounts_below(read_mountinfo(), directory)
        if not points:
            return
        for point in points:
            attempt(["umount", "--lazy", "--", point], timeout=_TIMEOUT)


def _firewall_removals() -> list[tuple[str, str, str]]:
    """Return (program, table, input for its restore command) for each table that holds rules of the cluster."""
    found = []
    for firewall in _FIREWALLS:
        if shutil.which(f"{firewall}-save", path="/usr/sbin:/sbin:/usr/bin") is None:
            continue
        for table in _TABLES:
            saved = attempt([f"{firewall}-save", "-t", table], timeout=_TIMEOUT)  # fails where the kernel lacks IPv6
            if saved.returncode == 0 and (rules := removal_rules(saved.stdout)):
                found.append((firewall, table, rules))
    return found


def _bridge_exists() -> bool:
    return Path("/sys/class/net", BRIDGE).exists()


def node_address_exists() -> bool:
    """Tell whether the node's address is on the loopback link."""
    return f" {NODE_IP}/" in attempt(["ip", "-oneline", "address", "show", "dev", "lo"], timeout=_TIMEOUT).stdout


def _remove_links() -> None:
    # The pods' ends went with their namespaces; one whose namespace something still holds is removed from this side.
    for port in sorted(Path("/sys/class/net", BRIDGE, "brif").glob("*")):
        attempt(["ip", "link", "delete", port.name], timeout=_TIMEOUT)
    if _bridge_exists():
        run(["ip", "link", "delete", BRIDGE], timeout=_TIMEOUT)
    if node_address_exists():
        run(["ip", "address", "delete", f"{NODE_IP}/32", "dev", "lo"], timeout=_TIMEOUT)
    if shutil.which("conntrack", path="/usr/sbin:/usr/bin"):
        # A connection the kernel remembers would keep its old destination in the next cluster.
        for option, network in (("--orig-dst", SERVICE_CIDR), ("--orig-src", POD_CIDR)):
            attempt(["conntrack", "--delete", option, network], timeout=_TIMEOUT)


def _remove_groups(name: str) -> None:
    def remove() -> bool:
        left = False
        for root in cgroup_roots(read_mountinfo()):
            for directory, _, _ in os.walk(root / name, topdown=False):
                try:
                    Path(directory).rmdir()
                except FileNotFoundError:
                    continue
                except OSError:  # busy until the kernel has let go of the last process
                    left = True
        return not left

    wait_until(remove, what=f"the cgroups {name} to become empty", timeout=_TIMEOUT, interval=0.05)


def _restore_kernel_settings(noted: Path) -> None:
    with contextlib.suppress(FileNotFoundError, ValueError):
        for name, value in json.loads(noted.read_text()).items():
            path = _SYSCTL / name
            if name in _KERNEL_SETTINGS and value and _read(path) != value:
                path.write_text(value)


def _cni_results() -> list[Path]:
    """Return what the CNI library noted about our pods, `NETWORK-SANDBOX-INTERFACE`; its folder is fixed."""
    ours = sorted(_CNI_RESULTS.glob(f"{CNI_NETWORK}-*"))
    sandboxes = [path.name.split("-")[1] for path in ours]
    return ours + [path for sandbox in sandboxes for path in _CNI_RESULTS.glob(f"cni-loopback-{sandbox}-*")]


def _log_links(state: Path) -> list[Path]:
    """Return the kubelet's links to logs below the state directory; their folder is fixed."""
    links = [path for path in _LOG_LINKS.glob("*.log") if path.is_symlink()]
    return [path for path in links if Path(os.readlink(path)).is_relative_to(state)]


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
