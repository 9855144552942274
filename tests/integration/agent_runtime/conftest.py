"""Fixtures of the runtime's integration tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.provider import KEY, ModelProvider
from tests.integration.agent_runtime.harness import Database, free_port


@pytest.fixture
def database(postgres_url: str) -> Database:
    """The test's database, seen from outside."""
    return Database(postgres_url)


@pytest.fixture(scope="session")
def provider_process() -> Iterator[ModelProvider]:
    """A model provider of this test run."""
    with ModelProvider() as provider:
        yield provider


@pytest.fixture
def provider(provider_process: ModelProvider) -> ModelProvider:
    """A model provider that is as new."""
    provider_process.reset()
    return provider_process


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    """A folder of mounted Secrets with the provider's key at llm/key."""
    folder = tmp_path / "secrets"
    (folder / "llm").mkdir(parents=True)
    (folder / "llm" / "key").write_text(f"{KEY}\n")
    return folder


@pytest.fixture
def unused_port() -> int:
    """A loopback port nothing listens on."""
    return free_port()
