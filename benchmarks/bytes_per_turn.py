"""Bytes a turn takes on disk, by the length of the session: heap, indexes and TOAST after VACUUM, beside LangGraph's.

    python -m benchmarks.bytes_per_turn [--quick] [--lengths 10 100 1000] [--langgraph PYTHON]

Every length gets a database of its own with the same number of turns in all, 200 bytes in and 400 out each, written by
the product's store. LangGraph's saver stores checkpoints; it is measured with sessions of 10 and of 50 turns.
"""

import argparse
import asyncio
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final
from uuid import UUID, uuid4

import psycopg
import uvloop
from psycopg import sql

from agent_store.embedded import EmbeddedPostgres
from agent_store.migrate import migrate
from agent_store.ports import SessionKey
from agent_store.postgres.store import PostgresStore
from benchmarks import common
from benchmarks.common import REPLY_BYTES, Report, Target
from benchmarks.contest import Contestant
from benchmarks.engine_turns import worker_command, worker_environment
from benchmarks.langgraph_setup import find_python
from benchmarks.store_turns import run_turns

AIM: Final = 1500
WRITERS: Final = 32
LANGGRAPH_LENGTHS: Final = (10, 50)
TABLES: Final = ("sessions", "turns", "active_turns", "messages", "steps", "agent_states")
"""All that turns fill; what else the product keeps does not grow with them, or is bounded by time."""
LANGGRAPH_TABLES: Final = ("checkpoints", "checkpoint_blobs", "checkpoint_writes")


def main() -> None:
    """Measure and print."""
    made = common.parser(__doc__)
    made.add_argument("--lengths", type=int, nargs="+", default=[10, 100, 1000], help="turns per session")
    made.add_argument("--turns", type=int, default=10_000, help="turns in all, at each length")
    made.add_argument("--langgraph", type=Path, metavar="PYTHON", help="interpreter of an environment with LangGraph")
    made.add_argument("--without-langgraph", action="store_true")
    options = made.parse_args()
    if options.quick:
        options.lengths, options.turns = [10, 100], 1000
    measure(options).publish(options.json)


def measure(options: argparse.Namespace) -> Report:
    """Fill and weigh one database after the other."""
    report = Report("bytes_per_turn")
    python = None if options.without_langgraph else find_python(options.langgraph)
    with common.database() as (server, _), tempfile.TemporaryDirectory(prefix="abide-bench-") as folder:
        ours = []
        for length in options.lengths:
            common.progress(f"{options.turns} turns in sessions of {length}")
            size, turns = weigh_ours(server, length, max(1, options.turns // length))
            ours.append(size / turns)
            report.rows.append(_row("abide", length, turns, size))
        if python is None:
            report.notes.append("LangGraph was left out: run `python -m benchmarks.langgraph_setup` once to have it")
        else:
            for length in LANGGRAPH_LENGTHS[: 1 if options.quick else None]:
                sessions = max(1, options.turns // length // 10)
                common.progress(f"LangGraph: {sessions} sessions of {length} turns")
                size, turns = weigh_langgraph(server, python, Path(folder), length, sessions)
                report.rows.append(_row("langgraph", length, turns, size))
    shortest, longest = ours[0], ours[-1]
    report.targets += [
        Target("bytes per turn, at the worst length", max(ours), at_most=AIM),
        Target(f"{options.lengths[-1]} turns a session over {options.lengths[0]}", longest / shortest, at_most=1.02),
    ]
    return report


def _row(what: str, length: int, turns: int, size: int) -> dict[str, Any]:
    return {"store": what, "turns/session": length, "turns": turns, "bytes/turn": round(size / turns)}


def weigh_ours(server: EmbeddedPostgres, length: int, sessions: int) -> tuple[int, int]:
    """Return the bytes of all tables that grow with turns, and the turns in them."""
    url = common.create_database(server, f"weigh_{length}")
    migrate(url)
    turns = uvloop.run(_fill(url, uuid4(), length, sessions))
    return vacuumed_size(url, "abide", TABLES), turns


async def _fill(url: str, agent: UUID, length: int, sessions: int) -> int:
    store = PostgresStore(url)
    owner = await store.register(agent, common.NAMESPACE, "bytes", "bench", ttl=3600)
    gate = asyncio.Semaphore(WRITERS)

    async def fill() -> int:
        async with gate:
            return await run_turns(store, owner, SessionKey(agent, "bench", str(uuid4())), float("inf"), length)

    turns = sum(await asyncio.gather(*(fill() for _ in range(sessions))))
    await store.aclose()
    return turns


def weigh_langgraph(
    server: EmbeddedPostgres, python: Path, folder: Path, length: int, sessions: int
) -> tuple[int, int]:
    """Return the bytes of LangGraph's tables, and the turns in them."""
    url = common.create_database(server, f"weigh_langgraph_{length}")
    threads = min(WRITERS, sessions)
    command = worker_command("langgraph", url, threads, length, REPLY_BYTES, python=python)
    turns = 0
    with Contestant("langgraph", command, worker_environment(), folder / f"langgraph-{length}.log") as worker:
        worker.wait_ready()
        while turns < sessions * length:
            turns += worker.run(0).turns
    return vacuumed_size(url, "public", LANGGRAPH_TABLES), turns


def vacuumed_size(url: str, schema: str, tables: Sequence[str]) -> int:
    """Return the bytes of these tables with their indexes and TOAST, after VACUUM."""
    size = 0
    with psycopg.connect(url, autocommit=True, connect_timeout=10) as connection:
        for table in tables:
            connection.execute(sql.SQL("VACUUM {}").format(sql.Identifier(schema, table)))
            found = connection.execute("SELECT pg_total_relation_size(%s::regclass)", [f"{schema}.{table}"]).fetchone()
            size += int(found[0]) if found is not None else 0
    return size


if __name__ == "__main__":
    main()
