"""The operator as a process: its port, its memory, its end; its rights; Postgres."""

import asyncio
import base64
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import aiohttp
import psycopg
import pytest
import yaml

from agent_operator.errors import Unusable
from agent_operator.keys import AgentKey
from agent_operator.kube.port import AGENT, CONFIG_MAP, DEPLOYMENT, DISRUPTION_BUDGET, SECRET
from agent_operator.upkeep import Upkeep
from agent_store.ports import ErrorRecord
from agent_store.postgres.store import PostgresStore
from tests.cluster.controlplane import ControlPlane
from tests.conftest import in_database
from tests.integration.agent_operator.harness import (
    NO_POSTGRES,
    Api,
    RuntimeHealth,
    eventually,
    running_operator,
)

REPOSITORY = Path(__file__).resolve().parents[3]
RULES: list[tuple[str, list[str], list[str]]] = [
    ("abide.dev", ["agents"], ["get", "list", "watch", "patch"]),
    ("abide.dev", ["agents/status"], ["patch"]),
    ("abide.dev", ["agents/finalizers"], ["update"]),
    ("apps", ["deployments"], ["get", "list", "watch", "create", "patch"]),
    ("apps", ["replicasets"], ["list"]),
    ("", ["services", "serviceaccounts", "secrets"], ["get", "list", "watch", "create", "patch"]),
    ("", ["configmaps"], ["get", "list", "watch", "create", "patch", "delete"]),
    ("", ["pods"], ["list", "watch", "patch"]),
    ("policy", ["poddisruptionbudgets"], ["get", "list", "watch", "create", "patch", "delete"]),
    ("events.k8s.io", ["events"], ["create"]),
]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Process:
    """An operator as its image starts it."""

    def __init__(self, process: asyncio.subprocess.Process, port: int) -> None:
        self.process = process
        self.url = f"http://127.0.0.1:{port}"

    async def get(self, path: str) -> tuple[int, str]:
        try:
            async with aiohttp.ClientSession() as session, session.get(f"{self.url}{path}") as response:
                return response.status, await response.text()
        except aiohttp.ClientError:
            return 0, ""

    async def ready(self) -> bool:
        assert self.process.returncode is None, "the operator has ended"
        return (await self.get("/readyz"))[0] == 200

    def resident_mib(self) -> float:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) / 1024


@asynccontextmanager
async def process(kubeconfig: Path, log: Path, **environ: str) -> AsyncIterator[Process]:
    port = free_port()
    paths = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "operator")])
    with log.open("wb") as output:
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "agent_operator",
            env={
                "PATH": os.environ["PATH"],
                "PYTHONPATH": paths,
                "KUBECONFIG": str(kubeconfig),
                "ABIDE_POSTGRES_URL": NO_POSTGRES,
                "ABIDE_PORT": str(port),
                **environ,
            },
            stdout=output,
            stderr=output,
        )
    try:
        yield Process(child, port)
    finally:
        if child.returncode is None:
            child.kill()
        await child.wait()


async def test_a_process_serves_health_and_metrics_and_ends_on_sigterm(
    control_plane: ControlPlane, api: Api, namespace: str, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    async with process(control_plane.kubeconfig, log, ABIDE_WATCH_NAMESPACES=namespace) as operator:
        await eventually(operator.ready, timeout=30)
        await api.make_agent(namespace)
        await api.wait_condition(namespace, "Ready", "False/Starting")
        status, text = await operator.get("/livez")
        assert status == 200
        assert {check["name"] for check in json.loads(text)["checks"]} == {"loop", "watches", "queue"}
        _, metrics = await operator.get("/metrics")
        assert 'abide_operator_kube_writes_total{kind="agents.abide.dev",verb="apply_status"} 1.0' in metrics
        assert "abide_operator_agents 1.0" in metrics
        assert "abide_operator_store_reachable 0.0" in metrics
        assert f'abide_agent_ready{{agent="bot",agent_namespace="{namespace}",reason="Starting"}} 0' in metrics
        assert operator.resident_mib() < 100
        operator.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(3):
            assert await operator.process.wait() == 0
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    reconciled = [line for line in lines if line["event"] == "reconciled"]
    assert len(reconciled) == 1
    assert reconciled[0]["agent"] == f"{namespace}/bot"
    assert "nothing@" not in log.read_text()


async def test_wrong_settings_end_with_a_sentence(tmp_path: Path) -> None:
    log = tmp_path / "log"
    async with process(tmp_path / "none", log, ABIDE_PORT="many") as operator:
        async with asyncio.timeout(20):
            assert await operator.process.wait() == 2
    assert "ABIDE_PORT is 'many': write a whole number from 1 to 65535" in log.read_text()


async def limited_kubeconfig(control_plane: ControlPlane, api: Api, namespace: str, target: Path) -> Path:
    """Return a kubeconfig of a service account that has the documented rights in one namespace and no others."""
    rbac = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}"
    await api.raw("POST", f"/api/v1/namespaces/{namespace}/serviceaccounts", {"metadata": {"name": "operator"}})
    rules = [{"apiGroups": [group], "resources": resources, "verbs": verbs} for group, resources, verbs in RULES]
    await api.raw("POST", f"{rbac}/roles", {"metadata": {"name": "operator"}, "rules": rules})
    binding = {
        "metadata": {"name": "operator"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "operator"},
        "subjects": [{"kind": "ServiceAccount", "name": "operator", "namespace": namespace}],
    }
    await api.raw("POST", f"{rbac}/rolebindings", binding)
    path = f"/api/v1/namespaces/{namespace}/serviceaccounts/operator/token"
    request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
    token = (await api.raw("POST", path, request))["status"]["token"]
    config = yaml.safe_load(control_plane.kubeconfig.read_text())
    for user in config["users"]:
        user["user"] = {"token": token}
    target.write_text(yaml.safe_dump(config))
    return target


