"""The store under contract: the real one, on a fresh database for each test."""

import pytest

from agent_store.ports import Owner, Store
from tests.contract.agent_store.scene import Scene


@pytest.fixture
def scene(store: Store) -> Scene:
    """An agent in a fresh store."""
    return Scene(store)


@pytest.fixture
async def owner(scene: Scene) -> Owner:
    """A live process of the agent."""
    return await scene.start()
