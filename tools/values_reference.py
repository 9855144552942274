"""The chart's values → docs/values.md: from the comments of values.yaml and the types of values.schema.json.

A comment that begins with `# --` above a key is its documentation; a key without one stops the generator.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from tools.markdown import paragraph, table, write_page

CHART: Final = Path(__file__).resolve().parents[1] / "helm" / "abide"

_HEADER: Final = """\
# Reference: values of the chart

Generated from `helm/abide/values.yaml` and its schema by `make generate`; edit those instead. A key that is not listed
here is refused.

```
helm install abide helm/abide --namespace abide-system --create-namespace --values my-values.yaml
```

Some values in context: [getting started](getting-started.md), [upgrading and removing](upgrade.md).

"""


class UndocumentedValueError(Exception):
    """A value of the chart has no comment."""


@dataclass(frozen=True)
class Value:
    """One key: its path, what it means, its default as YAML on one line, and what its schema says."""

    path: str
    meaning: str
    default: str
    kind: str
    has_children: bool


def values(text: str, schema: dict[str, Any]) -> list[Value]:
    """Return every documented key in the order of the file. Raises: UndocumentedValueError naming those without."""
    tree = yaml.compose(text, yaml.SafeLoader)
    found = list(_walk(tree, "", text.splitlines(), schema, schema)) if isinstance(tree, yaml.MappingNode) else []
    if missing := [value.path for value in found if not value.meaning]:
        raise UndocumentedValueError(f"write a comment that begins with `# --` above: {', '.join(missing)}")
    return found


def render(text: str, schema: dict[str, Any]) -> str:
    """Return the page: one section for each top-level key."""
    parts = [_HEADER]
    rows: list[list[str]] = []
    header = ["value", "type", "default", "meaning"]
    for value in values(text, schema):
        if "." not in value.path:
            if rows:
                parts.append(table(header, rows))
                rows = []
            parts += [f"## `{value.path}`\n\n", paragraph(value.meaning) if value.has_children else ""]
            if value.has_children:
                continue
        if value.has_children:
            rows.append([f"**`{value.path}`**", "", "", f"**{value.meaning.rstrip('.')}.**"])
        else:
            rows.append([f"`{value.path}`", value.kind, f"`{value.default}`", value.meaning])
    return "".join([*parts, table(header, rows)])


def _walk(
    node: yaml.MappingNode, prefix: str, lines: list[str], schema: dict[str, Any], root: dict[str, Any]
) -> Iterator[Value]:
    for key, child in node.value:
        path = f"{prefix}{key.value}"
        below = _resolve(_resolve(schema, root).get("properties", {}).get(key.value, {}), root)
        described = _comment(lines, key.start_mark.line)
        nested = isinstance(child, yaml.MappingNode) and _has_comments(child, lines)
        yield Value(path, described, _flow(child), _kind(below, root), nested)
        if isinstance(child, yaml.MappingNode) and nested:
            yield from _walk(child, f"{path}.", lines, below, root)


def _has_comments(node: yaml.MappingNode, lines: list[str]) -> bool:
    """Tell whether a mapping's keys are values of their own, and not one default as a whole."""
    return any(_comment(lines, key.start_mark.line) for key, _ in node.value)


def _comment(lines: list[str], line: int) -> str:
    """Return the text of the comment that ends above this line and begins with `# --`, or nothing."""
    block: list[str] = []
    for above in reversed(lines[:line]):
        if not (found := re.match(r"\s*#\s?(.*)$", above)):
            break
        block.insert(0, found[1].strip())
        if found[1].startswith("--"):
            return " ".join(block).removeprefix("--").strip()
    return ""


def _flow(node: yaml.Node) -> str:
    value = yaml.safe_load(yaml.serialize(node, Dumper=yaml.SafeDumper))
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    return yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10_000).removesuffix("...\n").strip()


def _resolve(schema: dict[str, Any], root: dict[str, Any]) -> dict[str, Any]:
    while reference := schema.get("$ref"):
        target: Any = root
        for part in reference.removeprefix("#/").split("/"):
            target = target[part]
        schema = {**target, **{key: value for key, value in schema.items() if key != "$ref"}}
    return schema


def _kind(schema: dict[str, Any], root: dict[str, Any]) -> str:
    schema = _resolve(schema, root)
    if "enum" in schema:
        return " or ".join(f"`{choice}`" for choice in schema["enum"])
    for union in ("anyOf", "oneOf"):
        if union in schema:
            kinds = [_kind(choice, root) for choice in schema[union]]
            return " or ".join(dict.fromkeys(kind for kind in kinds if kind))
    kind = schema.get("type", "")
    kind = " or ".join(kind) if isinstance(kind, list) else str(kind)
    if kind == "array":
        kind = f"list of {_kind(schema.get('items', {}), root)}".removesuffix(" of ")
    limits = [f"{sign} {schema[name]}" for name, sign in (("minimum", "≥"), ("maximum", "≤")) if name in schema]
    return ", ".join([kind, *limits])


if __name__ == "__main__":
    chart_schema = json.loads((CHART / "values.schema.json").read_text())
    write_page("Write the chart's reference.", render((CHART / "values.yaml").read_text(), chart_schema))
