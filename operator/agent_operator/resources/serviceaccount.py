"""The ServiceAccount an agent's pods run as. It carries no token: agents do not talk to the API server."""

from typing import Any

from agent_api import labels
from agent_operator.resources.inputs import AgentInputs, build_metadata, stamp


def build_service_account(inputs: AgentInputs) -> dict[str, Any]:
    """Build the ServiceAccount."""
    return stamp(
        {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": build_metadata(inputs, labels.child_name(inputs.name)),
            "automountServiceAccountToken": False,
        }
    )
