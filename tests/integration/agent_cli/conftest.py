"""Folders and running agents for these tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.agent_cli.dev_process import EXAMPLE, Dev, private_folder, running


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
