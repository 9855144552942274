"""Parsing Agents, and judging what they refer to."""

from typing import Any

from agent_api.conditions import Reason
from agent_operator.kube.port import CONFIG_MAP, SECRET
from agent_operator.reconcile.observe import find_references, judge_references, parse_agent, resolve_prompt
from agent_operator.reconcile.references import Reference, Referent
from tests.unit.agent_operator.makers import UID, make_agent

LLM = Reference(SECRET, "shop", "llm")
PROMPTS = Reference(CONFIG_MAP, "shop", "prompts")
KEYED = make_agent(models=[{"provider": "echo", "apiKeySecretRef": {"name": "llm", "key": "openai"}}])
PROMPTED = make_agent(systemPromptFrom={"configMapKeyRef": {"name": "prompts", "key": "support"}})


def body(**spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "abide.dev/v1alpha1",
        "kind": "Agent",
        "metadata": {"name": "support", "namespace": "shop", "uid": UID, "labels": {"a": "b"}, "managedFields": []},
        "spec": {"systemPrompt": "x", "models": [{"provider": "echo"}], **spec},
        "status": {"whatever": 1},
    }


def test_a_valid_agent() -> None:
    view = parse_agent(body())
    assert view.agent is not None
    assert view.verdict.accepted
    assert view.replicas == 1


def test_an_invalid_spec_names_the_field() -> None:
    view = parse_agent(body(models=[{"provider": "scripted"}]))
    assert view.agent is None
    assert view.verdict.reason is Reason.INVALID_SPEC
    assert view.verdict.message.startswith("spec.models[0].parameters.replies: provider scripted needs at least one")


def test_what_should_run_is_known_even_of_an_invalid_spec() -> None:
    assert parse_agent(body(models=[], suspend=True)).replicas == 0
    assert parse_agent(body(models=[], replicas=1)).replicas == 1
    assert parse_agent(body(models=[])).replicas == 1
    assert parse_agent(body(models=[], replicas="many")).replicas is None


def test_references_are_found_with_their_keys() -> None:
    assert find_references(KEYED) == {LLM: frozenset(("openai",))}
    assert find_references(PROMPTED) == {PROMPTS: frozenset(("support",))}
    assert find_references(make_agent()) == {}


def test_a_missing_secret_and_a_missing_key_read_as_documented() -> None:
    gone = judge_references(KEYED, {LLM: Referent(exists=False)})
    assert (gone.reason, gone.message) == (
        Reason.SECRET_MISSING,
        "spec.models[0].apiKeySecretRef: Secret shop/llm does not exist.",
    )
    keyless = judge_references(KEYED, {LLM: Referent(True, frozenset(("other",)))})
    assert keyless.message == 'spec.models[0].apiKeySecretRef: Secret shop/llm has no key "openai".'
    assert judge_references(KEYED, {LLM: Referent(True, frozenset(("openai",)))}).accepted


def test_a_prompt_comes_from_its_config_map() -> None:
    found = {PROMPTS: Referent(True, frozenset(("support",)), {"support": "Be brief."})}
    assert judge_references(PROMPTED, found).accepted
    assert resolve_prompt(PROMPTED, found) == "Be brief."
    missing = judge_references(PROMPTED, {PROMPTS: Referent(exists=False)})
    assert missing.reason is Reason.CONFIG_MAP_MISSING
    assert "ConfigMap shop/prompts does not exist" in missing.message
    long = judge_references(PROMPTED, {PROMPTS: Referent(True, frozenset(("support",)), {"support": "x" * 100_001})})
    assert long.reason is Reason.INVALID_SPEC
    assert long.message == (
        'spec.systemPromptFrom.configMapKeyRef: key "support" of ConfigMap shop/prompts has 100001 characters; '
        "write at most 100000."
    )
    empty = judge_references(PROMPTED, {PROMPTS: Referent(True, frozenset(("support",)), {"support": " \n"})})
    assert empty.reason is Reason.INVALID_SPEC
