"""Folders and running agents for these tests."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest

from tests.cluster.binaries import Binaries
from tests.cluster.controlplane import ControlPlane
from tests.cluster.progress import Progress
from tests.cluster.settings import paths_from_environment
from tests.integration.agent_cli.cluster import World
from tests.integration.agent_cli.dev_process import EXAMPLE, Dev, private_folder, running, until

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def home() -> Iterator[Path]:
    """A fresh folder, removed afterwards."""
    with private_folder() as folder:
        yield folder


@pytest.fixture(scope="module")
def assistant() -> Iterator[Dev]:
    """`abide dev examples/assistant.yaml`, shared by tests that only talk to it."""
    with private_folder() as folder, running(folder, EXAMPLE, "--port", "0") as dev:
        yield dev


@pytest.fixture(scope="session")
def api_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """An API server with the CRD; nothing runs pods there, and no operator."""
    program = Binaries(paths_from_environment(), Progress()).path("kubectl")
    home = tmp_path_factory.mktemp("home")
    with ControlPlane(tmp_path_factory.mktemp("control-plane")) as plane:
        world = World(str(program), plane.kubeconfig, home)
        world.kubectl("apply", "-f", str(ROOT / "crds"))
        world.kubectl("wait", "--for=condition=Established", "crd/agents.abide.dev", "--timeout=30s")
        until(lambda: bool(world.kubectl("explain", "agents.abide.dev", check=False)), 30, "the schema is published")
        yield world


@pytest.fixture
def world(api_server: World) -> World:
    """A fresh namespace there."""
    name = f"t-{uuid4().hex[:8]}"
    api_server.kubectl("create", "namespace", name)
    return replace(api_server, namespace=name)
