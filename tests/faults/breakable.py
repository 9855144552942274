"""Stop, kill and freeze a real Postgres for as long as a test wants.

EmbeddedPostgres starts a Postgres that ended by itself again, on the same port; held still meanwhile, its supervisor
does so only when the outage shall end.
"""

import asyncio
import atexit
import functools
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from enum import Enum
from pathlib import Path

from agent_store.embedded import EmbeddedPostgres
from agent_store.migrate import migrate

BACK_SECONDS = 30.0


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
        """Make Postgres go away in this way, until mend(); it may still be on its way back from the last time."""
        postmaster = self._wait_pid()
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

    def _wait_pid(self) -> int:
        deadline = time.monotonic() + BACK_SECONDS
        while True:
            try:
                return self.server.pid
            except (FileNotFoundError, IndexError):  # not started yet, or its file is being written
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)

    def _hold(self, pid: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
            self._held.append(pid)


_MODEL = threading.Lock()


@functools.cache
def _model() -> Path:
    """Make a migrated data folder, once in a test run; return where it is."""
    folder = Path(tempfile.mkdtemp(prefix="abide-model-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    with EmbeddedPostgres(folder / "data") as server:
        migrate(server.url)
    return folder / "data"


def copy_model(folder: Path) -> None:
    """Make a data folder like the migrated one, and no file of the server that made that."""
    with _MODEL:
        model = _model()
    folder.mkdir(mode=0o711)
    subprocess.run(["cp", "-a", model / "postgres", model / "password", folder], check=True, timeout=60)


@asynccontextmanager
async def breakable_postgres(folder: Path) -> AsyncIterator[BreakablePostgres]:
    """Yield a server of one's own on the folder, migrated; it is whole again before it is stopped."""
    await asyncio.to_thread(copy_model, folder)
    server = EmbeddedPostgres(folder)
    try:
        await asyncio.to_thread(server.start)
        breakable = BreakablePostgres(server)
        try:
            yield breakable
        finally:
            breakable.mend()
    finally:
        await asyncio.to_thread(server.stop)


def children(pid: int) -> list[int]:
    """Return the process ids of a process's children."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def parent(pid: int) -> int:
    """Return the process id of a process's parent."""
    # After the command's name in parentheses, which may hold anything: state, then the parent.
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
