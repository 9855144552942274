"""Turns per second of the store alone, beside pgbench doing the same writes, and the bytes a turn takes on disk.

    python benchmarks/store_turns.py [--seconds 10] [--sessions 32] [--connections 5]

A turn is accept + complete with 200 bytes in and 400 out, in process, on an embedded Postgres with fsync on. Both share
the machine with Postgres, and run one after the other, so that their ratio is worth more than either figure.
"""

import argparse
import asyncio
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from uuid import UUID, uuid4

import psycopg
import uvloop

from agent_api.wire import TurnStatus
from agent_store.embedded import EmbeddedPostgres
from agent_store.ids import new_id
from agent_store.migrate import migrate
from agent_store.ports import NewMessage, NewTurn, Outcome, Owner, SessionKey
from agent_store.postgres.store import PostgresStore
from agent_store.settings import StoreSettings

CONTENT = "u" * 200
REPLY = NewMessage("assistant", "a" * 400)
DONE = Outcome(TurnStatus.COMPLETED, [REPLY], "echo/echo", 1, input_tokens=50, output_tokens=100)
TABLES = ("sessions", "turns", "active_turns", "messages")

# The same rows are written and removed as by one turn, without any of the conditions.
PGBENCH = """
\\set session :client_id
WITH s AS (
    UPDATE abide.sessions SET active_turn = id, token = token + 1, next_turn_seq = next_turn_seq + 1,
        next_seq = next_seq + 2, last_active_at = now()
    WHERE agent_id = '{agent}' AND user_id = 'bench' AND name = 's' || :session
    RETURNING id, next_turn_seq - 1 AS turn_seq, next_seq - 2 AS seq
), t AS (
    INSERT INTO abide.turns
        (agent_id, session_id, id, turn_seq, attempts, token, is_queued, status, revision, first_seq)
    SELECT '{agent}', id, gen_random_uuid(), turn_seq, 1, 1, false, 'running', 'bench', seq FROM s RETURNING id
), a AS (
    INSERT INTO abide.active_turns SELECT '{agent}', s.id, t.id, 1, 'bench' FROM s, t
)
INSERT INTO abide.messages (agent_id, session_id, turn_id, seq, turn_seq, turn_index, role, content)
SELECT '{agent}', s.id, t.id, s.seq, s.turn_seq, 0, 'user', '{content}' FROM s, t
RETURNING turn_id, session_id, seq \\gset
WITH s AS (
    UPDATE abide.sessions SET active_turn = NULL, steps = steps + 1, last_active_at = now()
    WHERE agent_id = '{agent}' AND id = :session_id::uuid RETURNING id
), a AS (
    DELETE FROM abide.active_turns WHERE agent_id = '{agent}' AND session_id = :session_id::uuid
), t AS (
    UPDATE abide.turns SET status = 'completed', model = 'echo/echo', finished_at = now(), reply_seq = :seq::int + 1
    WHERE agent_id = '{agent}' AND id = :turn_id::uuid RETURNING turn_seq
)
INSERT INTO abide.messages (agent_id, session_id, turn_id, seq, turn_seq, turn_index, role, content)
SELECT '{agent}', :session_id::uuid, :turn_id::uuid, :seq::int + 1, t.turn_seq, 1, 'assistant', '{reply}' FROM t;
"""


async def run_turns(store: PostgresStore, owner: Owner, key: SessionKey, deadline: float, most: int) -> int:
    """Run turns one after the other in one session; return how many."""
    done = 0
    while done < most and time.perf_counter() < deadline:
        turn = NewTurn(new_id(), key, CONTENT, None, b"", 20, "bench")
        accepted = await store.accept(turn, owner)
        assert accepted.claim is not None
        await store.complete(accepted.claim, owner, DONE)
        done += 1
    return done


async def measure_store(url: str, agent: UUID, sessions: int, seconds: float, connections: int) -> tuple[float, float]:
    """Return turns per second, and this process's CPU microseconds per turn."""
    store = PostgresStore(url, StoreSettings(max_connections=connections))
    owner = await store.register(agent, "default", "bench", "bench", ttl=3600)
    keys = [SessionKey(agent, "bench", f"s{number}") for number in range(sessions)]
    await asyncio.gather(*(run_turns(store, owner, key, float("inf"), 5) for key in keys))
    started, cpu = time.perf_counter(), time.process_time()
    done = sum(await asyncio.gather(*(run_turns(store, owner, key, started + seconds, 10**9) for key in keys)))
    elapsed, cpu = time.perf_counter() - started, time.process_time() - cpu
    await store.aclose()
    return done / elapsed, cpu / done * 1e6


def measure_pgbench(server: EmbeddedPostgres, agent: UUID, clients: int, seconds: float) -> float | None:
    """Return pgbench's transactions pairs (one turn each) per second; None if there is no pgbench."""
    program = server.binaries / "pgbench"
    if not program.exists():
        return None
    with tempfile.NamedTemporaryFile("w", suffix=".sql") as script:
        script.write(PGBENCH.format(agent=agent, content=CONTENT, reply=REPLY.content))
        script.flush()
        command = [program, "-n", "-M", "prepared", "-c", str(clients), "-j", "2", "-T", str(round(seconds))]
        done = subprocess.run([*command, "-f", script.name, server.url], capture_output=True, text=True, check=False)
    rates = [line.split()[2] for line in done.stdout.splitlines() if line.startswith("tps = ")]
    if done.returncode != 0 or not rates:
        raise RuntimeError(done.stderr[-2000:])
    return float(rates[0])


async def measure_bytes(url: str, agent: UUID, turns: int, sessions: int) -> float:
    """Return the bytes per turn of heap, indexes and TOAST after VACUUM, in sessions of `turns` turns."""
    with psycopg.connect(url, autocommit=True) as connection:
        for table in TABLES:
            connection.execute(f"TRUNCATE abide.{table}".encode())
        store = PostgresStore(url)
        owner = await store.register(agent, "default", "bench", "bench", ttl=3600)
        keys = [SessionKey(agent, "bench", str(uuid4())) for _ in range(sessions)]
        done = sum(await asyncio.gather(*(run_turns(store, owner, key, float("inf"), turns) for key in keys)))
        await store.aclose()
        size = 0
        for table in TABLES:
            connection.execute(f"VACUUM abide.{table}".encode())
            row = connection.execute(f"SELECT pg_total_relation_size('abide.{table}')".encode()).fetchone()
            size += row[0] if row else 0
        return size / done


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--sessions", type=int, default=32)
    parser.add_argument("--connections", type=int, default=StoreSettings().max_connections)
    options = parser.parse_args()
    sessions, seconds, connections = options.sessions, options.seconds, options.connections
    folder = Path(tempfile.mkdtemp(prefix="abide-bench-"))
    server = EmbeddedPostgres(folder)
    try:
        server.start()
        migrate(server.url)
        agent = uuid4()
        rate, cpu = uvloop.run(measure_store(server.url, agent, sessions, seconds, connections))
        print(f"store: {rate:,.0f} turns/s, {sessions} busy sessions, {connections} connections, {cpu:.0f} µs CPU each")
        for clients in (connections, sessions):
            reference = measure_pgbench(server, agent, clients, seconds)
            if reference is None:
                print("pgbench: not available")
                break
            print(
                f"pgbench, same writes, {clients} clients: {reference:,.0f}/s; the store: {rate / reference:.0%} of it"
            )
        for turns, many in ((10, 1000), (1000, 10)):
            size = uvloop.run(measure_bytes(server.url, agent, turns, many))
            print(f"bytes per turn after VACUUM, {many} sessions of {turns} turns: {size:,.0f}")
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
