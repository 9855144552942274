"""Failpoints around real statements: their registry is true, and kill kills."""

import subprocess
import sys
from pathlib import Path

import asyncpg
import pytest

from agent_store.failpoints import PLAIN_TURN, Failpoints
from agent_store.postgres.store import PostgresStore
from tests.contract.agent_store.scene import Scene

TURN = """
import asyncio, os, sys
from uuid import UUID
from agent_store.failpoints import Failpoints
from agent_store.postgres.store import PostgresStore
from tests.contract.agent_store.scene import Scene

async def main():
    scene = Scene(PostgresStore(sys.argv[1], failpoints=Failpoints.from_environ(os.environ)), UUID(int=1))
    owner = await scene.start()
    claim = await scene.claim(owner)
    await scene.store.load_history(claim.session_id, scene.agent, before_turn_seq=claim.turn_seq, limit=10)
    await scene.finish(owner, claim)
    await scene.store.aclose()

asyncio.run(main())
"""


async def test_plain_turn_passes_the_registered_points_in_order(postgres_url: str, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    store = PostgresStore(postgres_url, failpoints=Failpoints.from_environ({"ABIDE_FAILPOINTS_TRACE": str(trace)}))
    scene = Scene(store)
    owner = await scene.start()
    trace.unlink()
    claim = await scene.claim(owner)
    await store.load_history(claim.session_id, scene.agent, before_turn_seq=claim.turn_seq, limit=10)
    await scene.finish(owner, claim)
    await store.aclose()
    assert tuple(trace.read_text().split()) == PLAIN_TURN


@pytest.mark.parametrize(
    ("point", "turns", "status"),
    [
        ("store.accept.1.before", 0, None),
        ("store.accept.1.after", 1, "running"),
        ("store.complete.1.before", 1, "running"),
        ("store.complete.1.after", 1, "completed"),
    ],
)
async def test_kill_ends_the_process_right_there(postgres_url: str, point: str, turns: int, status: str | None) -> None:
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", TURN, postgres_url],
        env={"ABIDE_FAILPOINTS": f"{point}=kill", "PYTHONPATH": str(root)},
        cwd=root,
        timeout=60,
        check=False,
    )
    assert done.returncode == -9
    connection = await asyncpg.connect(postgres_url)
    found = await connection.fetch("SELECT status FROM abide.turns")
    await connection.close()
    assert [row["status"] for row in found] == [status] * turns
