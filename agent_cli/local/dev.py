"""`abide dev`: agents from manifests on this machine, as the cluster would run them.

One process: an embedded Postgres beside it, the runtime in a thread, the chat in the main thread. Everything that was
started is ended on every way out; what kill -9 leaves behind is cleaned up by the next run.
"""

import os
import socket
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from agent_cli.errors import CliError, UsageError
from agent_cli.local.keys import keep_key
from agent_cli.local.migrations import migrate_in_subprocess
from agent_cli.local.reload import Watcher
from agent_cli.local.stopping import StopRequest
from agent_cli.local.workspace import Workspace
from agent_cli.manifests import (
    Resolved,
    SecretOption,
    parse_secret_options,
    read_documents,
    resolve,
    write_secrets,
)
from agent_store.embedded import EmbeddedPostgres, EmbeddedPostgresError

if TYPE_CHECKING:
    from agent_api.v1alpha1 import Agent
    from agent_cli.local.serving import Server
    from agent_cli.talk.conversation import Chat

HOST: Final = "127.0.0.1"
DEFAULT_PORT: Final = 8080
POSTGRES_TIMEOUT: Final = 60.0


@dataclass(frozen=True, slots=True)
class DevOptions:
    """The command line. `port` None: 8080 or a free one; `data` None: a temporary folder."""

    files: tuple[Path, ...]
    port: int | None = None
    data: Path | None = None
    chat: bool = True
    secrets: tuple[str, ...] = ()
    log_level: str | None = None
    agent_class: str = ""


def run_dev(options: DevOptions, environ: Mapping[str, str]) -> None:
    """Serve until SIGINT, SIGTERM or the end of the chat. Raises UsageError before, CliError also while serving."""
    check_class(options.agent_class)
    watcher = Watcher(options.files)
    secret_options = parse_secret_options(options.secrets, environ)
    resolved = resolve(read_documents(options.files), secret_options)
    resolved, told = without_suspended(resolved)
    if not resolved.agents:
        raise UsageError([f"{line}; set it to false to serve it here" for line in told])
    for line in told:
        print(line, file=sys.stderr, flush=True)
    port = choose_port(options.port)
    stop = StopRequest()
    try:
        _Dev(options, secret_options, stop, port).run(resolved, watcher)
    finally:
        stop.finish()


def check_class(name: str) -> None:
    """Make sure that own code can be loaded, from the working directory too. Raises UsageError."""
    if not name:
        return
    from agent_runtime.errors import SettingsError
    from agent_runtime.hooks.code import load_class

    if (here := os.getcwd()) not in sys.path:
        sys.path.insert(0, here)
    try:
        load_class(name)
    except SettingsError as error:
        raise UsageError([line.replace("ABIDE_AGENT_CLASS=", "--class ") for line in error.problems]) from error


def without_suspended(resolved: Resolved) -> tuple[Resolved, list[str]]:
    """Return the agents that are to be served, and one line for each that is suspended, as in a cluster."""
    told = [
        f"Agent {agent.metadata.namespace}/{agent.metadata.name} is suspended (spec.suspend: true) and not served"
        for agent in resolved.agents
        if agent.spec.suspend
    ]
    return replace(resolved, agents=[agent for agent in resolved.agents if not agent.spec.suspend]), told