async def test_the_documented_rights_are_enough(
    control_plane: ControlPlane, api: Api, namespace: str, runtime: RuntimeHealth, tmp_path: Path
) -> None:
    kubeconfig = await limited_kubeconfig(control_plane, api, namespace, tmp_path / "kubeconfig")
    async with running_operator(
        kubeconfig, namespace, agent_port=runtime.port, namespace=namespace, reference_present_interval=0.5
    ) as operator:
        models = [{"provider": "echo", "apiKeySecretRef": {"name": "llm", "key": "k"}}]
        await api.make_agent(namespace, models=models, revisionHistoryLimit=1, state={"deletionPolicy": "Delete"})
        await api.wait_condition(namespace, "Accepted", "False/SecretMissing")
        await api.make(SECRET, namespace, "llm", data={"k": base64.b64encode(b"v").decode()})
        await api.wait_condition(namespace, "Accepted", "True/Valid")
        await api.set_ready(namespace, await api.the_pod(namespace))
        await api.wait_condition(namespace, "Ready", "True/Serving")
        for number in range(7):
            await api.edit(AGENT, namespace, "bot", {"spec": {"systemPrompt": f"Prompt {number}"}})

            async def seen(generation: int = number + 2) -> bool:
                agent = await api.get(AGENT, namespace, "bot")
                assert agent is not None
                return bool(agent["status"]["observedGeneration"] == generation)

            await eventually(seen)
        await api.edit(DEPLOYMENT, namespace, "agent-bot", {"spec": {"replicas": 3}})
        await operator.sweep()
        for replicas in (2, 1):
            await api.edit(AGENT, namespace, "bot", {"spec": {"replicas": replicas}})

            async def budgeted(replicas: int = replicas) -> bool:
                return (await api.get(DISRUPTION_BUDGET, namespace, "agent-bot") is not None) == (replicas > 1)

            await eventually(budgeted)
        await api.edit(SECRET, namespace, "llm", {"data": {"k": base64.b64encode(b"w").decode()}})

        async def told() -> bool:
            return bool((await operator.settled_writes()).get("patch pods"))

        await eventually(told)
        # Without Postgres the rows are owed.
        await api.drop(AGENT, namespace, "bot")

        async def gone() -> bool:
            return await api.get(AGENT, namespace, "bot") is None

        await eventually(gone)
        assert operator.writes()["create configmaps"] == 1
        assert await api.all(CONFIG_MAP, namespace, "abide.dev/debt=erase")
        forbidden = [
            sample.labels
            for metric in operator.context.metrics.requests.collect()
            for sample in metric.samples
            if sample.labels.get("outcome") == "http_403"
        ]
        assert forbidden == []


async def test_missing_rights_end_the_operator_with_a_sentence(
    control_plane: ControlPlane, api: Api, namespace: str, tmp_path: Path
) -> None:
    elsewhere = f"{namespace}-x"
    await api.make_namespace(elsewhere)
    kubeconfig = await limited_kubeconfig(control_plane, api, namespace, tmp_path / "kubeconfig")
    with pytest.raises(Unusable, match="the operator may list and watch them") as caught:
        async with running_operator(kubeconfig, elsewhere, sync_timeout=2.0):
            pass
    assert f"/api/v1/namespaces/{elsewhere}/pods" in str(caught.value)


