"""The builders: what the objects of an agent look like, and what makes a new revision."""

import base64
import json
from typing import Any

import kubernetes_validate
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_api.manifest import load_manifests
from agent_api.v1alpha1 import Agent
from agent_operator.kube.port import CONFIG_MAP, DEPLOYMENT, SECRET
from agent_operator.resources.children import Desired, build_desired
from agent_operator.resources.deployment import build_revision
from agent_operator.resources.secrets import generate_api_key, with_api_key
from tests.unit.agent_operator.makers import POSTGRES_URL, UID, make_agent, make_inputs

ABIDE_DRAIN = 20
"""Seconds a runtime gives its running turns, ABIDE_DRAIN_SECONDS."""
KEYED = {"apiKeySecretRef": {"name": "llm.keys", "key": "openai"}}


def deployment_of(desired: Desired) -> dict[str, Any]:
    return next(child.body for child in desired.children if child.kind is DEPLOYMENT)


def container_of(desired: Desired) -> dict[str, Any]:
    container: dict[str, Any] = deployment_of(desired)["spec"]["template"]["spec"]["containers"][0]
    return container


def test_every_object_is_valid_for_the_newest_kubernetes() -> None:
    agent = make_agent(models=[{"provider": "echo", **KEYED}], replicas=2)
    for child in build_desired(make_inputs(agent)).children:
        kubernetes_validate.validate(child.body, kubernetes_validate.latest_version(), strict=True)


def test_every_object_is_controlled_by_the_agent_and_labelled() -> None:
    for child in build_desired(make_inputs()).children:
        (owner,) = child.body["metadata"]["ownerReferences"]
        assert (owner["uid"], owner["kind"], owner["controller"], owner["blockOwnerDeletion"]) == (
            UID, "Agent", True, True,
        )  # fmt: skip
        assert child.body["metadata"]["labels"]["abide.dev/agent"] == "support"
        assert child.body["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "abide-operator"


def test_the_deployment_comes_last() -> None:
    kinds = [child.kind for child in build_desired(make_inputs()).children]
    assert kinds[-1] is DEPLOYMENT
    assert kinds.count(DEPLOYMENT) == 1


def test_names_follow_the_contract() -> None:
    desired = build_desired(make_inputs())
    assert sorted(f"{child.kind.name}/{child.name}" for child in desired.children) == sorted(
        [
            "ServiceAccount/agent-support",
            "Secret/agent-support-api",
            "Secret/agent-support-postgres",
            f"ConfigMap/agent-support-{desired.revision}",
            "Service/agent-support",
            "Deployment/agent-support",
        ]
    )


def test_the_config_map_holds_a_manifest_the_runtime_can_load() -> None:
    agent = make_agent(systemPromptFrom={"configMapKeyRef": {"name": "prompts", "key": "support"}})
    desired = build_desired(make_inputs(agent, prompt="Grüße, {user}"))
    config_map = next(child.body for child in desired.children if child.kind is CONFIG_MAP)
    assert config_map["immutable"] is True
    (loaded,) = load_manifests(config_map["data"]["agent.json"], source="agent.json")
    assert loaded.spec.system_prompt == "Grüße, {user}"
    assert loaded.spec.system_prompt_from is None
    assert (loaded.metadata.name, loaded.metadata.namespace, loaded.metadata.uid) == ("support", "shop", UID)
    written = json.loads(config_map["data"]["agent.json"])["spec"]
    assert (written["limits"]["maxSteps"], written["limits"]["requestsPerMinute"]) == (20, 600)
    assert "replicas" not in written
    assert "suspend" not in written


def test_the_container_gets_the_environment_of_the_contract() -> None:
    desired = build_desired(make_inputs())
    environment = {entry["name"]: entry for entry in container_of(desired)["env"]}
    assert environment["ABIDE_MANIFEST"]["value"] == "/etc/abide/manifest/agent.json"
    assert environment["ABIDE_AGENT_ID"]["value"] == UID
    assert environment["ABIDE_REVISION"]["value"] == desired.revision
    assert environment["ABIDE_INSTANCE"]["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.uid"
    assert environment["ABIDE_POSTGRES_URL"]["valueFrom"]["secretKeyRef"] == {
        "name": "agent-support-postgres",
        "key": "url",
    }
    assert POSTGRES_URL not in json.dumps(deployment_of(desired))


def test_user_secrets_are_mounted_under_their_names_and_no_other_key_is() -> None:
    models = [
        {"name": "a", "provider": "echo", **KEYED},
        {"name": "b", "provider": "echo", "apiKeySecretRef": {"name": "llm.keys", "key": "backup"}},
    ]
    desired = build_desired(make_inputs(make_agent(models=models)))
    mounts = {mount["mountPath"]: mount for mount in container_of(desired)["volumeMounts"]}
    volume_name = mounts["/etc/abide/secrets/llm.keys"]["name"]
    volumes = {volume["name"]: volume for volume in deployment_of(desired)["spec"]["template"]["spec"]["volumes"]}
    secret = volumes[volume_name]["secret"]
    assert secret["secretName"] == "llm.keys"
    assert secret["optional"] is False
    assert [item["key"] for item in secret["items"]] == ["backup", "openai"]


def test_the_pod_passes_the_restricted_pod_security_level() -> None:
    pod = deployment_of(build_desired(make_inputs()))["spec"]["template"]["spec"]
    container = pod["containers"][0]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert pod["automountServiceAccountToken"] is False


def test_replicas_and_suspend_make_no_new_revision() -> None:
    revisions = {
        build_revision(make_inputs(make_agent(**spec)))
        for spec in ({}, {"replicas": 0}, {"suspend": True}, {"suspend": True, "replicas": 0})
    }
    assert len(revisions) == 1


@pytest.mark.parametrize(
    "changed",
    [
        make_inputs(make_agent(systemPrompt="Be brief.")),
        make_inputs(prompt="from a ConfigMap"),
        make_inputs(runtime_image="abide/runtime:9.9.9"),
        make_inputs(postgres_url="postgresql://elsewhere/abide"),
        make_inputs(make_agent(runtime={"resources": {"limits": {"memory": "512Mi"}}})),
        make_inputs(make_agent(models=[{"provider": "echo", **KEYED}])),
        make_inputs(make_agent(limits={"maxSteps": 3})),
    ],
    ids=["prompt", "resolved prompt", "image", "postgres", "resources", "secret", "limits"],
)
def test_what_shapes_the_pod_makes_a_new_revision(changed: Any) -> None:
    assert build_revision(changed) != build_revision(make_inputs())


POD_SETTINGS: dict[str, Any] = {
    "env": [
        {"name": "HTTPS_PROXY", "value": "http://proxy:3128"},
        {"name": "EMPTY", "value": ""},
        {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "side", "key": "token"}}},
    ],
    "nodeSelector": {"disk": "ssd"},
    "tolerations": [{"key": "gpu", "operator": "Equal", "value": "", "effect": "NoExecute", "tolerationSeconds": 0}],
    "priorityClassName": "high",
    "imagePullSecrets": [{"name": "registry"}],
    "podLabels": {"team": "blue", "app.kubernetes.io/managed-by": "me"},
    "podAnnotations": {"note": "x"},
}


