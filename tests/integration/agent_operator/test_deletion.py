"""Deleting agents: rows kept or erased as asked for, and never anything that sticks."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from agent_operator.kube.port import AGENT, CONFIG_MAP, DEPLOYMENT, EVENT, POD
from agent_store.errors import StoreUnavailable
from agent_store.ports import ErrorRecord, Metric
from agent_store.postgres.store import PostgresStore
from tests.cluster.controlplane import ControlPlane
from tests.integration.agent_operator.door import door_to
from tests.integration.agent_operator.harness import (
    NO_POSTGRES,
    Api,
    OperatorThread,
    RuntimeHealth,
    eventually,
    running_operator,
)

FINALIZER = "abide.dev/erase-state"
DELETE = {"deletionPolicy": "Delete"}
Operators = Callable[[str], AbstractAsyncContextManager[OperatorThread]]


@pytest.fixture
async def own_namespace(api: Api) -> str:
    """The namespace in which the operator keeps its notes."""
    name = f"own-{uuid4().hex[:8]}"
    await api.make_namespace(name)
    return name


@pytest.fixture
def operators(control_plane: ControlPlane, namespace: str, own_namespace: str, runtime: RuntimeHealth) -> Operators:
    """Start an operator on a Postgres URL."""
    return lambda url: running_operator(
        control_plane.kubeconfig, namespace, agent_port=runtime.port, postgres_url=url, namespace=own_namespace
    )


@pytest.fixture
async def operator(operators: Operators, postgres_url: str) -> AsyncIterator[OperatorThread]:
    async with operators(postgres_url) as operator:
        yield operator


async def rows(postgres_url: str, agent_id: str, table: str = "agents") -> int:
    connection = await asyncpg.connect(postgres_url)
    try:
        column = "id" if table == "agents" else "agent_id"
        return int(await connection.fetchval(f"SELECT count(*) FROM abide.{table} WHERE {column} = $1", UUID(agent_id)))
    finally:
        await connection.close()


async def events(postgres_url: str, agent_id: str) -> list[str]:
    """Return the kinds of the agent's audit rows, in order."""
    connection = await asyncpg.connect(postgres_url)
    try:
        query = "SELECT event_type FROM abide.system_events WHERE agent_id = $1 ORDER BY occurred_at"
        return [row["event_type"] for row in await connection.fetch(query, UUID(agent_id))]
    finally:
        await connection.close()


async def live(store: PostgresStore, namespace: str, agent_id: str, name: str = "bot") -> None:
    """Leave what a running agent leaves in Postgres."""
    await store.register(UUID(agent_id), namespace, name, "pod-uid", ttl=60)
    await store.record_error(ErrorRecord(UUID(agent_id), "Odd", "something"))
    await store.record_metrics([Metric(UUID(agent_id), "message_received", 1.0)])


async def finalizers(api: Api, namespace: str) -> list[str]:
    agent = await api.get(AGENT, namespace, "bot")
    assert agent is not None
    return list(agent["metadata"].get("finalizers") or ())


async def started(api: Api, namespace: str, **spec: Any) -> str:
    """Make an agent, let it serve, and return its uid."""
    agent = await api.make_agent(namespace, **spec)
    await api.set_ready(namespace, await api.the_pod(namespace))
    await api.wait_condition(namespace, "Ready", "True/Serving")
    return str(agent["metadata"]["uid"])


async def wait_gone(api: Api, namespace: str, *, timeout: float = 15.0) -> None:
    async def gone() -> bool:
        return await api.get(AGENT, namespace, "bot") is None

    await eventually(gone, timeout=timeout, what="the Agent to be gone")


async def debts(api: Api, own_namespace: str) -> list[dict[str, Any]]:
    return await api.all(CONFIG_MAP, own_namespace, "abide.dev/debt=erase")


