"""What `kubectl apply` accepts and refuses, on a real API server, and that the loader says the same."""

import json
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent_api.manifest import ManifestError, load_manifests
from agent_api.schema import Schema, build_schema
from agent_api.v1alpha1 import Agent
from tests.integration.agent_api.conftest import ROOT, Kubectl
from tests.unit.agent_api.cases import BASE, CASES, Case, Manifest, as_json, put, scripted

ids = [case.name for case in CASES]
CREATE = "/apis/abide.dev/v1alpha1/namespaces/default/agents?dryRun=All&fieldValidation=Strict"


def apply(kubectl: Kubectl, manifest: Manifest) -> tuple[int, str]:
    done = kubectl("apply", "--dry-run=server", "-o", "json", "-f", "-", stdin=as_json(manifest), check=False)
    return done.returncode, done.stdout if done.returncode == 0 else done.stderr


@pytest.mark.parametrize("case", CASES, ids=ids)
def test_a_refusal_names_field_and_remedy(kubectl: Kubectl, case: Case) -> None:
    code, said = apply(kubectl, case.refused_manifest)
    assert code == 1, said
    assert case.field in said
    assert (case.message or case.server) in said


@pytest.mark.parametrize("case", CASES, ids=ids)
def test_the_neighbour_is_accepted(kubectl: Kubectl, case: Case) -> None:
    code, said = apply(kubectl, case.accepted_manifest)
    assert code == 0, said


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda path: path.name)
def test_examples_are_accepted_with_strict_validation(kubectl: Kubectl, path: Any) -> None:
    said = kubectl("apply", "--dry-run=server", "--validate=strict", "-f", str(path)).stdout
    assert "agent.abide.dev/" in said


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda path: path.name)
def test_server_defaults_are_the_models_defaults(kubectl: Kubectl, path: Any) -> None:
    text = path.read_text()
    listed = json.loads(kubectl("apply", "--dry-run=server", "-o", "json", "-f", str(path)).stdout)
    objects = listed["items"] if listed["kind"] == "List" else [listed]
    (served,) = (item for item in objects if item["kind"] == "Agent")
    (loaded,) = load_manifests(text, source=path.name)
    assert Agent.model_validate(served).spec == loaded.spec


def test_an_agent_shows_its_effective_values(kubectl: Kubectl) -> None:
    _, said = apply(kubectl, BASE)
    spec = json.loads(said)["spec"]
    assert spec == {
        "systemPrompt": "You are friendly.",
        "models": [
            {"provider": "echo", "timeoutSeconds": 30, "streamIdleSeconds": 30, "parameters": {"delaySeconds": 0}}
        ],
        "messages": {
            "fallback": "Sorry, I cannot answer right now. Your message is kept; please try again in a moment.",
            "budget": "Sorry, I have used up what I may use today. Your message is kept; please try again tomorrow.",
            "busy": "I am still working on your last message. Please send this one again when it is answered.",
            "expired": "Sorry, your message waited too long and is not answered any more. Please send it again.",
            "waitingApproval": "I need somebody's approval before I can go on. The answer follows once it is given.",
        },
        "memories": {"enabled": False},
        "history": {"limit": 50, "maxTokens": 8000, "compaction": {"enabled": True, "afterMessages": 100}},
        "limits": {"maxSteps": 20, "turnSeconds": 300, "turnTokens": 200_000, "requestsPerMinute": 600},
        "session": {
            "whenBusy": "Queue",
            "evictAfterSeconds": 900,
            "queueLimit": 20,
            "maxMessageAgeSeconds": 0,
            "retentionDays": 0,
        },
        "state": {"autoSaveEveryMessages": 5, "deletionPolicy": "Retain", "encryption": {"enabled": True}},
        "access": {"kubernetes": {"enabled": False, "audiences": ["abide.dev"]}},
        "replicas": 1,
        "revisionHistoryLimit": 5,
        "suspend": False,
        "runtime": {
            "resources": {"requests": {"cpu": "50m", "memory": "96Mi"}, "limits": {"memory": "256Mi"}},
        },
    }


def test_what_a_script_holds_is_kept_as_written(kubectl: Kubectl) -> None:
    replies = ["text", {"toolCalls": [{"name": "t", "arguments": {"deep": {"list": [1, None, {"a": True}]}}}]}]
    _, said = apply(kubectl, put(BASE, scripted(*replies)))
    kept = json.loads(said)["spec"]["models"][0]["parameters"]["replies"]
    assert kept[0] == "text"
    assert kept[1]["toolCalls"] == replies[1]["toolCalls"]  # type: ignore[index]


SCALARS = [
    "2001-12-14", "2001-12-14T21:59:43Z", "12:30:45", "1e3", "1.5e-3", "1_000", "0x1F", "0o17", "017", "08", "+12",
    "-3", ".5", "5.", "5.0", "1.2.3", "0b101", "-0", "0", "yes", "No", "on", "y", "N", "TRUE", "~", "null", "Null", "=",
    "'5'", '"\\u263A"', "1e400x", "0x", "1__0", "+.5", ".", "1_000.5", "!!str 5", "0b2", "+0x1f", "1E+3", "NaN", "inf",
]  # fmt: skip