def test_settings_of_the_pod_reach_it_and_cannot_take_its_labels() -> None:
    desired = build_desired(make_inputs(make_agent(runtime=POD_SETTINGS)))
    template = deployment_of(desired)["spec"]["template"]
    labels_ = template["metadata"]["labels"]
    assert labels_["team"] == "blue"
    assert labels_["app.kubernetes.io/managed-by"] == "abide-operator"
    assert template["metadata"]["annotations"] == {"note": "x"}
    pod = template["spec"]
    assert (pod["nodeSelector"], pod["priorityClassName"]) == ({"disk": "ssd"}, "high")
    assert pod["imagePullSecrets"] == [{"name": "registry"}]
    # As the API server keeps them: without empty values.
    assert pod["tolerations"] == [
        {"key": "gpu", "operator": "Equal", "effect": "NoExecute", "tolerationSeconds": 0}
    ]  # fmt: skip
    environment = {entry["name"]: entry for entry in container_of(desired)["env"]}
    assert environment["HTTPS_PROXY"] == {"name": "HTTPS_PROXY", "value": "http://proxy:3128"}
    assert environment["EMPTY"] == {"name": "EMPTY"}
    assert environment["TOKEN"]["valueFrom"] == {"secretKeyRef": {"name": "side", "key": "token"}}
    kubernetes_validate.validate(deployment_of(desired), kubernetes_validate.latest_version(), strict=True)


@pytest.mark.parametrize("setting", POD_SETTINGS)
def test_each_setting_of_the_pod_makes_a_new_revision_and_its_default_none(setting: str) -> None:
    plain = build_revision(make_inputs())
    assert build_revision(make_inputs(make_agent(runtime={setting: POD_SETTINGS[setting]}))) != plain
    empty: dict[str, Any] = {"priorityClassName": ""}
    default = empty.get(setting, type(POD_SETTINGS[setting])())
    assert build_revision(make_inputs(make_agent(runtime={setting: default}))) == plain
    manifest = json.loads(config_map_of(build_desired(make_inputs()))["data"]["agent.json"])
    assert setting not in manifest["spec"]["runtime"]


