"""SIGTERM in mid-turn: intake stops, the running turn ends within the drain, the queue moves on at once."""

import asyncio
import time
from pathlib import Path

import httpx
import pytest

from tests.faults.driver import Message, RuntimeProcess, until
from tests.faults.scene import Scene, staged

pytestmark = pytest.mark.asyncio(loop_scope="module")

AT_ONCE = 5
PLAY_SECONDS = 120.0
# A hand-over happens at the next sweep (1-2 s) of another process at the latest, not after the lease of 8 s.
HAND_OVER_SECONDS = 5.0
# Everything on the way to the end has a deadline of a few seconds, also while Postgres is away.
END_SECONDS = 10.0


async def post_raw(scene: Scene, process: RuntimeProcess, text: str) -> httpx.Response | None:
    """Send a message that is none of the conversation's; None when the process accepts no connection any more."""
    url = f"{process.url}{scene.agent.path}/sessions/late/messages"
    try:
        return await scene.http.post(url, json={"content": text}, headers={"Abide-User": "carol"}, timeout=5)
    except httpx.TransportError:
        return None


async def is_unready(scene: Scene, process: RuntimeProcess) -> bool:
    health = await process.health(scene.http, "/readyz")
    return health is not None and health.status_code == 503


async def play_hand_over(folder: Path, postgres_url: str) -> float:
    """Drain a process that runs one turn while two wait; return the seconds until another process took over."""
    async with staged(folder, postgres_url, delay_seconds=1.5) as scene:
        first = await scene.start("first", {"ABIDE_DRAIN_SECONDS": "15"})
        second = await scene.start("second")
        scene.talk_to(first)
        running, *queued = await scene.clients.burst("alice", "main", 3)
        waiting = asyncio.create_task(scene.clients.settle(running))
        other = await scene.clients.burst("bob", "main", 1)

        first.terminate()
        await until(lambda: is_unready(scene, first), 5, "the draining process says it is unready")
        late = await post_raw(scene, first, "too late")
        assert late is not None
        assert late.status_code == 503
        assert float(late.headers["Retry-After"]) > 0
        assert late.headers["content-type"] == "application/problem+json"
        alive = await first.health(scene.http, "/livez")
        assert alive is not None
        assert alive.status_code == 200

        # A request that came in just after the signal was refused; a Service sends it to the other process.
        scene.talk_to(second)
        answer = await waiting
        assert answer.reply == "alice/main/1 [1]"
        assert await first.wait_exit(20) == 0
        left_at = time.monotonic()

        await asyncio.gather(*(scene.clients.settle(message) for message in [*queued, *other]))
        took = max(message.settled_at for message in queued) - left_at
        seen = await scene.assert_invariants()
        assert all(turn.attempts == 1 for turn in seen.turns), "nothing had to be run again"
        assert all(session.name != "late" for session in seen.sessions), "what was refused left no trace"
        return took - 2 * scene.agent.delay_seconds


async def play_cut_turn(folder: Path, postgres_url: str) -> float:
    """Drain a process whose turn takes longer; return the seconds until another process ran it."""
    async with staged(folder, postgres_url, delay_seconds=4) as scene:
        first = await scene.start("first", {"ABIDE_DRAIN_SECONDS": "1"})
        second = await scene.start("second")
        scene.talk_to(first)
        (message,) = await scene.clients.burst("alice", "main", 1)
        first.terminate()
        assert await first.wait_exit(1 + END_SECONDS) == 0
        left_at = time.monotonic()
        scene.talk_to(second)
        await scene.clients.settle(message)
        seen = await scene.assert_invariants()
        assert [turn.attempts for turn in seen.turns] == [2]
        return message.settled_at - left_at - scene.agent.delay_seconds


async def play_next_start(folder: Path, postgres_url: str) -> float:
    """Drain the only process and start it again; return the seconds the queue waited after that."""
    async with staged(folder, postgres_url, delay_seconds=1) as scene:
        first = await scene.start("only")
        messages: list[Message] = await scene.clients.burst("alice", "main", 3)
        first.terminate()
        assert await first.wait_exit(25) == 0
        await scene.start("only")
        ready_at = time.monotonic()
        await asyncio.gather(*(scene.clients.settle(message) for message in messages))
        took = max(message.settled_at for message in messages) - ready_at
        await scene.assert_invariants()
        return took - 3 * scene.agent.delay_seconds


async def play_idle(folder: Path, postgres_url: str, *, postgres: str) -> float:
    """Drain a process that has nothing to do, with or without Postgres; return the seconds it took."""
    async with staged(folder, postgres_url, delay_seconds=0) as scene:
        if postgres == "there":
            process = await scene.start("only")
        else:
            scene.fleet.postgres_url = "postgresql://abide:none@127.0.0.1:9/abide"
            process = scene.fleet.start("only")
            await until(lambda: is_unready(scene, process), 20, "the process says it is unready")
        asked_at = time.monotonic()
        process.terminate()
        assert await process.wait_exit(20) == 0
        return time.monotonic() - asked_at


async def test_a_drain_finishes_the_running_turn_and_hands_the_queue_over(played: float) -> None:
    print(f"handed over within {played:.2f} s")
    assert played <= HAND_OVER_SECONDS


async def test_a_turn_longer_than_the_drain_goes_to_another_process(played: float) -> None:
    print(f"handed over within {played:.2f} s")
    assert played <= HAND_OVER_SECONDS


async def test_what_a_drain_leaves_queued_is_answered_after_the_next_start(played: float) -> None:
    print(f"started within {played:.2f} s")
    assert played <= HAND_OVER_SECONDS


@pytest.mark.parametrize("postgres", ["there", "away"])
async def test_a_process_without_work_ends_at_once(postgres: str, played: float) -> None:
    print(f"ended within {played:.2f} s")
    assert played <= END_SECONDS


PLAYS = {
    "test_a_drain_finishes_the_running_turn_and_hands_the_queue_over": play_hand_over,
    "test_a_turn_longer_than_the_drain_goes_to_another_process": play_cut_turn,
    "test_what_a_drain_leaves_queued_is_answered_after_the_next_start": play_next_start,
    "test_a_process_without_work_ends_at_once": play_idle,
}
