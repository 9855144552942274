"""`abide user …`: everything an agent keeps of one user."""

import os
from pathlib import Path
from typing import Annotated

import typer

from agent_cli.options import AgentName, Context, Key, Kubeconfig, Namespace, Url

app = typer.Typer(no_args_is_help=True, help="Give away or erase everything an agent keeps of one user.")

UserName = Annotated[str, typer.Argument(metavar="USER", help="The user it is about.")]
Target = Annotated[
    Path | None, typer.Option("--file", "-f", metavar="FILE", readable=False, help="File to write. Default: stdout.")
]


@app.command()
def export(
    name: AgentName,
    user: UserName,
    namespace: Namespace = None,
    file: Target = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
    url: Url = None,
    key: Key = None,
) -> None:
    """Write all that is kept of a user, one JSON object per line: sessions, turns, messages, states, memories.

    Nothing is written unless all of it was received.
    """
    from agent_cli.operate.users import run_user_export
    from agent_cli.talk.chat import Reach

    reach = Reach(name, namespace=namespace, context=context, kubeconfig=kubeconfig, url=url, key=key)
    run_user_export(reach, user, file, os.environ)


@app.command()
def erase(
    name: AgentName,
    user: UserName,
    namespace: Namespace = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
    url: Url = None,
    key: Key = None,
) -> None:
    """Erase all that is kept of a user, for good; running turns are stopped. Safe to repeat."""
    from agent_cli.operate.users import run_user_erase
    from agent_cli.talk.chat import Reach

    reach = Reach(name, namespace=namespace, context=context, kubeconfig=kubeconfig, url=url, key=key)
    run_user_erase(reach, user, os.environ, yes=yes)
