"""Fixtures of the runtime's integration tests."""

import pytest

from tests.integration.agent_runtime.harness import Database


@pytest.fixture
def database(postgres_url: str) -> Database:
    """The test's database, seen from outside."""
    return Database(postgres_url)
