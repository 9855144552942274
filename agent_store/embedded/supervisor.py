"""The process between us and the embedded Postgres: it ends Postgres when we are gone, however we went.

Run as a script: `python -I supervisor.py JSON`. It holds a lock on the data folder, deals with what an earlier run
left behind, makes the cluster on first use, starts Postgres and prints one JSON line, {"port", "pid"} or {"error"}.
Then it waits until its standard input ends, which happens when its parent closes it or dies, even by kill -9; a
signal tied to the parent (PR_SET_PDEATHSIG) would be sent when the parent's *thread* ends. Postgres itself is tied to
the supervisor by that signal, which is safe as the supervisor has one thread. A Postgres that dies by itself is
started again on the same port.
"""

import fcntl
import hashlib
import json
import os
import secrets
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

if __name__ == "__main__":  # runs isolated from the packages of its parent
    sys.path.append(str(Path(__file__).resolve().parents[2]))

from agent_store.embedded.privileges import Identity, PrivilegeError, build_preexec, choose_identity
from agent_store.embedded.processes import Process, find_process, find_processes, stop_process, wait_until

_STOP_STAGES: Final = [(signal.SIGINT, 10.0), (signal.SIGQUIT, 5.0), (signal.SIGKILL, 5.0)]
_LOG_MAX_BYTES: Final = 4 * 2**20
_RESTART_PAUSE_SECONDS: Final = 1.0
_PORT_TAKEN: Final = "could not create any TCP/IP sockets"
_ENVIRONMENT: Final = {"LC_ALL": "C", "TZ": "UTC", "PATH": "/usr/bin:/bin"}

# fsync and synchronous_commit stay on: what was acknowledged must survive. The rest keeps a server for one person
# small.
_SETTINGS: Final = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "shared_buffers": "64MB",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_wal_size": "256MB",
    "max_worker_processes": "2",
    "max_parallel_workers": "0",
    "jit": "off",
    "huge_pages": "off",
    # Details of errors quote rows, and rows are what users wrote.
    "log_error_verbosity": "terse",
    "log_min_error_statement": "panic",
}
_SETTINGS_18: Final = {"io_method": "sync"}


class StartError(Exception):
    """Postgres cannot be started; the message says what to do."""


