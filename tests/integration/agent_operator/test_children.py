"""The objects of an agent, on a real API server: made, kept as they should be, and gone with the agent."""

import asyncio
import base64
from contextlib import suppress
from typing import Any

import pytest

from agent_operator.kube.port import (
    AGENT,
    CHILD_KINDS,
    CONFIG_MAP,
    DEPLOYMENT,
    REPLICA_SET,
    SECRET,
    SERVICE,
    SERVICE_ACCOUNT,
    Kind,
    NotFound,
)
from tests.cluster.controlplane import ControlPlane
from tests.integration.agent_operator.harness import Api, OperatorThread, eventually, running_operator

CHILDREN = [
    (SERVICE_ACCOUNT, "agent-bot"),
    (SECRET, "agent-bot-api"),
    (SECRET, "agent-bot-postgres"),
    (SERVICE, "agent-bot"),
    (DEPLOYMENT, "agent-bot"),
]


async def started(api: Api, namespace: str, **spec: Any) -> str:
    """Make an agent, let its pod become ready, and return the revision."""
    await api.make_agent(namespace, **spec)
    pod = await api.the_pod(namespace)
    await api.set_ready(namespace, pod)
    await api.wait_condition(namespace, "Ready", "True/Serving")
    return await api.revision(namespace)


async def test_a_new_agent_costs_its_children_and_two_status_writes(
    api: Api, namespace: str, operator: OperatorThread
) -> None:
    await started(api, namespace)
    counted = await operator.settled_writes()
    assert counted == {
        "apply serviceaccounts": 1,
        "create secrets": 1,
        "apply secrets": 1,
        "apply configmaps": 1,
        "apply services": 1,
        "apply deployments.apps": 1,
        "apply_status agents.abide.dev": 2,
    }
    agent = await api.get(AGENT, namespace, "bot")
    assert agent is not None
    assert "annotations" not in agent["metadata"]
    assert "finalizers" not in agent["metadata"]
    assert agent["status"]["runtimeVersion"] == "9.8.7"
    assert agent["status"]["readyReplicas"] == 1
    assert agent["status"]["revision"]["ready"] == agent["status"]["revision"]["current"]
    key = await api.get(SECRET, namespace, "agent-bot-api")
    assert key is not None
    assert len(base64.b64decode(key["data"]["key"])) >= 43


async def test_nothing_is_written_while_nothing_changes_nor_after_a_restart(
    control_plane: ControlPlane, api: Api, namespace: str, operator: OperatorThread
) -> None:
    await started(api, namespace)
    before = await api.snapshot(namespace)
    counted = await operator.settled_writes()
    port = operator.context.settings.agent_port
    async with running_operator(control_plane.kubeconfig, namespace, agent_port=port) as second:
        await second.sweep()
        assert second.context.metrics.reconciles.labels("unchanged")._value.get() >= 1
        assert second.writes() == {}
    assert operator.writes() == counted
    assert await api.snapshot(namespace) == before


@pytest.mark.parametrize(("kind", "name"), CHILDREN, ids=[f"{kind.plural}-{name}" for kind, name in CHILDREN])
async def test_a_deleted_child_comes_back(
    api: Api, namespace: str, operator: OperatorThread, kind: Kind, name: str
) -> None:
    await started(api, namespace)
    before = await api.get(kind, namespace, name)
    assert before is not None
    await api.drop(kind, namespace, name)

    async def back() -> bool:
        found = await api.get(kind, namespace, name)
        return found is not None and found["metadata"]["uid"] != before["metadata"]["uid"]

    await eventually(back, what=f"{kind.name} {name}")


async def test_a_deleted_config_map_comes_back(api: Api, namespace: str, operator: OperatorThread) -> None:
    revision = await started(api, namespace)
    name = f"agent-bot-{revision}"
    await api.drop(CONFIG_MAP, namespace, name)
    found = await eventually(lambda: api.get(CONFIG_MAP, namespace, name))
    assert found["immutable"] is True
    assert '"systemPrompt": "Be kind."' in found["data"]["agent.json"]