async def test_the_policy_decides_on_the_finalizer_and_it_costs_one_write(
    api: Api, namespace: str, operator: OperatorThread
) -> None:
    await started(api, namespace, state=DELETE)
    assert await finalizers(api, namespace) == [FINALIZER]
    counted = await operator.settled_writes()
    assert counted["patch agents.abide.dev"] == 1
    assert counted["apply_status agents.abide.dev"] == 2
    assert await operator.settled_writes() == counted
    await api.edit_json(
        AGENT, namespace, "bot", {"op": "add", "path": "/metadata/finalizers/-", "value": "example.com/theirs"}
    )
    await api.edit(AGENT, namespace, "bot", {"spec": {"state": {"deletionPolicy": "Retain"}}})

    async def only_theirs() -> bool:
        return await finalizers(api, namespace) == ["example.com/theirs"]

    await eventually(only_theirs)
    await api.edit(AGENT, namespace, "bot", {"metadata": {"finalizers": []}})
    await api.edit(AGENT, namespace, "bot", {"spec": {"state": DELETE}})

    async def ours() -> bool:
        return await finalizers(api, namespace) == [FINALIZER]

    await eventually(ours)


async def test_the_rows_go_with_an_agent_whose_policy_is_delete(
    api: Api,
    namespace: str,
    own_namespace: str,
    operator: OperatorThread,
    store: PostgresStore,
    postgres_url: str,
) -> None:
    uid = await started(api, namespace, state=DELETE)
    other = str(uuid4())
    await live(store, namespace, uid)
    await live(store, namespace, other)
    await api.drop(AGENT, namespace, "bot")
    await wait_gone(api, namespace)
    assert [await rows(postgres_url, uid, table) for table in ("agents", "agent_errors", "agent_metrics")] == [0, 0, 0]
    assert [await rows(postgres_url, other, table) for table in ("agents", "agent_errors")] == [1, 1]

    async def written_down() -> bool:
        return await events(postgres_url, uid) == ["StateErased"]

    await eventually(written_down)
    assert await debts(api, own_namespace) == []

    async def told() -> bool:
        return any(event["reason"] == "StateErased" for event in await api.all(EVENT, namespace))

    await eventually(told)


async def test_the_pods_stop_before_anything_is_erased(
    api: Api, namespace: str, operator: OperatorThread, store: PostgresStore, postgres_url: str
) -> None:
    uid = await started(api, namespace, state=DELETE)
    await live(store, namespace, uid)
    pod = await api.the_pod(namespace)
    # A pod that takes its time, as one with a running turn does.
    await api.edit(POD, namespace, pod, {"metadata": {"finalizers": ["example.com/turn"]}})
    await api.drop(AGENT, namespace, "bot")

    async def stopping() -> bool:
        deployment = await api.get(DEPLOYMENT, namespace, "agent-bot")
        found = await api.get(POD, namespace, pod)
        assert deployment is not None
        assert found is not None
        return deployment["spec"]["replicas"] == 0 and "deletionTimestamp" in found["metadata"]

    await eventually(stopping)
    await operator.sweep()
    assert await rows(postgres_url, uid) == 1
    assert await finalizers(api, namespace) == [FINALIZER]
    await api.edit(POD, namespace, pod, {"metadata": {"finalizers": None}})
    await wait_gone(api, namespace)
    assert await rows(postgres_url, uid) == 0


async def test_retained_rows_stay_and_that_is_written_down(
    api: Api, namespace: str, operator: OperatorThread, store: PostgresStore, postgres_url: str
) -> None:
    uid = await started(api, namespace)
    await live(store, namespace, uid)
    counted = await operator.settled_writes()
    await api.drop(AGENT, namespace, "bot")
    await wait_gone(api, namespace)

    async def written_down() -> bool:
        return await events(postgres_url, uid) == ["StateRetained"]

    await eventually(written_down)
    assert [await rows(postgres_url, uid, table) for table in ("agents", "agent_errors")] == [1, 1]
    assert await operator.settled_writes() == counted


async def test_without_postgres_the_agent_goes_at_once_and_the_debt_is_paid_later(
    api: Api, namespace: str, own_namespace: str, operators: Operators, store: PostgresStore, postgres_url: str
) -> None:
    async with door_to(postgres_url) as door, operators(door.url):
        uid = await started(api, namespace, state=DELETE)
        await live(store, namespace, uid)
        await door.shut()
        await api.drop(AGENT, namespace, "bot")
        await wait_gone(api, namespace, timeout=8)
        (owed,) = await debts(api, own_namespace)
        assert owed["metadata"]["name"] == f"abide-erase-{uid}"
        assert (owed["data"]["namespace"], owed["data"]["name"]) == (namespace, "bot")
        assert await rows(postgres_url, uid) == 1

        async def told() -> bool:
            return any(event["reason"] == "EraseDeferred" for event in await api.all(EVENT, namespace))

        await eventually(told)
        await door.open()

        async def paid() -> bool:
            return await debts(api, own_namespace) == []

        await eventually(paid, timeout=20)
        assert await rows(postgres_url, uid) == 0

        async def written_down() -> bool:
            return sorted(await events(postgres_url, uid)) == ["EraseDeferred", "StateErased"]

        await eventually(written_down, timeout=20)
    with pytest.raises(StoreUnavailable, match="was erased for good"):
        await store.register(UUID(uid), namespace, "bot", "survivor", ttl=60)