def test_yaml_scalars_mean_the_same_to_kubectl_and_to_the_loader(kubectl: Kubectl) -> None:
    arguments = "".join(f"            k{number}: {scalar}\n" for number, scalar in enumerate(SCALARS))
    text = (
        "apiVersion: abide.dev/v1alpha1\nkind: Agent\nmetadata: {name: a}\nspec:\n  systemPrompt: Hi.\n  models:\n"
        "  - provider: scripted\n    parameters:\n      replies:\n      - toolCalls:\n        - name: t\n"
        f"          arguments:\n{arguments}"
    )
    done = kubectl("apply", "--dry-run=server", "-o", "json", "-f", "-", stdin=text)
    (reply,) = json.loads(done.stdout)["spec"]["models"][0]["parameters"]["replies"]
    (agent,) = load_manifests(text, source="a.yaml")
    (loaded,) = agent.spec.models[0].parameters.replies
    assert not isinstance(loaded, str)
    served = reply["toolCalls"][0]["arguments"]
    # kubectl leaves nulls out of what it sends.
    read = {name: value for name, value in loaded.tool_calls[0].arguments.items() if value is not None}
    assert read.keys() == served.keys()
    different = {
        SCALARS[int(name[1:])]: (value, served[name])
        for name, value in read.items()
        if (type(value), value) != (type(served[name]), served[name])
    }
    assert different == {}


# --- a law: API server and loader agree on any spec, and on what it becomes -------------------------------------------

# Fields whose values have a form of their own: good ones and bad ones.
FORMS: dict[str, list[str]] = {
    "name": ["llm", "llm.keys", "LLM", "-a", "a-", "a" * 63, "a" * 64, "ä", ""],
    "key": ["api-key", "A_b.c", "a b", "", "k\n"],
    "cpu": ["1", "250m", "0.5", "1.5m", "1 core", "1Gi", "", "50m", "1" * 33],
    "memory": ["64Mi", "256Mi", "1Gi", "1.5G", "100000k", "1e9", "96Mi", "5m", "-1", "98304Ki"],
    "model": ["echo", "script", "m", ""],
    "baseURL": ["http://a", "https://a:8080/v1", "http://a/ b", "ftp://a", "http://u@a", "http://a?q", "a", ""],
}


def values(name: str, schema: Schema) -> st.SearchStrategy[Any]:
    """Values of one field: mostly good, sometimes just beside its bounds or of another type."""
    if name == "replies":
        reply = st.sampled_from(["Hello", {"content": "a"}, {"error": 500}, {"delaySeconds": 1}, {"error": 600}])
        return st.lists(reply, max_size=2)
    if name in FORMS:
        return st.sampled_from(FORMS[name])
    if "enum" in schema:
        return st.sampled_from([*schema["enum"], "other"])
    match schema.get("type"):
        case "integer":
            low, high = schema["minimum"], schema["maximum"]
            return st.sampled_from([low, high, low - 1, high + 1, low + 0.5, str(low)]) | st.integers(low, high)
        case "number":
            return st.sampled_from([-0.1, "1", True]) | st.floats(schema["minimum"], schema["maximum"])
        case "boolean":
            return st.sampled_from([True, False, "true", 0])
        case "string":
            return st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
        case "array":
            return st.lists(values("", schema["items"]), max_size=3)
    if "properties" in schema:
        return objects(schema)
    if "additionalProperties" in schema:
        keys = st.sampled_from(["team", "example.com/team", "abide.dev/x", "a.abide.dev/x", "abide.dev"])
        return st.dictionaries(keys, st.sampled_from(["", "a", "a" * 63, 1]), max_size=2)
    return st.sampled_from([{}, "seed"])  # what stands in it only the loader can check


def objects(schema: Schema) -> st.SearchStrategy[dict[str, Any]]:
    fields = {name: values(name, item) | st.just(None) for name, item in schema["properties"].items()}
    needed = set(schema.get("required", ()))
    return st.fixed_dictionaries(
        {name: strategy for name, strategy in fields.items() if name in needed},
        optional={name: strategy for name, strategy in fields.items() if name not in needed},
    )


SPEC = build_schema()["properties"]["spec"]
# One field at a time keeps many specs acceptable; all at once finds what fields do to each other.
ONE_FIELD = st.sampled_from(sorted(SPEC["properties"])).flatmap(
    lambda name: values(name, SPEC["properties"][name]).map(lambda value: {**BASE["spec"], name: value})
)


@given(ONE_FIELD | objects(SPEC))
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_api_server_and_loader_agree(api: httpx.Client, spec: dict[str, Any]) -> None:
    manifest = put(BASE, ("spec", spec))
    answer = api.post(CREATE, json=manifest)
    assert answer.status_code in (201, 400, 422), answer.text
    loaded = load_or_none(as_json(manifest))
    assert (loaded is not None) == (answer.status_code == 201), answer.text
    if loaded is not None:
        assert Agent.model_validate(answer.json()).spec == loaded.spec


def load_or_none(text: str) -> Agent | None:
    try:
        return load_manifests(text, source="a.json")[0]
    except ManifestError:
        return None


def test_the_law_is_tried_on_good_and_bad_specs() -> None:
    verdicts = {True: 0, False: 0}

    @given(ONE_FIELD | objects(SPEC))
    @settings(max_examples=200, deadline=None, database=None)
    def count(spec: dict[str, Any]) -> None:
        verdicts[load_or_none(as_json(put(BASE, ("spec", spec)))) is None] += 1

    count()
    assert min(verdicts.values()) > 20
