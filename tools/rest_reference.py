"""The OpenAPI document of the runtime → docs/rest-reference.md: paths, parameters, bodies, examples, errors."""

import json
import re
from pathlib import Path
from typing import Any, Final

from agent_runtime.settings import RuntimeSettings
from agent_runtime.web.app import build_app
from tools.markdown import paragraph, table, write_page

_HEADER: Final = """\
# Reference: REST API

Generated from the OpenAPI document by `make generate`; every agent serves that document at `/openapi.json`, and people
read it at `/docs`. What the calls mean, and how to repeat them safely, is told in [rest.md](rest.md).

"""
_TITLES: Final = {
    "messages": "Messages",
    "sessions": "Sessions",
    "turns": "Turns",
    "state": "State",
    "errors": "Errors",
    "openai": "OpenAI-compatible",
    "status": "Probes and metrics",
}
_METHODS: Final = ("get", "put", "post", "delete", "patch")

Object = dict[str, Any]


def document() -> Object:
    """Return the OpenAPI document of a runtime that wants keys."""
    settings = RuntimeSettings(postgres_url="postgresql://localhost/abide", manifest=Path("unused"))
    found: Object = build_app(settings).openapi()
    return found


def render(document: Object) -> str:
    """Return the page."""
    operations = [
        (operation["tags"][0], method, path, operation)
        for path, methods in document["paths"].items()
        for method, operation in sorted(methods.items(), key=lambda item: _METHODS.index(item[0]))
    ]
    tags = [*_TITLES, *sorted({tag for tag, *_ in operations} - set(_TITLES))]
    parts = [_HEADER, _overview(operations, tags)]
    for tag in tags:
        if any(found == tag for found, *_ in operations):
            parts.append(f"## {_TITLES.get(tag, tag.capitalize())}\n\n")
            parts += [
                _operation(method, path, operation) for found, method, path, operation in operations if found == tag
            ]
    parts.append("## Schemas\n\n")
    schemas = document["components"]["schemas"]
    parts += [_schema(name, schemas[name]) for name in sorted(schemas)]
    return "".join(parts)


def _overview(operations: list[tuple[str, str, str, Object]], tags: list[str]) -> str:
    ordered = sorted(operations, key=lambda item: tags.index(item[0]))
    rows = [
        [f"[`{method.upper()} {path}`](#{_anchor(method, path)})", _summary(found)]
        for _, method, path, found in ordered
    ]
    return table(["call", "what it does"], rows)


def _anchor(method: str, path: str) -> str:
    """Return the anchor that a Markdown page gives the heading of a call."""
    return re.sub(r"[^\w -]", "", f"{method} {path}".lower()).replace(" ", "-")


def _summary(operation: Object) -> str:
    return str(operation.get("description") or operation.get("summary", "")).split("\n\n")[0]


def _operation(method: str, path: str, operation: Object) -> str:
    parts = [f"### `{method.upper()} {path}`\n\n"]
    parts += [
        paragraph(text) for text in str(operation.get("description") or operation.get("summary", "")).split("\n\n")
    ]
    if parameters := operation.get("parameters"):
        rows = [
            [f"`{found['name']}`", found["in"], _kind(found["schema"]), _default(found), found.get("description", "")]
            for found in parameters
        ]
        parts.append(table(["parameter", "in", "type", "default", "meaning"], rows))
    for media, content in operation.get("requestBody", {}).get("content", {}).items():
        parts.append(f"Body: {_kind(content['schema'])}, `{media}`\n\n")
        parts.append(_example(content))
    answers = operation["responses"]
    parts.append(table(["status", "body", "meaning"], [_answer(status, found) for status, found in answers.items()]))
    shown: list[object] = []
    for status, found in answers.items():
        for content in found.get("content", {}).values():
            if "example" in content and content["example"] not in shown:
                shown.append(content["example"])
                parts += [f"{status}:\n\n", _example(content)]
    return "".join(parts)


def _answer(status: str, answer: Object) -> list[str]:
    bodies = [
        f"`{media}`" if "$ref" not in content["schema"] else _kind(content["schema"])
        for media, content in answer.get("content", {}).items()
    ]
    return ["other" if status == "default" else status, " or ".join(bodies), answer["description"]]


def _example(content: Object) -> str:
    if "example" not in content:
        return ""
    return f"```json\n{json.dumps(content['example'], ensure_ascii=False, indent=2)}\n```\n\n"


def _schema(name: str, schema: Object) -> str:
    parts = [f"### {name}\n\n"]
    if described := schema.get("description"):
        parts.append(paragraph(described))
    required = schema.get("required", [])
    rows = [
        [f"`{field}`", _kind(found), "yes" if field in required else "", found.get("description", "")]
        for field, found in schema.get("properties", {}).items()
    ]
    if rows:
        parts.append(table(["field", "type", "required", "meaning"], rows))
    elif not described or "type" in schema:
        parts.append(f"{_kind(schema)}\n\n")
    return "".join(parts)


def _kind(schema: Object) -> str:
    if reference := schema.get("$ref"):
        name = reference.rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return " or ".join(f"`{choice}`" for choice in schema["enum"])
    for union in ("anyOf", "oneOf", "allOf"):
        if union in schema:
            return " or ".join(dict.fromkeys(_kind(choice) for choice in schema[union]))
    kind = schema.get("type", "any")
    kind = " or ".join(kind) if isinstance(kind, list) else str(kind)
    if kind == "array":
        kind = f"list of {_kind(schema.get('items', {}))}"
    bounds = (("minLength", "length ≥"), ("maxLength", "length ≤"), ("minimum", "≥"), ("maximum", "≤"))
    limits = [f"{sign} {schema[key]}" for key, sign in bounds if key in schema]
    pattern = [f"`{schema['pattern']}`"] if "pattern" in schema else []
    form = [schema["format"]] if "format" in schema else []
    return ", ".join([kind, *form, *limits, *pattern])


def _default(parameter: Object) -> str:
    if parameter.get("required"):
        return "required"
    default = parameter["schema"].get("default")
    return "" if default is None else f"`{default}`"


if __name__ == "__main__":
    write_page("Write the reference of the REST API.", render(document()))
