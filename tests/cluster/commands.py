"""Run other programs with a deadline, and wait for conditions with one."""

import contextlib
import ctypes
import fcntl
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from tests.cluster.errors import ClusterError

# Whoever holds a lock may be building for as long as this.
LOCK_TIMEOUT = 3600.0

_STILL_EVERY = 60.0
_LIBC = ctypes.CDLL(None)
_SYSTEM_DIRECTORIES = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def with_system_path(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the environment with the sbin directories on PATH, where a plain user's shell often lacks them."""
    return {**environ, "PATH": f"{environ.get('PATH', '')}:{_SYSTEM_DIRECTORIES}".removeprefix(":")}


def daemon_environment(*directories: Path) -> dict[str, str]:
    """Return the whole environment of a daemon: a PATH only, so that no proxy or credential of the caller leaks in."""
    return {"PATH": ":".join([*map(str, directories), _SYSTEM_DIRECTORIES]), "LANG": "C.UTF-8"}


def run(
    argv: Sequence[str | Path],
    *,
    timeout: float,
    stdin: str | None = None,
    environ: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> str:
    """Run a program to its end and return its standard output.

    Raises: ClusterError with the end of what it wrote when it fails, is missing or takes over `timeout` seconds.
    """
    done = attempt(argv, timeout=timeout, stdin=stdin, environ=environ, cwd=cwd)
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or "no output")[-2000:]
        raise ClusterError(f"`{_shown(argv)}` ended with {done.returncode}: {said}")
    return done.stdout


def attempt(
    argv: Sequence[str | Path],
    *,
    timeout: float,
    stdin: str | None = None,
    environ: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, whatever its exit code. Raises: ClusterError when it is missing or takes too long."""
    words = [str(word) for word in argv]
    try:
        return subprocess.run(
            words,
            check=False,
            capture_output=True,
            text=True,
            errors="replace",
            input=stdin if stdin is not None else "",
            timeout=timeout,
            env=dict(environ) if environ is not None else with_system_path(),
            cwd=cwd,
        )
    except FileNotFoundError as error:
        raise ClusterError(f"the program {words[0]} is missing: {error}") from error
    except subprocess.TimeoutExpired as error:
        raise ClusterError(f"`{_shown(argv)}` did not end within {timeout:.0f} s") from error


def run_long(
    argv: Sequence[str | Path],
    *,
    timeout: float,
    log: Path,
    still: Callable[[], None],
    environ: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> None:
    """Run a program that takes minutes, its output in the file `log`; `still` is called once a minute.

    The program is interrupted when the calling thread ends in any way, kill -9 included.
    Raises: ClusterError with the end of the output when it fails, is missing or takes over `timeout` seconds.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + timeout
    with log.open("wb") as output:
        try:
            process = subprocess.Popen(
                [str(word) for word in argv],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(environ) if environ is not None else with_system_path(),
                cwd=cwd,
                preexec_fn=_end_with_caller,
            )
        except FileNotFoundError as error:
            raise ClusterError(f"the program {argv[0]} is missing: {error}") from error
        try:
            while (code := _wait_a_while(process, min(_STILL_EVERY, deadline - time.monotonic()))) is None:
                if time.monotonic() > deadline:
                    raise ClusterError(f"`{_shown(argv)}` did not end within {timeout:.0f} s (its output: {log})")
                still()
        finally:
            process.kill()
            process.wait()
    if code:
        raise ClusterError(f"`{_shown(argv)}` ended with {code}: {log.read_text(errors='replace').strip()[-2000:]}")


def _end_with_caller() -> None:
    """Ask the kernel, in a new child, for SIGINT when the thread that started it ends (PR_SET_PDEATHSIG, prctl(2))."""
    _LIBC.prctl(1, signal.SIGINT)


def _wait_a_while(process: "subprocess.Popen[bytes]", timeout: float) -> int | None:
    try:
        return process.wait(timeout=max(timeout, 0.01))
    except subprocess.TimeoutExpired:
        return None


def _shown(argv: Sequence[str | Path]) -> str:
    text = shlex.join(str(word) for word in argv)
    return text if len(text) <= 200 else text[:200] + " …"


def wait_until(condition: Callable[[], bool], *, what: str, timeout: float, interval: float = 0.1) -> None:
    """Return as soon as `condition` holds. Raises: ClusterError naming `what` after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise ClusterError(f"gave up after {timeout:.0f} s waiting for {what}")
        time.sleep(interval)


def lasting_problem(
    find: Callable[[], str | None], *, patience: float, waiting: Callable[[str], None], interval: float = 1.0
) -> str | None:
    """Return what `find` still finds after `patience` seconds, or None as soon as it finds nothing.

    `waiting` is called once with the first problem. For what a busy machine may cause and a mistake would be costly.
    """
    problem = find()
    if problem is None:
        return None
    waiting(problem)
    deadline = time.monotonic() + patience
    while problem is not None and time.monotonic() < deadline:
        time.sleep(interval)
        problem = find()
    return problem


@contextlib.contextmanager
def exclusive(path: Path, *, waiting: Callable[[], None], timeout: float) -> Iterator[None]:
    """Hold an advisory lock on `path` (made if missing); the kernel lets go of it when the process dies.

    `waiting` is called once when somebody else holds it. Raises: ClusterError after `timeout` seconds.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        if not _try_lock(file.fileno()):
            waiting()
            wait_until(lambda: _try_lock(file.fileno()), what=f"the lock {path}", timeout=timeout)
        yield


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
