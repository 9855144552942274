"""What others read and call with plain SQL: fixed columns, views, functions, partitions."""

from datetime import UTC, datetime, timedelta
from uuid import uuid4

import asyncpg
import pytest

from agent_store.postgres.store import PostgresStore
from tests.contract.agent_store.scene import Scene

FIXED_COLUMNS = {
    "sessions": {"id", "agent_id", "user_id", "name", "created_at"},
    "turns": {"id", "session_id", "turn_seq", "status", "attempts", "model", "created_at", "finished_at"},
    "messages": {"session_id", "seq", "turn_id", "role", "created_at"},
    "agent_states": {"agent_id", "session_id", "version", "updated_at"},
    "agent_metrics": {"agent_id", "metric_type", "value", "metadata", "recorded_at"},
    "agent_errors": {"agent_id", "error_type", "message", "stack_trace", "context", "occurred_at"},
    "agent_heartbeats": {"agent_id", "pod", "at"},
}


@pytest.fixture
async def sql(postgres_url: str):
    connection = await asyncpg.connect(postgres_url)
    yield connection
    await connection.close()


@pytest.mark.parametrize("table", FIXED_COLUMNS)
async def test_columns_that_others_read_exist(sql: asyncpg.Connection, table: str) -> None:
    rows = await sql.fetch(
        "SELECT column_name FROM information_schema.columns WHERE table_schema = 'abide' AND table_name = $1", table
    )
    assert {row["column_name"] for row in rows} >= FIXED_COLUMNS[table]


async def test_every_key_starts_with_the_agent(sql: asyncpg.Connection) -> None:
    rows = await sql.fetch("""
        SELECT c.relname,
            (SELECT attname FROM pg_attribute WHERE attrelid = i.indrelid AND attnum = i.indkey[0]) AS first
        FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_class t ON t.oid = i.indrelid
        WHERE t.relnamespace = 'abide'::regnamespace AND t.relname NOT IN ('agents', 'schema_version')
    """)
    assert len(rows) > 10
    assert [row["relname"] for row in rows if row["first"] != "agent_id"] == []


async def test_completing_a_turn_touches_no_index(sql: asyncpg.Connection, store: PostgresStore) -> None:
    scene = Scene(store)
    owner = await scene.start()
    for number in range(20):
        claim = await scene.claim(owner, f"{number}")
        await scene.finish(owner, claim)
    await store.aclose()  # its backends report their counters at the end
    counts = {}
    for _ in range(200):
        rows = await sql.fetch(
            "SELECT relname, n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname IN ('sessions', 'turns')"
        )
        counts = {row["relname"]: (row["n_tup_upd"], row["n_tup_hot_upd"]) for row in rows}
        if counts["sessions"][0] >= 39:
            break
        await sql.execute("SELECT pg_sleep(0.05)")
    assert counts == {"sessions": (39, 39), "turns": (20, 20)}


async def test_views(sql: asyncpg.Connection, store: PostgresStore) -> None:
    scene = Scene(store)
    owner = await scene.start()
    await store.beat(scene.agent, "pod-1", {})
    await scene.finish(owner, await scene.claim(owner, "one"))
    await scene.say(owner, "two")
    await scene.say(owner, "three")
    await sql.execute("SELECT abide.record_error($1::uuid, 'Odd', 'something')", scene.agent)
    await sql.execute("UPDATE abide.agent_heartbeats SET at = at - interval '1 hour' WHERE pod = 'pod-0'")
    (active,) = await sql.fetch("SELECT * FROM abide.active_agents")
    assert (active["agent_id"], active["namespace"], active["name"], active["pods"]) == (
        scene.agent,
        "default",
        "assistant",
        1,
    )
    (counts,) = await sql.fetch("SELECT * FROM abide.messages_per_agent")
    assert (counts["sessions"], counts["messages"], counts["user_messages"]) == (1, 3, 3)
    (error,) = await sql.fetch("SELECT * FROM abide.recent_errors")
    assert (error["namespace"], error["name"], error["error_type"], error["message"]) == (
        "default",
        "assistant",
        "Odd",
        "something",
    )


async def test_functions_take_the_agent_by_id_or_by_name(sql: asyncpg.Connection, store: PostgresStore) -> None:
    scene = Scene(store)
    await scene.start()
    await sql.execute("SELECT abide.record_metric('default/assistant', 'jobs', 2, '{\"kind\": \"a\"}')")
    await sql.execute(f"SELECT abide.record_metric('{scene.agent}', 'jobs', 3)")
    await sql.execute("SELECT abide.record_metric($1::uuid, 'jobs', 4)", scene.agent)
    await sql.execute("SELECT abide.record_error('default/assistant', 'Odd', 'what', 'where', '{\"n\": 1}')")
    rows = await sql.fetch("SELECT agent_id, value FROM abide.agent_metrics ORDER BY value")
    assert [(row["agent_id"], row["value"]) for row in rows] == [(scene.agent, value) for value in (2.0, 3.0, 4.0)]
    error = (await store.last_errors())[scene.agent]
    assert (error.error_type, error.message, error.stack_trace, error.context) == ("Odd", "what", "where", {"n": 1})
    with pytest.raises(asyncpg.RaiseError, match="there is no agent 'default/nobody'"):
        await sql.execute("SELECT abide.record_metric('default/nobody', 'jobs', 2)")


