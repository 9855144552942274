"""Statements stay cheap on tables that Postgres has not analyzed yet, with plans made when they were empty."""

import asyncio
from uuid import uuid4

import psycopg

from agent_api.wire import TurnStatus
from agent_store.embedded.processes import wait_until
from agent_store.ids import new_id
from agent_store.ports import NewMessage, NewTurn, Outcome, Owner, SessionKey
from agent_store.postgres.store import PostgresStore
from agent_store.settings import StoreSettings

SESSIONS = 20
TURNS = 10
DONE = Outcome(TurnStatus.COMPLETED, [NewMessage("assistant", "reply")], "echo/echo", 1)


async def talk(store: PostgresStore, key: SessionKey, owner: Owner) -> None:
    """Run TURNS turns in one session."""
    for _ in range(TURNS):
        accepted = await store.accept(NewTurn(new_id(), key, "hello", None, b"", 20, "r"), owner)
        assert accepted.claim is not None
        await store.complete(accepted.claim, owner, DONE)


def test_a_turn_reads_its_own_rows_only(postgres_url: str) -> None:
    agent = uuid4()

    async def run() -> None:
        store = PostgresStore(postgres_url, StoreSettings(acquire_timeout=120, command_timeout=60))
        owner = await store.register(agent, "default", "plans", "p", ttl=600)
        await asyncio.gather(*(talk(store, SessionKey(agent, "u", f"s{n}"), owner) for n in range(SESSIONS)))
        await store.aclose()

    asyncio.run(run())
    turns = SESSIONS * TURNS

    def read(table: str) -> tuple[int, int]:
        query = "SELECT n_tup_upd, idx_tup_fetch FROM pg_stat_user_tables WHERE schemaname = 'abide' AND relname = %s"
        with psycopg.connect(postgres_url) as connection:
            row = connection.execute(query, [table]).fetchone()
        assert row is not None
        return int(row[0]), int(row[1] or 0)

    # A server process tells its counts when it ends.
    assert wait_until(lambda: read("turns")[0] == turns, 30)
    assert read("turns")[1] <= 2 * turns
    assert read("sessions")[1] <= 3 * turns
    assert read("active_turns")[1] <= 2 * turns
