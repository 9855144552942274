"""Runs a Compose project without Docker: each service is its image's own command in the image's own files.

What a container engine would do is done with the kernel's tools: namespaces for processes, mounts and network, a
read-only root file system, the declared user, mounts, secrets and environment. All services share one network
namespace, and their names mean its loopback address. Not done: limits of CPU and memory,
publishing of ports, networks between services.

Everything lives in the namespaces of one process, the pod, which ends when its standard input does. With it go all
services and mounts, also when the tests are killed.
"""

import ctypes
import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from tests.integration.images.rootfs import Image

T = TypeVar("T")

_CLONE_NEWNET = 0x40000000
_POD = "ip link set lo up && echo up && exec cat >/dev/null"
# $1 is the root; every further line of standard input is a mount: KIND SOURCE TARGET OPTIONS, separated by tabs.
_CONTAINER = r"""
root=$1 user=$2 group=$3 folder=$4
shift 4
mount --make-rprivate /
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
mkdir "$root/dev/shm"
mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
for device in null zero full random urandom; do
  touch "$root/dev/$device"
  mount --bind "/dev/$device" "$root/dev/$device"
done
ln -s /proc/self/fd "$root/dev/fd"
while IFS="$(printf '\t')" read -r kind source target options; do
  case $kind in
    tmpfs) mount -t tmpfs -o "$options" tmpfs "$target" ;;
    bind) mount --bind "$source" "$target" && mount -o "remount,bind,$options" "$target" ;;
  esac
done
mount -o remount,bind,ro "$root"
cd /
exec setpriv --no-new-privs chroot --userspec="$user:$group" --groups= "$root" \
  /bin/sh -c 'cd "$0" && exec "$@"' "$folder" "$@" </dev/null
"""


