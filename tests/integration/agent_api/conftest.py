"""A real API server that knows the CRD, and two ways to talk to it: kubectl as users do, HTTP where speed counts."""

import base64
import json
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.cluster.binaries import Binaries
from tests.cluster.controlplane import ControlPlane
from tests.cluster.progress import Progress
from tests.cluster.settings import paths_from_environment

ROOT = Path(__file__).resolve().parents[3]
KUBECTL_TIMEOUT = 60.0
# The OpenAPI documents follow the CRD within a second or two.
PUBLISHED_TIMEOUT = 30.0

Kubectl = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """An API server of this test run, without the CRD."""
    with ControlPlane(tmp_path_factory.mktemp("control-plane")) as plane:
        yield plane


@pytest.fixture(scope="session")
def kubectl(control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Kubectl:
    """Run kubectl against an API server that has the CRD: `kubectl("get", "agents", stdin=…, check=False)`."""
    program = Binaries(paths_from_environment(), Progress()).path("kubectl")
    home = tmp_path_factory.mktemp("kubectl")

    def run(*arguments: str, stdin: str | None = None, check: bool = True) -> "subprocess.CompletedProcess[str]":
        done = subprocess.run(
            [program, f"--kubeconfig={control_plane.kubeconfig}", f"--cache-dir={home}", *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=KUBECTL_TIMEOUT,
            check=False,
            cwd=home,
        )
        assert not check or done.returncode == 0, done.stderr
        return done

    run("apply", "-f", str(ROOT / "crds"))
    run("wait", "--for=condition=Established", "crd/agents.abide.dev", "--timeout=30s")
    deadline = time.monotonic() + PUBLISHED_TIMEOUT
    while run("explain", "agents.abide.dev", check=False).returncode:
        assert time.monotonic() < deadline, "the API server does not publish the schema of the CRD"
        time.sleep(0.2)
    return run


@pytest.fixture(scope="session")
def api(
    kubectl: Kubectl, control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[httpx.Client]:
    """An HTTP client with the administrator's rights, for an API server that has the CRD."""
    config: dict[str, Any] = json.loads(control_plane.kubeconfig.read_text())
    user = config["users"][0]["user"]
    folder = tmp_path_factory.mktemp("client")
    for name in ("certificate", "key"):
        (folder / name).write_bytes(base64.b64decode(user[f"client-{name}-data"]))
    authority = base64.b64decode(config["clusters"][0]["cluster"]["certificate-authority-data"]).decode()
    context = ssl.create_default_context(cadata=authority)
    context.load_cert_chain(folder / "certificate", folder / "key")
    with httpx.Client(base_url=control_plane.url, verify=context, trust_env=False, timeout=30) as client:
        yield client