def config_map_of(desired: Desired) -> dict[str, Any]:
    return next(child.body for child in desired.children if child.kind is CONFIG_MAP)


def test_the_config_map_keeps_the_spec_as_it_was_written_and_the_number() -> None:
    spec = {"systemPromptFrom": {"configMapKeyRef": {"name": "prompts", "key": "support"}}, "replicas": 3}
    agent = make_agent(systemPromptFrom=spec["systemPromptFrom"], replicas=3)
    desired = build_desired(make_inputs(agent, spec=spec), lambda revision: 7)
    config_map = config_map_of(desired)
    assert json.loads(config_map["data"]["spec.json"]) == spec
    assert config_map["metadata"]["annotations"]["abide.dev/revision-number"] == "7"


def test_what_changes_without_a_new_revision() -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"revisionHistoryLimit": 0},
        {"state": {"deletionPolicy": "Delete"}},
        {"replicas": 7},
    ]
    assert len({build_revision(make_inputs(make_agent(**spec))) for spec in changes}) == 1


def test_adopted_rows_are_named_to_the_runtime_and_the_owner_stays() -> None:
    adopted = "7d9d9f0c-5a0e-4bd8-9f0e-000000000000"
    desired = build_desired(make_inputs(adopted_id=adopted))
    environment = {entry["name"]: entry for entry in container_of(desired)["env"]}
    assert environment["ABIDE_AGENT_ID"]["value"] == adopted
    assert {child.body["metadata"]["ownerReferences"][0]["uid"] for child in desired.children} == {UID}
    assert desired.revision != build_desired(make_inputs()).revision


def test_the_last_good_pods_serve_until_new_ones_are_ready() -> None:
    for replicas, limit, kept in ((1, 5, 2), (4, 1, 1), (100, 0, 0)):
        spec = deployment_of(
            build_desired(make_inputs(make_agent(replicas=replicas, revisionHistoryLimit=limit)))
        )["spec"]  # fmt: skip
        assert spec["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": "25%"}
        assert spec["revisionHistoryLimit"] == kept
        pod = spec["template"]["spec"]
        (spread,) = pod["topologySpreadConstraints"]
        assert (spread["whenUnsatisfiable"], spread["topologyKey"]) == ("ScheduleAnyway", "kubernetes.io/hostname")
        linger = pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
        assert linger + ABIDE_DRAIN + 10 < pod["terminationGracePeriodSeconds"]


def test_a_revision_is_ten_hex_digits_and_the_same_each_time() -> None:
    revision = build_revision(make_inputs())
    assert len(revision) == 10
    assert int(revision, 16) >= 0
    assert revision == build_revision(make_inputs(Agent.model_validate(make_agent().model_dump(by_alias=True))))


def test_no_secret_shows_anywhere_but_in_the_secret() -> None:
    for child in build_desired(make_inputs()).children:
        if child.kind is not SECRET:
            assert "hunter2" not in json.dumps(child.body)


def test_the_hash_of_the_postgres_secret_does_not_tell_its_url() -> None:
    one, other = (
        next(child.body for child in build_desired(inputs).children if child.name == "agent-support-postgres")
        for inputs in (make_inputs(), make_inputs(postgres_url="postgresql://elsewhere/abide"))
    )
    assert one["data"] != other["data"]
    assert one["metadata"]["annotations"] == other["metadata"]["annotations"]


def test_api_keys_are_long_random_and_safe_in_urls() -> None:
    keys = {generate_api_key() for _ in range(50)}
    assert len(keys) == 50
    assert all(len(key) >= 43 and key.replace("-", "").replace("_", "").isalnum() for key in keys)
    secret = with_api_key({"metadata": {}}, "abc")
    assert base64.b64decode(secret["data"]["key"]) == b"abc"


@given(prompt=st.text(min_size=1, max_size=200), fallback=st.text(min_size=1, max_size=50))
def test_any_text_survives_the_way_into_the_config_map(prompt: str, fallback: str) -> None:
    inputs = make_inputs(make_agent(messages={"fallback": fallback}), prompt=prompt)
    config_map = next(child.body for child in build_desired(inputs).children if child.kind is CONFIG_MAP)
    manifest = json.loads(config_map["data"]["agent.json"])
    assert manifest["spec"]["systemPrompt"] == prompt
    assert manifest["spec"]["messages"]["fallback"] == fallback
