"""`abide state …`: a session's state, one document."""

import os
from pathlib import Path
from typing import Annotated

import typer

from agent_cli.options import AgentName, Context, Key, Kubeconfig, Namespace, Output, Session, Url, User
from agent_cli.output import OutputFormat

app = typer.Typer(no_args_is_help=True, help="Show, save, load or delete the state of a session.")

Target = Annotated[
    Path | None, typer.Option("--file", "-f", metavar="FILE", readable=False, help="File to write. Default: stdout.")
]
Source = Annotated[
    Path | None, typer.Option("--file", "-f", metavar="FILE", readable=False, help="File to read. Default: stdin.")
]


@app.command()
def show(
    name: AgentName,
    session: Session,
    namespace: Namespace = None,
    user: User = "anonymous",
    output: Output = OutputFormat.TABLE,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
    url: Url = None,
    key: Key = None,
) -> None:
    """Show the newest snapshot of a session."""
    from agent_cli.operate.kept import run_state_show
    from agent_cli.talk.chat import Reach

    reach = Reach(name, namespace=namespace, context=context, kubeconfig=kubeconfig, url=url, key=key)
    run_state_show(reach, session, user, output, os.environ)


@app.command()
def save(
    name: AgentName,
    session: Session,
    namespace: Namespace = None,
    file: Target = None,
    user: User = "anonymous",
    context: Context = None,
    kubeconfig: Kubeconfig = None,
    url: Url = None,
    key: Key = None,
) -> None:
    """Write the newest snapshot of a session to a file, as JSON."""
    from agent_cli.operate.kept import run_state_save
    from agent_cli.talk.chat import Reach

    reach = Reach(name, namespace=namespace, context=context, kubeconfig=kubeconfig, url=url, key=key)
    run_state_save(reach, session, user, file, os.environ)


@app.command()
def load(
    name: AgentName,
    session: Session,
    namespace: Namespace = None,
    file: Source = None,
    user: User = "anonymous",
    context: Context = None,
    kubeconfig: Kubeconfig = None,
    url: Url = None,
    key: Key = None,
) -> None:
    """Put a saved document back as the state of a session, which is made if need be."""
    from agent_cli.operate.kept import run_state_load
    from agent_cli.talk.chat import Reach

    reach = Reach(name, namespace=namespace, context=context, kubeconfig=kubeconfig, url=url, key=key)
    run_state_load(reach, session, user, file, os.environ)


@app.command()
def delete(
    name: AgentName,
    session: Session,
    namespace: Namespace = None,
    user: User = "anonymous",
    context: Context = None,
    kubeconfig: Kubeconfig = None,
    url: Url = None,
    key: Key = None,
) -> None:
    """Delete the snapshot of a session; its messages stay. Safe to repeat."""
    from agent_cli.operate.kept import run_state_delete
    from agent_cli.talk.chat import Reach

    reach = Reach(name, namespace=namespace, context=context, kubeconfig=kubeconfig, url=url, key=key)
    run_state_delete(reach, session, user, os.environ)
