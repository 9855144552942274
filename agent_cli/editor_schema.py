"""The JSON schema of manifests for editors: `abide schema` and schemas/agent.schema.json.

`python -m agent_cli.editor_schema FILE` writes it. JSON Schema draft 7, which editors' YAML support reads. It is made
from the same models as the CRD; rules over several fields are left to `abide validate`, which says them in words.
A Secret or ConfigMap in the same file is taken as it is.
"""

import json
import sys
from pathlib import Path
from typing import Any, Final

from agent_api.labels import API_VERSION, KIND, NAME_MAX_LENGTH
from agent_api.manifest import OBJECT_META_FIELDS
from agent_api.schema import Schema, build_schema

DRAFT: Final = "http://json-schema.org/draft-07/schema#"
TITLE: Final = f"Abide {KIND}, {API_VERSION}"
KEPT: Final = (
    "description",
    "type",
    "enum",
    "pattern",
    "minimum",
    "maximum",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "required",
    "default",
)
FREE: Final = "x-kubernetes-preserve-unknown-fields"


def build_editor_schema() -> dict[str, Any]:
    """Return the schema of one document of a manifest."""
    agent = _closed(build_schema())
    agent["properties"]["apiVersion"] |= {"const": API_VERSION}
    agent["properties"]["kind"] |= {"const": KIND}
    agent["properties"]["metadata"] = _metadata()
    # Written by the operator; a manifest taken from the cluster may hold it, and it is not read.
    agent["properties"]["status"] = {"type": "object", "description": "What is true; the operator writes it."}
    agent["required"] = ["apiVersion", "kind", "metadata", "spec"]
    other = {"properties": {"kind": {"enum": ["Secret", "ConfigMap"]}}, "required": ["kind"]}
    return {"$schema": DRAFT, "title": TITLE, "if": other, "then": {"type": "object"}, "else": agent}


def _metadata() -> Schema:
    texts = {"type": "object", "additionalProperties": {"type": "string"}}
    known: dict[str, Any] = {name: {} for name in sorted(OBJECT_META_FIELDS)}
    known["labels"] = known["annotations"] = texts
    known["name"] = {
        "type": "string",
        "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$",
        "minLength": 1,
        "maxLength": NAME_MAX_LENGTH,
        "description": "Name of the agent.",
    }
    known["namespace"] = {"type": "string", "minLength": 1, "maxLength": 63, "description": "Namespace of the agent."}
    return {"type": "object", "properties": known, "required": ["name"], "additionalProperties": False}


def _closed(schema: Schema) -> Schema:
    """Return a structural schema as JSON Schema that refuses unknown fields."""
    result: Schema = {keyword: schema[keyword] for keyword in KEPT if keyword in schema}
    if "properties" in schema:
        result["properties"] = {name: _closed(item) for name, item in schema["properties"].items()}
        result["additionalProperties"] = False
    elif "additionalProperties" in schema:
        result["additionalProperties"] = _closed(schema["additionalProperties"])
    if "items" in schema:
        result["items"] = _closed(schema["items"])
    if schema.get(FREE) and "properties" in schema and "type" not in schema:
        # A text or an object: a structural schema cannot say so, this one can.
        form = {name: result.pop(name) for name in ("properties", "additionalProperties")}
        result["anyOf"] = [{"type": "string"}, {"type": "object", **form}]
    return result


def render_editor_schema() -> str:
    """Return the schema as text."""
    return json.dumps(build_editor_schema(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(render_editor_schema(), encoding="utf-8")
