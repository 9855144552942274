"""The life of agents: several pods, scaling, taking over an earlier agent's state, changed Secrets."""

import base64
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID, uuid4

import pytest

from agent_operator.kube.port import AGENT, DEPLOYMENT, DISRUPTION_BUDGET, POD, SECRET
from agent_store.postgres.store import PostgresStore
from tests.cluster.controlplane import ControlPlane
from tests.integration.agent_operator.door import door_to
from tests.integration.agent_operator.harness import Api, OperatorThread, RuntimeHealth, eventually, running_operator

ADOPT = "abide.dev/adopt-state"
SECRETS = "abide.dev/secrets-version"
HPA = "/apis/autoscaling/v2/namespaces/{}/horizontalpodautoscalers"


@pytest.fixture
async def stateful(
    control_plane: ControlPlane, namespace: str, runtime: RuntimeHealth, postgres_url: str
) -> AsyncIterator[OperatorThread]:
    """An operator with a Postgres, that looks at what is referred to often."""
    async with running_operator(
        control_plane.kubeconfig, namespace, agent_port=runtime.port, postgres_url=postgres_url, namespace=namespace,
        health_interval=0.3, counters_interval=1.0, reference_present_interval=0.5,
    ) as operator:  # fmt: skip
        yield operator


async def scale_to(api: Api, namespace: str, replicas: int) -> None:
    path = f"/apis/abide.dev/v1alpha1/namespaces/{namespace}/agents/bot/scale"
    await api.raw("PATCH", path, {"spec": {"replicas": replicas}}, "application/merge-patch+json")


async def test_several_pods_have_a_budget_and_one_has_none(api: Api, namespace: str, operator: OperatorThread) -> None:
    await api.make_agent(namespace, replicas=3)
    budget = await eventually(lambda: api.get(DISRUPTION_BUDGET, namespace, "agent-bot"))
    assert budget["spec"]["maxUnavailable"] == 1
    assert budget["spec"]["selector"] == {"matchLabels": {"abide.dev/agent": "bot"}}
    counted = await operator.settled_writes()
    assert counted["apply poddisruptionbudgets.policy"] == 1
    assert await operator.settled_writes() == counted
    await api.drop(DISRUPTION_BUDGET, namespace, "agent-bot")

    async def back() -> bool:
        found = await api.get(DISRUPTION_BUDGET, namespace, "agent-bot")
        return found is not None and found["metadata"]["uid"] != budget["metadata"]["uid"]

    await eventually(back)
    await scale_to(api, namespace, 1)

    async def gone() -> bool:
        return await api.get(DISRUPTION_BUDGET, namespace, "agent-bot") is None

    await eventually(gone)
    await scale_to(api, namespace, 2)
    await eventually(lambda: api.get(DISRUPTION_BUDGET, namespace, "agent-bot"))


async def test_scaling_changes_no_pod_and_autoscalers_find_what_they_need(
    api: Api, namespace: str, operator: OperatorThread
) -> None:
    await api.make_agent(namespace)
    pod = await api.the_pod(namespace)
    revision = await api.revision(namespace)
    await api.set_ready(namespace, pod)
    await api.wait_condition(namespace, "Ready", "True/Serving")
    await scale_to(api, namespace, 2)

    async def two() -> bool:
        return len(await api.all(POD, namespace, "abide.dev/agent=bot")) == 2

    await eventually(two)
    assert await api.revision(namespace) == revision
    assert await api.get(POD, namespace, pod) is not None
    scale = await api.raw("GET", f"/apis/abide.dev/v1alpha1/namespaces/{namespace}/agents/bot/scale")
    assert scale["spec"] == {"replicas": 2}
    assert scale["status"]["selector"] == "abide.dev/agent=bot"
    selected = await api.all(POD, namespace, scale["status"]["selector"])
    assert len(selected) == 2
    target = {"apiVersion": "abide.dev/v1alpha1", "kind": "Agent", "name": "bot"}
    body = {"metadata": {"name": "bot"}, "spec": {"scaleTargetRef": target, "minReplicas": 3, "maxReplicas": 4}}
    await api.raw("POST", HPA.format(namespace), body)

    async def raised() -> bool:
        """Below its minimum an autoscaler needs no metrics to act."""
        agent = await api.get(AGENT, namespace, "bot")
        assert agent is not None
        return bool(agent["spec"]["replicas"] == 3)

    await eventually(raised, timeout=40)

    async def three() -> bool:
        return len(await api.all(POD, namespace, "abide.dev/agent=bot")) == 3

    await eventually(three)