async def test_functions_take_null_for_what_is_left_out(sql: asyncpg.Connection, store: PostgresStore) -> None:
    scene = Scene(store)
    await scene.start()
    await sql.execute("SELECT abide.record_metric('default/assistant', 'jobs', 2, NULL)")
    await sql.execute("SELECT abide.record_error('default/assistant', 'Odd', 'what', NULL, NULL)")
    assert await sql.fetchval("SELECT metadata::text FROM abide.agent_metrics") == "{}"
    error = (await store.last_errors())[scene.agent]
    assert (error.stack_trace, error.context) == ("", {})


async def partitions(sql: asyncpg.Connection, table: str) -> list[str]:
    rows = await sql.fetch(
        "SELECT inhrelid::regclass::text AS name FROM pg_inherits WHERE inhparent = $1::text::regclass ORDER BY 1",
        f"abide.{table}",
    )
    return [row["name"] for row in rows]


async def test_time_series_have_partitions_for_the_coming_weeks(sql: asyncpg.Connection) -> None:
    for table in ("agent_metrics", "agent_errors", "system_events"):
        found = await partitions(sql, table)
        assert len(found) == 6  # five weeks and the default one
    await sql.execute("SELECT abide.record_metric($1::uuid, 'now', 1)", uuid4())
    for weeks in (1, 2, 3):
        await sql.execute(
            "INSERT INTO abide.agent_metrics (agent_id, metric_type, value, recorded_at) "
            "VALUES ($1, 'later', 1, now() + $2 * interval '7 days')",
            uuid4(),
            weeks,
        )
    assert await sql.fetchval("SELECT count(*) FROM abide.agent_metrics_default") == 0


async def test_rows_that_came_before_their_partition_are_moved_into_it(sql: asyncpg.Connection) -> None:
    late = datetime.now(UTC) + timedelta(weeks=8)
    insert = "INSERT INTO abide.agent_errors (agent_id, error_type, message, occurred_at) VALUES ($1, 'e', 'm', $2)"
    await sql.execute(insert, uuid4(), late)
    assert await sql.fetchval("SELECT count(*) FROM abide.agent_errors_default") == 1
    await sql.execute("SELECT abide.ensure_partitions(9)")
    assert await sql.fetchval("SELECT count(*) FROM abide.agent_errors_default") == 0
    assert await sql.fetchval("SELECT count(*) FROM abide.agent_errors") == 1


async def test_upkeep_drops_what_is_old_and_keeps_the_rest(sql: asyncpg.Connection, store: PostgresStore) -> None:
    scene = Scene(store)
    owner = await scene.start()
    insert = "INSERT INTO abide.agent_metrics (agent_id, metric_type, value, recorded_at) VALUES ($1, 'm', $2, $3)"
    now = datetime.now(UTC)
    old = now - timedelta(days=60)
    monday = (old - timedelta(days=old.weekday())).replace(hour=0, minute=0, second=0, microsecond=0)
    await sql.execute(f"""
        CREATE TABLE abide.agent_metrics_{monday:%Y%m%d} PARTITION OF abide.agent_metrics
        FOR VALUES FROM ('{monday.isoformat()}') TO ('{(monday + timedelta(days=7)).isoformat()}')
    """)
    await sql.execute(insert, scene.agent, 1.0, old)
    await sql.execute(insert, scene.agent, 2.0, now - timedelta(days=45))  # in the default partition
    await sql.execute(insert, scene.agent, 3.0, now)
    for instance, expires in (("dead", "-infinity"), ("holding", "-infinity")):
        await sql.execute(
            "INSERT INTO abide.runtime_instances (agent_id, instance, epoch, expires_at) "
            "VALUES ($1, $2, 0, $3::text::timestamptz)",
            scene.agent,
            instance,
            expires,
        )
    await sql.execute(
        "INSERT INTO abide.active_turns (agent_id, session_id, turn_id, epoch, instance) "
        "VALUES ($1, $2, $3, 0, 'holding')",
        scene.agent,
        uuid4(),
        uuid4(),
    )
    await sql.execute(
        "INSERT INTO abide.agent_heartbeats VALUES ($1, 'old', now() - interval '2 days'), ($1, 'new', now())",
        scene.agent,
    )
    await store.maintain()
    await store.maintain()
    assert [row["value"] for row in await sql.fetch("SELECT value FROM abide.agent_metrics")] == [3.0]
    assert f"abide.agent_metrics_{monday:%Y%m%d}" not in await partitions(sql, "agent_metrics")
    assert len(await partitions(sql, "agent_metrics")) == 6
    instances = await sql.fetch("SELECT instance FROM abide.runtime_instances ORDER BY 1")
    assert [row["instance"] for row in instances] == ["holding", "pod-1"]
    assert [beat.pod for beat in await store.heartbeats()] == ["new"]
    await store.renew(scene.agent, owner, ttl=8.0)
