"""Looks over JSON Schemas that stand in a resource, without a validator: what is plainly wrong is refused at once.

JSON Schema, draft 2020-12. The runtime checks values with a real validator; this only keeps a schema that no value
could ever be checked against from being accepted.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from agent_api.rules import RULES_ERROR

TYPES: Final = ("array", "boolean", "integer", "null", "number", "object", "string")
MOST_BYTES: Final = 65_536
MOST_DEPTH: Final = 32
_SCHEMAS_BY_NAME: Final = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_LISTS_OF_SCHEMAS: Final = ("allOf", "anyOf", "oneOf", "prefixItems")
_SCHEMAS: Final = ("items", "additionalProperties", "not", "if", "then", "else", "contains", "propertyNames")
_WHOLE_NUMBERS: Final = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")
_NUMBERS: Final = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")

Found = tuple[str, str]


@dataclass(frozen=True)
class IsSchema:
    """Annotation of a mapping that must be a JSON Schema; `of_objects`: one that only objects fit."""

    of_objects: bool = False

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Check after the mapping's own type."""
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def _check(self, schema: dict[str, Any]) -> dict[str, Any]:
        problem = next(find_problems(schema, of_objects=self.of_objects), None)
        if problem is not None:
            field, message = problem
            text = f"{field}: {message}" if field else message
            raise PydanticCustomError(
                RULES_ERROR, "{text}", {"text": text, "problems": [{"field": field, "message": message}]}
            )
        return schema


def find_problems(schema: Mapping[str, Any], *, of_objects: bool = False) -> Iterator[Found]:
    """Yield (path below the schema, what to write instead) for what is plainly wrong."""
    if len(json.dumps(schema, default=str)) > MOST_BYTES:
        yield "", f"longer than {MOST_BYTES} bytes as JSON: shorten the schema"
        return
    if of_objects and schema.get("type") != "object":
        yield "type", "arguments have names, so the schema is one of an object: write type: object"
    yield from _problems(schema, "", 0)


def _problems(schema: Any, path: str, depth: int) -> Iterator[Found]:
    if isinstance(schema, bool):
        return
    if not isinstance(schema, Mapping):
        yield path, "must be a schema: a mapping such as {type: string}"
        return
    if depth > MOST_DEPTH:
        yield path, f"schemas within schemas more than {MOST_DEPTH} deep: make it flatter"
        return

    def at(name: str) -> str:
        return f"{path}.{name}" if path else name

    yield from ((at(name), message) for name, message in _own_problems(schema))
    for name in _SCHEMAS_BY_NAME:
        inner = schema.get(name, {})
        if not isinstance(inner, Mapping):
            yield at(name), "must be a mapping of names to schemas"
            continue
        for key, one in inner.items():
            yield from _problems(one, f"{at(name)}.{key}", depth + 1)
    for name in _LISTS_OF_SCHEMAS:
        inner = schema.get(name, [])
        if not isinstance(inner, list):
            yield at(name), "must be a list of schemas"
            continue
        for index, one in enumerate(inner):
            yield from _problems(one, f"{at(name)}[{index}]", depth + 1)
    for name in _SCHEMAS:
        if name in schema:
            yield from _problems(schema[name], at(name), depth + 1)


def _own_problems(schema: Mapping[str, Any]) -> Iterator[Found]:
    types = schema.get("type", [])
    for one in types if isinstance(types, list) else [types]:
        if one not in TYPES:
            yield "type", f"{json.dumps(one, default=str)} is no type of JSON; write one of: {', '.join(TYPES)}"
    required = schema.get("required", [])
    if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
        yield "required", "must be a list of names of properties, for example [city]"
    if "enum" in schema and not isinstance(schema["enum"], list):
        yield "enum", "must be a list of values"
    for name in _WHOLE_NUMBERS:
        value = schema.get(name, 0)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            yield name, "must be a whole number, 0 or more"
    for name in _NUMBERS:
        if not isinstance(schema.get(name, 0), int | float):
            yield name, "must be a number"
    ref = schema.get("$ref", "#")
    if not isinstance(ref, str) or not ref.startswith("#"):
        yield "$ref", "only parts of the same schema can be referred to, for example #/$defs/address"
    try:
        re.compile(str(schema.get("pattern", "")))
    except re.error as error:
        yield "pattern", f"is no regular expression: {error}"