async def kept_state(store: PostgresStore, namespace: str, name: str = "bot") -> str:
    """Leave the rows of a deleted agent in Postgres; return their id."""
    agent_id = uuid4()
    await store.register(agent_id, namespace, name, "earlier", ttl=60)
    return str(agent_id)


async def adopting(api: Api, namespace: str, wanted: str) -> dict[str, Any]:
    spec = {"systemPrompt": "Be kind.", "models": [{"provider": "echo"}]}
    made = await api.make(AGENT, namespace, "bot", metadata={"name": "bot", "annotations": {ADOPT: wanted}}, spec=spec)
    return dict(made)


async def agent_id_of_pods(api: Api, namespace: str) -> str:
    deployment = await api.get(DEPLOYMENT, namespace, "agent-bot")
    if deployment is None:
        return ""
    variables = deployment["spec"]["template"]["spec"]["containers"][0]["env"]
    return str(next(one["value"] for one in variables if one["name"] == "ABIDE_AGENT_ID"))


async def test_an_agent_takes_over_the_state_it_asks_for(
    api: Api, namespace: str, stateful: OperatorThread, store: PostgresStore
) -> None:
    wanted = await kept_state(store, namespace)
    await adopting(api, namespace, wanted)
    pod = await api.the_pod(namespace)
    assert await agent_id_of_pods(api, namespace) == wanted
    await api.set_ready(namespace, pod)
    await api.wait_condition(namespace, "Ready", "True/Serving")
    assert (await api.conditions(namespace))["Accepted"] == "True/Valid"
    # What Postgres knows of these rows is said of this agent.
    await store.beat(UUID(wanted), pod, {"sessions": {"active": 4}, "model": {"answering": "echo/echo"}})

    async def counted() -> bool:
        agent = await api.get(AGENT, namespace, "bot")
        assert agent is not None
        return bool(agent["status"]["sessions"]["active"] == 4)

    await eventually(counted)


async def test_a_namesake_gets_nothing_unasked(
    api: Api, namespace: str, stateful: OperatorThread, store: PostgresStore
) -> None:
    await kept_state(store, namespace)
    agent = await api.make_agent(namespace)
    await api.the_pod(namespace)
    assert await agent_id_of_pods(api, namespace) == agent["metadata"]["uid"]


async def test_state_that_is_not_its_own_is_refused(
    api: Api, namespace: str, stateful: OperatorThread, store: PostgresStore
) -> None:
    other = await kept_state(store, namespace, "another")
    elsewhere = await kept_state(store, f"{namespace}-x")
    living = (await api.make_agent(namespace, "living"))["metadata"]["uid"]
    await adopting(api, namespace, "support")
    for wanted, words in (
        ("support", '"support" is no uid'),
        (str(uuid4()), "no state is kept under the uid"),
        (other, "that of an agent of another name"),
        (elsewhere, "that of an agent of another name"),
        (living, "a living Agent has the uid"),
    ):
        await api.edit(AGENT, namespace, "bot", {"metadata": {"annotations": {ADOPT: wanted}}})

        async def refused(wanted: str = wanted, words: str = words) -> bool:
            assert (await api.conditions(namespace)).get("Accepted") == "False/StateAdoptionRefused"
            message = await api.message(namespace, "Accepted")
            assert words in message, message
            assert wanted in message, message
            assert "another" not in message.replace("another name", ""), message
            return True

        await eventually(refused)
    assert await agent_id_of_pods(api, namespace) == ""
    await api.edit(AGENT, namespace, "bot", {"metadata": {"annotations": {ADOPT: None}}})
    await api.wait_condition(namespace, "Accepted", "True/Valid")


