"""Names of agents for shell completion: quick, and silent about everything that goes wrong."""

import os
from collections.abc import Mapping
from typing import Any, Final

from agent_cli.errors import CliError

COMPLETION_TIMEOUT: Final = 2.0
"""Who pressed Tab does not wait longer."""


def complete_agents(parameters: Mapping[str, Any], incomplete: str) -> list[str]:
    """Return the names of agents that begin so, in the namespace that the command line names; none if kubectl fails.

    `parameters` are what the command line says so far, by parameter.
    """
    from agent_cli.cluster.kubectl import Cluster, find_kubectl, run
    from agent_cli.cluster.targets import RESOURCE

    chosen = [parameters.get(name) for name in ("namespace", "context", "kubeconfig")]
    try:
        cluster = Cluster(find_kubectl(os.environ), *(str(value) if value else None for value in chosen))
        told = run(cluster, ["get", RESOURCE, "--output=name", "--request-timeout=2s"], timeout=COMPLETION_TIMEOUT)
    except CliError:
        return []
    names = [line.rpartition("/")[2] for line in told.split()]
    return sorted(name for name in names if name.startswith(incomplete))
