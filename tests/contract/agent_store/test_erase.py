"""Erasing an agent: everything of it goes, nothing of others, and no process brings it back."""

from uuid import uuid4

import asyncpg
import pytest
from psycopg import sql

from agent_store.errors import LeaseLost, StoreUnavailable
from agent_store.ports import ErrorRecord, Metric, Owner, Store
from agent_store.postgres.store import PostgresStore
from tests.conftest import execute
from tests.contract.agent_store.scene import Scene, completed

KEPT = {"system_events", "erased_agents"}


OTHER_ROWS = """
INSERT INTO abide.steps (agent_id, session_id, turn_id, step_index, token, kind, name, status)
    SELECT agent_id, session_id, id, 0, 1, 'tool', 'x', 'started' FROM abide.turns;
INSERT INTO abide.approvals (agent_id, session_id, turn_id, expires_at, call_id, tool, on_timeout, arguments)
    SELECT agent_id, session_id, id, now(), 'c', 'x', 'Reject', '' FROM abide.turns;
INSERT INTO abide.turn_feedback (agent_id, session_id, turn_id, score, revision)
    SELECT agent_id, session_id, id, 1, 'r' FROM abide.turns;
INSERT INTO abide.memories (agent_id, id, importance, type, content)
    SELECT id, gen_random_uuid(), 5, 'general', 'x' FROM abide.agents;
INSERT INTO abide.budget_usage (agent_id, day, scope) SELECT id, now(), 'agent' FROM abide.agents;
INSERT INTO abide.budget_slices (agent_id, day, scope, instance, epoch, serial, tokens, micros)
    SELECT id, now(), 'agent', 'pod-1', 1, 1, 1, 1 FROM abide.agents;
INSERT INTO abide.agent_keys (agent_id, key_id, wrapping_key_id, wrapped) SELECT id, 'k', '1', '' FROM abide.agents;
"""
"""Rows of the tables that fill() leaves empty."""


async def rows_by_table(postgres_url: str, agent: object) -> dict[str, int]:
    """Return how many rows each table holds of an agent."""
    connection = await asyncpg.connect(postgres_url)
    try:
        tables = await connection.fetch(
            "SELECT c.relname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'agent_id' "
            "WHERE c.relnamespace = 'abide'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition"
        )
        counts = {
            table: await connection.fetchval(f'SELECT count(*) FROM abide."{table}" WHERE agent_id = $1', agent)
            for (table,) in tables
        }
        counts["agents"] = await connection.fetchval("SELECT count(*) FROM abide.agents WHERE id = $1", agent)
        return counts
    finally:
        await connection.close()


async def fill(scene: Scene, *, sessions: int = 3) -> Owner:
    """Leave something of the agent in every table, a running turn and a queued one among it."""
    owner = await scene.start()
    for number in range(sessions):
        claim = await scene.claim(owner, f"hello {number}", session=f"s{number}")
        await scene.finish(owner, claim)
        await scene.store.save_state(scene.agent, claim.session_id, {"version": 1})
    await scene.claim(owner, "runs", session="busy")
    await scene.say(owner, "waits", session="busy")
    await scene.store.beat(scene.agent, "pod-1", {})
    await scene.store.record_metrics([Metric(scene.agent, "message_received", 1.0)])
    await scene.store.record_error(ErrorRecord(scene.agent, "Odd", "something"))
    await scene.store.record_event(scene.agent, "Restarted", "pod replaced", {})
    return owner


async def erase(store: Store, agent: object, *, calls: int = 100) -> int:
    """Erase until done; return the number of calls."""
    for number in range(1, calls + 1):
        if await store.erase_agent(agent):  # type: ignore[arg-type]
            return number
    raise AssertionError(f"not done after {calls} calls")


