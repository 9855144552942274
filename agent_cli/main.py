"""The `abide` command: arguments in, one function per command. Also installed as `kubectl abide`.

Each command imports what it needs when it runs, so that `abide --help` stays quick.
"""

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final

import typer

from agent_cli.errors import CliError, UsageError

INTERRUPTED: Final = 130
"""Exit code of a command ended by Ctrl-C, as shells have it (128 + SIGINT)."""

app = typer.Typer(
    help="Abide: durable AI agents on Kubernetes, and on this machine with `abide dev`.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class StatusFormat(StrEnum):
    """How `abide status` writes."""

    TEXT = "text"
    JSON = "json"
    YAML = "yaml"


class LogLevel(StrEnum):
    """How much `abide dev` tells on stderr."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


AgentName = Annotated[str, typer.Argument(metavar="NAME", help="Name of the agent.")]
Namespace = Annotated[
    str | None, typer.Option("--namespace", "-n", help="Namespace of the agent. Default: kubectl's current one.")
]
Context = Annotated[str | None, typer.Option("--context", help="kubectl context to use.")]
Kubeconfig = Annotated[str | None, typer.Option("--kubeconfig", help="kubeconfig file to use.")]
User = Annotated[
    str, typer.Option("--user", help="Who is speaking: 1-128 characters of A-Z a-z 0-9 . _ : @ - ; users never meet.")
]
Url = Annotated[
    str | None,
    typer.Option("--url", envvar="ABIDE_URL", help="Talk to this address instead of a cluster, as http://host:port."),
]
Key = Annotated[
    str | None,
    typer.Option(
        "--key", envvar="ABIDE_API_KEY", help="API key for --url. Better set ABIDE_API_KEY: others see options."
    ),
]
ManifestFiles = Annotated[
    list[Path],
    typer.Argument(metavar="FILE", readable=False, help="Manifests: Agents, and their Secrets and ConfigMaps."),
]


def _show_version(wanted: bool) -> None:
    if wanted:
        version()
        raise typer.Exit


@app.callback()
def options(
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Abide: durable AI agents on Kubernetes, and on this machine with `abide dev`."""


@app.command()
def dev(
    files: ManifestFiles,
    port: Annotated[
        int | None, typer.Option("--port", min=0, max=65535, help="Port to listen on. Default: 8080, or a free one.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            metavar="DIR",
            readable=False,
            help="Keep the state here between runs. Default: kept until the end only.",
        ),
    ] = None,
    no_chat: Annotated[bool, typer.Option("--no-chat", help="Serve only; no chat in the terminal.")] = False,
    secret: Annotated[
        list[str] | None,
        typer.Option(
            "--secret",
            metavar="NAME.KEY=SOURCE",
            help="Value of a Secret's key: env:VARIABLE or file:PATH. It wins over a Secret in the files. Repeatable.",
        ),
    ] = None,
    log_level: Annotated[
        LogLevel | None, typer.Option("--log-level", help="What to log. Default: warning with a chat, info without.")
    ] = None,
) -> None:
    """Run agents from manifests on this machine: embedded Postgres, the same HTTP API, a chat in the terminal.

    Needs no cluster and no API key. Prints `listening on http://127.0.0.1:PORT` once ready. The files are read again
    when they change. Ctrl-C saves and stops everything.
    """
    from agent_cli.dev import DevOptions, run_dev

    run_dev(
        DevOptions(
            files=tuple(files),
            port=port,
            data=data,
            chat=not no_chat,
            secrets=tuple(secret or ()),
            log_level=log_level.value if log_level else None,
        ),
        os.environ,
    )


@app.command()
def chat(
    name: AgentName,
    message: Annotated[
        str | None,
        typer.Argument(metavar="MESSAGE", help="Send this and print the reply. Without it: a conversation."),
    ] = None,
    namespace: Namespace = None,
    session: Annotated[str, typer.Option("--session", "-s", help="Name of the conversation.")] = "default",
    user: User = "anonymous",
    timeout: Annotated[
        float, typer.Option("--timeout", min=1, help="Longest wait for one reply, in seconds, also over lost pods.")
    ] = 300.0,
    idempotency_key: Annotated[
        str | None,
        typer.Option(
            "--idempotency-key",
            help="With MESSAGE: the same key and message get the same reply, sent once or often. Default: a new key.",
        ),
    ] = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
    url: Url = None,
    key: Key = None,
) -> None:
    """Talk to an agent in a cluster: finds its key and forwards a port by itself.

    Needs kubectl (from PATH, or $KUBECTL) and the right to read the agent's Secret, or --url. A message is sent until
    its outcome is known, also when its pod is replaced meanwhile, and is never answered twice. Exit code 1 when there
    is no reply.
    """
    from agent_cli.chat import ChatOptions, Reach, run_chat

    reach = Reach(name, namespace=namespace, context=context, kubeconfig=kubeconfig, url=url, key=key)
    options = ChatOptions(message=message, session=session, user=user, timeout=timeout, key=idempotency_key)
    run_chat(reach, options, os.environ)


@app.command()
def sessions(
    name: AgentName,
    namespace: Namespace = None,
    user: User = "anonymous",
    context: Context = None,
    kubeconfig: Kubeconfig = None,
    url: Url = None,
    key: Key = None,
) -> None:
    """List a user's sessions with an agent, the most recently used first."""
    from agent_cli.chat import Reach, run_sessions

    reach = Reach(name, namespace=namespace, context=context, kubeconfig=kubeconfig, url=url, key=key)
    run_sessions(reach, user, os.environ)


@app.command()
def status(
    name: AgentName,
    namespace: Namespace = None,
    output: Annotated[StatusFormat, typer.Option("--output", "-o", help="Format.")] = StatusFormat.TEXT,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Tell how an agent is, and which command helps: at most 15 lines."""
    from agent_cli.status import run_status

    run_status(name, namespace, context, kubeconfig, output.value, os.environ)


@app.command()
def validate(files: ManifestFiles) -> None:
    """Check manifests without a cluster: every problem on its own line, exit code 2 if there is one."""
    from agent_cli.manifests import read_documents, validation_lines

    typer.echo("\n".join(validation_lines(read_documents(files))))


@app.command()
def migrate() -> None:
    """Bring the database of ABIDE_POSTGRES_DIRECT_URL, else ABIDE_POSTGRES_URL, to this version's schema.

    Safe to repeat, and to run from several places at once.
    """
    from agent_cli.migrations import run_migrations

    run_migrations(os.environ)


@app.command()
def version() -> None:
    """Show the version."""
    from agent_api.version import VERSION

    typer.echo(f"abide {VERSION}")


def command_name(argv0: str) -> str:
    """Return how the user calls this program: `kubectl abide` when kubectl runs it as a plugin."""
    return "kubectl abide" if Path(argv0).name.startswith("kubectl-") else "abide"


def main() -> None:
    """Run the command line and exit."""
    try:
        app(prog_name=command_name(sys.argv[0]))
    except CliError as error:
        prefix = "" if isinstance(error, UsageError) else "error: "
        for line in error.lines:
            print(f"{prefix}{line}", file=sys.stderr)
            prefix = ""
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        # The reader went away (`abide … | head`); nothing is left to tell anybody.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


if __name__ == "__main__":
    main()