DRIFTS: list[tuple[Kind, str, dict[str, Any]]] = [
    (SERVICE_ACCOUNT, "agent-bot", {"automountServiceAccountToken": True}),
    (SECRET, "agent-bot-postgres", {"data": {"url": base64.b64encode(b"elsewhere").decode()}}),
    (SECRET, "agent-bot-api", {"metadata": {"labels": {"app.kubernetes.io/component": "other"}}}),
    (SERVICE, "agent-bot", {"spec": {"selector": {"abide.dev/agent": "other"}}}),
    (DEPLOYMENT, "agent-bot", {"spec": {"replicas": 4}}),
    (DEPLOYMENT, "agent-bot", {"spec": {"template": {"spec": {"automountServiceAccountToken": True}}}}),
    (DEPLOYMENT, "agent-bot", {"metadata": {"ownerReferences": None}}),
    (SERVICE, "agent-bot", {"metadata": {"labels": {"app.kubernetes.io/managed-by": None}}}),
    (SERVICE, "agent-bot", {"metadata": {"labels": {"abide.dev/agent": "other"}}}),
]


def projection(body: Any, patch: Any) -> Any:
    """Return the part of an object that a merge patch speaks of."""
    if not isinstance(patch, dict):
        return body
    return {key: projection((body or {}).get(key), value) for key, value in patch.items()}


@pytest.mark.parametrize(
    ("kind", "name", "patch"), DRIFTS, ids=[f"{one[0].plural}-{i}" for i, one in enumerate(DRIFTS)]
)
async def test_drift_is_reverted(
    api: Api, namespace: str, operator: OperatorThread, kind: Kind, name: str, patch: dict[str, Any]
) -> None:
    await started(api, namespace)
    before = projection(await api.get(kind, namespace, name), patch)
    edited = await api.edit(kind, namespace, name, patch)
    assert projection(edited, patch) != before

    async def reverted() -> bool:
        found = projection(await api.get(kind, namespace, name), patch)
        assert found == before, found
        return True

    await eventually(reverted, timeout=5)


async def test_foreign_fields_stay_and_the_key_is_never_overwritten(
    api: Api, namespace: str, operator: OperatorThread
) -> None:
    await started(api, namespace)
    await api.edit(DEPLOYMENT, namespace, "agent-bot", {"metadata": {"annotations": {"team": "blue"}}})
    await api.edit(SERVICE, namespace, "agent-bot", {"spec": {"sessionAffinity": "ClientIP"}})
    mine = base64.b64encode(b"a key of my own").decode()
    await api.edit(SECRET, namespace, "agent-bot-api", {"data": {"key": mine, "second": mine}})
    # A drift repaired after the edits shows that the operator has seen them.
    await api.edit(SECRET, namespace, "agent-bot-api", {"metadata": {"labels": {"app.kubernetes.io/name": "x"}}})

    async def repaired() -> bool:
        secret = await api.get(SECRET, namespace, "agent-bot-api")
        assert secret is not None
        return bool(secret["metadata"]["labels"]["app.kubernetes.io/name"] == "abide-agent")

    await eventually(repaired)
    deployment, service, secret = await asyncio.gather(
        api.get(DEPLOYMENT, namespace, "agent-bot"),
        api.get(SERVICE, namespace, "agent-bot"),
        api.get(SECRET, namespace, "agent-bot-api"),
    )
    assert deployment is not None
    assert service is not None
    assert secret is not None
    assert deployment["metadata"]["annotations"]["team"] == "blue"
    assert service["spec"]["sessionAffinity"] == "ClientIP"
    assert secret["data"] == {"key": mine, "second": mine}