class Supervisor:
    """One run over one data folder."""

    def __init__(
        self, root: Path, binaries: Path, version: int, timeout: float, parent: Process, max_connections: int
    ) -> None:
        self.root = root
        self.max_connections = max_connections
        self.parent = parent
        self.binaries = binaries
        self.version = version
        self.cluster = root / "postgres"
        self.deadline = time.monotonic() + timeout
        self.label = "abide-" + hashlib.sha256(os.fsencode(self.cluster)).hexdigest()[:16]
        self.identity = Identity(None, None, None)
        self.child: subprocess.Popen[bytes] | None = None
        self.port = 0

    def run(self) -> None:
        """Start Postgres, say so, keep it running until standard input ends, stop it."""
        lock = self._lock()
        try:
            owner = self.cluster.stat().st_uid if self.cluster.exists() else None
            self.identity = choose_identity([str(self.cluster), str(self.binaries / "postgres")], owner)
            self._clear_remains()
            if not self.cluster.exists():
                self._make_cluster()
            elif not (self.root / "password").exists():
                raise StartError(f"{self.root / 'password'} is missing; restore it or choose another folder")
            self._start()
            _say({"port": self.port, "pid": self._child.pid})
            self._watch()
        finally:
            self._stop()
            os.close(lock)

    @property
    def _child(self) -> subprocess.Popen[bytes]:
        assert self.child is not None  # noqa: S101 - started before it is watched
        return self.child

    @property
    def _remaining(self) -> float:
        return max(0.0, self.deadline - time.monotonic())

    def _lock(self) -> int:
        # The holder is a supervisor; one whose parent has died is on its way out and worth waiting for.
        lock = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

        def is_taken() -> bool:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return True

        while not wait_until(is_taken, min(0.2, self._remaining)):
            holder = _read_json(self.root / "owner.json")
            in_use = Process(holder["pid"], holder["started"]).is_alive if holder else False
            if in_use or not self._remaining:
                who = f" (process {holder['pid']})" if holder else ""
                raise StartError(f"{self.root} is in use by another Abide{who}; stop that one or choose another folder")
        _write_json(self.root / "owner.json", {"pid": self.parent.pid, "started": self.parent.started})
        return lock

    def _clear_remains(self) -> None:
        """End a Postgres of an earlier run on this folder, and remove its pid file once nobody uses the folder.

        Only a process that the earlier run noted by pid and start time is ended; anybody else's is reported.
        """
        noted = _read_json(self.root / "server.json")
        if noted:
            self.port = noted["port"]
            old = Process(noted["pid"], noted["started"])
            if old.is_alive and not stop_process(old, _STOP_STAGES):
                raise StartError(
                    f"an earlier Postgres of this folder (process {old.pid}) does not end; end it, then retry"
                )
        # Children of a killed Postgres end by themselves; a second server beside them would destroy the data.
        if not wait_until(lambda: not self._users(), min(10.0, self._remaining)):
            pids = ", ".join(str(process.pid) for process in self._users())
            raise StartError(f"another Postgres runs on {self.cluster} (process {pids}); stop it, then retry")
        (self.cluster / "postmaster.pid").unlink(missing_ok=True)

    def _users(self) -> list[Process]:
        def is_ours(arguments: list[str]) -> bool:
            is_server = os.path.basename(arguments[0]) == "postgres" and str(self.cluster) in arguments
            return is_server or arguments[0].startswith(f"postgres: {self.label}:")

        return list(find_processes(lambda arguments: bool(arguments) and is_ours(arguments)))

    def _make_cluster(self) -> None:
        # Made beside and renamed: a cluster that exists is complete.
        fresh = self.root / "postgres.new"
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(mode=0o700)
        password, secret = secrets.token_urlsafe(24), self.root / "password.new"
        for path in (self.root / "password", secret):
            path.unlink(missing_ok=True)
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(password)
        if self.identity.uid is not None and self.identity.gid is not None:
            for path in (fresh, secret):
                os.chown(path, self.identity.uid, self.identity.gid)
        command = [str(self.binaries / "initdb"), "-D", str(fresh), "--username=abide", f"--pwfile={secret}"]
        command += ["--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-instructions"]
        if self.version >= 17:
            command += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        try:
            done = self._spawn(command, subprocess.PIPE)
            printed, _ = done.communicate(timeout=max(1.0, self._remaining))
        except subprocess.TimeoutExpired:
            done.kill()
            raise StartError("making the Postgres data took too long; is the disk very slow? Try again") from None
        finally:
            secret.unlink(missing_ok=True)
        if done.returncode != 0:
            raise StartError("making the Postgres data failed: " + printed.decode(errors="replace").strip()[-500:])
        os.rename(fresh, self.cluster)

    def _start(self) -> None:
        for attempt in range(5):
            if attempt or not self.port or not _is_free(self.port):
                self.port = _find_free_port()
            if self._start_once():
                return
        raise StartError(f"Postgres does not start: {self._log_tail()}")

    def _start_once(self) -> bool:
        """Start on `port` and wait until ready; False when the port was taken meanwhile."""
        settings = (
            _SETTINGS
            | (_SETTINGS_18 if self.version >= 18 else {})
            | {"port": str(self.port), "cluster_name": self.label, "max_connections": str(self.max_connections)}
        )
        command = [str(self.binaries / "postgres"), "-D", str(self.cluster)]
        command += [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        log = self.root / "postgres.log"
        if log.exists() and log.stat().st_size > _LOG_MAX_BYTES:
            os.replace(log, log.with_suffix(".log.1"))
        with open(log, "ab") as output:
            self.child = self._spawn(command, output)
        process = find_process(self._child.pid)
        if process is not None:
            noted = {"pid": process.pid, "started": process.started, "port": self.port}
            _write_json(self.root / "server.json", noted)
        if not wait_until(lambda: self._is_ready() or self._child.poll() is not None, self._remaining):
            raise StartError(f"Postgres was not ready in time: {self._log_tail()}")
        if self._child.poll() is None:
            return True
        if _PORT_TAKEN in self._log_tail():
            return False
        raise StartError(f"Postgres does not start: {self._log_tail()}")

    def _spawn(self, command: list[str], output: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen(  # noqa: S603
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd="/",
            env=_ENVIRONMENT,
            preexec_fn=build_preexec(self.identity),
        )

    def _is_ready(self) -> bool:
        # Line 8 of postmaster.pid, as pg_ctl reads it.
        try:
            lines = (self.cluster / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) >= 8 and lines[0] == str(self._child.pid) and lines[7].strip() == "ready"

    def _watch(self) -> None:
        restarted = float("-inf")
        while True:
            ended = os.pidfd_open(self._child.pid)
            try:
                readable, _, _ = select.select([0, ended], [], [])
            finally:
                os.close(ended)
            if 0 in readable and not os.read(0, 1):
                return
            if ended in readable:
                self._child.wait()
                if time.monotonic() - restarted < _RESTART_PAUSE_SECONDS:
                    raise StartError(f"Postgres ends again and again: {self._log_tail()}")
                restarted = time.monotonic()
                self.deadline = restarted + 60.0
                self._clear_remains()
                if not self._start_once():
                    raise StartError(f"port {self.port} was taken while Postgres was down")

    def _stop(self) -> None:
        if self.child is None:
            return
        for number, timeout in _STOP_STAGES:
            if self.child.poll() is not None:
                return
            self.child.send_signal(number)
            try:
                self.child.wait(timeout)
            except subprocess.TimeoutExpired:
                continue

    def _log_tail(self) -> str:
        try:
            lines = (self.root / "postgres.log").read_text(errors="replace").splitlines()
        except FileNotFoundError:
            return "no log was written"
        return " / ".join(lines[-3:])[-500:]


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def _find_free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _write_json(path: Path, content: dict[str, Any]) -> None:
    fresh = path.with_name(path.name + ".new")
    fresh.write_text(json.dumps(content))
    os.replace(fresh, path)


def _say(message: dict[str, Any]) -> None:
    try:
        print(json.dumps(message), flush=True)  # noqa: T201 - the parent reads it
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def main() -> int:
    """Run with a JSON argument: root, binaries, version, timeout, parent, max_connections; 1 if Postgres cannot run."""
    os.umask(0o077)
    # Ctrl-C in a terminal is the parent's business, as is what it says to the supervisor.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    arguments = json.loads(sys.argv[1])
    supervisor = Supervisor(
        Path(arguments["root"]),
        Path(arguments["binaries"]),
        arguments["version"],
        arguments["timeout"],
        Process(*arguments["parent"]),
        arguments["max_connections"],
    )
    try:
        supervisor.run()
    except (StartError, PrivilegeError, OSError) as error:
        _say({"error": str(error)})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
