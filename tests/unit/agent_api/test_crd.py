"""The CRD is fresh, structural, described throughout and small enough for kubectl apply."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from agent_api.conditions import Reason
from agent_api.crdgen import FILE_NAME, build_crd, render_crd, render_reference
from agent_api.schema import Schema, build_schema, walk_fields

ROOT = Path(__file__).resolve().parents[3]
CLIENT_SIDE_APPLY_BYTES = 256 * 1024


def nodes(schema: Schema) -> Iterator[Schema]:
    yield schema
    for _, item in walk_fields(schema):
        yield item
        if "items" in item:
            yield item["items"]


def test_the_committed_crd_is_fresh() -> None:
    assert (ROOT / "crds" / FILE_NAME).read_text() == render_crd(), "run: make generate"


def test_the_committed_reference_is_fresh() -> None:
    assert (ROOT / "docs" / "crd.md").read_text() == render_reference(), "run: make generate"


def test_generating_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    for seed in ("1", "2"):
        command = [sys.executable, "-m", "agent_api.crdgen", "--output", tmp_path / seed, "--reference"]
        subprocess.run(
            [*command, tmp_path / seed / "crd.md"], check=True, cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": seed}
        )
    for name in (FILE_NAME, "crd.md"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


def test_the_file_holds_the_crd_without_aliases() -> None:
    text = render_crd()
    assert yaml.safe_load(text) == build_crd()
    assert not any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text))


def test_the_crd_fits_into_the_annotation_of_client_side_apply() -> None:
    assert len(json.dumps(build_crd())) < CLIENT_SIDE_APPLY_BYTES


def test_the_file_can_stand_in_a_helm_template() -> None:
    assert "{{" not in render_crd()


def test_the_schema_is_structural() -> None:
    forbidden = {"$ref", "anyOf", "oneOf", "allOf", "not", "nullable", "title", "const", "definitions"}
    for node in nodes(build_schema()):
        assert not forbidden & node.keys()
        assert "type" in node or node["x-kubernetes-preserve-unknown-fields"] is True
        assert ("properties" in node) + ("additionalProperties" in node) < 2


def test_no_object_is_pruned_to_nothing() -> None:
    for path, node in walk_fields(build_schema()):
        if node.get("type") == "object" and path != "metadata":
            assert (
                node.get("properties")
                or node.get("additionalProperties")
                or node.get("x-kubernetes-preserve-unknown-fields")
            ), path


def test_every_field_is_described() -> None:
    for path, node in walk_fields(build_schema()):
        if not path.startswith("metadata"):
            assert node["description"], path


def test_lists_say_how_they_merge() -> None:
    lists = {path: node for path, node in walk_fields(build_schema()) if node.get("type") == "array"}
    keys = {path: node.get("x-kubernetes-list-map-keys") for path, node in lists.items()}
    assert all(node["x-kubernetes-list-type"] in ("atomic", "map", "set") for node in lists.values())
    assert {path: key for path, key in keys.items() if key} == {
        "spec.access.jwt": ["name"],
        "spec.access.keys": ["name"],
        "spec.tools[].http.headersFrom": ["name"],
        "spec.tools[].mcp.headersFrom": ["name"],
        "spec.tools": ["name"],
        "status.tools": ["name"],
        "status.usage.budgets": ["scope"],
        "spec.runtime.env": ["name"],
        "status.conditions": ["type"],
        "status.health.checks": ["name"],
    }


def test_status_has_no_defaults() -> None:
    assert not any("default" in node for node in nodes(build_schema()["properties"]["status"]))


def test_spec_needs_only_what_has_no_default() -> None:
    spec = build_schema()["properties"]["spec"]
    assert spec["required"] == ["models"]
    assert spec["properties"]["models"]["items"]["required"] == ["provider"]


def test_columns_stand_in_the_order_users_know() -> None:
    columns: list[dict[str, Any]] = build_crd()["spec"]["versions"][0]["additionalPrinterColumns"]
    assert [column["name"].upper() for column in columns if not column.get("priority")] == [
        "READY",
        "REASON",
        "MODEL",
        "DESIRED",
        "UP",
        "SESSIONS",
        "AGE",
    ]
    assert [column["name"].upper() for column in columns if column.get("priority") == 1] == [
        "ANSWERING",
        "REVISION",
        "ENDPOINT",
        "LAST ERROR",
    ]


def test_columns_and_scale_point_at_fields_that_exist() -> None:
    version = build_crd()["spec"]["versions"][0]
    fields = {path for path, _ in walk_fields(build_schema())}
    scale = version["subresources"]["scale"]
    paths = [column["jsonPath"] for column in version["additionalPrinterColumns"]]
    paths += [*scale.values(), *(field["jsonPath"] for field in version["selectableFields"])]
    for path in paths:
        plain = path.removeprefix(".").replace('[?(@.type=="Ready")]', "[]")
        assert plain in fields or plain == "metadata.creationTimestamp", path


def test_reasons_fit_the_schema_of_conditions() -> None:
    conditions = build_schema()["properties"]["status"]["properties"]["conditions"]
    assert all(len(reason) <= conditions["items"]["properties"]["reason"]["maxLength"] for reason in Reason)
