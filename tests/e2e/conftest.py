"""Fixtures of the end-to-end tests: the running cluster, a namespace of one's own, agents and clients.

`make up` is run first (seconds when everything is there already), so that the tests work from nothing.
"""

import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.kube import Kube

ROOT = Path(__file__).parents[2]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark everything here as e2e and leave the test that reinstalls the chart for the end."""
    here = [item for item in items if Path(item.path).is_relative_to(ROOT / "tests" / "e2e")]
    for item in here:
        item.add_marker(pytest.mark.e2e)
        item.add_marker(pytest.mark.timeout(600))


@pytest.fixture(scope="session")
def kube() -> Kube:
    """The cluster with Abide installed and the example agent serving."""
    subprocess.run([sys.executable, "tools/up.py", "up"], cwd=ROOT, check=True, timeout=1800)

    def tool(*arguments: str) -> str:
        command = [sys.executable, "-m", "tests.cluster", *arguments]
        return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=600).stdout.strip()

    return Kube(
        kubectl=tool("tool", "kubectl"), helm=tool("tool", "helm"), kubeconfig=tool("kubeconfig").splitlines()[-1]
    )


@pytest.fixture
def namespace(kube: Kube) -> Iterator[str]:
    """A namespace that enforces the restricted Pod Security level, deleted afterwards without waiting."""
    name = f"e2e-{uuid.uuid4().hex[:8]}"
    kube.run("create", "namespace", name)
    kube.run("label", "namespace", name, "pod-security.kubernetes.io/enforce=restricted")
    yield name
    kube.run("delete", "namespace", name, "--wait=false")