async def test_a_debt_is_paid_by_the_next_operator(
    api: Api, namespace: str, own_namespace: str, operators: Operators, store: PostgresStore, postgres_url: str
) -> None:
    async with operators(NO_POSTGRES):
        uid = await started(api, namespace, state=DELETE)
        await live(store, namespace, uid)
        await api.drop(AGENT, namespace, "bot")
        await wait_gone(api, namespace, timeout=8)
    assert len(await debts(api, own_namespace)) == 1
    async with operators(postgres_url):

        async def paid() -> bool:
            return await debts(api, own_namespace) == [] and await rows(postgres_url, uid) == 0

        await eventually(paid, timeout=20)


async def test_adopted_rows_go_too_unless_another_agent_uses_them(
    api: Api, namespace: str, own_namespace: str, operators: Operators, store: PostgresStore, postgres_url: str
) -> None:
    adopted, foreign = str(uuid4()), str(uuid4())
    await live(store, namespace, adopted)
    await live(store, namespace, foreign, "another")
    annotations = {"abide.dev/adopt-state": adopted}
    spec = {"systemPrompt": "x", "models": [{"provider": "echo"}], "state": DELETE}
    metadata = {"name": "bot", "annotations": annotations}
    async with operators(postgres_url):
        await api.make(AGENT, namespace, "bot", metadata=metadata, spec=spec)
        await api.the_pod(namespace)
        await api.drop(AGENT, namespace, "bot")
        await wait_gone(api, namespace)
        assert await rows(postgres_url, adopted) == 0
        # What it asked for and may not have is not its to erase.
        metadata = {"name": "bot", "annotations": {"abide.dev/adopt-state": foreign}}
        await api.make(AGENT, namespace, "bot", metadata=metadata, spec=spec)
        await api.wait_condition(namespace, "Accepted", "False/StateAdoptionRefused")
        await api.drop(AGENT, namespace, "bot")
        await wait_gone(api, namespace)
        assert await rows(postgres_url, foreign) == 1


@pytest.mark.parametrize("postgres", ["up", "down"])
async def test_a_namespace_with_many_agents_goes(
    api: Api, namespace: str, own_namespace: str, operators: Operators, postgres_url: str, postgres: str
) -> None:
    count = 30
    async with operators(postgres_url if postgres == "up" else NO_POSTGRES):
        await asyncio.gather(*(api.make_agent(namespace, f"bot-{n}", state=DELETE) for n in range(count)))

        async def held() -> bool:
            agents = await api.all(AGENT, namespace)
            return all(agent["metadata"].get("finalizers") for agent in agents) and len(agents) == count

        await eventually(held, timeout=30)
        await api.raw("DELETE", f"/api/v1/namespaces/{namespace}")

        async def gone() -> bool:
            return await api.all(AGENT, namespace) == []

        await eventually(gone, timeout=60)
        assert len(await debts(api, own_namespace)) == (0 if postgres == "up" else count)


async def test_a_debt_that_cannot_be_read_is_left_alone_and_blocks_none(
    api: Api, namespace: str, own_namespace: str, operators: Operators, store: PostgresStore, postgres_url: str
) -> None:
    labels = {"abide.dev/debt": "erase"}
    await api.make(CONFIG_MAP, own_namespace, "a", metadata={"name": "a", "labels": labels}, data={"uid": "nonsense"})
    uid = str(uuid4())
    await live(store, namespace, uid)
    data = {"uid": uid, "adopted_id": "", "namespace": namespace, "name": "bot", "recorded_at": ""}
    await api.make(CONFIG_MAP, own_namespace, "b", metadata={"name": f"abide-erase-{uid}", "labels": labels}, data=data)
    async with operators(postgres_url):

        async def paid() -> bool:
            return [body["metadata"]["name"] for body in await debts(api, own_namespace)] == ["a"]

        await eventually(paid)
    assert await rows(postgres_url, uid) == 0
