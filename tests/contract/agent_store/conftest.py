"""The store under contract: the real one, on a fresh database for each test, with keys: what it keeps is encrypted."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agent_store.codec_aes import new_key
from agent_store.codec_keys import format_key
from agent_store.ports import Owner, Store
from agent_store.postgres.store import PostgresStore
from agent_store.settings import KeySettings
from tests.contract.agent_store.scene import Scene


@pytest.fixture
async def store(postgres_url: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[PostgresStore]:
    """A store on a fresh database."""
    keys: Path = tmp_path_factory.mktemp("keys")
    (keys / "1").write_text(format_key(new_key()))
    store = PostgresStore(postgres_url, keys=KeySettings(keys))
    yield store
    await store.aclose()


@pytest.fixture
def scene(store: Store) -> Scene:
    """An agent in a fresh store."""
    return Scene(store)


@pytest.fixture
async def owner(scene: Scene) -> Owner:
    """A live process of the agent."""
    return await scene.start()
