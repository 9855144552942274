"""Manifest files: several documents, Secrets and ConfigMaps, YAML as Kubernetes' tools read it."""

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_api.conditions import Reason
from agent_api.manifest import Documents, ManifestError, load_documents, load_manifests
from agent_api.v1alpha1 import Agent
from tests.unit.agent_api.cases import BASE, SUBDOMAIN, as_json, put, scripted

EXAMPLES = sorted((Path(__file__).resolve().parents[3] / "examples").glob("*.yaml"))

AGENT = """\
apiVersion: abide.dev/v1alpha1
kind: Agent
metadata: {name: %s}
spec: {systemPrompt: Hi., models: [{provider: echo}]}
"""


NOT_READ = (
    "is not read here, only abide.dev/v1alpha1 Agent and v1 Secret and ConfigMap; "
    "give other objects to kubectl in a file of their own"
)


def problems_of(text: str) -> list[str]:
    with pytest.raises(ManifestError) as refusal:
        load_documents(text, source="f.yaml")
    assert str(refusal.value) == "\n".join(refusal.value.problems)
    assert all("\n" not in problem for problem in refusal.value.problems)
    return refusal.value.problems


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_every_example_is_valid(path: Path) -> None:
    documents = load_documents(path.read_text(), source=path.name)
    assert len(documents.agents) == 1


def test_the_examples_are_those_the_guides_speak_of() -> None:
    assert [path.stem for path in EXAMPLES] == [
        "assistant",
        "every-field",
        "openai-compatible",
        "openai",
        "prompt-from-configmap",
        "scripted",
        "tools",
        "two-providers",
        "with-secret",
    ]


def test_an_agent_gets_all_defaults() -> None:
    (agent,) = load_manifests(AGENT % "a", source="f.yaml")
    spec = agent.spec
    assert (agent.metadata.namespace, spec.replicas, spec.history.limit, spec.models[0].timeout_seconds) == (
        "default",
        1,
        50,
        30,
    )


def test_every_problem_of_every_document_is_found_at_once() -> None:
    text = "---\n".join(
        [
            AGENT % "Bad_Name",
            "kind: Agent\n",
            "apiVersion: v1\nkind: Pod\n",
            "just text\n",
            "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\ndata: {a: '%%%', b: 3}\nfoo: bar\n",
            AGENT % "fine",
        ]
    )
    assert problems_of(text) == [
        f"f.yaml:1: metadata.name: {SUBDOMAIN}",
        "f.yaml:2: apiVersion: required but missing; write apiVersion: abide.dev/v1alpha1",
        "f.yaml:2: metadata: required but missing",
        "f.yaml:2: spec: required but missing. What the user wants.",
        f"f.yaml:3: kind: v1 Pod {NOT_READ}",
        "f.yaml:4: a document must be a mapping with apiVersion, kind, metadata and spec",
        "f.yaml:5: foo: unknown field; known here: apiVersion, data, immutable, kind, metadata, stringData, type",
        "f.yaml:5: data.a: is not base64; write plain text under stringData instead",
        "f.yaml:5: data.b: must be a text; put it in quotes",
    ]


def test_laws_about_objects_are_tested_although_their_fields_are_wrong() -> None:
    prompts = {"systemPrompt": "a", "systemPromptFrom": {"configMapKeyRef": {"name": "a"}}, "history": {"limit": -4}}
    models = [
        {"provider": "echo"},
        {"provider": "echo", "parameters": {"replies": [{"error": 500, "text": "x", "delaySeconds": -1}]}},
    ]
    resources = {"requests": {"cpu": "2", "memory": "many"}, "limits": {"cpu": "1", "memory": "1Gi"}}
    spec = prompts | {"models": models, "nope": 1, "runtime": {"resources": resources}}
    assert [problem.split(" ")[1] for problem in problems_of(as_json(put(BASE, ("spec", spec))))] == [
        "spec.systemPromptFrom.configMapKeyRef.key:",
        "spec.models[1].parameters.replies[0].delaySeconds:",
        "spec.history.limit:",
        "spec.runtime.resources.requests.memory:",
        "spec.nope:",
        "spec.systemPromptFrom:",
        "spec.models:",
        "spec.models[1].parameters.replies:",
        "spec.models[1].parameters.replies[0].error:",
        "spec.runtime.resources.requests.cpu:",
    ]


def test_laws_about_wrong_or_missing_fields_say_nothing() -> None:
    (missing, limit) = problems_of(as_json(put(BASE, ("spec.models", None), ("spec.history", {"limit": 0}))))
    assert missing.startswith("f.yaml:1: spec.models: required but missing")
    assert limit.startswith("f.yaml:1: spec.history.limit: ")
    models = [{"provider": "nobody", "parameters": {"replies": ["x"]}}, {"provider": "echo"}]
    wrong = put(BASE, ("spec.models", models), ("spec.systemPrompt", 5))
    assert [problem.split(" ")[1] for problem in problems_of(as_json(wrong))] == [
        "spec.systemPrompt:",
        "spec.models[0].provider:",
    ]


