"""Stop, kill and freeze a real Postgres for as long as a test wants.

EmbeddedPostgres starts a Postgres that ended by itself again, on the same port; held still meanwhile, its supervisor
does so only when the outage shall end.
"""

import os
import signal
from contextlib import suppress
from enum import Enum
from pathlib import Path

from agent_store.embedded import EmbeddedPostgres


class Outage(Enum):
    """Ways for Postgres to go away; the names are those of pg_ctl's shutdown modes, and two that it does not know."""

    FAST = signal.SIGINT
    IMMEDIATE = signal.SIGQUIT
    KILLED = signal.SIGKILL
    FROZEN = signal.SIGSTOP


class BreakablePostgres:
    """An EmbeddedPostgres and what was done to it."""

    def __init__(self, server: EmbeddedPostgres) -> None:
        self.server = server
        self._held: list[int] = []

    def break_(self, outage: Outage) -> None:
        """Make Postgres go away in this way, until mend()."""
        postmaster = self.server.pid
        if outage is Outage.FROZEN:
            # The parent first: it must not start another child behind our back.
            self._hold(postmaster)
            for child in children(postmaster):
                self._hold(child)
        else:
            self._hold(parent(postmaster))
            os.kill(postmaster, outage.value)

    def mend(self) -> None:
        """Let Postgres come back; it is not yet there when this returns. Nothing happens if it is whole."""
        while self._held:
            with suppress(ProcessLookupError):
                os.kill(self._held.pop(), signal.SIGCONT)

    def _hold(self, pid: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
            self._held.append(pid)


def children(pid: int) -> list[int]:
    """Return the process ids of a process's children."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def parent(pid: int) -> int:
    """Return the process id of a process's parent."""
    # After the command's name in parentheses, which may hold anything: state, then the parent.
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
