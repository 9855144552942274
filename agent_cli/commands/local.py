"""Commands that need no cluster, and talking to an agent anywhere."""

import os
from pathlib import Path
from typing import Annotated, Final

import typer

from agent_cli.commands import COMPLETE_VARIABLE
from agent_cli.options import (
    AgentName,
    Context,
    Key,
    Kubeconfig,
    LogLevel,
    ManifestFiles,
    Namespace,
    Output,
    Shell,
    Url,
    User,
)
from agent_cli.output import OutputFormat, emit


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
    agent_class: Annotated[
        str,
        typer.Option(
            "--class", metavar="MODULE:CLASS", help="Own code for the agents, from the working directory or PYTHONPATH."
        ),
    ] = "",
) -> None:
    """Run agents from manifests on this machine: embedded Postgres, the same HTTP API, a chat in the terminal.

    Needs no cluster and no API key. Prints `listening on http://127.0.0.1:PORT` once ready. The files are read again
    when they change. Ctrl-C saves and stops everything.
    """
    from agent_cli.local.dev import DevOptions, run_dev

    run_dev(
        DevOptions(
            files=tuple(files),
            port=port,
            data=data,
            chat=not no_chat,
            secrets=tuple(secret or ()),
            log_level=log_level.value if log_level else None,
            agent_class=agent_class,
        ),
        os.environ,
    )


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
    from agent_cli.talk.chat import ChatOptions, Reach, run_chat

    reach = Reach(name, namespace=namespace, context=context, kubeconfig=kubeconfig, url=url, key=key)
    options = ChatOptions(message=message, session=session, user=user, timeout=timeout, key=idempotency_key)
    run_chat(reach, options, os.environ)


def validate(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE", readable=False, help="Manifests, folders with manifests, or - for stdin."),
    ],
) -> None:
    """Check manifests without a cluster: every problem on its own line, exit code 2 if there is one."""
    from agent_cli.manifests import expand_paths, read_documents, validation_lines

    typer.echo("\n".join(validation_lines(read_documents(expand_paths(files)))))


def schema() -> None:
    """Print the JSON schema of manifests, for editors."""
    from agent_cli.editor_schema import render_editor_schema

    typer.echo(render_editor_schema(), nl=False)


def migrate() -> None:
    """Bring the database of ABIDE_POSTGRES_DIRECT_URL, else ABIDE_POSTGRES_URL, to this version's schema.

    Safe to repeat, and to run from several places at once.
    """
    from agent_cli.local.migrations import run_migrations

    run_migrations(os.environ)


KUBECTL_COMPLETION: Final = f"""\
#!/bin/sh
# kubectl calls this as kubectl_complete-abide to complete `kubectl abide`; the last line is its word for "no files".
COMP_WORDS="abide $*" COMP_CWORD=$# {COMPLETE_VARIABLE}=complete_bash abide
echo :4
"""


def completion(
    shell: Annotated[Shell, typer.Argument(help="Which shell; kubectl: a program for `kubectl abide`.")],
) -> None:
    """Print the script that makes a shell complete commands, options and agents' names."""
    if shell is Shell.KUBECTL:
        typer.echo(KUBECTL_COMPLETION, nl=False)
        return
    from typer.completion import get_completion_script  # type: ignore[attr-defined]

    typer.echo(get_completion_script(prog_name="abide", complete_var=COMPLETE_VARIABLE, shell=shell.value))


def version(output: Output = OutputFormat.TABLE) -> None:
    """Show the version."""
    from agent_api.version import VERSION

    emit(output, {"version": VERSION}, lambda: print(f"abide {VERSION}"))
