"""The chart's files agree with each other and with the rest of the repository; nothing is rendered here."""

import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[3]
CHART = ROOT / "helm" / "abide"
SCHEMA: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text())
VALUES: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text())

FREE_FORM = {"global", "affinity.nodeAffinity", "affinity.podAffinity", "affinity.podAntiAffinity"}
"""Objects whose keys are Kubernetes' own, too many to repeat; the API server checks them."""


def objects(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every object schema with its path, references followed."""
    if "$ref" in schema:
        schema = SCHEMA["definitions"][schema["$ref"].rsplit("/", 1)[1]]
    if schema.get("type") == "array":
        yield from objects(schema["items"], path)
    if schema.get("type") == "object":
        yield path, schema
        for name, child in schema.get("properties", {}).items():
            yield from objects(child, f"{path}.{name}".strip("."))


def keys(schema: dict[str, Any], path: str = "") -> set[str]:
    """Return the path of every value the schema allows that has a name of its own."""
    return {
        f"{path}.{name}".strip(".") for path, found in objects(schema, path) for name in found.get("properties", {})
    }


def paths(values: Any, path: str = "") -> set[str]:
    """Return the path of every key in the values."""
    if not isinstance(values, dict):
        return set()
    here = {f"{path}.{name}".strip(".") for name in values}
    return here.union(*(paths(child, f"{path}.{name}".strip(".")) for name, child in values.items()))


def test_the_versions_are_those_of_the_project() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (version, version)


def test_the_chart_carries_the_generated_crds() -> None:
    generated = {path.name: path.read_text() for path in (ROOT / "crds").glob("*.yaml")}
    packed = {path.name: path.read_text() for path in (CHART / "files" / "crds").glob("*.yaml")}
    assert packed == generated, "run: make generate"


def test_every_object_of_the_schema_refuses_unknown_keys() -> None:
    closed = {"strings": {"type": "string"}, "any": {"type": ["string", "number"]}}
    for path, schema in objects(SCHEMA):
        if path in FREE_FORM or any(path.endswith(f".{name}") for name in FREE_FORM):
            continue
        rest = schema.get("additionalProperties")
        assert rest is False or rest in closed.values(), f"{path or 'the top'} takes any key"


def test_every_value_is_in_the_schema() -> None:
    free = {"postgres.embedded.parameters", "operator.resources", "postgres.embedded.resources", "dashboards.labels"}
    own = {path for path in paths(VALUES) if not any(path.startswith(f"{parent}.") for parent in free)}
    assert own <= keys(SCHEMA)


def test_every_setting_of_the_schema_has_a_default_and_so_a_comment() -> None:
    free = ("global", "imagePullSecrets.", ".resources.", ".tolerations.", ".affinity.")
    wanted = {path for path in keys(SCHEMA) if not any(part in path for part in free)}
    assert wanted <= paths(VALUES)


def test_every_value_is_commented() -> None:
    lines = (CHART / "values.yaml").read_text().splitlines()
    bare = []
    inside: int | None = None
    for number, line in enumerate(lines):
        found = re.match(r"^( *)([A-Za-z]+):", line)
        if not found:
            continue
        indent = len(found[1])
        if inside is not None and indent > inside:
            continue  # below resources or parameters: Kubernetes' and Postgres' own names
        inside = indent if found[2] in ("resources", "parameters") else None
        above = number - 1
        while above >= 0 and re.match(r"^ *# (?!--)", lines[above]):
            above -= 1
        if not re.match(rf"^ {{{indent}}}# -- \S", lines[above]):
            bare.append(line.strip())
    assert bare == []
