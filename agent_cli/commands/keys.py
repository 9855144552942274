"""`abide keys …`: the keys that an agent's content is encrypted with."""

import os
from typing import Annotated

import typer

from agent_cli.options import AgentName, Context, Key, Kubeconfig, Namespace, Output, Url
from agent_cli.output import OutputFormat

app = typer.Typer(no_args_is_help=True, help="Show and rotate the keys of an agent, and encrypt its content anew.")


@app.command()
def status(
    name: AgentName,
    namespace: Namespace = None,
    count: Annotated[
        bool, typer.Option("--count", help="Look at all content, and count it by the key it is encrypted with.")
    ] = False,
    output: Output = OutputFormat.TABLE,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
    url: Url = None,
    key: Key = None,
) -> None:
    """Show an agent's data keys, old to new, and the key of the Secret that each is wrapped with."""
    from agent_cli.operate.encryption import run_keys_status
    from agent_cli.talk.chat import Reach

    reach = Reach(name, namespace=namespace, context=context, kubeconfig=kubeconfig, url=url, key=key)
    run_keys_status(reach, output, os.environ, count=count)


@app.command()
def rotate(
    name: AgentName,
    namespace: Namespace = None,
    output: Output = OutputFormat.TABLE,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
    url: Url = None,
    key: Key = None,
) -> None:
    """Make a new data key, which encrypts from now on, and wrap all data keys with the newest key of the Secret.

    The agent serves meanwhile. What was written before stays under its key until `abide keys reencrypt`.
    """
    from agent_cli.operate.encryption import run_keys_rotate
    from agent_cli.talk.chat import Reach

    reach = Reach(name, namespace=namespace, context=context, kubeconfig=kubeconfig, url=url, key=key)
    run_keys_rotate(reach, output, os.environ)


@app.command()
def reencrypt(
    name: AgentName,
    namespace: Namespace = None,
    output: Output = OutputFormat.TABLE,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
    url: Url = None,
    key: Key = None,
) -> None:
    """Encrypt everything an agent keeps with its current key: what is plain, and what is under older keys.

    The agent serves meanwhile. Safe to interrupt and to repeat: what is done is passed over. Exit code 1 if something
    does not decrypt.
    """
    from agent_cli.operate.encryption import run_keys_reencrypt
    from agent_cli.talk.chat import Reach

    reach = Reach(name, namespace=namespace, context=context, kubeconfig=kubeconfig, url=url, key=key)
    run_keys_reencrypt(reach, output, os.environ)
