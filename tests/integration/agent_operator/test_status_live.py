"""Operator, runtime, provider and Postgres together: what status says and how soon, only the kubelet is played."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from psycopg import sql

from agent_operator.kube.port import AGENT, EVENT, SECRET
from agent_store.embedded import EmbeddedPostgres
from agent_store.migrate import migrate
from tests.cluster.controlplane import ControlPlane
from tests.conftest import execute, in_database
from tests.fakes.provider import GREETING, KEY, MODEL, ModelProvider
from tests.integration.agent_operator.harness import Api, OperatorThread, eventually, running_operator
from tests.integration.agent_operator.realpod import RealPod, real_pod
from tests.integration.agent_runtime.harness import Proxy, free_port

WRONG_KEY = "sk-test-wrong-key-000001"


@pytest.fixture(scope="module")
def provider_process() -> Iterator[ModelProvider]:
    """A model provider of these tests."""
    with ModelProvider() as provider:
        yield provider


@pytest.fixture
def provider(provider_process: ModelProvider) -> ModelProvider:
    """A model provider that is as new."""
    provider_process.reset()
    return provider_process


@pytest.fixture
async def postgres(postgres_url: str) -> AsyncIterator[Proxy]:
    """The way of everybody to Postgres."""
    proxy = Proxy(postgres_url)
    await proxy.up()
    yield proxy
    await proxy.down()


@pytest.fixture
def port() -> int:
    """The port of runtimes."""
    return free_port()


@pytest.fixture
async def live(
    control_plane: ControlPlane, api: Api, namespace: str, postgres: Proxy, port: int
) -> AsyncIterator[OperatorThread]:
    """An operator that reaches Postgres the way its agents do."""
    await api.make(SECRET, namespace, "llm", stringData={"key": KEY})
    async with running_operator(
        control_plane.kubeconfig, namespace, agent_port=port, postgres_url=postgres.url
    ) as operator:
        yield operator


def model(provider: ModelProvider, name: str = "primary", **changes: Any) -> dict[str, Any]:
    ref = {"name": "llm", "key": "key"}
    return {
        "name": name, "provider": "openai-compatible", "model": MODEL, "baseURL": provider.base_url,
        "apiKeySecretRef": ref, **changes,
    }  # fmt: skip


async def wait_ready(api: Api, namespace: str, value: str, *, timeout: float, since: float) -> float:
    """Wait until Ready says so; return the seconds since an instant (time.monotonic)."""
    await api.wait_condition(namespace, "Ready", value, timeout=timeout)
    return time.monotonic() - since


async def reasons(api: Api, namespace: str) -> list[str]:
    return [one["reason"] for one in await api.all(EVENT, namespace) if one["regarding"]["kind"] == "Agent"]


async def test_a_refused_key_from_start_to_the_mended_one(
    api: Api, namespace: str, live: OperatorThread, postgres: Proxy, port: int, provider: ModelProvider, tmp_path: Path
) -> None:
    await api.make_agent(namespace, models=[model(provider)])
    async with real_pod(api, namespace, tmp_path, postgres_url=postgres.url, port=port, key=WRONG_KEY) as pod:
        assert await wait_ready(api, namespace, "False/ModelAuthFailed", timeout=20, since=pod.started_at) <= 15
        assert provider.asked("chat") == []
        assert pod.ready

        async def told() -> list[str]:
            found = await reasons(api, namespace)
            return found if "ModelAuthFailed" in found else []

        assert sorted(await eventually(told)) == ["ModelAuthFailed", "Starting"]
        assert (await pod.say("hello"))["turn"]["status"] == "fallback"
        mended_at = time.monotonic()
        pod.put_key(KEY)
        assert await wait_ready(api, namespace, "True/Serving", timeout=60, since=mended_at) <= 60
        assert (await pod.say("hello again"))["reply"] == {"content": GREETING}
        everything = f"{await api.get(AGENT, namespace, 'bot')}{await api.all(EVENT, namespace)}"
        everything += (tmp_path / "log").read_text()
        assert WRONG_KEY not in everything
        assert KEY not in everything


async def test_a_key_revoked_later_and_a_fallback_model(
    api: Api, namespace: str, live: OperatorThread, postgres: Proxy, port: int, provider: ModelProvider, tmp_path: Path
) -> None:
    provider.models.append("gpt-small")
    backup = model(provider, "backup", model="gpt-small", apiKeySecretRef={"name": "llm", "key": "backup"})
    await api.edit(SECRET, namespace, "llm", {"stringData": {"backup": "sk-test-backup-key-0001"}})
    provider.valid_keys.add("sk-test-backup-key-0001")
    await api.make_agent(namespace, models=[model(provider), backup])
    folder = tmp_path / "secrets" / "llm"
    folder.mkdir(parents=True)
    (folder / "backup").write_text("sk-test-backup-key-0001")
    async with real_pod(api, namespace, tmp_path, postgres_url=postgres.url, port=port) as pod:
        await wait_ready(api, namespace, "True/Serving", timeout=20, since=pod.started_at)
        provider.valid_keys.discard(KEY)
        answer = await pod.say("hello")
        assert answer["turn"]["status"] == "completed"
        refused_at = next(request.at for request in provider.requests if request.status == 401)
        assert await wait_ready(api, namespace, "True/ServingOnFallback", timeout=8, since=refused_at) <= 5
        conditions = await api.conditions(namespace)
        assert conditions["ModelReachable"] == "True/FallbackOnly"
        assert conditions["Degraded"] == "True/ModelAuthFailed"
        provider.valid_keys.clear()
        begun = time.monotonic()
        assert (await pod.say("hello again"))["turn"]["status"] == "fallback"
        assert await wait_ready(api, namespace, "False/ModelAuthFailed", timeout=8, since=begun) <= 5
        message = await api.message(namespace)
        assert "No fallback model can be used either: users get the fallback message." in message


async def outage(api: Api, namespace: str, pod: RealPod, expected: str) -> None:
    """Check what is told while Postgres is away."""
    unready_at = await pod.wait_ready(False, timeout=30)
    assert await wait_ready(api, namespace, "False/StateStoreUnreachable", timeout=10, since=unready_at) <= 5
    assert (await api.conditions(namespace))["StateStoreReady"] == f"False/{expected}"


async def test_postgres_refuses_freezes_and_comes_back(
    api: Api, namespace: str, live: OperatorThread, postgres: Proxy, port: int, tmp_path: Path
) -> None:
    await api.make_agent(namespace)
    async with real_pod(api, namespace, tmp_path, postgres_url=postgres.url, port=port) as pod:
        await wait_ready(api, namespace, "True/Serving", timeout=20, since=pod.started_at)
        assert (await pod.say("one"))["reply"] == {"content": "one [1]"}

        await postgres.down()
        await outage(api, namespace, pod, "ConnectionRefused")
        message = await api.message(namespace)
        assert message.startswith(f"Postgres 127.0.0.1:{postgres.port} refuses connections since ")
        await postgres.up()
        back_at = time.monotonic()
        assert await wait_ready(api, namespace, "True/Serving", timeout=20, since=back_at) <= 10

        postgres.freeze()
        await outage(api, namespace, pod, "Timeout")
        message = await api.message(namespace)
        assert message.startswith(f"Postgres 127.0.0.1:{postgres.port} does not answer in time since ")
        await postgres.up()
        back_at = time.monotonic()
        assert await wait_ready(api, namespace, "True/Serving", timeout=20, since=back_at) <= 10
        assert (await pod.say("two"))["reply"] == {"content": "two [2]"}

        async def told() -> bool:
            return "StateStoreUnreachable" in await reasons(api, namespace)

        await eventually(told)
        assert set(await reasons(api, namespace)) == {"Starting", "Serving", "StateStoreUnreachable"}


@pytest.fixture
def empty_database(postgres_server: EmbeddedPostgres) -> Iterator[str]:
    """A database without the schema, dropped after the test."""
    name = f"test_{uuid4().hex[:12]}"
    execute(postgres_server.url, sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    yield in_database(postgres_server.url, name)
    execute(postgres_server.url, sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


async def test_a_database_that_is_set_up_while_the_agent_starts_leaves_no_error(
    control_plane: ControlPlane, api: Api, namespace: str, empty_database: str, port: int, tmp_path: Path
) -> None:
    async with running_operator(
        control_plane.kubeconfig, namespace, agent_port=port, postgres_url=empty_database, counters_interval=2.0
    ):
        await api.make_agent(namespace)
        async with real_pod(api, namespace, tmp_path, postgres_url=empty_database, port=port) as pod:
            await api.wait_condition(namespace, "Ready", "False/StateStoreUnreachable", timeout=20)
            assert (await api.conditions(namespace))["StateStoreReady"] == "False/SchemaTooOld"
            await asyncio.to_thread(migrate, empty_database)
            await wait_ready(api, namespace, "True/Serving", timeout=20, since=pod.started_at)
            assert (await pod.say("one"))["reply"] == {"content": "one [1]"}

            async def counted() -> bool:
                agent = await api.get(AGENT, namespace, "bot")
                return bool(agent and agent["status"]["model"].get("answering"))

            # Heartbeats, errors and counters have been read by then.
            await eventually(counted, timeout=20)
            agent = await api.get(AGENT, namespace, "bot")
            assert agent is not None
            assert "lastError" not in agent["status"]
