"""Revisions: what makes one, what is kept of it, which one serves, and going back."""

import base64
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from agent_operator.kube.port import AGENT, CONFIG_MAP, DEPLOYMENT, REPLICA_SET, SECRET
from tests.cluster.controlplane import ControlPlane
from tests.integration.agent_operator.harness import Api, OperatorThread, RuntimeHealth, eventually, running_operator

NUMBER = "abide.dev/revision-number"


@pytest.fixture
async def operator(
    control_plane: ControlPlane, namespace: str, runtime: RuntimeHealth
) -> AsyncIterator[OperatorThread]:
    """An operator that looks at what is referred to twice a second."""
    async with running_operator(
        control_plane.kubeconfig, namespace, agent_port=runtime.port, reference_present_interval=0.5
    ) as operator:
        yield operator


async def serve(api: Api, namespace: str) -> str:
    """Let the pod of the Deployment's revision become ready, and return the revision."""
    revision = await api.revision(namespace)
    await api.set_ready(namespace, await api.the_pod(namespace, revision=revision))
    await api.wait_condition(namespace, "Progressing", "False/UpToDate")
    return revision


async def started(api: Api, namespace: str, **spec: Any) -> str:
    await api.make_agent(namespace, **spec)
    await api.the_pod(namespace)
    return await serve(api, namespace)


async def changed(api: Api, namespace: str, spec: dict[str, Any]) -> str:
    """Change the spec, wait until that was carried out, and return the Deployment's revision."""
    edited = await api.edit(AGENT, namespace, "bot", {"spec": spec})

    async def seen() -> bool:
        agent = await api.get(AGENT, namespace, "bot")
        assert agent is not None
        return bool(agent["status"]["observedGeneration"] == edited["metadata"]["generation"])

    await eventually(seen)
    return await api.revision(namespace)


async def config_maps(api: Api, namespace: str) -> dict[str, Any]:
    """Return the agent's ConfigMaps by revision."""
    found = await api.all(CONFIG_MAP, namespace, "abide.dev/agent=bot")
    return {body["metadata"]["labels"]["abide.dev/revision"]: body for body in found}


async def test_a_revision_keeps_what_runs_and_the_spec_behind_it(
    api: Api, namespace: str, operator: OperatorThread
) -> None:
    await api.make(CONFIG_MAP, namespace, "prompts", data={"support": "Be brief."})
    source = {"configMapKeyRef": {"name": "prompts", "key": "support"}}
    revision = await started(api, namespace, systemPromptFrom=source)
    kept = (await config_maps(api, namespace))[revision]
    assert kept["immutable"] is True
    assert json.loads(kept["data"]["agent.json"])["spec"]["systemPrompt"] == "Be brief."
    agent = await api.get(AGENT, namespace, "bot")
    assert agent is not None
    assert json.loads(kept["data"]["spec.json"]) == agent["spec"]
    assert kept["metadata"]["annotations"][NUMBER] == "1"


async def test_a_changed_prompt_in_its_config_map_is_a_new_revision(
    api: Api, namespace: str, operator: OperatorThread
) -> None:
    await api.make(CONFIG_MAP, namespace, "prompts", data={"support": "Be brief."})
    source = {"configMapKeyRef": {"name": "prompts", "key": "support"}}
    old = await started(api, namespace, systemPromptFrom=source)
    await api.edit(CONFIG_MAP, namespace, "prompts", {"data": {"support": "Be long."}})

    async def moved() -> bool:
        return await api.revision(namespace) != old

    await eventually(moved, timeout=5)
    assert (await api.conditions(namespace))["Ready"] == "True/Serving"
    new = await serve(api, namespace)
    assert json.loads((await config_maps(api, namespace))[new]["data"]["agent.json"])["spec"]["systemPrompt"] == (
        "Be long."
    )


