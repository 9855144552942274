"""The command line and the operator agree: revisions as they are kept, starting, stopping, going back."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from agent_operator.kube.port import AGENT
from tests.cluster.binaries import Binaries
from tests.cluster.controlplane import ControlPlane
from tests.cluster.progress import Progress
from tests.cluster.settings import paths_from_environment
from tests.integration.agent_operator.harness import Api, OperatorThread, eventually

NAME = "bot"


class Cli:
    """`abide` in the namespace of one test."""

    def __init__(self, kubeconfig: Path, namespace: str, home: Path) -> None:
        self._namespace = namespace
        self._environ = {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "KUBECONFIG": str(kubeconfig),
            "KUBECTL": str(Binaries(paths_from_environment(), Progress()).path("kubectl")),
        }

    async def run(self, *arguments: str) -> str:
        """Run a command that must succeed and return what it printed."""
        command = [str(Path(sys.executable).with_name("abide")), *arguments, "-n", self._namespace]

        def call() -> "subprocess.CompletedProcess[str]":
            return subprocess.run(
                command, env=self._environ, capture_output=True, text=True, timeout=120, check=False,
                stdin=subprocess.DEVNULL,
            )  # fmt: skip

        done = await asyncio.to_thread(call)
        assert done.returncode == 0, f"abide {' '.join(arguments)}: {done.stderr}{done.stdout}"
        return done.stdout

    async def ask(self, *arguments: str) -> Any:
        """Return the answer of a reading command."""
        return json.loads(await self.run(*arguments, "-o", "json"))


@pytest.fixture
def cli(control_plane: ControlPlane, namespace: str, tmp_path: Path) -> Cli:
    """The command line for the test's namespace."""
    return Cli(control_plane.kubeconfig, namespace, tmp_path)


async def test_a_change_is_kept_as_a_revision_and_rolled_back(
    api: Api, namespace: str, operator: OperatorThread, cli: Cli
) -> None:
    await api.make_agent(namespace, NAME)
    await api.set_ready(namespace, await api.the_pod(namespace))
    await api.wait_condition(namespace, "Ready", "True/Serving")
    (first,) = (await cli.ask("history", NAME))["items"]
    assert first["current"]
    await api.edit(AGENT, namespace, NAME, {"spec": {"systemPrompt": "Be rude.", "replicas": 2}})

    async def changed() -> list[Any]:
        items = (await cli.ask("history", NAME))["items"]
        return items if len(items) == 2 and items[0]["current"] else []

    items = await eventually(changed, timeout=30, what="a second revision")
    assert items[0]["summary"] == "systemPrompt: Be kind. → Be rude."
    (change,) = (await cli.ask("diff", NAME))["changes"]
    assert change == {"path": "spec.systemPrompt", "from": "Be kind.", "to": "Be rude."}
    assert "Be rude." in await cli.run("rollback", NAME, "--yes")

    async def back() -> bool:
        found = (await cli.ask("history", NAME))["items"]
        return bool(found[0]["current"]) and found[0]["revision"] == first["revision"]

    await eventually(back, timeout=30, what="the first revision is the newest again")
    agent = await api.get(AGENT, namespace, NAME)
    assert agent is not None
    assert (agent["spec"]["systemPrompt"], agent["spec"]["replicas"]) == ("Be kind.", 2)
    assert (await cli.ask("diff", NAME))["from"]["revision"] == items[0]["revision"]


async def test_stop_and_start_wait_for_what_the_operator_says(
    api: Api, namespace: str, operator: OperatorThread, cli: Cli
) -> None:
    await api.make_agent(namespace, NAME, suspend=True)
    await api.wait_condition(namespace, "Suspended", "True/Suspended")
    assert "no pods are left after" in await cli.run("stop", NAME, "--wait")
    starting = asyncio.create_task(cli.run("start", NAME, "--wait"))
    await api.set_ready(namespace, await api.the_pod(namespace, timeout=30))
    assert "Ready=True Serving after" in await starting
    told = await cli.ask("status", NAME)
    assert (told["ready"], told["reason"]) == ("True", "Serving")