def test_a_missing_api_version_is_named() -> None:
    assert problems_of(as_json(put(BASE, ("apiVersion", None)))) == [
        "f.yaml:1: apiVersion: required but missing; write apiVersion: abide.dev/v1alpha1"
    ]
    assert problems_of(as_json(put(BASE, ("apiVersion", "abide.dev/v1")))) == [
        'f.yaml:1: apiVersion: "abide.dev/v1" is not supported; write one of: abide.dev/v1alpha1'
    ]


def test_a_missing_kind_is_named() -> None:
    assert problems_of("metadata: {name: a}") == [
        "f.yaml:1: kind: required but missing; write kind: Agent and apiVersion: abide.dev/v1alpha1"
    ]


def test_empty_documents_count_but_are_skipped() -> None:
    assert len(load_documents("---\n---\n# nothing\n---\n" + AGENT % "a", source="f.yaml").agents) == 1
    assert problems_of("---\n---\n" + AGENT % "A")[0].startswith("f.yaml:2: metadata.name")


def test_a_manifest_without_agent_says_what_to_write() -> None:
    assert load_documents("", source="f.yaml") == Documents()
    with pytest.raises(ManifestError, match=r"f\.yaml: no Agent here; write a document with apiVersion: abide\.dev/"):
        load_manifests("", source="f.yaml")


def test_one_name_may_stand_for_one_object_of_a_kind() -> None:
    secret = "apiVersion: v1\nkind: Secret\nmetadata: {name: a}\n"
    assert load_documents(f"{AGENT % 'a'}---\n{secret}", source="f.yaml").secrets[0].name == "a"
    assert problems_of(f"{AGENT % 'a'}---\n{AGENT % 'a'}") == [
        "f.yaml:2: metadata.name: a second Agent default/a; give it another name or remove it"
    ]


def test_secrets_and_config_maps_are_decoded() -> None:
    text = """\
apiVersion: v1
kind: Secret
metadata: {name: llm.keys, namespace: shop}
type: Opaque
data: {binary: AAEC, both: b2xk}
stringData: {both: new, plain: schlüssel}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: prompts}
data: {support: Hi.}
binaryData: {logo: AAEC}
"""
    documents = load_documents(text, source="f.yaml")
    (secret,), (config_map,) = documents.secrets, documents.config_maps
    assert (secret.namespace, secret.name) == ("shop", "llm.keys")
    assert secret.values == {"binary": b"\0\1\2", "both": b"new", "plain": "schlüssel".encode()}
    assert config_map.values == {"support": b"Hi.", "logo": b"\0\1\2"}
    assert "new" not in repr(documents)


def test_broken_secrets_do_not_show_their_values() -> None:
    text = "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\ndata: {key: 'sk-hunter2!'}\nstringData: [hunter2]\n"
    assert not any("hunter2" in problem for problem in problems_of(text))


def test_repeated_keys_are_all_refused_with_their_line() -> None:
    text = AGENT % "a" + "metadata: {name: b, name: c}\n"
    assert sorted(problems_of(text)) == [
        'f.yaml:1: line 5: the key "metadata" stands twice in one mapping; keep one of them',
        'f.yaml:1: line 5: the key "name" stands twice in one mapping; keep one of them',
    ]
    assert problems_of('{"kind": "Agent", "kind": "Agent"}') == [
        'f.yaml:1: the key "kind" stands twice in one mapping; keep one of them'
    ]


def test_broken_yaml_says_where_and_keeps_what_came_before() -> None:
    assert problems_of(f"{AGENT % 'A'}---\nspec: [1,\n") == [
        f"f.yaml:1: metadata.name: {SUBDOMAIN}",
        "f.yaml:2: not YAML at line 7, column 1: expected the node content, but found '<stream end>'",
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "a: &a [x, x, x, x, x, x, x, x]\n"
            + "".join(
                f"{c}: &{c} [{', '.join('*' + p for _ in range(9))}]\n"
                for p, c in zip("abcdefg", "bcdefgh", strict=True)
            ),
            "too many values",
        ),
        ("&a [*a]", "nested too deeply"),
        ("[" * 5000, "nested too deeply"),
        ("{" * 70 + "}" * 70, "nested too deeply"),
        ('{"a":' * 5000 + "1" + "}" * 5000, "nested too deeply"),
        ("x" * (3 * 1024 * 1024 + 1), "longer than 3 MiB"),
        ("a: !!binary AAEC", "a YAML bytes cannot be used here"),
        ("a: !!python/object:os.system {}", "not YAML at line 1, column 4"),
        ("? [a]\n: b", "not YAML at line 1, column 3: found unhashable key"),
        ("a: \x1f", "not YAML: character 4 is U+001F, which is not text; remove it"),
        ("a: .nan", "no number that can be used"),
    ],
    ids=["aliases", "loop", "brackets", "braces", "json", "long", "binary", "python", "key", "control", "nan"],
)
def test_hostile_texts_are_refused_in_bounded_time(text: str, problem: str) -> None:
    (found,) = problems_of(text)
    assert problem in found