async def test_going_back_takes_up_the_old_revision_and_it_counts_as_the_newest(
    api: Api, namespace: str, operator: OperatorThread
) -> None:
    first = await started(api, namespace)
    old_spec = json.loads((await config_maps(api, namespace))[first]["data"]["spec.json"])
    second = await changed(api, namespace, {"systemPrompt": "Be brief.", "history": {"limit": 7}})
    await serve(api, namespace)
    before = await config_maps(api, namespace)
    assert {revision: body["metadata"]["annotations"][NUMBER] for revision, body in before.items()} == {
        first: "1",
        second: "2",
    }
    written = await operator.settled_writes()
    agent = await api.get(AGENT, namespace, "bot")
    assert agent is not None
    await api.edit_json(AGENT, namespace, "bot", {"op": "replace", "path": "/spec", "value": old_spec})

    async def back() -> bool:
        return await api.revision(namespace) == first

    await eventually(back)
    await serve(api, namespace)
    after = await config_maps(api, namespace)
    assert after[first]["metadata"]["uid"] == before[first]["metadata"]["uid"]
    assert after[first]["metadata"]["annotations"][NUMBER] == "3"
    assert after[second] == before[second]
    counted = await operator.settled_writes()
    assert counted["patch configmaps"] - written.get("patch configmaps", 0) == 1
    assert counted["apply deployments.apps"] - written["apply deployments.apps"] == 1
    assert counted["apply configmaps"] == written["apply configmaps"] == 2


async def test_the_same_prompt_written_elsewhere_changes_nothing_that_runs(
    api: Api, namespace: str, operator: OperatorThread
) -> None:
    revision = await started(api, namespace, systemPrompt="Be brief.")
    before = await operator.settled_writes()
    await api.make(CONFIG_MAP, namespace, "prompts", data={"support": "Be brief."})
    source = {"configMapKeyRef": {"name": "prompts", "key": "support"}}
    assert await changed(api, namespace, {"systemPrompt": None, "systemPromptFrom": source}) == revision
    counted = await operator.settled_writes()
    status = "apply_status agents.abide.dev"
    assert {**counted, status: 0} == {**before, status: 0}
    assert (await api.conditions(namespace))["Accepted"] == "True/Valid"


async def test_a_config_map_gets_its_metadata_back_although_it_is_immutable(
    api: Api, namespace: str, operator: OperatorThread
) -> None:
    revision = await started(api, namespace)
    name = f"agent-bot-{revision}"
    before = await api.get(CONFIG_MAP, namespace, name)
    assert before is not None
    wrong = {"labels": {"abide.dev/revision": "x"}, "annotations": {NUMBER: "77"}, "ownerReferences": None}
    await api.edit(CONFIG_MAP, namespace, name, {"metadata": wrong})

    async def repaired() -> bool:
        found = await api.get(CONFIG_MAP, namespace, name)
        assert found is not None
        assert found["metadata"]["labels"] == before["metadata"]["labels"]
        assert found["metadata"]["ownerReferences"] == before["metadata"]["ownerReferences"]
        assert found["metadata"]["annotations"][NUMBER].isdecimal()
        return True

    await eventually(repaired)
    assert (await api.conditions(namespace))["Accepted"] == "True/Valid"


async def test_the_old_revision_runs_on_while_the_new_ones_secret_is_missing(
    api: Api, namespace: str, operator: OperatorThread
) -> None:
    old = await started(api, namespace)
    variable = {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "side", "key": "token"}}}
    await api.edit(AGENT, namespace, "bot", {"spec": {"runtime": {"env": [variable]}}})
    await api.wait_condition(namespace, "Accepted", "False/SecretMissing")
    told = await api.message(namespace, "Accepted")
    assert told.startswith(f"spec.runtime.env[0].valueFrom.secretKeyRef: Secret {namespace}/side does not exist.")
    conditions = await api.conditions(namespace)
    assert conditions["Ready"].startswith("True/"), conditions
    assert await api.revision(namespace) == old
    pods = await api.all(REPLICA_SET, namespace)
    assert len(pods) == 1
    await api.make(SECRET, namespace, "side", data={"token": base64.b64encode(b"t").decode()})
    await api.wait_condition(namespace, "Accepted", "True/Valid", timeout=5)

    async def moved() -> bool:
        return await api.revision(namespace) != old

    await eventually(moved)
    deployment = await api.get(DEPLOYMENT, namespace, "agent-bot")
    assert deployment is not None
    environment = deployment["spec"]["template"]["spec"]["containers"][0]["env"]
    assert variable in environment