async def test_heartbeats_and_errors_in_postgres_show_in_status(
    control_plane: ControlPlane,
    api: Api,
    namespace: str,
    runtime: RuntimeHealth,
    store: PostgresStore,
    postgres_url: str,
) -> None:
    async with running_operator(
        control_plane.kubeconfig, namespace, agent_port=runtime.port, postgres_url=postgres_url, health_interval=0.5,
        counters_interval=3.0,
    ) as operator:  # fmt: skip
        agent = await api.make_agent(namespace)
        pod = await api.the_pod(namespace)
        await api.set_ready(namespace, pod)
        await api.wait_condition(namespace, "Ready", "True/Serving")
        agent_id = UUID(agent["metadata"]["uid"])
        await store.register(agent_id, namespace, "bot", "instance", ttl=60)
        details = {"sessions": {"active": 3}, "model": {"configured": "echo/echo", "answering": "echo/echo"}}
        await store.beat(agent_id, pod, details)

        async def status() -> dict[str, Any]:
            found = await api.get(AGENT, namespace, "bot")
            assert found is not None
            return dict(found["status"])

        async def counted() -> bool:
            return (await status())["sessions"]["active"] == 3

        await eventually(counted)
        assert (await status())["model"]["answering"] == "echo/echo"
        assert (await status())["observedAt"]
        await store.record_error(ErrorRecord(agent_id, "ModelUnavailable", "password=hunter2 was refused"))

        async def told() -> bool:
            return "lastError" in await status()

        # Errors are read every 10 s.
        await eventually(told, timeout=15)
        error = (await status())["lastError"]
        assert error["type"] == "ModelUnavailable"
        assert "hunter2" not in error["message"]
        # The same heartbeats again and again are no reason to write.
        before = await operator.settled_writes()
        readings = operator.context.facts._readings

        async def read_more() -> bool:
            return operator.context.facts._readings >= readings + 4

        await eventually(read_more)
        assert await operator.settled_writes() == before


async def test_agents_are_reconciled_and_deleted_while_postgres_is_away(
    control_plane: ControlPlane, api: Api, namespace: str
) -> None:
    async with running_operator(control_plane.kubeconfig, namespace, postgres_url=NO_POSTGRES) as operator:
        await api.make_agent(namespace)
        await api.the_pod(namespace)
        assert operator.context.facts.failing
        await api.drop(AGENT, namespace, "bot")

        async def forgotten() -> bool:
            return operator.context.cache.agent(AgentKey(namespace, "bot")) is None

        await eventually(forgotten)
        assert await api.get(AGENT, namespace, "bot") is None


async def test_the_schema_is_brought_up_to_date_in_the_background(
    control_plane: ControlPlane, namespace: str, postgres_server: Any
) -> None:
    name = f"empty_{namespace.replace('-', '_')}"
    with psycopg.connect(postgres_server.url, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"'.encode())
    url = in_database(postgres_server.url, name)
    async with running_operator(
        control_plane.kubeconfig, namespace, postgres_url=url, migrate=True, environ={**os.environ}, health_interval=0.5
    ) as operator:

        async def migrated() -> bool:
            return operator.context.migrations.done

        await eventually(migrated, timeout=60)

        async def readable() -> bool:
            return not operator.context.facts.failing

        await eventually(readable)
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT to_regclass('abide.turns') IS NOT NULL").fetchone() == (True,)


async def test_the_database_is_kept_in_order(store: PostgresStore, postgres_url: str) -> None:
    with psycopg.connect(postgres_url, autocommit=True) as connection:

        def newest_partition() -> str:
            query = (
                "SELECT max(inhrelid::regclass::text) FROM pg_inherits "
                "WHERE inhparent = 'abide.agent_metrics'::regclass AND inhrelid::regclass::text NOT LIKE '%default'"
            )
            row = connection.execute(query.encode()).fetchone()
            assert row is not None
            return str(row[0])

        newest = newest_partition()
        connection.execute(f"DROP TABLE {newest}".encode())
        assert newest_partition() != newest
        upkeep = asyncio.create_task(Upkeep(store).run())

        async def made_again() -> bool:
            return newest_partition() == newest

        try:
            await eventually(made_again)
        finally:
            upkeep.cancel()


@pytest.mark.parametrize("path", ["/livez", "/readyz"])
async def test_health_names_its_checks_without_any_cluster(path: str, tmp_path: Path) -> None:
    """Until everything is listed the operator lives and is not ready."""
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(
        yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "x",
                "contexts": [{"name": "x", "context": {"cluster": "x", "user": "x"}}],
                "clusters": [{"name": "x", "cluster": {"server": "http://127.0.0.1:9"}}],
                "users": [{"name": "x", "user": {}}],
            }
        )
    )
    async with process(kubeconfig, tmp_path / "log") as operator:

        async def answered() -> int:
            return (await operator.get(path))[0]

        status = await eventually(answered, timeout=20)
        assert status == (200 if path == "/livez" else 503)
