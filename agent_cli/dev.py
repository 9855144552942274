"""`abide dev`: agents from manifests on this machine, as the cluster would run them.

One process: an embedded Postgres beside it, the runtime in a thread, the chat in the main thread. Everything that was
started is ended on every way out; what kill -9 leaves behind is cleaned up by the next run.
"""

import socket
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from agent_cli.errors import CliError, UsageError
from agent_cli.manifests import (
    Resolved,
    SecretOption,
    parse_secret_options,
    read_documents,
    resolve,
    write_secrets,
)
from agent_cli.migrations import migrate_in_subprocess
from agent_cli.reload import Watcher
from agent_cli.stopping import StopRequest
from agent_cli.workspace import Workspace
from agent_store.embedded import EmbeddedPostgres, EmbeddedPostgresError

if TYPE_CHECKING:
    from agent_api.v1alpha1 import Agent
    from agent_cli.conversation import Chat
    from agent_cli.serving import Server

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


def run_dev(options: DevOptions, environ: Mapping[str, str]) -> None:
    """Serve until SIGINT, SIGTERM or the end of the chat. Raises UsageError before, CliError also while serving."""
    watcher = Watcher(options.files)
    secret_options = parse_secret_options(options.secrets, environ)
    resolved = resolve(read_documents(options.files), secret_options)
    port = choose_port(options.port)
    interactive = options.chat and sys.stdin.isatty()
    stop = StopRequest()
    # The runtime's imports take about as long as Postgres needs to start: both at once.
    threading.Thread(target=_import_runtime, name="abide-import", daemon=True).start()
    with ExitStack() as stack:
        workspace = stack.enter_context(Workspace())
        write_secrets(resolved.secrets, workspace.secrets)
        url = _start_postgres(stack, options.data or workspace.data)
        if stop.requested:
            return
        server = _make_server(url, port, workspace.secrets, options, interactive, environ, stop.request)
        stack.callback(server.stop)
        server.start(tuple(resolved.agents))
        print(f"listening on http://{HOST}:{port}\npostgres: {url}", flush=True)
        reload = _Reload(options.files, secret_options, workspace.secrets, server, interactive)
        stack.enter_context(watcher.calling(reload.run))
        if interactive:
            with stop.interrupting_quietly():
                _make_chat(resolved.agents, port).run()
        else:
            stop.wait()
        print("stopping …", file=sys.stderr, flush=True)
    if server.error is not None:
        raise CliError(f"Serving ended: {server.error}")


def choose_port(wanted: int | None) -> int:
    """Return a port to listen on: the wanted one, or 8080, or a free one. Raises UsageError when `wanted` is taken."""
    for port in [wanted] if wanted else [DEFAULT_PORT, 0] if wanted is None else [0]:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError as error:
                if wanted:
                    raise UsageError(
                        f"Port {wanted} on {HOST} cannot be used: {error.strerror}; choose another one, "
                        "or leave --port out to get a free one."
                    ) from error
                continue
            return int(probe.getsockname()[1])
    raise UsageError(f"No free port on {HOST}.")