async def test_everything_goes_but_the_audit_trail_and_other_agents(scene: Scene, postgres_url: str) -> None:
    other = Scene(scene.store)
    await fill(scene)
    await fill(other)
    connection = await asyncpg.connect(postgres_url)
    await connection.execute(OTHER_ROWS)
    await connection.close()
    before = await rows_by_table(postgres_url, other.agent)
    full = await rows_by_table(postgres_url, scene.agent)
    assert [table for table, rows in full.items() if not rows and table not in KEPT] == []
    await erase(scene.store, scene.agent)
    left = await rows_by_table(postgres_url, scene.agent)
    assert {table: rows for table, rows in left.items() if rows} == {"system_events": 1, "erased_agents": 1}
    assert await rows_by_table(postgres_url, other.agent) == before
    assert await scene.store.find_agent(scene.agent) is None
    assert await scene.store.erase_agent(scene.agent) is True


async def test_each_call_deletes_a_bounded_number_of_rows(store: PostgresStore, postgres_url: str) -> None:
    scene = Scene(store)
    await fill(scene, sessions=10)
    total = sum(rows for table, rows in (await rows_by_table(postgres_url, scene.agent)).items() if table not in KEPT)
    assert await store.erase_agent(scene.agent, batch=5) is False
    left = sum(rows for table, rows in (await rows_by_table(postgres_url, scene.agent)).items() if table not in KEPT)
    assert total - 5 <= left < total
    calls = 1
    while not await store.erase_agent(scene.agent, batch=5):
        calls += 1
        assert calls < 100
    left = sum(rows for table, rows in (await rows_by_table(postgres_url, scene.agent)).items() if table not in KEPT)
    assert left == 0
    assert calls >= total // 10


async def test_a_living_process_is_fenced_out_for_good(scene: Scene, owner: Owner) -> None:
    claim = await scene.claim(owner, "runs")
    await scene.store.erase_agent(scene.agent)
    with pytest.raises(LeaseLost):
        await scene.store.complete(claim, owner, completed("too late"))
    with pytest.raises(LeaseLost):
        await scene.say(owner, "more")
    with pytest.raises(LeaseLost):
        await scene.store.renew(scene.agent, owner, ttl=30)
    with pytest.raises(StoreUnavailable, match="was erased for good"):
        await scene.start("pod-2")
    await erase(scene.store, scene.agent)
    assert await scene.store.find_agent(scene.agent) is None
    assert await scene.history() == []


async def test_what_a_survivor_wrote_goes_with_the_next_upkeep(store: PostgresStore, postgres_url: str) -> None:
    scene = Scene(store)
    await fill(scene)
    await erase(store, scene.agent)
    await store.record_error(ErrorRecord(scene.agent, "Late", "written by a process that did not know"))
    await store.beat(scene.agent, "pod-1", {})
    await store.maintain()
    left = await rows_by_table(postgres_url, scene.agent)
    assert {table: rows for table, rows in left.items() if rows} == {"system_events": 1, "erased_agents": 1}


async def test_a_tombstone_is_forgotten_when_no_process_can_remember_the_agent(
    store: PostgresStore, postgres_url: str
) -> None:
    scene = Scene(store)
    await erase(store, scene.agent)
    for days, left in ((89, 1), (91, 0)):
        statement = "UPDATE abide.erased_agents SET erased_at = now() - {} * interval '1 day'"
        execute(postgres_url, sql.SQL(statement).format(sql.Literal(days)))
        await store.maintain()
        assert (await rows_by_table(postgres_url, scene.agent))["erased_agents"] == left


async def test_an_agent_is_found_by_its_id(scene: Scene, owner: Owner) -> None:
    found = await scene.store.find_agent(scene.agent)
    assert found is not None
    assert (found.id, found.namespace, found.name) == (scene.agent, "default", "assistant")
    assert found.created_at.tzinfo is not None
    assert await scene.store.find_agent(uuid4()) is None


async def test_erasing_what_never_was_is_done_at_once(scene: Scene) -> None:
    assert await scene.store.erase_agent(uuid4()) is True
