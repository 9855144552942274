"""The oldest Postgres that is supported takes the whole schema and the life of a turn."""

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from agent_store.embedded import EmbeddedPostgres
from agent_store.migrate import migrate
from agent_store.postgres.store import PostgresStore
from tests.contract.agent_store.scene import Scene


@pytest.fixture
def oldest_url(tmp_path: Path) -> Iterator[str]:
    """The URL of a migrated Postgres 16."""
    with EmbeddedPostgres(tmp_path / "data", version=16) as server:
        migrate(server.url)
        yield server.url


async def test_turns_live_their_life_on_postgres_16(oldest_url: str) -> None:
    with psycopg.connect(oldest_url) as connection:
        assert connection.info.server_version // 10000 == 16
    store = PostgresStore(oldest_url)
    await store.check()
    scene = Scene(store)
    owner = await scene.start()
    claim = await scene.claim(owner, "one")
    second = await scene.say(owner, "two", idempotency_key="k")
    assert (await scene.say(owner, "two", idempotency_key="k")).turn == second.turn
    await scene.say(owner, "three")
    assert (await scene.finish(owner, claim, "re one")).waiting
    successor = await scene.start("pod-2")
    following = await store.start_next(scene.agent, claim.session_id, owner)
    assert following is not None
    await store.release(scene.agent, owner)
    (taken,) = await store.claim_orphans(scene.agent, successor, limit=5)
    assert (taken.turn_id, taken.attempts) == (second.turn.id, 2)
    await scene.finish(successor, taken, "re two")
    await store.save_state(scene.agent, claim.session_id, {"n": 1})
    (third,) = await store.claim_orphans(scene.agent, successor, limit=5)
    await scene.finish(successor, third, "re three")
    history = await store.load_history(claim.session_id, scene.agent, before_turn_seq=3, limit=2)
    assert [message.content for message in history] == ["two", "re two"]
    await store.beat(scene.agent, "pod-2", {})
    await store.maintain()
    assert await store.last_errors() == {}
    assert await store.delete_session(scene.key())
    await store.aclose()
