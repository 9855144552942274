"""The runtime inside this process: started, replaced by one with other agents, and stopped, in a thread of its own."""

import asyncio
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from agent_api.v1alpha1 import Agent
from agent_cli.errors import CliError
from agent_runtime.app import serve
from agent_runtime.errors import AgentRuntimeError
from agent_runtime.settings import RuntimeSettings

READY_TIMEOUT: Final = 60.0
STOP_MARGIN: Final = 15.0
"""What the runtime may take beyond its drain: cancelling, saving, closing."""


class Server:
    """Serves agents on one port from a thread. `on_failure` is called from there when serving ends unasked."""

    def __init__(self, settings: RuntimeSettings, on_failure: Callable[[], None]) -> None:
        self._settings = settings
        self._on_failure = on_failure
        self._run: _Run | None = None
        self.error: BaseException | None = None

    def start(self, agents: tuple[Agent, ...]) -> None:
        """Serve these agents; return when messages can be accepted. Raises CliError when that cannot be."""
        run = _Run(replace(self._settings, agents=agents), self._ended)
        self._run = run
        if not run.ready.wait(READY_TIMEOUT) or run.error is not None:
            self.stop()
            raise _explain(run.error)

    def stop(self) -> None:
        """Let turns finish, save, and return when the thread has ended. Idempotent. Raises CliError if it does not."""
        run, self._run = self._run, None
        if run is not None and not run.stop(self._settings.drain_seconds + STOP_MARGIN):
            raise CliError("The runtime did not stop in time; unfinished turns go on at the next start.")

    def _ended(self, error: BaseException | None) -> None:
        if error is not None:
            self.error = error
        self._on_failure()


class _Run:
    """One thread with one event loop that runs serve() once."""

    def __init__(self, settings: RuntimeSettings, on_unasked_end: Callable[[BaseException | None], None]) -> None:
        self.ready = threading.Event()
        self.error: BaseException | None = None
        self._settings = settings
        self._on_unasked_end = on_unasked_end
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._stopping = False
        self._thread = threading.Thread(target=self._main, name="abide-runtime", daemon=True)
        self._thread.start()

    def stop(self, timeout: float) -> bool:
        """Ask serve() to end and wait for the thread; False if it still runs after `timeout` seconds."""
        self._stopping = True
        if self._loop is not None and self._stop is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(timeout)
        return not self._thread.is_alive()
