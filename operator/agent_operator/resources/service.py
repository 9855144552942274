"""The Service an agent answers under."""

from typing import Any

from agent_api import labels
from agent_operator.resources.inputs import PORT, PORT_NAME, AgentInputs, build_metadata, selector_labels, stamp


def build_service(inputs: AgentInputs) -> dict[str, Any]:
    """Build the Service."""
    return stamp(
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": build_metadata(inputs, labels.child_name(inputs.name)),
            "spec": {
                "type": "ClusterIP",
                "selector": selector_labels(inputs.name),
                "ports": [{"name": PORT_NAME, "port": PORT, "protocol": "TCP", "targetPort": PORT_NAME}],
            },
        }
    )


def build_endpoint(name: str, namespace: str) -> str:
    """Return the URL of an agent inside the cluster."""
    return f"http://{labels.child_name(name)}.{namespace}.svc:{PORT}"
