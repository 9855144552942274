"""The structural OpenAPI schema of the Agent, made from its models.

The schema is structural (Kubernetes documentation, "Specifying a structural schema"): references are resolved, a field
without a value is absent and never null, defaults stand where the API server fills them in. agent_api.crdgen writes it
into the CRD, agent_api.problems looks up in it what a field may hold.
"""

from collections.abc import Iterator
from functools import cache
from typing import Any, Final

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue, NoDefault
from pydantic_core import core_schema

from agent_api.labels import API_VERSION, KIND
from agent_api.rules import cel_rules
from agent_api.v1alpha1 import Agent, Metadata

Schema = dict[str, Any]

COPIED_KEYWORDS: Final = (
    "description",
    "type",
    "format",
    "enum",
    "pattern",
    "minimum",
    "maximum",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "maxProperties",
    "required",
    "x-kubernetes-validations",
    "x-kubernetes-map-type",
    "x-kubernetes-list-type",
    "x-kubernetes-list-map-keys",
)


class _WithFactoryDefaults(GenerateJsonSchema):
    """Also write the defaults that come from factories; a nested object as what differs from its own defaults."""

    def get_default_value(self, schema: core_schema.WithDefaultSchema) -> Any:
        if "default_factory" in schema:
            return schema["default_factory"]()  # type: ignore[call-arg]
        return schema.get("default", NoDefault)

    def encode_default(self, dft: Any) -> Any:
        return dft.model_dump(by_alias=True, exclude_unset=True) if isinstance(dft, BaseModel) else dft


@cache
def build_schema() -> Schema:
    """Return the structural schema of the Agent; treat it as read-only."""
    document = Agent.model_json_schema(schema_generator=_WithFactoryDefaults)
    root = _structural(document, document["$defs"])
    properties = root["properties"]
    properties["apiVersion"] = {
        "type": "string",
        "description": f"Version of the format: {API_VERSION}.",
    }
    properties["kind"] = {"type": "string", "description": f"Kind of the object: {KIND}."}
    # The name is mentioned so that the rules about it can point at it.
    properties["metadata"] = {"type": "object", "properties": {"name": {"type": "string"}}}
    properties["status"] = _without_defaults(properties["status"])
    root["required"] = ["spec"]
    # The API server takes no rules below metadata, so they stand at the root.
    root["x-kubernetes-validations"] = cel_rules(Metadata.rules, below="metadata.")
    return root


def _structural(schema: JsonSchemaValue, definitions: dict[str, JsonSchemaValue]) -> Schema:
    """Return the schema with references resolved, null left out and only what a CRD may hold."""
    schema = _resolved(schema, definitions)
    branches = [branch for branch in schema.get("anyOf") or schema.get("oneOf") or () if branch.get("type") != "null"]
    if len(branches) == 1:
        return _structural({**schema, "anyOf": (), "default": None} | branches[0] | _own_words(schema), definitions)
    if branches:
        return _text_or_object(schema, branches, definitions)
    result: Schema = {keyword: schema[keyword] for keyword in COPIED_KEYWORDS if keyword in schema}
    if schema.get("default") not in (None, "", [], {}) or _is_nested_default(schema):
        result["default"] = _whole_number(schema["default"])
    for bound in ("minimum", "maximum"):
        if bound in result:
            result[bound] = _whole_number(result[bound])
    if "properties" in schema:
        result["properties"] = {name: _structural(item, definitions) for name, item in schema["properties"].items()}
    elif schema.get("type") == "object":
        _describe_free_object(schema, result, definitions)
    if schema.get("type") == "array":
        result["items"] = _structural(schema["items"], definitions)
        result.setdefault("x-kubernetes-list-type", "atomic")
    return result


def _resolved(schema: JsonSchemaValue, definitions: dict[str, JsonSchemaValue]) -> JsonSchemaValue:
    if "$ref" not in schema:
        return schema
    target = definitions[schema["$ref"].rpartition("/")[2]]
    return target | {keyword: value for keyword, value in schema.items() if keyword != "$ref"}


def _own_words(schema: JsonSchemaValue) -> JsonSchemaValue:
    """Return the description of an optional field, which wins over that of its type."""
    return {"description": schema["description"]} if "description" in schema else {}


def _text_or_object(
    schema: JsonSchemaValue, branches: list[JsonSchemaValue], definitions: dict[str, JsonSchemaValue]
) -> Schema:
    """Return the schema of a value that is a text or an object.

    Structural schemas have no such type, so the value is preserved as written. What the object form says of its fields
    still holds for objects; a schema without a type leaves texts alone. Its rules and `required` cannot be said in CEL.
    """
    objects = [_structural(branch, definitions) for branch in branches]
    (form,) = (item for item in objects if item["type"] == "object")
    return {
        "description": schema.get("description", form["description"]),
        "properties": form["properties"],
        "x-kubernetes-preserve-unknown-fields": True,
    }


def _is_nested_default(schema: JsonSchemaValue) -> bool:
    """Whether the default `{}` lets the defaults of the fields below fill in."""
    return schema.get("default") == {} and any(
        "default" in item or "$ref" in item for item in schema.get("properties", {}).values()
    )


def _describe_free_object(schema: JsonSchemaValue, result: Schema, definitions: dict[str, JsonSchemaValue]) -> None:
    values = schema.get("additionalProperties", True)
    if isinstance(values, dict) and values:
        result["additionalProperties"] = _structural(values, definitions)
    else:
        result["x-kubernetes-preserve-unknown-fields"] = True


def _whole_number(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _without_defaults(schema: Schema) -> Schema:
    """Return the schema of status, where a default would claim something nobody has seen."""
    result = {keyword: value for keyword, value in schema.items() if keyword != "default"}
    if "properties" in result:
        result["properties"] = {name: _without_defaults(item) for name, item in result["properties"].items()}
    if "items" in result:
        result["items"] = _without_defaults(result["items"])
    return result


def walk_fields(schema: Schema, path: str = "") -> Iterator[tuple[str, Schema]]:
    """Yield every field below a schema as (wire path, schema), parents first; `[]` stands for the entries of a list."""
    for name, item in schema.get("properties", {}).items():
        field = f"{path}.{name}" if path else name
        yield field, item
        yield from walk_fields(item, field)
        if "items" in item:
            yield from walk_fields(item["items"], f"{field}[]")
