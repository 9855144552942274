"""One control plane for all tests of the operator; each test has its own namespace."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from tests.cluster.controlplane import ControlPlane
from tests.integration.agent_operator.harness import Api, OperatorThread, RuntimeHealth, eventually, running_operator

CRD = Path(__file__).resolve().parents[3] / "crds" / "abide.dev_agents.yaml"


@pytest.fixture(scope="session")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """An API server with the CRD and the controllers: Deployments make pods, quotas hold, garbage is collected."""
    import asyncio

    import yaml

    async def install_crd(kubeconfig: Path) -> None:
        api = await Api.connect(kubeconfig)
        try:
            path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
            await api.raw("POST", path, yaml.safe_load(CRD.read_text()))

            async def served() -> bool:
                crd = await api.raw("GET", f"{path}/agents.abide.dev")
                conditions = {one["type"]: one["status"] for one in crd.get("status", {}).get("conditions") or ()}
                return conditions.get("Established") == "True"

            await eventually(served, timeout=30, what="the CRD to be served")
        finally:
            await api.aclose()

    with ControlPlane(tmp_path_factory.mktemp("control-plane"), controllers=True) as plane:
        asyncio.run(install_crd(plane.kubeconfig))
        yield plane


@pytest.fixture
async def api(control_plane: ControlPlane) -> AsyncIterator[Api]:
    """The API server with all rights."""
    api = await Api.connect(control_plane.kubeconfig)
    yield api
    await api.aclose()


@pytest.fixture
async def namespace(api: Api) -> str:
    """A fresh namespace."""
    name = f"t-{uuid4().hex[:8]}"
    await api.make_namespace(name)
    return name


@pytest.fixture
async def runtime() -> AsyncIterator[RuntimeHealth]:
    """The health endpoint of the pods that tests report as running."""
    async with RuntimeHealth().running() as runtime:
        yield runtime


@pytest.fixture
async def operator(
    control_plane: ControlPlane, namespace: str, runtime: RuntimeHealth
) -> AsyncIterator[OperatorThread]:
    """An operator that watches the test's namespace, without Postgres."""
    async with running_operator(control_plane.kubeconfig, namespace, agent_port=runtime.port) as operator:
        yield operator
