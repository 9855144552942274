"""The loader refuses what the API server refuses, in one line that names field and remedy."""

import pytest

from agent_api.manifest import ManifestError, load_manifests
from agent_api.schema import build_schema, walk_fields
from tests.unit.agent_api.cases import BASE, CASES, OPENAI, RULES, Case, as_json, model, put

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
        (model(OPENAI, parameters={"extra": {"stream": False}}), "the runtime sets model, messages, tools"),
        (("spec.models.0.parameters.extra", {"seed": 1}), "built-in models take no extra fields"),
    ],
)
def test_what_only_the_loader_can_see_is_refused_by_it(changes: tuple[str, object], words: str) -> None:
    with pytest.raises(ManifestError) as refusal:
        load_manifests(as_json(put(BASE, changes)), source="agent.yaml")
    (problem,) = refusal.value.problems
    assert problem.startswith(f"agent.yaml:1: spec.models[0].parameters.extra: {words}")
