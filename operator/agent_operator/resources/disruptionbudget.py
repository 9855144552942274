"""The PodDisruptionBudget of an agent with several pods: a drained node takes one of them at a time."""

from typing import Any

from agent_api import labels
from agent_operator.resources.inputs import AgentInputs, build_metadata, selector_labels, stamp


def build_disruption_budget(inputs: AgentInputs) -> dict[str, Any]:
    """Build the PodDisruptionBudget."""
    return stamp(
        {
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            "metadata": build_metadata(inputs, labels.child_name(inputs.name)),
            "spec": {
                "maxUnavailable": 1,
                "selector": {"matchLabels": selector_labels(inputs.name)},
                # A pod that is broken anyway must not keep a node from being drained.
                "unhealthyPodEvictionPolicy": "AlwaysAllow",
            },
        }
    )
