"""The arguments of `abide load`."""

from typing import Annotated

import typer

from agent_cli.options import Context, Key, Kubeconfig, Output
from agent_cli.output import OutputFormat


def load(
    agents: Annotated[
        str, typer.Option("--agents", metavar="N[,N…]", help="How many agents; a row of figures for each number.")
    ] = "5",
    sessions: Annotated[int, typer.Option("--sessions", help="Sessions per agent.")] = 2,
    rate: Annotated[float, typer.Option("--rate", help="Messages per second, over all agents together.")] = 20.0,
    messages: Annotated[int, typer.Option("--messages", help="Messages per session.")] = 5,
    dev: Annotated[
        bool, typer.Option("--dev", help="No cluster: all agents in one process here, with its own Postgres.")
    ] = False,
    namespace: Annotated[
        str | None,
        typer.Option("--namespace", "-n", help="Make the agents here. Default: a namespace made for this run."),
    ] = None,
    url: Annotated[
        str | None, typer.Option("--url", help="Talk to agents that exist at this address instead of making some.")
    ] = None,
    name: Annotated[
        list[str] | None, typer.Option("--name", metavar="NAMESPACE/NAME", help="With --url: an agent. Repeatable.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="With --url: also where it is not this machine.")] = False,
    timeout: Annotated[
        float, typer.Option("--timeout", min=10, max=3600, help="Longest time for one row, in seconds.")
    ] = 300.0,
    output: Output = OutputFormat.TABLE,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
    key: Key = None,
) -> None:
    """Put a bounded load on agents made for it: times to start, reply, save, close and stop, and how they grow.

    Makes echo agents in the cluster (or with --dev on this machine), talks at a fixed rate, and removes everything
    again, also after Ctrl-C. Latencies count from the instant a message was due. Exit code 1 if any request failed.
    """
    from agent_cli.load.run import LoadOptions, run_command

    run_command(
        LoadOptions(
            agents=agents,
            sessions=sessions,
            rate=rate,
            messages=messages,
            dev=dev,
            namespace=namespace,
            url=url,
            names=tuple(name or ()),
            yes=yes,
            timeout=timeout,
            output=output,
            context=context,
            kubeconfig=kubeconfig,
            key=key,
        )
    )
