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

KEYED = {"apiKeySecretRef": {"name": "llm.keys", "key": "openai"}}


def deployment_of(desired: Desired) -> dict[str, Any]:
    return next(child.body for child in desired.children if child.kind is DEPLOYMENT)


def container_of(desired: Desired) -> dict[str, Any]:
    container: dict[str, Any] = deployment_of(desired)["spec"]["template"]["spec"]["containers"][0]
    return container


def test_every_object_is_valid_for_the_newest_kubernetes() -> None:
    agent = make_agent(models=[{"provider": "echo", **KEYED}])
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
    assert written["limits"] == {"maxSteps": 20, "turnSeconds": 300}
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
