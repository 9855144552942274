"""Arguments and options that several commands share. Importing this costs nothing but typer."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from agent_cli.cluster.completion import complete_agents
from agent_cli.output import OutputFormat


def _agents(context: typer.Context, incomplete: str) -> list[str]:
    return complete_agents(context.params, incomplete)


class LogLevel(StrEnum):
    """How much `abide dev` tells on stderr."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class Shell(StrEnum):
    """Shells with completion; kubectl asks a program of its own for plugins."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"
    KUBECTL = "kubectl"


class LogOutput(StrEnum):
    """How `abide logs` writes lines."""

    TEXT = "text"
    JSON = "json"


AgentName = Annotated[str, typer.Argument(metavar="NAME", help="Name of the agent.", autocompletion=_agents)]
OptionalName = Annotated[
    str | None,
    typer.Argument(metavar="NAME", help="Name of the agent. Default: all, as a table.", autocompletion=_agents),
]
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
Output = Annotated[OutputFormat, typer.Option("--output", "-o", help="For people or for programs.")]
Wait = Annotated[bool, typer.Option("--wait", help="Return once it is so, and say how long it took.")]
Timeout = Annotated[float, typer.Option("--timeout", min=1, help="With --wait: the longest wait, in seconds.")]
Session = Annotated[str, typer.Argument(metavar="SESSION", help="Name of the session.")]
