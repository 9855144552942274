"""Bringing the database's schema up to date, in a process of its own, until it succeeds.

Nothing waits for it: runtimes check the schema's version themselves and stay unready until it is there.
"""

import asyncio
import sys
from collections.abc import Mapping, Sequence
from typing import Final

import structlog

from agent_operator.status.text import scrub

log = structlog.get_logger(__name__)

DEADLINE: Final = 600.0
BACKOFF_FIRST: Final = 1.0
BACKOFF_LIMIT: Final = 30.0
COMMAND: Final = (sys.executable, "-m", "agent_store.migrate")
_KILL_GRACE: Final = 5.0
_OUTPUT_LIMIT: Final = 64 * 1024


class Migrations:
    """Runs the migrations once successfully. `done` tells whether that has happened."""

    def __init__(self, environ: Mapping[str, str], *, command: Sequence[str] = COMMAND) -> None:
        self._environ = dict(environ)
        self._command = tuple(command)
        self.done = False
        self.failures = 0

    async def run(self) -> None:
        """Try until it succeeds, with growing pauses. If cancelled, a running migration is ended."""
        pause = BACKOFF_FIRST
        while not self.done:
            problem = await self._migrate()
            if problem is None:
                self.done = True
                log.info("the database schema is up to date")
                return
            self.failures += 1
            log.warning("the database schema could not be brought up to date", error=problem, retry_in=pause)
            await asyncio.sleep(pause)
            pause = min(pause * 2, BACKOFF_LIMIT)

    async def _migrate(self) -> str | None:
        """Run the migrations once; return None, or what went wrong in one line."""
        process = await asyncio.create_subprocess_exec(
            *self._command,
            env=self._environ,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(DEADLINE):
                _, errors = await process.communicate()
        except TimeoutError:
            return f"no end after {DEADLINE:.0f} s"
        finally:
            if process.returncode is None:
                await asyncio.shield(_end(process))
        if process.returncode == 0:
            return None
        lines = errors[-_OUTPUT_LIMIT:].decode(errors="replace").strip().splitlines()
        return scrub(lines[-1]) if lines else f"exit code {process.returncode}"


async def _end(process: asyncio.subprocess.Process) -> None:
    """Ask the process to end (a transaction rolls back), and make it end."""
    process.terminate()
    try:
        async with asyncio.timeout(_KILL_GRACE):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