async def test_an_object_of_somebody_else_is_left_alone_and_named(
    api: Api, namespace: str, operator: OperatorThread
) -> None:
    theirs = await api.make(SERVICE, namespace, "agent-bot", spec={"ports": [{"port": 80}], "clusterIP": "None"})
    await api.make_agent(namespace)
    await api.wait_condition(namespace, "Accepted", "False/NameConflict")
    assert f"Service {namespace}/agent-bot exists and belongs to something else." in await api.message(
        namespace, "Accepted"
    )
    assert await api.all(DEPLOYMENT, namespace) == []
    found = await api.get(SERVICE, namespace, "agent-bot")
    assert found is not None
    assert found["metadata"]["resourceVersion"] == theirs["metadata"]["resourceVersion"]
    await api.drop(SERVICE, namespace, "agent-bot")
    await api.wait_condition(namespace, "Accepted", "True/Valid", timeout=12)


async def test_a_changed_spec_makes_a_new_revision_and_keeps_the_old_config_map(
    api: Api, namespace: str, operator: OperatorThread
) -> None:
    old = await started(api, namespace)
    before = await operator.settled_writes()
    await api.edit(AGENT, namespace, "bot", {"spec": {"systemPrompt": "Be brief."}})
    await api.wait_condition(namespace, "Progressing", "True/RollingOut")
    new = await api.revision(namespace)
    assert new != old
    assert (await api.conditions(namespace))["Ready"] == "True/Serving"
    await api.set_ready(namespace, await api.the_pod(namespace, revision=new))
    await api.wait_condition(namespace, "Progressing", "False/UpToDate")
    agent = await api.get(AGENT, namespace, "bot")
    assert agent is not None
    assert agent["status"]["revision"] == {"current": new, "ready": new}
    assert agent["status"]["observedGeneration"] == agent["metadata"]["generation"] == 2
    maps = {body["metadata"]["name"] for body in await api.all(CONFIG_MAP, namespace, "abide.dev/agent=bot")}
    assert maps == {f"agent-bot-{old}", f"agent-bot-{new}"}
    after = await operator.settled_writes()
    assert after["apply deployments.apps"] - before["apply deployments.apps"] == 1
    assert after["apply_status agents.abide.dev"] - before["apply_status agents.abide.dev"] <= 2


async def test_old_config_maps_go_when_nothing_refers_to_them(
    api: Api, namespace: str, operator: OperatorThread
) -> None:
    await api.make_agent(namespace)
    await api.the_pod(namespace)
    for number in range(8):
        generation = number + 2
        await api.edit(AGENT, namespace, "bot", {"spec": {"systemPrompt": f"Prompt {number}"}})

        async def seen(generation: int = generation) -> bool:
            agent = await api.get(AGENT, namespace, "bot")
            assert agent is not None
            return bool(agent.get("status", {}).get("observedGeneration") == generation)

        await eventually(seen)

    async def newest_alone() -> bool:
        wanted = [body for body in await api.all(REPLICA_SET, namespace) if body["spec"]["replicas"]]
        revisions = [body["spec"]["template"]["metadata"]["labels"]["abide.dev/revision"] for body in wanted]
        return revisions == [await api.revision(namespace)]

    # Only what is scaled down may go; the newest one has to serve before all others are.
    await api.set_ready(namespace, await api.the_pod(namespace, revision=await api.revision(namespace)))
    await eventually(newest_alone)
    for body in await api.all(REPLICA_SET, namespace):
        if body["spec"]["replicas"] == 0:
            with suppress(NotFound):  # the Deployment keeps two and drops the others by itself
                await api.drop(REPLICA_SET, namespace, body["metadata"]["name"])

    async def only_one_left() -> bool:
        return len(await api.all(REPLICA_SET, namespace)) == 1

    await eventually(only_one_left)
    await api.edit(AGENT, namespace, "bot", {"spec": {"systemPrompt": "The last one."}})

    async def few() -> bool:
        maps = await api.all(CONFIG_MAP, namespace, "abide.dev/agent=bot")
        return len(maps) <= 6

    await eventually(few)
    maps = {body["metadata"]["name"] for body in await api.all(CONFIG_MAP, namespace, "abide.dev/agent=bot")}
    assert f"agent-bot-{await api.revision(namespace)}" in maps