class Container:
    """One started service."""

    def __init__(self, process: "subprocess.Popen[str]", log: Path, environ: Mapping[str, str], user: str) -> None:
        self._process = process
        self._log = log
        self._environ = environ
        self._user = user

    @property
    def log(self) -> str:
        """Everything it wrote."""
        return self._log.read_text(errors="replace")

    @property
    def exit_code(self) -> int | None:
        """Its exit code, or None while it runs."""
        return self._process.poll()

    @property
    def pid(self) -> int:
        """Its first process, as this side sees it."""

        def find() -> int | None:
            assert self.exit_code is None, f"ended with {self.exit_code}: {self.log}"
            return _first_process(self._process.pid)

        return int(until(find, 10, "the container's first process is there"))

    def status(self) -> dict[str, str]:
        """Return /proc/PID/status of its first process."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}

    def execute(
        self, *command: str, given: bytes | None = None, timeout: float = 60
    ) -> "subprocess.CompletedProcess[bytes]":
        """Run a command inside, as its user and with its environment; `given` is its standard input."""
        uid, _, gid = self._user.partition(":")
        enter = ["/usr/bin/nsenter", f"--target={self.pid}", "--mount", "--pid", "--net", "--root", "--wd"]
        return subprocess.run(
            [*enter, f"--setuid={uid}", f"--setgid={gid or uid}", *command],
            env=dict(self._environ),
            input=given,
            stdin=None if given is not None else subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout,
            check=False,
        )

    def kill(self) -> None:
        """End it as a crash would."""
        os.kill(self.pid, signal.SIGKILL)
        self._process.wait(30)

    def stop(self, timeout: float) -> int:
        """Send SIGTERM, as an engine does to stop it, and return the exit code."""
        os.kill(self.pid, signal.SIGTERM)
        return self._process.wait(timeout)


class Project:
    """A loaded project (JSON of the Compose loader), run on unpacked images; a context manager."""

    def __init__(self, project: dict[str, Any], images: Mapping[str, Image], folder: Path) -> None:
        self.services: dict[str, Any] = project["services"]
        self._project = project
        self._images = images
        self._folder = folder
        self._containers: dict[str, Container] = {}
        self._relays: list[_Relay] = []

    def __enter__(self) -> Self:
        self._folder.mkdir(exist_ok=True)
        self._pod = subprocess.Popen(
            ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", _POD],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._pod.stdout is not None
        assert self._pod.stdout.readline() == "up\n"
        (self.pod_pid,) = _children(self._pod.pid)
        descriptor = os.open(f"/proc/{self.pod_pid}/ns/net", os.O_RDONLY)
        self._inside = ThreadPoolExecutor(1, "inside", _enter_network, (descriptor,))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._inside.shutdown()
        assert self._pod.stdin is not None
        assert self._pod.stdout is not None
        self._pod.stdin.close()
        self._pod.stdout.close()
        self._pod.wait(30)
        for container in self._containers.values():
            container._process.wait(30)
        for relay in self._relays:
            relay.close()

    def inside(self, call: Callable[[], T]) -> T:
        """Call something in the services' network, where 127.0.0.1 is every one of them."""
        return self._inside.submit(call).result(120)

    def let_reach(self, port: int) -> None:
        """Let the services reach what listens on this port of the machine's loopback, under the same address."""
        listener = self.inside(lambda: socket.create_server(("127.0.0.1", port)))
        self._relays.append(_Relay(listener, port))

    def up(self) -> None:
        """Start what does not run, each service once its dependencies are as it wants them."""
        done: set[str] = set()
        while waiting := [name for name in self.services if name not in done]:
            name = next(name for name in waiting if set(self.services[name].get("depends_on", {})) <= done)
            for other, wanted in self.services[name].get("depends_on", {}).items():
                self._await(other, wanted["condition"])
            if name not in self._containers or self._containers[name].exit_code is not None:
                self.start(name)
            done.add(name)

    def start(self, name: str) -> Container:
        """Start one service, whatever it depends on."""
        service = self.services[name]
        image = self._images[service["image"]]
        user = service.get("user", image.user)
        uid, _, gid = user.partition(":")
        environ = {**image.environ, **service.get("environment", {})}
        assert service.get("read_only"), "a writable root would need a layer of its own"
        mounts = self._mounts(service, image.root)
        _make_mount_points(image.root, mounts)
        command = [*(service["entrypoint"] or image.entrypoint), *(service["command"] or image.command)]
        log = self._folder / f"{name}.log"
        with log.open("a") as output:
            process = subprocess.Popen(
                [
                    *("/usr/bin/nsenter", f"--target={self.pod_pid}", "--net", "--mount", "--pid"),
                    *("/usr/bin/unshare", "--mount", "--pid", "--fork", "/bin/sh", "-euc", _CONTAINER, name),
                    *(str(image.root), uid, gid or uid, image.folder, *command),
                ],
                env=environ,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                text=True,
            )
        assert process.stdin is not None
        process.stdin.write("".join(_mount_line(image.root, *mount) for mount in mounts))
        process.stdin.close()
        self._containers[name] = Container(process, log, environ, user)
        return self._containers[name]

    def container(self, name: str) -> Container:
        """Return the last start of a service."""
        return self._containers[name]

    def healthy(self, name: str) -> bool:
        """Run a service's own health check once."""
        kind, *test = self.services[name]["healthcheck"]["test"]
        assert kind == "CMD", "only checks without a shell are run here"
        return self._containers[name].execute(*test).returncode == 0

    def wait_healthy(self, name: str, timeout: float = 60) -> None:
        """Return once the service's health check succeeds."""

        def check() -> bool:
            container = self._containers[name]
            assert container.exit_code is None, f"{name} ended with {container.exit_code}: {container.log}"
            return self.healthy(name)

        until(check, timeout, f"{name} is healthy", lambda: self._containers[name].log)

    def _await(self, name: str, condition: str) -> None:
        container = self._containers[name]
        if condition == "service_healthy":
            self.wait_healthy(name)
        else:
            assert condition == "service_completed_successfully"
            until(lambda: container.exit_code is not None, 60, f"{name} has ended", lambda: container.log)
            assert container.exit_code == 0, container.log

    def _mounts(self, service: dict[str, Any], root: Path) -> list[tuple[str, str, str, str]]:
        hosts = self._folder / "hosts"
        hosts.write_text(f"127.0.0.1 localhost {' '.join(self.services)}\n")
        mounts = [("bind", str(hosts), "/etc/hosts", "ro")]
        for path in service.get("tmpfs", ()):
            target, _, options = path.partition(":")
            mounts.append(("tmpfs", "tmpfs", target, options or "mode=1777"))
        for volume in service.get("volumes", ()):
            source = volume["source"]
            if volume["type"] == "volume":
                source = str(self._volume(source, below(root, volume["target"])))
            mounts.append(("bind", source, volume["target"], "ro" if volume.get("read_only") else "rw"))
        files = {name: secret["file"] for name, secret in self._project.get("secrets", {}).items()}
        secrets = [("bind", files[secret["source"]], secret["target"], "ro") for secret in service.get("secrets", ())]
        return mounts + secrets

    def _volume(self, name: str, original: Path) -> Path:
        """Return a named volume's folder; a new one belongs to whom its place in the image belongs."""
        folder = self._folder / f"volume-{name}"
        if not folder.exists():
            folder.mkdir()
            owner = original.stat()
            os.chown(folder, owner.st_uid, owner.st_gid)
        return folder


