"""Turns per second of the store alone, beside pgbench doing the same writes.

    python -m benchmarks.store_turns [--quick] [--seconds 5] [--rounds 3] [--sessions 32] [--connections 5]

A turn is accept + complete with 200 bytes in and 400 out, in process, on an embedded Postgres with fsync on. Both share
the machine with Postgres and are measured in turn, so that their ratio is worth more than either figure.
"""

import argparse
import asyncio
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Final
from uuid import UUID, uuid4

import uvloop

from agent_api.wire import TurnStatus
from agent_store.ids import new_id
from agent_store.ports import NewMessage, NewTurn, Outcome, Owner, SessionKey
from agent_store.postgres.store import PostgresStore
from agent_store.settings import StoreSettings
from benchmarks import common
from benchmarks.common import CONTENT, Report, Sample
from benchmarks.contest import Round, run_rounds

REPLY = NewMessage("assistant", common.REPLY)
DONE = Outcome(TurnStatus.COMPLETED, [REPLY], "echo/echo", 1, input_tokens=50, output_tokens=100)
PGBENCH_MOST_SECONDS: Final = 16

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


async def measure_store(url: str, agent: UUID, sessions: int, seconds: float, connections: int) -> Round:
    """Return one round of turns, in sessions that are there afterwards."""
    store = PostgresStore(url, StoreSettings(max_connections=connections))
    owner = await store.register(agent, "default", "bench", "bench", ttl=3600)
    keys = [SessionKey(agent, "bench", f"s{number}") for number in range(sessions)]
    await asyncio.gather(*(run_turns(store, owner, key, float("inf"), 5) for key in keys))
    started, cpu = time.perf_counter(), time.process_time()
    done = sum(await asyncio.gather(*(run_turns(store, owner, key, started + seconds, 10**9) for key in keys)))
    made = Round(done, time.perf_counter() - started, time.process_time() - cpu)
    await store.aclose()
    return made


def measure_pgbench(binaries: Path, url: str, agent: UUID, clients: int, seconds: float) -> float:
    """Return pgbench's pairs of transactions (one turn each) per second; the agent has the sessions s0, s1 …

    pgbench's time begins before its clients are connected. Where the machine is so busy that it ends before the first
    transaction does, pgbench says no rate: it is then run again for twice as long. Raises RuntimeError.
    """
    length = max(1, round(seconds))
    while (rate := _run_pgbench(binaries / "pgbench", url, agent, clients, length)) is None:
        if length >= PGBENCH_MOST_SECONDS:
            raise RuntimeError(f"pgbench made no transaction in {length} s")
        length *= 2
    return rate


def _run_pgbench(program: Path, url: str, agent: UUID, clients: int, seconds: int) -> float | None:
    """Return the rate, or None if not one transaction was done. Raises RuntimeError if pgbench failed."""
    with tempfile.NamedTemporaryFile("w", suffix=".sql") as script:
        script.write(PGBENCH.format(agent=agent, content=CONTENT, reply=REPLY.content))
        script.flush()
        command = [
            str(program),
            "-n",
            "-M",
            "prepared",
            "-c",
            str(clients),
            "-j",
            "2",
            "-T",
            str(seconds),
        ]
        done = subprocess.run([*command, "-f", script.name, url], capture_output=True, text=True, check=False)
    rates = [line.split()[2] for line in done.stdout.splitlines() if line.startswith("tps = ")]
    if done.returncode != 0:
        raise RuntimeError(done.stderr[-2000:])
    return float(rates[0]) if rates else None


def measure(options: argparse.Namespace) -> Report:
    """Measure the store and pgbench in turn."""
    report = Report("store_turns")
    sessions, connections = options.sessions, options.connections
    with common.database() as (server, url):
        agent = uuid4()

        def store(seconds: float) -> Round:
            return uvloop.run(measure_store(url, agent, sessions, seconds, connections))

        def pgbench(clients: int, seconds: float) -> Round:
            return Round(round(measure_pgbench(server.binaries, url, agent, clients, seconds) * seconds), seconds, 0.0)

        store(0.5)  # makes the sessions that pgbench talks in
        rounds = run_rounds(
            {
                "store": store,
                f"pgbench-{connections}": lambda seconds: pgbench(connections, seconds),
                f"pgbench-{sessions}": lambda seconds: pgbench(sessions, seconds),
            },
            rounds=options.rounds,
            seconds=options.seconds,
        )
    for name, found in rounds.items():
        rates = Sample([one.rate for one in found])
        shares = Sample([mine.rate / other.rate for mine, other in zip(rounds["store"], found, strict=True)])
        report.rows.append(
            {
                "contestant": name,
                "turns/s": rates.median,
                "spread": f"{rates.spread:.0%}",
                "CPU µs/turn": Sample([one.cpu_micros for one in found]).median,
                "the store's share": f"{shares.median:.0%}",
            }
        )
    return report


def main() -> None:
    """Measure and print."""
    made = common.parser(__doc__)
    made.add_argument("--seconds", type=float, default=5.0, help="length of one round")
    made.add_argument("--rounds", type=int, default=3)
    made.add_argument("--sessions", type=int, default=32)
    made.add_argument("--connections", type=int, default=StoreSettings().max_connections)
    options = made.parse_args()
    if options.quick:
        options.seconds, options.rounds = 1.0, 1
    measure(options).publish(options.json)


if __name__ == "__main__":
    main()
