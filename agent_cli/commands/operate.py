"""Commands that look after agents in a cluster."""

import math
import os
from typing import Annotated

import typer

from agent_cli.errors import UsageError
from agent_cli.options import (
    AgentName,
    Context,
    Key,
    Kubeconfig,
    LogOutput,
    Namespace,
    OptionalName,
    Output,
    Timeout,
    Url,
    User,
    Wait,
)
from agent_cli.output import OutputFormat


def status(
    name: OptionalName = None,
    namespace: Namespace = None,
    all_namespaces: Annotated[
        bool, typer.Option("--all-namespaces", "-A", help="Without NAME: the agents of all namespaces.")
    ] = False,
    output: Output = OutputFormat.TABLE,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Tell how an agent is, and which command helps: at most 15 lines. Without NAME: a table of agents."""
    from agent_cli.cluster.kubectl import Cluster, find_kubectl
    from agent_cli.operate.status import run_fleet, run_status

    if name and all_namespaces:
        raise UsageError("--all-namespaces is for the table: leave NAME out, or give --namespace.")
    cluster = Cluster(find_kubectl(os.environ), namespace, context, kubeconfig)
    if name:
        run_status(cluster, name, output)
    else:
        run_fleet(cluster, output, all_namespaces=all_namespaces)


def start(
    name: AgentName,
    namespace: Namespace = None,
    wait: Wait = False,
    timeout: Timeout = 120.0,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Resume a suspended agent: it goes on where it was. Replicas 0 become 1. Safe to repeat."""
    from agent_cli.cluster.kubectl import Cluster, find_kubectl
    from agent_cli.operate.switch import Waiting, run_start

    cluster = Cluster(find_kubectl(os.environ), namespace, context, kubeconfig)
    run_start(cluster, name, Waiting(timeout if wait else None))


def stop(
    name: AgentName,
    namespace: Namespace = None,
    wait: Wait = False,
    timeout: Timeout = 120.0,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Suspend an agent: running turns finish, its pods end, everything is kept. Safe to repeat."""
    from agent_cli.cluster.kubectl import Cluster, find_kubectl
    from agent_cli.operate.switch import Waiting, run_stop

    cluster = Cluster(find_kubectl(os.environ), namespace, context, kubeconfig)
    run_stop(cluster, name, Waiting(timeout if wait else None))


def logs(
    name: AgentName,
    namespace: Namespace = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with new lines and new pods.")] = False,
    previous: Annotated[bool, typer.Option("--previous", "-p", help="The containers that ended last.")] = False,
    since: Annotated[str | None, typer.Option("--since", metavar="DURATION", help="Only newer lines: 10m, 2h.")] = None,
    tail: Annotated[int, typer.Option("--tail", min=0, help="Without --since: the last lines of each pod.")] = 200,
    raw: Annotated[bool, typer.Option("--raw", help="Lines as they were written.")] = False,
    output: Annotated[
        LogOutput, typer.Option("--output", "-o", help="json: lines as they were written, one JSON object each.")
    ] = LogOutput.TEXT,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Show the log of all pods of an agent, in the order of time."""
    from agent_cli.cluster.kubectl import Cluster, find_kubectl
    from agent_cli.operate.kept import parse_duration
    from agent_cli.operate.logs import LogOptions, run_logs

    if since:
        # kubectl knows no days.
        since = f"{max(1, math.ceil(parse_duration(since).total_seconds()))}s"
    if follow and previous:
        raise UsageError("--follow and --previous exclude each other: what has ended brings no new lines.")
    options = LogOptions(follow=follow, previous=previous, since=since, tail=tail, raw=raw or output is LogOutput.JSON)
    run_logs(Cluster(find_kubectl(os.environ), namespace, context, kubeconfig), name, options)


def sessions(
    name: AgentName,
    namespace: Namespace = None,
    user: User = "anonymous",
    output: Output = OutputFormat.TABLE,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
    url: Url = None,
    key: Key = None,
) -> None:
    """List a user's sessions with an agent, the most recently used first."""
    from agent_cli.operate.kept import run_sessions
    from agent_cli.talk.chat import Reach

    reach = Reach(name, namespace=namespace, context=context, kubeconfig=kubeconfig, url=url, key=key)
    run_sessions(reach, user, output, os.environ)


def errors(
    name: AgentName,
    namespace: Namespace = None,
    error_type: Annotated[str | None, typer.Option("--type", help="Only errors of this type.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=10000, help="Most errors to show.")] = 20,
    since: Annotated[
        str | None, typer.Option("--since", metavar="DURATION", help="Only newer errors: 10m, 2h, 7d.")
    ] = None,
    output: Output = OutputFormat.TABLE,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
    url: Url = None,
    key: Key = None,
) -> None:
    """List an agent's recorded errors, newest first. Where no pod answers: what its status and Events tell."""
    from agent_cli.operate.kept import run_errors
    from agent_cli.talk.chat import Reach

    reach = Reach(name, namespace=namespace, context=context, kubeconfig=kubeconfig, url=url, key=key)
    run_errors(reach, error_type=error_type, limit=limit, since=since, output=output, environ=os.environ)


def history(
    name: AgentName,
    namespace: Namespace = None,
    output: Output = OutputFormat.TABLE,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """List an agent's revisions, newest first, with what changed."""
    from agent_cli.cluster.kubectl import Cluster, find_kubectl
    from agent_cli.operate.history import run_history

    run_history(Cluster(find_kubectl(os.environ), namespace, context, kubeconfig), name, output)


def diff(
    name: AgentName,
    revision: Annotated[
        list[str] | None, typer.Argument(metavar="REV [REV]", help="Numbers or names, as `history` shows them.")
    ] = None,
    namespace: Namespace = None,
    output: Output = OutputFormat.TABLE,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Show what changed: the last change, from one revision until now, or between two."""
    from agent_cli.cluster.kubectl import Cluster, find_kubectl
    from agent_cli.operate.history import run_diff

    if revision and len(revision) > 2:
        raise UsageError("Give at most two revisions.")
    run_diff(Cluster(find_kubectl(os.environ), namespace, context, kubeconfig), name, revision or [], output)


def rollback(
    name: AgentName,
    namespace: Namespace = None,
    to: Annotated[
        str | None,
        typer.Option(
            "--to",
            metavar="REV",
            help="Number or name. Default: the one that serves if the present one does not, else the one before.",
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    wait: Wait = False,
    timeout: Timeout = 180.0,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Write an older revision's spec back, after showing the difference. Replicas and suspend stay as they are."""
    from agent_cli.cluster.kubectl import Cluster, find_kubectl
    from agent_cli.operate.rollback import run_rollback
    from agent_cli.operate.switch import Waiting

    cluster = Cluster(find_kubectl(os.environ), namespace, context, kubeconfig)
    run_rollback(cluster, name, to, yes=yes, waiting=Waiting(timeout if wait else None))


def doctor(
    namespace: Annotated[
        str | None, typer.Option("--namespace", "-n", help="Look at the agents of this namespace. Default: at all.")
    ] = None,
    output: Output = OutputFormat.TABLE,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Check an installation from the outside: each line ok, warn or fail, with what to do. Exit code 1 on a fail."""
    from agent_cli.operate.doctor import run_doctor

    run_doctor(os.environ, output, namespace=namespace, context=context, kubeconfig=kubeconfig)