async def test_settings_of_the_pod_settle(api: Api, namespace: str, operator: OperatorThread) -> None:
    """What the API server stores of them must not look like drift."""
    runtime = {
        "env": [{"name": "EMPTY", "value": ""}, {"name": "HTTPS_PROXY", "value": "http://proxy:3128"}],
        "nodeSelector": {"disk": "ssd", "empty": ""},
        "tolerations": [{"operator": "Exists"}, {"key": "gpu", "effect": "NoExecute", "tolerationSeconds": 0}],
        "imagePullSecrets": [{"name": "b"}, {"name": "a"}],
        "podLabels": {"team": "blue", "empty": ""},
        "podAnnotations": {"note": ""},
    }
    await api.make_agent(namespace, runtime=runtime, replicas=2)

    async def made() -> bool:
        return await api.get(DEPLOYMENT, namespace, "agent-bot") is not None

    await eventually(made)
    counted = await operator.settled_writes()
    assert counted["apply deployments.apps"] == 1
    assert counted["apply poddisruptionbudgets.policy"] == 1
    assert await operator.settled_writes() == counted
    deployment = await api.get(DEPLOYMENT, namespace, "agent-bot")
    assert deployment is not None
    assert deployment["spec"]["template"]["metadata"]["labels"]["team"] == "blue"


async def test_as_many_old_revisions_stay_as_asked_for(api: Api, namespace: str, operator: OperatorThread) -> None:
    await started(api, namespace, revisionHistoryLimit=1)
    for number in range(3):
        await changed(api, namespace, {"systemPrompt": f"Prompt {number}"})
        await serve(api, namespace)
        revision = await api.revision(namespace)

        async def alone(revision: str = revision) -> bool:
            sets = await api.all(REPLICA_SET, namespace)
            busy = [body for body in sets if body["spec"]["replicas"]]
            assert [body["metadata"]["labels"]["abide.dev/revision"] for body in busy] == [revision]
            return len(sets) <= 2

        await eventually(alone, timeout=20)
    # Nobody tells of a ReplicaSet that goes: the next look finds what it held.
    await operator.sweep()

    async def two() -> bool:
        kept = await config_maps(api, namespace)
        assert sorted(body["metadata"]["annotations"][NUMBER] for body in kept.values()) == ["3", "4"]
        return True

    await eventually(two)
    await api.edit(AGENT, namespace, "bot", {"spec": {"revisionHistoryLimit": 0}})

    async def one() -> bool:
        await operator.sweep()
        return list(await config_maps(api, namespace)) == [await api.revision(namespace)]

    await eventually(one, timeout=20)


async def test_a_revision_that_never_serves_leaves_the_old_pods_alone(
    api: Api, namespace: str, operator: OperatorThread
) -> None:
    old = await started(api, namespace, revisionHistoryLimit=0)
    new = await changed(api, namespace, {"runtime": {"image": "registry.example/none:1"}})
    pod = await api.the_pod(namespace, revision=new)
    await api.set_pod(namespace, pod, waiting=("ImagePullBackOff", "no such image"))
    await api.wait_condition(namespace, "Ready", "True/RolloutFailed")
    assert await operator.sweep() == set()
    # Also without any history the ConfigMap that serving pods mount stays.
    assert set(await config_maps(api, namespace)) == {old, new}
    deployment = await api.get(DEPLOYMENT, namespace, "agent-bot")
    assert deployment is not None
    assert deployment["spec"]["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": "25%"}
    agent = await api.get(AGENT, namespace, "bot")
    assert agent is not None
    assert agent["status"]["revision"] == {"current": new, "ready": old}
