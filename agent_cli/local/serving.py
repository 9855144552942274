"""The runtime inside this process: started, replaced by one with other agents, and stopped, in a thread of its own."""

import asyncio
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

import uvloop

from agent_api.v1alpha1 import Agent
from agent_cli.errors import CliError, HungError
from agent_runtime.app import serve
from agent_runtime.errors import SettingsError
from agent_runtime.settings import AuthMode, RuntimeSettings
from agent_store.errors import StoreError
from agent_store.postgres.store import PostgresStore
from agent_store.settings import StoreSettings

READY_TIMEOUT: Final = 60.0
POLL_SECONDS: Final = 0.1
STOP_MARGIN: Final = 15.0
"""What the runtime may take beyond its drain: cancelling, saving, closing."""
DRAIN_SECONDS: Final = 5.0
"""How long a stop waits for running turns: somebody waits at the terminal, and with --data they go on next time."""
UPKEEP_SECONDS: Final = 3600.0
UPKEEP_DEADLINE: Final = 300.0
UPKEEP_SETTINGS: Final = StoreSettings(max_connections=1, application_name="abide-dev-upkeep")
INSTANCE: Final = "abide-dev"
"""The same at every start, so that a restart takes over its own turns at once; a data folder has one user at a time."""


def dev_settings(
    database: str, secrets: Path, keys: Path, *, port: int, log_level: str, agent_class: str = ""
) -> RuntimeSettings:
    """Return what the runtime needs on this machine: loopback only, therefore no API keys."""
    return RuntimeSettings(
        postgres_url=database,
        instance=INSTANCE,
        pod_name=INSTANCE,
        auth=AuthMode.NONE,
        secrets_dir=secrets,
        encryption_keys_dir=keys,
        host="127.0.0.1",
        port=port,
        log_format="console",
        log_level=log_level,
        drain_seconds=DRAIN_SECONDS,
        agent_class=agent_class,
    )


class Server:
    """Serves agents on one port from a thread. `on_failure` is called from there when serving ends unasked."""

    def __init__(self, settings: RuntimeSettings, on_failure: Callable[[], None]) -> None:
        self._settings = settings
        self._on_failure = on_failure
        self._run: _Run | None = None
        self.error: list[str] = []

    def start(self, agents: tuple[Agent, ...], is_cancelled: Callable[[], bool]) -> None:
        """Serve these agents; return when messages can be accepted, or soon after `is_cancelled()` says so.

        Raises CliError when that cannot be.
        """
        self._run = run = _Run(replace(self._settings, agents=agents), self._ended)
        run.wait_ready(READY_TIMEOUT, is_cancelled)

    def replace(self, agents: tuple[Agent, ...], is_cancelled: Callable[[], bool]) -> None:
        """Serve these agents instead; connections are refused for a moment. Raises CliError as start() and stop()."""
        self.stop()
        self.start(agents, is_cancelled)

    def stop(self) -> None:
        """Let turns finish, save, and return when the thread has ended. Idempotent. Raises HungError if it does not."""
        run, self._run = self._run, None
        if run is not None and not run.stop(self._settings.drain_seconds + STOP_MARGIN):
            raise HungError(
                "The runtime did not stop in time; unfinished turns go on at the next start with this data."
            )

    def _ended(self, error: BaseException | None) -> None:
        self.error = explain(error)
        self._on_failure()


class _Run:
    """One thread with one event loop that runs serve() once."""

    def __init__(self, settings: RuntimeSettings, on_unasked_end: Callable[[BaseException | None], None]) -> None:
        self._settings = settings
        self._on_unasked_end = on_unasked_end
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop = asyncio.Event()
        self._stopping = False
        self._ready = False
        self._error: BaseException | None = None
        # Set when serving began or ended, whichever came first.
        self._settled = threading.Event()
        self._thread = threading.Thread(target=self._main, name="abide-runtime", daemon=True)
        self._thread.start()

    def wait_ready(self, timeout: float, is_cancelled: Callable[[], bool]) -> None:
        """Return when messages can be accepted or nobody wants it. Raises CliError with the reason otherwise."""
        deadline = time.monotonic() + timeout
        # Signals are handled between two waits of this thread.
        while not self._settled.wait(POLL_SECONDS) and not is_cancelled():
            if time.monotonic() >= deadline:
                raise CliError(f"The runtime was not ready within {timeout:g} s.")
        if self._settled.is_set() and not self._ready:
            raise CliError(explain(self._error)) from self._error

    def stop(self, timeout: float) -> bool:
        """Ask serve() to end and wait for the thread; False if it still runs after `timeout` seconds."""
        self._stopping = True
        loop = self._loop
        if loop is not None and self._thread.is_alive():
            # The loop may close at this very moment; then there is nothing to ask.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _main(self) -> None:
        try:
            uvloop.run(self._serve())
        except BaseException as error:
            self._error = error
        finally:
            was_ready = self._ready
            self._settled.set()
        if was_ready and not self._stopping:
            self._on_unasked_end(self._error)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        upkeep = asyncio.create_task(maintain(self._settings.postgres_url), name="upkeep")
        try:
            await serve(self._settings, on_ready=self._on_ready, stop=self._stop)
        finally:
            upkeep.cancel()
            await asyncio.gather(upkeep, return_exceptions=True)

    def _on_ready(self) -> None:
        self._ready = True
        self._settled.set()


async def maintain(url: str, *, interval: float = UPKEEP_SECONDS) -> None:
    """Do the database's housekeeping at once and then every `interval` seconds, until cancelled.

    In a cluster the operator does it. A failure is said once and tried again at the next turn.
    """
    failing = False
    while True:
        store = PostgresStore(url, UPKEEP_SETTINGS)
        try:
            async with asyncio.timeout(UPKEEP_DEADLINE):
                await store.maintain()
            failing = False
        except (StoreError, TimeoutError, OSError) as error:
            if not failing:
                print(f"the database could not be maintained; it is tried again: {error}", file=sys.stderr, flush=True)
            failing = True
        finally:
            # Not kept open: an hour is long, and the runtime has the connections it needs.
            await store.aclose()
        await asyncio.sleep(interval)


def explain(error: BaseException | None) -> list[str]:
    """Return why serving ended, one line per cause."""
    match error:
        case None:
            return ["The runtime stopped by itself."]
        case BaseExceptionGroup():
            return [line for inner in error.exceptions for line in explain(inner)]
        case SettingsError():
            return error.problems
        case OSError():
            return [f"The runtime cannot serve: {error.strerror or error}."]
    return [f"The runtime failed: {type(error).__name__}: {error}"]
