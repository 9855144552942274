"""What status says of tools, on a real API server and a real Postgres; and what their Secrets do to pods."""

import base64
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest

from agent_api import labels
from agent_api.wire import ToolCheck
from agent_operator.kube.port import AGENT, DEPLOYMENT, SECRET
from agent_store.postgres.store import PostgresStore
from tests.cluster.controlplane import ControlPlane
from tests.integration.agent_operator.harness import Api, OperatorThread, RuntimeHealth, eventually, running_operator

MCP = {
    "name": "github",
    "type": "MCP",
    "mcp": {
        "url": "https://mcp.example.com/mcp",
        "headersFrom": [{"name": "Authorization", "secretKeyRef": {"name": "gh", "key": "bearer"}}],
    },
    "allow": ["get_diff"],
}
CLOCK = {"name": "time", "type": "Builtin", "builtin": {"name": "Clock"}}
SECRET_VALUE = base64.b64encode(b"Bearer hunter2hunter2hunter2").decode()


@pytest.fixture
async def operating(
    control_plane: ControlPlane, namespace: str, runtime: RuntimeHealth, postgres_url: str
) -> AsyncIterator[OperatorThread]:
    """An operator that reads heartbeats."""
    async with running_operator(
        control_plane.kubeconfig, namespace, agent_port=runtime.port, postgres_url=postgres_url
    ) as operator:
        yield operator


class Pod:
    """One pod's heartbeats about its tools."""

    def __init__(self, store: PostgresStore, agent_id: UUID, pod: str) -> None:
        self._store, self._agent_id, self._pod = store, agent_id, pod

    async def say(self, ok: bool, message: str = "", tools: tuple[str, ...] = ("get_diff",)) -> None:
        now = datetime.now(UTC)
        checks = [
            ToolCheck(
                name="github",
                type="MCP",
                ok=ok,
                reason="" if ok else "ToolDown",
                message=message,
                since=now,
                tools=list(tools),
            ),
            ToolCheck(name="time", type="Builtin", ok=True, since=now, tools=["current_time"]),
        ]
        details = {"sessions": {"active": 0}, "tools": [one.model_dump(mode="json", by_alias=True) for one in checks]}
        await self._store.beat(self._agent_id, self._pod, details)


async def serving(api: Api, namespace: str, store: PostgresStore) -> Pod:
    """Make an agent with tools whose pod is ready."""
    await api.make(SECRET, namespace, "gh", data={"bearer": SECRET_VALUE})
    await api.make_agent(namespace, tools=[MCP, CLOCK])
    pod = await api.the_pod(namespace)
    await api.set_ready(namespace, pod)
    agent = await api.get(AGENT, namespace, "bot")
    assert agent is not None
    agent_id = UUID(agent["metadata"]["uid"])
    await store.register(agent_id, namespace, "bot", "test", ttl=60)
    return Pod(store, agent_id, pod)


async def status(api: Api, namespace: str) -> dict[str, Any]:
    agent = await api.get(AGENT, namespace, "bot")
    assert agent is not None
    return dict(agent["status"])


async def test_a_tool_that_is_down_degrades_within_five_seconds_and_recovers(
    api: Api, namespace: str, operating: OperatorThread, runtime: RuntimeHealth, store: PostgresStore
) -> None:
    pod = await serving(api, namespace, store)
    await pod.say(True)
    await api.wait_condition(namespace, "ToolsReady", "True/Connected", timeout=5)
    conditions = await api.conditions(namespace)
    assert (conditions["Ready"], conditions["Degraded"]) == ("True/Serving", "False/AllWell")
    assert (await status(api, namespace))["tools"] == [
        {"name": "github", "type": "MCP", "ready": True, "message": "", "tools": ["get_diff"]},
        {"name": "time", "type": "Builtin", "ready": True, "message": "", "tools": ["current_time"]},
    ]

    await pod.say(False, "refuses connections")
    await api.wait_condition(namespace, "ToolsReady", "False/ToolDown", timeout=5)
    conditions = await api.conditions(namespace)
    assert (conditions["Ready"], conditions["Degraded"]) == ("True/ToolDown", "True/ToolDown")
    assert (await api.message(namespace)).startswith(
        "Tool github (https://mcp.example.com/mcp) refuses connections since "
    )
    found = await status(api, namespace)
    assert (found["desiredReplicas"], found["readyReplicas"]) == (1, 1)
    assert found["tools"][0]["ready"] is False
    assert found["tools"][0]["tools"] == ["get_diff"], "what it had stays shown"

    await pod.say(True, tools=("get_diff", "list_issues"))
    await api.wait_condition(namespace, "ToolsReady", "True/Connected", timeout=5)
    assert (await api.conditions(namespace))["Degraded"] == "False/AllWell"

    async def shown() -> bool:
        return bool((await status(api, namespace))["tools"][0]["tools"] == ["get_diff", "list_issues"])

    await eventually(shown)
    assert "hunter2" not in str(await api.get(AGENT, namespace, "bot"))


async def test_a_missing_secret_of_a_tool_is_named_and_the_pod_mounts_it(
    api: Api, namespace: str, operating: OperatorThread, runtime: RuntimeHealth
) -> None:
    await api.make_agent(namespace, tools=[CLOCK, MCP])
    await api.wait_condition(namespace, "Accepted", "False/SecretMissing", timeout=5)
    field = "spec.tools[1].mcp.headersFrom[0].secretKeyRef"
    assert (await api.message(namespace, "Accepted")).startswith(f"{field}: Secret {namespace}/gh does not exist.")
    await api.make(SECRET, namespace, "gh", data={"bearer": SECRET_VALUE})
    await api.wait_condition(namespace, "Accepted", "True/Valid", timeout=5)

    async def mounted() -> bool:
        deployment = await api.get(DEPLOYMENT, namespace, labels.child_name("bot"))
        assert deployment is not None
        (container,) = deployment["spec"]["template"]["spec"]["containers"]
        return "/etc/abide/secrets/gh" in [one["mountPath"] for one in container["volumeMounts"]]

    await eventually(mounted)
