"""The JSON schema for editors takes what is right and refuses what is wrong."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from agent_cli.editor_schema import build_editor_schema, render_editor_schema

ROOT = Path(__file__).resolve().parents[3]
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft7Validator:
    schema = build_editor_schema()
    jsonschema.Draft7Validator.check_schema(schema)
    return jsonschema.Draft7Validator(schema)


def agent(**spec: Any) -> dict[str, Any]:
    content = {"systemPrompt": "Be kind.", "models": [{"provider": "echo"}], **spec}
    return {"apiVersion": "abide.dev/v1alpha1", "kind": "Agent", "metadata": {"name": "bot"}, "spec": content}


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_every_document_of_the_examples_is_accepted(validator: jsonschema.Draft7Validator, example: Path) -> None:
    documents = [one for one in yaml.safe_load_all(example.read_text()) if one]
    assert documents
    for document in documents:
        assert [error.message for error in validator.iter_errors(document)] == []


@pytest.mark.parametrize(
    ("document", "word"),
    [
        (agent(modles=[]), "modles"),
        (agent(models=[{"provider": "nosuch"}]), "nosuch"),
        (agent(models=[]), "[]"),
        (agent(history={"limit": 0}), "minimum"),
        (agent(limits={"maxStep": 3}), "maxStep"),
        (agent(replicas="3"), "integer"),
        (agent(models=[{"provider": "scripted", "parameters": {"replies": [5]}}]), "5"),
        (agent(models=[{"provider": "scripted", "parameters": {"replies": [{"contnet": "x"}]}}]), "contnet"),
        (agent(runtime={"nodeSelector": {"a": 1}}), "1"),
        ({**agent(), "kind": "Agnet"}, "'Agent' was expected"),
        ({**agent(), "metadata": {"name": "Upper"}}, "Upper"),
        ({**agent(), "metadata": {"nmae": "x"}}, "nmae"),
        ({"kind": "Agent"}, "apiVersion"),
    ],
)
def test_what_is_wrong_is_refused(validator: jsonschema.Draft7Validator, document: dict[str, Any], word: str) -> None:
    assert any(word in error.message for error in validator.iter_errors(document))


def test_free_fields_stay_free(validator: jsonschema.Draft7Validator) -> None:
    extra = {"provider": "openai-compatible", "model": "m", "parameters": {"extra": {"anything": [{"deep": 1}]}}}
    replies = {"provider": "scripted", "name": "s", "parameters": {"replies": ["a", {"content": "b"}, {"error": 500}]}}
    assert list(validator.iter_errors(agent(models=[extra, replies]))) == []
    assert list(validator.iter_errors({**agent(), "status": {"whatever": 1}})) == []


def test_the_file_for_editors_is_fresh() -> None:
    assert (ROOT / "schemas" / "agent.schema.json").read_text() == render_editor_schema()
    assert json.loads(render_editor_schema())["title"].startswith("Abide Agent")