def test_yaml_is_read_as_kubernetes_tools_read_it() -> None:
    text = """\
apiVersion: v1
kind: ConfigMap
metadata: {name: c}
data: {date: 2001-12-14, clock: 12:30:45, stamp: 2001-12-14T21:59:43Z, sign: '=', tilde: '~'}
"""
    assert load_documents(text, source="f.yaml").config_maps[0].values == {
        "date": b"2001-12-14",
        "clock": b"12:30:45",
        "stamp": b"2001-12-14T21:59:43Z",
        "sign": b"=",
        "tilde": b"~",
    }


def test_anchors_and_merges_work() -> None:
    text = """\
apiVersion: abide.dev/v1alpha1
kind: Agent
metadata: {name: a}
spec:
  systemPrompt: Hi.
  models:
  - &first {provider: echo, timeoutSeconds: 7}
  - {<<: *first, name: second}
"""
    (agent,) = load_manifests(text, source="f.yaml")
    assert [(model.effective_name, model.timeout_seconds) for model in agent.spec.models] == [
        ("echo", 7),
        ("second", 7),
    ]


def test_nulls_mean_absent_as_they_do_for_the_api_server() -> None:
    manifest = put(BASE, ("spec.history", {"limit": None}), ("spec.models.0.parameters", {"delaySeconds": 0}))
    manifest["spec"]["displayName"] = None
    assert load_manifests(as_json(manifest), source="f.json")[0].spec.history.limit == 50


def test_status_of_a_fetched_agent_is_ignored() -> None:
    manifest = put(BASE, ("status.anything", "at all"), ("metadata.managedFields", []), ("metadata.uid", "u"))
    assert load_manifests(as_json(manifest), source="f.json")[0].metadata.uid == "u"


@pytest.mark.parametrize(
    ("reply", "problem"),
    [
        (42, "replies[0]: write a text, or an object with content, toolCalls, error or delaySeconds"),
        (None, "replies[0]: write a text, or an object with content, toolCalls, error or delaySeconds"),
        ({}, "replies[0]: an empty reply: set content, toolCalls, error or delaySeconds"),
        ({"delaySeconds": 0}, "replies[0]: an empty reply: set content, toolCalls, error or delaySeconds"),
        (
            {"content": "a", "error": 500},
            "replies[0].error: a reply is either an error, or content and toolCalls: remove one of them",
        ),
        ({"contents": "a"}, "replies[0].contents: unknown field; did you mean content?"),
    ],
)
def test_replies_that_make_no_sense_are_refused(reply: Any, problem: str) -> None:
    # Only the loader and the operator can tell: a value that is a text or an object has no type in CEL.
    assert problems_of(as_json(put(BASE, scripted(reply)))) == [f"f.yaml:1: spec.models[0].parameters.{problem}"]


@given(st.text(max_size=200) | st.text(alphabet="ab: -[]{}&*!|>'\"\n#?,%@`\t", max_size=80))
@settings(max_examples=300)
def test_any_text_is_either_read_or_refused_in_our_words(text: str) -> None:
    with contextlib.suppress(ManifestError):
        load_documents(text, source="f.yaml")


@given(
    st.text(min_size=1, max_size=50).filter(lambda text: "\x00" not in text),
    st.integers(1, 10000),
    st.sampled_from(["🙂", "\ud83d".encode("utf-16", "surrogatepass").decode("utf-16", "replace"), "a"]),
)
def test_what_was_written_as_json_is_read_the_same(prompt: str, limit: int, name: str) -> None:
    manifest = put(
        BASE,
        ("spec.systemPrompt", prompt),
        ("spec.history.limit", limit),
        ("spec.displayName", name),
        scripted("a", {}),
    )
    manifest["spec"]["models"][0]["parameters"]["replies"][1] = {"toolCalls": [{"name": "t"}]}
    agent = Agent.model_validate(manifest)
    for text in (agent.model_dump_json(by_alias=True), json.dumps(agent.model_dump(mode="json", by_alias=True))):
        assert load_manifests(text, source="f.json") == [agent]


def test_reasons_are_words_of_one_piece() -> None:
    assert all(reason.isalpha() and reason[0].isupper() for reason in Reason)
