"""Encryption keys from the installation's root key to a runtime's rows, on a real API server, Postgres and runtime."""

import base64
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
import yaml

from agent_operator.kube.port import DEPLOYMENT, SECRET, resource_path
from agent_store.codec_aes import new_key
from agent_store.codec_keys import derive_wrapping_key, format_key
from tests.cluster.controlplane import ControlPlane
from tests.faults.driver import free_port
from tests.integration.agent_operator.harness import Api, eventually, running_operator
from tests.integration.agent_operator.realpod import real_pod

REPOSITORY = Path(__file__).resolve().parents[3]
SECRET_NAME = "agent-bot-encryption"
TABLES = ("agents", "agent_keys", "sessions", "turns", "messages", "agent_states")


def rows(url: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url) as connection:
        return [
            (table, *row)
            for table in TABLES
            for row in connection.execute(f"SELECT * FROM abide.{table} ORDER BY 1, 2, 3").fetchall()  # type: ignore[call-overload]
        ]


async def secret_data(api: Api, namespace: str) -> dict[str, str]:
    found = await api.get(SECRET, namespace, SECRET_NAME)
    return {name: base64.b64decode(value).decode() for name, value in ((found or {}).get("data") or {}).items()}


async def test_a_wrong_root_key_stops_an_agent_with_words_and_the_right_one_heals_it(
    api: Api, namespace: str, control_plane: ControlPlane, postgres_url: str, tmp_path: Path
) -> None:
    root, port, right = tmp_path / "root", free_port(), new_key()
    root.mkdir()
    (root / "1").write_text(format_key(right))
    async with running_operator(
        control_plane.kubeconfig, namespace, postgres_url=postgres_url, agent_port=port, encryption_root_dir=root
    ) as operator:
        agent = await api.make_agent(namespace)
        await api.the_pod(namespace)
        expected = format_key(derive_wrapping_key(right, agent["metadata"]["uid"]))
        assert await secret_data(api, namespace) == {"1": expected, "current": "1"}
        folder = tmp_path / "pod"
        folder.mkdir()

        async with real_pod(api, namespace, folder, postgres_url=postgres_url, port=port) as pod:
            await api.wait_condition(namespace, "Ready", "True/Serving", timeout=30)
            answer = await pod.say("the parcel number is 4711")
            assert "4711" in answer["reply"]["content"]
        kept = rows(postgres_url)
        assert "4711" not in repr(kept)
        assert "agent_keys" in {row[0] for row in kept}

        (root / "1").write_text(format_key(new_key()))
        await operator.sweep()
        assert (await secret_data(api, namespace))["1"] != expected
        async with real_pod(api, namespace, folder, postgres_url=postgres_url, port=port):
            await api.wait_condition(namespace, "Ready", "False/EncryptionKeyMismatch", timeout=30)
            await api.wait_condition(namespace, "StateStoreReady", "False/EncryptionKeyMismatch")
            message = await api.message(namespace)
            assert f'key "1" of Secret {namespace}/{SECRET_NAME} is not the one' in message
            assert rows(postgres_url) == kept, "nothing is written"

        (root / "1").write_text(format_key(right))
        (root / "2").write_text(format_key(new_key()))
        await operator.sweep()
        found = await secret_data(api, namespace)
        assert (found["1"], found["current"]) == (expected, "2")
        async with real_pod(api, namespace, folder, postgres_url=postgres_url, port=port) as pod:
            await api.wait_condition(namespace, "Ready", "True/Serving", timeout=30)
            assert "[2]" in (await pod.say("which number was it?"))["reply"]["content"], "it has read what was before"


async def test_without_a_root_key_nothing_changes_for_agents(
    api: Api, namespace: str, control_plane: ControlPlane
) -> None:
    async with running_operator(control_plane.kubeconfig, namespace):
        await api.make_agent(namespace)
        await api.the_pod(namespace)
        assert await api.get(SECRET, namespace, SECRET_NAME) is None
        deployment = await api.get(DEPLOYMENT, namespace, "agent-bot")
        assert deployment is not None
        assert "encryption" not in repr(deployment["spec"])


async def test_an_upgrade_of_an_installation_gives_its_agents_keys(
    api: Api, namespace: str, control_plane: ControlPlane, tmp_path: Path
) -> None:
    async with running_operator(control_plane.kubeconfig, namespace):
        await api.make_agent(namespace)
        await api.the_pod(namespace)
        before = await api.revision(namespace)
    (tmp_path / "1").write_text(format_key(new_key()))
    async with running_operator(control_plane.kubeconfig, namespace, encryption_root_dir=tmp_path):

        async def rolled() -> bool:
            return await api.revision(namespace) != before

        await eventually(rolled, timeout=15, what="the agent to be rolled out with keys")
        deployment = await api.get(DEPLOYMENT, namespace, "agent-bot")
        assert deployment is not None
        assert SECRET_NAME in repr(deployment["spec"])
        assert set(await secret_data(api, namespace)) == {"1", "current"}


async def test_the_chart_keeps_the_root_keys_that_are_there(
    api: Api, namespace: str, control_plane: ControlPlane
) -> None:
    command = [sys.executable, "-m", "tests.cluster", "tool", "helm"]
    done = subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True, timeout=600)
    data = {"1": base64.b64encode(b"one").decode(), "2026-11": base64.b64encode(b"two").decode()}
    metadata = {
        "name": "abide-encryption",
        "labels": {"app.kubernetes.io/managed-by": "Helm"},
        "annotations": {"meta.helm.sh/release-name": "abide", "meta.helm.sh/release-namespace": namespace},
    }
    body = {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": data}
    await api.raw("POST", resource_path(SECRET, namespace), body)
    rendered = subprocess.run(
        [
            done.stdout.strip(), "template", "abide", str(REPOSITORY / "helm" / "abide"), "-n", namespace,
            "--dry-run=server", "--kubeconfig", str(control_plane.kubeconfig), "--set", "crds.install=false",
        ],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert rendered.returncode == 0, rendered.stderr
    objects = [one for one in yaml.safe_load_all(rendered.stdout) if one]
    (secret,) = [one for one in objects if one["metadata"]["name"] == "abide-encryption"]
    assert secret["data"] == data
