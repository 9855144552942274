"""What status says of budgets, on a real API server and a real Postgres: within seconds, and over by itself."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from agent_api.wire import BudgetCheck
from agent_operator.kube.port import AGENT, EVENT
from agent_store.postgres.store import PostgresStore
from tests.cluster.controlplane import ControlPlane
from tests.integration.agent_operator.harness import Api, OperatorThread, RuntimeHealth, eventually, running_operator

BUDGET = {"perDay": {"amount": "20.00"}, "warnPercent": 70}


@pytest.fixture
async def with_postgres(
    control_plane: ControlPlane, namespace: str, runtime: RuntimeHealth, postgres_url: str
) -> AsyncIterator[OperatorThread]:
    """An operator that reads heartbeats."""
    async with running_operator(
        control_plane.kubeconfig, namespace, agent_port=runtime.port, postgres_url=postgres_url
    ) as operator:
        yield operator


class Beats:
    """Heartbeats of the one pod of an agent, as its runtime writes them."""

    def __init__(self, api: Api, namespace: str, store: PostgresStore, pod: str) -> None:
        self._api, self._namespace, self._store, self._pod = api, namespace, store, pod

    async def say(self, percent: int, *, resets_in: float = 3600.0) -> None:
        agent = await self._api.get(AGENT, self._namespace, "bot")
        assert agent is not None
        check = BudgetCheck(
            scope="agent",
            ok=percent < 100,
            warns=percent >= 70,
            limit="20.00 USD",
            used_percent=percent,
            resets_at=datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=resets_in),
        )
        details = {"sessions": {"active": 0}, "budgets": [check.model_dump(mode="json", by_alias=True)]}
        await self._store.beat(UUID(agent["metadata"]["uid"]), self._pod, details)


async def started(api: Api, namespace: str, store: PostgresStore) -> Beats:
    await api.make_agent(namespace, budget=BUDGET)
    pod = await api.the_pod(namespace)
    await api.set_ready(namespace, pod)
    await api.wait_condition(namespace, "Ready", "True/Serving")
    return Beats(api, namespace, store, pod)


async def warnings(api: Api, namespace: str) -> list[str]:
    return [one["note"] for one in await api.all(EVENT, namespace) if one["reason"] == "BudgetWarning"]


async def test_a_budget_that_is_used_up_is_told_within_five_seconds_and_so_is_the_next_day(
    api: Api, namespace: str, with_postgres: OperatorThread, store: PostgresStore
) -> None:
    beats = await started(api, namespace, store)
    await beats.say(75)

    async def warned() -> list[str]:
        found = await warnings(api, namespace)
        assert found
        return found

    (note,) = await eventually(warned)
    assert note.startswith("75 % of the agent's budget of the day (20.00 USD) is used.")
    await beats.say(101)
    await api.wait_condition(namespace, "Ready", "False/BudgetExhausted", timeout=5)
    assert (await api.conditions(namespace))["Degraded"] == "False/NotServing"
    assert (await api.message(namespace)).startswith("The agent's budget of the day (20.00 USD) is used up since ")
    agent = await api.get(AGENT, namespace, "bot")
    assert agent is not None
    assert agent["status"]["usage"]["budgets"][0]["usedPercent"] == 101
    await beats.say(0, resets_in=86400)
    await api.wait_condition(namespace, "Ready", "True/Serving", timeout=5)
    assert len(await warnings(api, namespace)) == 1
