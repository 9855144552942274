"""Bad surroundings: a slow way to Postgres, no connection left, a full disk, a clock that moves."""

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from agent_api.conditions import Reason
from tests.faults.breakable import breakable_postgres
from tests.faults.chatter import answered
from tests.faults.driver import RuntimeProcess, until
from tests.faults.line import line_to
from tests.faults.scene import Scene, staged

pytestmark = pytest.mark.asyncio(loop_scope="module")

AT_ONCE = 3
PLAY_SECONDS = 150.0
SLOW_SECONDS = 0.1
"""Each way, as between continents; a statement takes twice that, a new connection some ten times."""
DISK_BYTES = 400 * 1024 * 1024
CROWD = 64
HOUR = "1 hour"


async def find_check(scene: Scene, process: RuntimeProcess, name: str) -> dict[str, Any]:
    """Return one check of /readyz, or nothing if there was no answer."""
    health = await process.health(scene.http, "/readyz", timeout=5)
    checks = {} if health is None else {check["name"]: check for check in health.json()["checks"]}
    return dict(checks.get(name, {}))


async def is_ready(scene: Scene, process: RuntimeProcess) -> bool:
    health = await process.health(scene.http, "/readyz", timeout=5)
    return health is not None and health.status_code == 200


async def is_refused(scene: Scene, process: RuntimeProcess, reason: Reason) -> bool:
    check = await find_check(scene, process, "store")
    return check.get("ok") is False and check.get("reason") == reason


async def play_slow(folder: Path, postgres_url: str) -> int:
    """Talk to two processes whose way to Postgres is slow; return the most attempts that a turn needed."""
    async with (
        staged(folder, postgres_url, delay_seconds=0.2) as scene,
        line_to(postgres_url) as (line, through_line),
    ):
        line.delay = SLOW_SECONDS
        await scene.start("first", postgres_url=through_line)
        await scene.start("second", postgres_url=through_line)
        users = ("alice", "bob", "carol")
        for _ in range(3):
            await asyncio.gather(*(scene.clients.say(user, "main", timeout=60) for user in users))
        seen = await scene.assert_invariants()
        return max(turn.attempts for turn in seen.turns)


async def play_crowd(folder: Path, postgres_url: str) -> int:
    """Let many users talk at once through one connection; return how many were answered."""
    async with staged(folder, postgres_url, delay_seconds=0) as scene:
        await scene.start("only", {"ABIDE_POSTGRES_CONNECTIONS": "1"})
        for _ in range(2):
            users = (f"user-{number}" for number in range(CROWD))
            await asyncio.gather(*(scene.clients.say(user, "main", timeout=60) for user in users))
        await scene.assert_invariants()
        return answered(scene)


@asynccontextmanager
async def all_connections(postgres_url: str) -> AsyncIterator[None]:
    """Hold every connection that Postgres gives away."""
    async with AsyncExitStack() as held:
        try:
            while True:
                connection = await asyncpg.connect(postgres_url, timeout=10)
                held.push_async_callback(connection.close, timeout=5)
        except asyncpg.TooManyConnectionsError:
            pass
        yield


async def play_connection_limit(folder: Path, _: str) -> str:
    """Start a process while Postgres has no connection left; return what it said of that."""
    async with breakable_postgres(folder / "postgres") as postgres:
        url = postgres.server.url
        async with staged(folder, url, delay_seconds=0) as scene:
            async with all_connections(url):
                process = scene.fleet.start("only")
                await until(
                    lambda: is_refused(scene, process, Reason.CONNECTION_LIMIT), 20, "it names the limit", poll=0.1
                )
                said = str((await find_check(scene, process, "store"))["message"])
            await until(lambda: is_ready(scene, process), 15, "ready once there are connections")
            await scene.clients.say("alice", "main")
            await scene.assert_invariants()
            return said


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """Yield a folder on a file system of its own, as large as a test can fill."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES},mode=711", "abide-test", folder], check=True)
    try:
        yield folder
    finally:
        # Lazily: what still ends must not keep it.
        subprocess.run(["umount", "--lazy", folder], check=True)


def fill(folder: Path) -> Path:
    """Fill the disk that the folder is on to its last byte; return the file that does."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue
    return ballast


async def play_disk_full(folder: Path, _: str) -> str:
    """Fill the disk of Postgres in mid-conversation and free it again; return what was said of it."""
    with small_disk(folder / "disk") as disk:
        async with breakable_postgres(disk / "postgres") as postgres:
            url = postgres.server.url
            async with staged(folder, url, delay_seconds=0.1) as scene:
                process = await scene.start("only")
                await scene.clients.say("alice", "main")
                ballast = fill(disk)
                waiting = asyncio.create_task(_talk(scene))
                said = ""

                async def is_told() -> bool:
                    nonlocal said
                    check = await find_check(scene, process, "store")
                    said = str(check.get("message", ""))
                    return check.get("ok") is False

                await until(is_told, 40, "it says that nothing can be kept", poll=0.1)
                assert not waiting.done(), "nothing is acknowledged that cannot be kept"
                ballast.unlink()
                await until(lambda: is_ready(scene, process), 40, "ready again with room on the disk")
                await waiting
                await scene.assert_invariants()
                assert process.running
                return said


async def _talk(scene: Scene) -> None:
    """Say things until room is needed: pages of tables, then of the log."""
    for number in range(200):
        await scene.clients.say(f"user-{number % 7}", "main", timeout=120)


async def play_moved_clock(folder: Path, postgres_url: str, by: str) -> float:
    """Move the clock of Postgres, as leases see it, and kill a process; return the seconds until its turn goes on."""
    async with staged(folder, postgres_url, delay_seconds=1) as scene:
        first, _ = await scene.start("first"), await scene.start("second")
        scene.talk_to(first)
        message = (await scene.clients.burst("alice", "main", 1))[0]
        connection = await asyncpg.connect(postgres_url)
        try:
            first.kill()
            # The clock going back by an hour is every lease running out an hour later.
            await connection.execute(
                "UPDATE abide.runtime_instances SET expires_at = expires_at - $1::text::interval", by
            )
        finally:
            await connection.close(timeout=5)
        scene.talk_to()
        seconds = await until(lambda: _is_settled(scene, message), 30, "the other process goes on")
        await scene.assert_invariants()
        return seconds


async def _is_settled(scene: Scene, message: Any) -> bool:
    await scene.clients.follow(message)
    return message.final is not None


PLAYS = {
    "test_a_slow_postgres_costs_time_and_nothing_else": play_slow,
    "test_a_crowd_on_one_connection_is_answered": play_crowd,
    "test_a_postgres_without_free_connections_is_named": play_connection_limit,
    "test_a_full_disk_refuses_messages_and_loses_none": play_disk_full,
    "test_a_clock_that_moves_delays_no_takeover": play_moved_clock,
}


async def test_a_slow_postgres_costs_time_and_nothing_else(played: int) -> None:
    assert played == 1, "no turn was taken over from a process that lived"


async def test_a_crowd_on_one_connection_is_answered(played: int) -> None:
    assert played == 2 * CROWD


async def test_a_postgres_without_free_connections_is_named(played: str) -> None:
    assert "max_connections" in played


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a disk small enough to fill")
async def test_a_full_disk_refuses_messages_and_loses_none(played: str) -> None:
    assert played


@pytest.mark.parametrize("by", [f"+{HOUR}", f"-{HOUR}"])
async def test_a_clock_that_moves_delays_no_takeover(by: str, played: float) -> None:
    assert played <= 12.0