class _Dev:
    """One run, from a valid manifest to the end."""

    def __init__(
        self, options: DevOptions, secret_options: Sequence[SecretOption], stop: StopRequest, port: int
    ) -> None:
        self._options = options
        self._secret_options = secret_options
        self._stop = stop
        self._port = port
        self._has_chat = options.chat and sys.stdin is not None and sys.stdin.isatty()
        self._url = f"http://{HOST}:{port}"

    def run(self, resolved: Resolved, watcher: Watcher) -> None:
        # The runtime's imports take about as long as Postgres needs to start: both at once.
        threading.Thread(target=_import_runtime, name="abide-import", daemon=True).start()
        with ExitStack() as stack:
            workspace = stack.enter_context(Workspace())
            write_secrets(resolved.secrets, workspace.secrets)
            database = self._start_postgres(stack, self._options.data or workspace.data)
            if self._stop.requested:
                return
            keys = keep_key(self._options.data or workspace.data)
            server = self._make_server(database, workspace.secrets, keys)
            stack.callback(server.stop)
            server.start(tuple(resolved.agents), lambda: self._stop.requested)
            if self._stop.requested:
                return
            print(f"listening on {self._url}\npostgres: {database}", flush=True)
            with watcher.calling(lambda: self._reload(server, workspace.secrets)):
                self._serve(resolved.agents)
            print("stopping …", file=sys.stderr, flush=True)
        if server.error:
            raise CliError(server.error)

    def _start_postgres(self, stack: ExitStack, folder: Path) -> str:
        postgres = EmbeddedPostgres(folder)
        stack.callback(postgres.stop)
        try:
            postgres.start(POSTGRES_TIMEOUT)
        except EmbeddedPostgresError as error:
            raise CliError(str(error)) from error
        if not self._stop.requested:
            migrate_in_subprocess(postgres.url)
        return postgres.url

    def _make_server(self, database: str, secrets: Path, keys: Path) -> "Server":
        from agent_cli.local.serving import Server, dev_settings

        settings = dev_settings(
            database,
            secrets,
            keys,
            port=self._port,
            log_level=self._options.log_level or ("warning" if self._has_chat else "info"),
            agent_class=self._options.agent_class,
        )
        return Server(settings, on_failure=self._stop.request)

    def _serve(self, agents: Sequence["Agent"]) -> None:
        if not self._has_chat:
            self._stop.wait()
            return
        with ExitStack() as clients, suppress(KeyboardInterrupt):
            chat = self._make_chat(agents, clients)
            with self._stop.interrupting():
                chat.run()

    def _make_chat(self, agents: Sequence["Agent"], stack: ExitStack) -> "Chat":
        from agent_cli.cluster.targets import UrlTarget
        from agent_cli.talk.client import AgentClient, AgentRef
        from agent_cli.talk.conversation import Chat, Screen

        screen = Screen(interactive=True)
        refs = [AgentRef(agent.metadata.namespace, agent.metadata.name) for agent in agents]
        clients = [AgentClient(UrlTarget(self._url, ref, trust_env=False), ref, note=screen.note) for ref in refs]
        return Chat(screen, [stack.enter_context(client) for client in clients])

    def _reload(self, server: "Server", secrets: Path) -> None:
        names = ", ".join(str(path) for path in self._options.files)
        try:
            resolved = resolve(read_documents(self._options.files), self._secret_options)
        except UsageError as error:
            self._tell(f"{names} changed and cannot be used; the last good version keeps serving:", *error.lines)
            return
        resolved, told = without_suspended(resolved)
        write_secrets(resolved.secrets, secrets)
        try:
            if resolved.agents:
                server.replace(tuple(resolved.agents), lambda: self._stop.requested)
            else:
                # As in a cluster: no pods, so nobody answers until an agent is resumed.
                server.stop()
        except CliError as error:
            server.error = [f"{names} changed and could not be served:", *error.lines]
            self._stop.request()
        else:
            self._tell(
                f"{names} changed: {'the new version serves' if resolved.agents else 'nothing is served'}", *told
            )

    def _tell(self, *lines: str) -> None:
        # With a chat the cursor stands behind its prompt.
        before = "\n" if self._has_chat else ""
        print(before + "\n".join(lines), file=sys.stderr, flush=True)


def choose_port(wanted: int | None) -> int:
    """Return a port to listen on: the wanted one, or 8080, or a free one. Raises UsageError when `wanted` is taken."""
    candidates = [DEFAULT_PORT, 0] if wanted is None else [wanted]
    problem = ""
    for port in candidates:
        with socket.socket() as probe:
            # As the server will: a port whose last connections are still fading away can be used.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
                probe.listen()
            except OSError as error:
                problem = os.strerror(error.errno or 0)
            else:
                return int(probe.getsockname()[1])
    raise UsageError(f"Port {wanted} on {HOST} cannot be used ({problem}): choose another one, or leave --port out.")


def _import_runtime() -> None:
    from agent_cli.cluster import targets  # noqa: F401
    from agent_cli.local import serving  # noqa: F401
    from agent_cli.talk import conversation  # noqa: F401
    from agent_store import codec_aes  # noqa: F401
