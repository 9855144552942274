"""The immutable ConfigMap that holds one revision of an agent: the manifest its runtime reads."""

import json
from typing import Any

from agent_api import labels
from agent_operator.resources.inputs import MANIFEST_FILE, AgentInputs, build_metadata, stamp


def build_manifest(inputs: AgentInputs) -> dict[str, Any]:
    """Build the resolved Agent: every default filled in, the prompt inline.

    `replicas` and `suspend` are left out (they then read as their defaults): they change without a new revision, and
    what is immutable must not claim to know them.
    """
    spec = inputs.agent.spec.model_dump(
        mode="json",
        by_alias=True,
        exclude_none=True,
        exclude={"replicas", "suspend", "system_prompt", "system_prompt_from"},
    )
    return {
        "apiVersion": labels.API_VERSION,
        "kind": labels.KIND,
        "metadata": {"name": inputs.name, "namespace": inputs.namespace, "uid": inputs.uid},
        "spec": {**spec, "systemPrompt": inputs.prompt},
    }


def render_manifest(inputs: AgentInputs) -> str:
    """Return the manifest as the file the runtime reads."""
    return json.dumps(build_manifest(inputs), ensure_ascii=False, sort_keys=True, indent=2) + "\n"


def build_config_map(inputs: AgentInputs, revision: str) -> dict[str, Any]:
    """Build the ConfigMap of a revision."""
    metadata = build_metadata(inputs, labels.revision_name(inputs.name, revision))
    metadata["labels"][labels.LABEL_REVISION] = revision
    return stamp(
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": metadata,
            "immutable": True,
            "data": {MANIFEST_FILE: render_manifest(inputs)},
        }
    )
