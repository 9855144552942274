"""Who is running: processes told apart by pid and start time, since pids are used again. Standard library only.

Reads only what /proc shows to everybody, because root without CAP_SYS_PTRACE (any container) may not look at the
working directory or program of another user's process.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

_POLL_SECONDS: Final = 0.02


@dataclass(frozen=True, slots=True)
class Process:
    """One process; `started` is in clock ticks since boot (proc(5), field 22 of stat)."""

    pid: int
    started: int

    @property
    def is_alive(self) -> bool:
        """Whether this very process still runs; one that only waits to be reaped does not."""
        return find_process(self.pid) == self


def find_process(pid: int) -> Process | None:
    """Return the running process with this pid, or None."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else Process(pid, int(fields[19]))


def find_processes(is_wanted: Callable[[list[str]], bool]) -> Iterator[Process]:
    """Yield running processes whose command line is wanted."""
    for name in os.listdir("/proc"):
        if name.isdigit():
            process = find_process(int(name))
            if process is not None and is_wanted(command_line(process.pid)):
                yield process


def command_line(pid: int) -> list[str]:
    """Return the command line of a process, or an empty list."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return os.fsdecode(file.read()).rstrip("\0").split("\0")
    except (FileNotFoundError, ProcessLookupError):
        return []


def wait_until(condition: Callable[[], bool], timeout: float) -> bool:
    """Wait until the condition holds; False when `timeout` seconds have passed."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL_SECONDS)
    return True


def stop_process(process: Process, stages: list[tuple[signal.Signals, float]]) -> bool:
    """Send each signal and wait for its seconds until the process has ended; False if it never does."""
    for number, timeout in stages:
        if process.is_alive:
            try:
                os.kill(process.pid, number)
            except ProcessLookupError:
                return True
        if wait_until(lambda: not process.is_alive, timeout):
            return True
    return False
