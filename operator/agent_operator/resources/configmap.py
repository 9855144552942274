"""The immutable ConfigMap that holds one revision of an agent: the manifest its runtime reads and the spec behind it.

`agent.json` is what runs: the prompt inline, every default filled in. `spec.json` is the spec as it was written when
the revision first came up, for `abide diff` and `abide rollback`: several ways to write one lead to the same revision.
"""

import json
from typing import Any

from agent_api import labels
from agent_api.v1alpha1 import UNVERSIONED_FIELDS
from agent_operator.resources.inputs import MANIFEST_FILE, SPEC_FILE, AgentInputs, build_metadata, stamp


def build_manifest(inputs: AgentInputs) -> dict[str, Any]:
    """Build the resolved Agent: every default filled in, the prompt inline.

    What changes without a new revision is left out and reads as its default: what is immutable must not claim to know
    it. Settings of the pod that are not set are left out, too, so that a new one makes no new revision of old specs.
    """
    spec = inputs.agent.spec.model_dump(
        mode="json",
        by_alias=True,
        exclude_none=True,
        exclude={"system_prompt", "system_prompt_from"},
    )
    for path in UNVERSIONED_FIELDS:
        *parents, name = path.split(".")
        part = spec
        for parent in parents:
            part = part[parent]
        del part[name]
    spec["runtime"] = {name: value for name, value in spec["runtime"].items() if value not in ("", [], {})}
    return {
        "apiVersion": labels.API_VERSION,
        "kind": labels.KIND,
        "metadata": {"name": inputs.name, "namespace": inputs.namespace, "uid": inputs.uid},
        "spec": {**spec, "systemPrompt": inputs.prompt},
    }


def render_manifest(inputs: AgentInputs) -> str:
    """Return the manifest as the file the runtime reads."""
    return json.dumps(build_manifest(inputs), ensure_ascii=False, sort_keys=True, indent=2) + "\n"


def render_spec(inputs: AgentInputs) -> str:
    """Return the spec as it was written, as JSON."""
    return json.dumps(inputs.spec, ensure_ascii=False, sort_keys=True, indent=2) + "\n"


def build_config_map(inputs: AgentInputs, revision: str, number: int) -> dict[str, Any]:
    """Build the ConfigMap of a revision. `number` counts how often a revision became the current one."""
    metadata = build_metadata(inputs, labels.revision_name(inputs.name, revision))
    metadata["labels"][labels.LABEL_REVISION] = revision
    body = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata,
        "immutable": True,
        "data": {MANIFEST_FILE: render_manifest(inputs), SPEC_FILE: render_spec(inputs)},
    }
    # The name stands for the manifest; the spec behind it may be written in several ways.
    stamped = stamp(body, secret_fields=("data",))
    stamped["metadata"]["annotations"][labels.ANNOTATION_REVISION_NUMBER] = str(number)
    return stamped
