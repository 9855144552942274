"""The loader refuses what the API server refuses, in one line that names field and remedy."""

import pytest

from agent_api.manifest import ManifestError, load_manifests
from agent_api.schema import build_schema, walk_fields
from tests.unit.agent_api.cases import (
    BASE,
    CASES,
    CLOCK,
    HTTP,
    MCP,
    OPENAI,
    RULES,
    Case,
    as_json,
    http_tool,
    model,
    put,
    tool,
)

ids = [case.name for case in CASES]


@pytest.mark.parametrize("case", CASES, ids=ids)
def test_a_refusal_names_field_and_remedy(case: Case) -> None:
    with pytest.raises(ManifestError) as refusal:
        load_manifests(as_json(case.refused_manifest), source="agent.yaml")
    assert len(refusal.value.problems) == 1
    assert refusal.value.problems[0].startswith(f"agent.yaml:1: {case.field}: {case.message or case.loader}")


@pytest.mark.parametrize("case", CASES, ids=ids)
def test_the_neighbour_is_accepted(case: Case) -> None:
    (agent,) = load_manifests(as_json(case.accepted_manifest), source="agent.yaml")
    assert agent.spec.models


def test_the_base_manifest_is_accepted() -> None:
    assert load_manifests(as_json(BASE), source="agent.yaml")[0].metadata.name == "assistant"


def test_every_rule_of_the_crd_has_a_case() -> None:
    schema = build_schema()
    nodes = [schema, *(item for _, item in walk_fields(schema))]
    nodes += [node["items"] for node in nodes if "items" in node]
    messages = {rule["message"] for node in nodes for rule in node.get("x-kubernetes-validations", ())}
    assert messages == {case.message for case in RULES}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (model(OPENAI, parameters={"extra": {"stream": False}}), "the runtime sets model, system, messages, tools"),
        (("spec.models.0.parameters.extra", {"seed": 1}), "built-in models take no extra fields"),
    ],
)
def test_what_only_the_loader_can_see_is_refused_by_it(changes: tuple[str, object], words: str) -> None:
    with pytest.raises(ManifestError) as refusal:
        load_manifests(as_json(put(BASE, changes)), source="agent.yaml")
    (problem,) = refusal.value.problems
    assert problem.startswith(f"agent.yaml:1: spec.models[0].parameters.extra: {words}")


@pytest.mark.parametrize(
    ("change", "field", "words"),
    [
        (("spec.tools", [CLOCK, {**HTTP, "name": "time"}]), "spec.tools", "two tools have the same name"),
        (tool(HTTP, allow=["orders"]), "spec.tools[0].allow", "an entry of this kind has no tool of that name"),
        (tool(CLOCK, approval={"for": ["time"]}), "spec.tools[0].approval.for", "an entry of this kind has no tool"),
        (tool(CLOCK, sideEffects={"time": {}}), "spec.tools[0].sideEffects", "an entry of this kind has no tool"),
        (http_tool(url="https://x/{no}"), "spec.tools[0].http.url", "each {name} in it must be a required parameter"),
        (
            http_tool(url="https://x/", parameters={"type": "array"}),
            "spec.tools[0].http.parameters.type",
            "arguments have names, so the schema is one of an object: write type: object",
        ),
        (
            ("spec.input", {"schema": {"properties": {"a": {"type": "strng"}}}}),
            "spec.input.schema.properties.a.type",
            '"strng" is no type of JSON; write one of: array, boolean',
        ),
        (
            ("spec.output", {"schema": {"$ref": "https://example.com/schema.json"}}),
            "spec.output.schema.$ref",
            "only parts of the same schema can be referred to",
        ),
        (("spec.output", {"schema": {"pattern": "("}}), "spec.output.schema.pattern", "is no regular expression"),
    ],
)
def test_mistakes_in_tools_and_schemas_that_only_the_loader_can_see(change: object, field: str, words: str) -> None:
    with pytest.raises(ManifestError) as refusal:
        load_manifests(as_json(put(BASE, change)), source="agent.yaml")  # type: ignore[arg-type]
    (problem,) = refusal.value.problems
    assert problem.startswith(f"agent.yaml:1: {field}: {words}")


def test_tools_of_every_kind_are_accepted() -> None:
    changes = {
        "allow": ["get_diff"],
        "timeoutSeconds": 5,
        "sideEffects": {"create_review": {"idempotencyArgument": "client_id"}},
        "approval": {"for": ["create_review"], "timeoutSeconds": 60, "onTimeout": "Approve"},
    }
    (agent,) = load_manifests(as_json(put(BASE, ("spec.tools", [CLOCK, HTTP, {**MCP, **changes}]))), source="a.yaml")
    assert [entry.name for entry in agent.spec.tools] == ["time", "order", "github"]
    assert agent.spec.tools[2].approval is not None
    assert agent.spec.tools[2].approval.for_ == ["create_review"]