async def test_a_wish_that_cannot_be_granted_leaves_what_runs(
    api: Api, namespace: str, stateful: OperatorThread
) -> None:
    agent = await api.make_agent(namespace)
    await api.set_ready(namespace, await api.the_pod(namespace))
    await api.wait_condition(namespace, "Ready", "True/Serving")
    revision = await api.revision(namespace)
    await api.edit(AGENT, namespace, "bot", {"metadata": {"annotations": {ADOPT: str(uuid4())}}})
    await api.wait_condition(namespace, "Accepted", "False/StateAdoptionRefused")
    assert (await api.conditions(namespace))["Ready"].startswith("True/")
    assert await api.revision(namespace) == revision
    assert await agent_id_of_pods(api, namespace) == agent["metadata"]["uid"]
    await scale_to(api, namespace, 0)
    await api.wait_condition(namespace, "Ready", "False/ScaledToZero")


async def test_while_postgres_is_away_a_wish_is_neither_granted_nor_refused(
    control_plane: ControlPlane,
    api: Api,
    namespace: str,
    runtime: RuntimeHealth,
    store: PostgresStore,
    postgres_url: str,
) -> None:
    wanted = await kept_state(store, namespace)
    async with door_to(postgres_url) as door:
        await door.shut()

        def operator() -> Any:
            return running_operator(
                control_plane.kubeconfig, namespace, agent_port=runtime.port, postgres_url=door.url,
                namespace=namespace, health_interval=0.5,
            )  # fmt: skip

        async with operator():
            await adopting(api, namespace, wanted)
            await api.wait_condition(namespace, "Ready", "False/StateStoreUnreachable")
            conditions = await api.conditions(namespace)
            assert conditions["Accepted"] == "True/Valid"
            assert await api.get(DEPLOYMENT, namespace, "agent-bot") is None
            await door.open()
            pod = await api.the_pod(namespace)
            assert await agent_id_of_pods(api, namespace) == wanted
            await api.set_ready(namespace, pod)
            await api.wait_condition(namespace, "Ready", "True/Serving")
        # What was granted once stays granted, also for an operator that starts without Postgres.
        await door.shut()
        before = await api.snapshot(namespace)
        async with operator() as second:
            assert await second.settled_writes() == {}
        assert await api.snapshot(namespace) == before


async def annotation(api: Api, namespace: str, pod: str) -> str:
    found = await api.get(POD, namespace, pod)
    assert found is not None
    return str(found["metadata"].get("annotations", {}).get(SECRETS, ""))


async def test_pods_are_told_once_of_each_change_of_a_secret(
    control_plane: ControlPlane, api: Api, namespace: str, stateful: OperatorThread
) -> None:
    await api.make(SECRET, namespace, "llm", data={"openai": base64.b64encode(b"one").decode()})
    models = [{"provider": "echo", "apiKeySecretRef": {"name": "llm", "key": "openai"}}]
    await api.make_agent(namespace, models=models)
    pod = await api.the_pod(namespace)
    await api.set_ready(namespace, pod)
    await api.wait_condition(namespace, "Ready", "True/Serving")
    before = await stateful.settled_writes()
    assert "patch pods" not in before
    assert await annotation(api, namespace, pod) == ""
    seen = set()
    for number in range(1, 3):
        await api.edit(SECRET, namespace, "llm", {"data": {"openai": base64.b64encode(b"n%d" % number).decode()}})

        async def told(number: int = number) -> bool:
            return (await stateful.settled_writes()).get("patch pods") == number

        await eventually(told, timeout=5)
        seen.add(await annotation(api, namespace, pod))
    assert len(seen - {""}) == 2
    assert await api.revision(namespace)
    assert len(await api.all(POD, namespace, "abide.dev/agent=bot")) == 1
    after = await stateful.settled_writes()
    assert {**after, "patch pods": 0} == {**before, "patch pods": 0}
    # A new operator has nothing to tell.
    port = stateful.context.settings.agent_port
    async with running_operator(control_plane.kubeconfig, namespace, agent_port=port) as second:
        assert "patch pods" not in await second.settled_writes()
