"""The composition root: settings → store → runtime → web app → server."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Final

import uvicorn
from fastapi import FastAPI

from agent_runtime.clock import SystemClock
from agent_runtime.errors import CannotListen, SettingsError
from agent_runtime.process import Runtime, build_runtime, build_scrubber
from agent_runtime.settings import RuntimeSettings
from agent_runtime.telemetry import logs
from agent_runtime.web import build_app
from agent_runtime.web.protocol import bounded_protocol
from agent_store.failpoints import Failpoints
from agent_store.ports import Store
from agent_store.postgres.store import PostgresStore
from agent_store.settings import NO_KEYS, KeySettings, StoreSettings

_LOG = logs.get_logger("server")
CLOSE_TIMEOUT: Final = 3.0
"""What open connections may take to end after the last turn: answers are sent, streams are cut."""
BACKLOG: Final = 2048

OnReady = Callable[[], None]


def build_store(settings: RuntimeSettings) -> Store:
    """Return the Postgres store; it connects when it is first used."""
    failpoints = Failpoints.from_environ(
        {"ABIDE_FAILPOINTS": settings.failpoints, "ABIDE_FAILPOINTS_TRACE": settings.failpoints_trace}
    )
    pool = StoreSettings(application_name="abide-runtime", max_connections=settings.postgres_connections)
    return PostgresStore(settings.postgres_url, pool, failpoints=failpoints, keys=_key_settings(settings))


def _key_settings(settings: RuntimeSettings) -> KeySettings:
    folder = settings.encryption_keys_dir
    if folder is None:
        return NO_KEYS
    off = [agent for agent in settings.load_agents() if not agent.spec.state.encryption.enabled]
    return KeySettings(folder, settings.encryption_source, frozenset(settings.id_of(agent) for agent in off))


def create_app(settings: RuntimeSettings, *, store: Store | None = None) -> FastAPI:
    """Return an app that starts its runtime with its lifespan and drains it at the end.

    For embedding into another server or a test. Raises SettingsError (at startup) when the manifest cannot be used.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        runtime = build_runtime(settings, store or build_store(settings))
        app.state.context = runtime.context
        runtime.start()
        try:
            yield
        finally:
            await runtime.drain(settings.drain_seconds)
            await runtime.stop()

    return build_app(settings, lifespan=lifespan)


async def serve(
    settings: RuntimeSettings,
    *,
    store: Store | None = None,
    on_ready: OnReady | None = None,
    stop: asyncio.Event | None = None,
    handle_signals: bool = False,
    configure_logs: bool = True,
) -> None:
    """Serve until `stop` is set (or SIGTERM/SIGINT comes, with `handle_signals`), then drain and return.

    `on_ready()` is called once, when messages can first be accepted; not before Postgres answers. A second signal
    cuts the drain short. Raises SettingsError when the manifest cannot be used, CannotListen when the port is taken.
    """
    clock = SystemClock()
    scrubber = build_scrubber(settings, clock)
    if configure_logs:
        logs.configure(settings.log_format, settings.log_level, scrubber.scrub)
    runtime = build_runtime(settings, store or build_store(settings), clock=clock, scrubber=scrubber)
    stop = stop or asyncio.Event()
    listener = _listen(settings.host, settings.port)
    if handle_signals:
        _handle_signals(stop, runtime)
    app = build_app(settings)
    app.state.context = runtime.context
    server = _Server(_server_config(settings, app))
    async with asyncio.TaskGroup() as group:
        runtime.start()
        serving = group.create_task(server.serve(sockets=[listener]), name="http")
        announcing = group.create_task(_announce(runtime, _url(listener), on_ready), name="announce-ready")
        stopping = group.create_task(stop.wait(), name="wait-stop")
        await asyncio.wait([serving, stopping], return_when=asyncio.FIRST_COMPLETED)
        announcing.cancel()
        stopping.cancel()
        await runtime.drain(settings.drain_seconds)
        await runtime.stop()
        server.should_exit = True
    listener.close()


def main() -> int:
    """Run `python -m agent_runtime`; 0 after a drain, 2 when environment or manifest cannot be used."""
    import uvloop

    try:
        settings = RuntimeSettings.from_environ(os.environ)
        settings = settings.with_agents(settings.load_agents())
        uvloop.run(serve(settings, handle_signals=True))
    except SettingsError as error:
        for problem in error.problems:
            sys.stderr.write(f"{problem}\n")
        return 2
    except CannotListen as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


class _Server(uvicorn.Server):
    """Leaves the signals to us: uvicorn would stop serving before the turns are finished."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture nothing."""
        yield


def _server_config(settings: RuntimeSettings, app: FastAPI) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=bounded_protocol(settings.bounds.header_bytes),
        ws="none",
        loop="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=True,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=int(CLOSE_TIMEOUT),
        backlog=BACKLOG,
    )


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise CannotListen(
            f"Cannot listen on {host} port {port}: {error.strerror}. Set ABIDE_HOST and ABIDE_PORT."
        ) from error
    listener.setblocking(False)
    return listener


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104
    return f"http://{host}:{port}"


async def _announce(runtime: Runtime, url: str, on_ready: OnReady | None) -> None:
    await runtime.wait_ready()
    _LOG.info("ready", url=url, agents=len(runtime.context.engines))
    if on_ready is not None:
        on_ready()


def _handle_signals(stop: asyncio.Event, runtime: Runtime) -> None:
    def on_signal(name: str) -> None:
        _LOG.info("signal", name=name)
        if stop.is_set():
            runtime.hurry()
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number.name)
