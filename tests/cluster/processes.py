"""Long-running processes: started detached, remembered in a file, and ended only if they are still the same process.

A process is known by its id, its start time and the boot it belongs to, so a recycled id is never mistaken for it.
"""

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.cluster.commands import wait_until
from tests.cluster.errors import ClusterError

_KILL_TIMEOUT = 10.0


@dataclass(frozen=True)
class Identity:
    """What tells one process from every other, before and after it; `started` is in clock ticks since boot."""

    pid: int
    started: int
    boot: str


def identify(pid: int, proc: Path = Path("/proc")) -> Identity | None:
    """Return the identity of a living process, or None when there is none or only its zombie is left."""
    state, identity = _look_at(pid, proc)
    return None if state in "ZX" else identity


def _look_at(pid: int, proc: Path = Path("/proc")) -> tuple[str, Identity | None]:
    """Return a process's state letter and identity; ("X", None) where there is none."""
    try:
        stat = (proc / str(pid) / "stat").read_text(errors="replace")
        boot = (proc / "sys/kernel/random/boot_id").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return "X", None
    # The name in parentheses may hold spaces and parentheses itself (proc_pid_stat(5)); field 3 follows the last one.
    fields = stat.rpartition(")")[2].split()
    return fields[0], Identity(pid=pid, started=int(fields[19]), boot=boot)


def is_alive(identity: Identity, proc: Path = Path("/proc")) -> bool:
    """Tell whether exactly this process still runs."""
    return identify(identity.pid, proc) == identity


def read_pid_file(path: Path) -> Identity | None:
    """Return the identity a pid file holds, or None when it is missing or half-written."""
    try:
        return Identity(**json.loads(path.read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def kill_all(identities: Iterable[Identity], *, sent: signal.Signals = signal.SIGKILL) -> int:
    """End these processes at once, those that still are what they were, and wait until they are gone.

    Returns how many there were. Raises: ClusterError when one outlives the signal by ten seconds.
    """
    given = list(identities)
    alive = [identity for identity in given if _send(identity, sent)]
    wait_until(
        lambda: not any(_reap(identity) for identity in given),
        what=f"the end of processes {', '.join(str(identity.pid) for identity in given)}",
        timeout=_KILL_TIMEOUT,
        interval=0.02,
    )
    return len(alive)


def _send(identity: Identity, sent: signal.Signals) -> bool:
    """Send a signal through a pidfd: the identity is checked after the process is pinned, so there is no race."""
    try:
        descriptor = os.pidfd_open(identity.pid)
    except ProcessLookupError:
        return False
    try:
        if not is_alive(identity):
            return False
        signal.pidfd_send_signal(descriptor, sent)
    except ProcessLookupError:
        return False
    finally:
        os.close(descriptor)
    return True


def _reap(identity: Identity) -> bool:
    """Tell whether a process still runs; one that has ended and is a child of ours leaves no zombie."""
    state, found = _look_at(identity.pid)
    if found != identity:
        return False
    if state != "Z":
        return True
    with contextlib.suppress(ChildProcessError):
        os.waitpid(identity.pid, os.WNOHANG)
    return False


def find_processes(executables: Path, names: frozenset[str], mention: Path) -> list[Identity]:
    """Return the living processes that run one of `names` from below `executables` and name `mention` in an argument.

    This finds daemons whose pid file was lost with the process that should have written it.
    """
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            program = Path(os.readlink(entry / "exe").removesuffix(" (deleted)"))
            arguments = (entry / "cmdline").read_bytes()
        except OSError:
            continue  # it ended, or belongs to somebody else
        if program.name in names and program.is_relative_to(executables) and os.fsencode(mention) + b"/" in arguments:
            identity = identify(int(entry.name))
            if identity is not None:
                found.append(identity)
    return found


class Daemons:
    """The daemons of one directory: pid files in `run/`, output in `log/`."""

    def __init__(self, directory: Path) -> None:
        self._run = directory / "run"
        self._log = directory / "log"

    def start(self, name: str, argv: Sequence[str | Path], environ: Mapping[str, str]) -> Identity:
        """Start a daemon in a session of its own, so that no signal to the caller's terminal reaches it.

        Raises: ClusterError when it cannot be started.
        """
        self._run.mkdir(parents=True, exist_ok=True)
        self._log.mkdir(parents=True, exist_ok=True)
        try:
            with self.log_path(name).open("ab") as log:
                process = subprocess.Popen(
                    [str(word) for word in argv],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=dict(environ),
                    start_new_session=True,
                    cwd="/",
                )
        except OSError as error:
            raise ClusterError(f"{name} cannot be started: {error}") from error
        identity = identify(process.pid)
        # The object would warn about a running child when collected, but these outlive the command on purpose.
        process.returncode = 0
        if identity is None:
            raise ClusterError(f"{name} ended at once: {self.log_tail(name)}")
        partial = self._pid_path(name).with_suffix(".partial")
        partial.write_text(json.dumps(asdict(identity)))
        partial.replace(self._pid_path(name))
        return identity

    def known(self) -> dict[str, Identity]:
        """Return what the pid files hold, by name."""
        read = {path.stem: read_pid_file(path) for path in sorted(self._run.glob("*.pid"))}
        return {name: identity for name, identity in read.items() if identity is not None}

    def dead(self) -> list[str]:
        """Return the names of the daemons that were started and no longer run."""
        return [name for name, identity in self.known().items() if not is_alive(identity)]

    def kill(self) -> int:
        """Kill every daemon that still runs and forget all. Returns how many ran."""
        count = kill_all(self.known().values())
        for path in self._run.glob("*.pid"):
            path.unlink()
        return count

    def wait_until(self, ready: Callable[[], bool], *, what: str, timeout: float) -> None:
        """Wait for a condition while every daemon lives.

        Raises: ClusterError with the end of the log of the one that died, or after `timeout` seconds.
        """

        def is_ready_or_broken() -> bool:
            for name in self.dead():
                raise ClusterError(f"{name} ended while waiting for {what}: {self.log_tail(name)}")
            return ready()

        begin = time.monotonic()
        try:
            wait_until(is_ready_or_broken, what=what, timeout=timeout)
        except ClusterError as error:
            if time.monotonic() - begin < timeout:
                raise
            raise ClusterError(f"{error} (the logs are in {self._log})") from error

    def log_path(self, name: str) -> Path:
        return self._log / f"{name}.log"

    def log_tail(self, name: str) -> str:
        """Return the last lines a daemon wrote."""
        try:
            text = self.log_path(name).read_text(errors="replace")
        except FileNotFoundError:
            return "it wrote nothing"
        return " | ".join(text.strip().splitlines()[-5:]) or "it wrote nothing"

    def _pid_path(self, name: str) -> Path:
        return self._run / f"{name}.pid"