def below(root: Path, target: str) -> Path:
    """Return where an absolute path of a container is for us: links, too, start at the container's root."""
    place, waiting = root, list(Path(target).parts[1:])
    for _ in range(100):
        if not waiting:
            return place
        part, *waiting = waiting
        step = place / part
        if step.is_symlink():
            link = step.readlink()
            if link.is_absolute():
                place = root
            waiting = [*(link.parts[1:] if link.is_absolute() else link.parts), *waiting]
        else:
            place = place.parent if part == ".." and place != root else step
    raise OSError(f"too many symbolic links in {target}")


def _mount_line(root: Path, kind: str, source: str, target: str, options: str) -> str:
    return f"{kind}\t{source}\t{below(root, target)}\t{options}\n"


def _make_mount_points(root: Path, mounts: list[tuple[str, str, str, str]]) -> None:
    for kind, source, target, _ in mounts:
        path = below(root, target)
        if kind == "tmpfs" or Path(source).is_dir():
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()


def until(
    condition: Callable[[], Any], timeout: float, what: str, more: Callable[[], str] = lambda: "", pause: float = 0.05
) -> Any:
    """Return the first true value of the condition. Raises AssertionError naming `what` after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {timeout:g} s: {what}\n{more()}"
        time.sleep(pause)
    return value


def load(program: Path, file: Path, environ: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return the project that the Compose loader makes of a file. Raises AssertionError with its refusal."""
    done = subprocess.run(
        [program, file],
        env={"PATH": os.environ["PATH"], **(environ or {})},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    project: dict[str, Any] = json.loads(done.stdout)
    return project


class _Relay:
    """Hands connections to a listener on to a port of this machine; sockets stay in the network they were made in."""

    def __init__(self, listener: socket.socket, port: int) -> None:
        self._listener = listener
        self._port = port
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    def close(self) -> None:
        """Take no more connections; those there are end when either side does, which is waited for."""
        self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        for thread in self._threads:
            thread.join(30)
        self._listener.close()

    def _start(self, call: Callable[..., None], *arguments: object) -> threading.Thread:
        thread = threading.Thread(target=call, args=arguments, name="relay", daemon=True)
        self._threads.append(thread)
        thread.start()
        return thread

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                self._start(self._hand_on, near)

    def _hand_on(self, near: socket.socket) -> None:
        with near, suppress(OSError), socket.create_connection(("127.0.0.1", self._port)) as far:
            back = self._start(_copy, far, near)
            _copy(near, far)
            back.join()


def _copy(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while chunk := source.recv(65536):
            target.sendall(chunk)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)


def _enter_network(descriptor: int) -> None:
    """Move the calling thread, and it alone, into a network namespace (setns(2))."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")
    os.close(descriptor)


def _children(pid: int) -> list[int]:
    found: list[int] = []
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        found += [int(child) for child in children.read_text().split()]
    return found


def _first_process(pid: int) -> int | None:
    """Return the first process of the container that this chain of namespace tools started, once it is the service."""
    for child in _children(pid):
        try:
            ids = _namespace_ids(child)
            if len(ids) >= 3 and ids[-1] == "1" and os.readlink(f"/proc/{child}/root") != "/":
                return child
            if found := _first_process(child):
                return found
        except (FileNotFoundError, ProcessLookupError):
            continue
    return None


def _namespace_ids(pid: int) -> list[str]:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("NSpid:"):
            return line.split()[1:]
    return []