async def test_suspend_stops_the_pods_and_keeps_everything_else(
    api: Api, namespace: str, operator: OperatorThread
) -> None:
    revision = await started(api, namespace)
    await api.edit(AGENT, namespace, "bot", {"spec": {"suspend": True}})
    await api.wait_condition(namespace, "Ready", "False/Suspended")
    conditions = await api.conditions(namespace)
    assert conditions["Suspended"] == "True/Suspended"
    assert conditions["StateStoreReady"] == "True/Connected"
    deployment = await api.get(DEPLOYMENT, namespace, "agent-bot")
    assert deployment is not None
    assert deployment["spec"]["replicas"] == 0
    await api.edit(AGENT, namespace, "bot", {"spec": {"suspend": False}})

    async def resumed() -> bool:
        found = await api.get(DEPLOYMENT, namespace, "agent-bot")
        return found is not None and found["spec"]["replicas"] == 1

    await eventually(resumed)
    assert await api.revision(namespace) == revision
    await api.wait_condition(namespace, "Suspended", "False/NotSuspended")


async def test_scale_by_the_scale_subresource(api: Api, namespace: str, operator: OperatorThread) -> None:
    await started(api, namespace)
    path = f"/apis/abide.dev/v1alpha1/namespaces/{namespace}/agents/bot/scale"
    await api.raw("PATCH", path, {"spec": {"replicas": 0}}, "application/merge-patch+json")
    await api.wait_condition(namespace, "Ready", "False/ScaledToZero")
    deployment = await api.get(DEPLOYMENT, namespace, "agent-bot")
    assert deployment is not None
    assert deployment["spec"]["replicas"] == 0


async def test_a_deleted_agent_takes_everything_along_and_nothing_comes_back(
    api: Api, namespace: str, operator: OperatorThread
) -> None:
    await started(api, namespace)
    await api.drop(AGENT, namespace, "bot")

    async def gone() -> bool:
        left = [
            f"{kind.plural}/{body['metadata']['name']}"
            for kind in CHILD_KINDS
            for body in await api.all(kind, namespace, "abide.dev/agent=bot")
        ]
        assert left == []
        return True

    # Kubernetes' garbage collector looks for new kinds twice a minute; ours may have been made just before.
    await eventually(gone, timeout=90)
    counted = await operator.settled_writes()
    assert operator.context.cache.agents() == {}
    assert await operator.settled_writes() == counted


async def test_an_agent_made_again_at_once_gets_children_of_its_own(
    api: Api, namespace: str, operator: OperatorThread
) -> None:
    await started(api, namespace)
    await api.drop(AGENT, namespace, "bot", propagationPolicy="Background")
    second = await api.make_agent(namespace)

    async def its_own() -> bool:
        for kind, name in CHILDREN:
            body = await api.get(kind, namespace, name)
            assert body is not None
            assert body["metadata"]["ownerReferences"][0]["uid"] == second["metadata"]["uid"]
        return True

    await eventually(its_own, timeout=30)
    await api.wait_condition(namespace, "Accepted", "True/Valid")


async def test_only_its_own_namespaces_are_touched(api: Api, namespace: str, operator: OperatorThread) -> None:
    elsewhere = f"{namespace}-other"
    await api.make_namespace(elsewhere)
    await api.make_agent(elsewhere)
    await started(api, namespace)
    assert await api.all(DEPLOYMENT, elsewhere) == []
    agent = await api.get(AGENT, elsewhere, "bot")
    assert agent is not None
    assert "status" not in agent


async def test_a_missed_event_is_found_by_the_sweep(api: Api, namespace: str, operator: OperatorThread) -> None:
    await started(api, namespace)
    cache = operator.context.cache
    key = next(iter(cache.agents()))
    service = cache.child(key, SERVICE, "agent-bot")
    assert service is not None
    # As if a watch had told of a Service and missed its deletion.
    metadata = service.body()["metadata"] | {"name": "ghost", "uid": "g", "resourceVersion": "1"}
    cache.put(SERVICE, service.body() | {"metadata": metadata})
    assert await operator.sweep() == {key}
    assert cache.child(key, SERVICE, "ghost") is None
