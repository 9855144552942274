"""SIGTERM in mid-turn: intake stops, the running turn ends within the drain, the queue moves on at once."""

import asyncio
import time
from pathlib import Path

import httpx
import pytest

from tests.faults.driver import Message, RuntimeProcess, until
from tests.faults.scene import Scene, staged

# A hand-over happens at the next sweep (2-3 s) of another process at the latest, not after the lease of 8 s.
HAND_OVER_SECONDS = 5.0


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


async def test_a_drain_finishes_the_running_turn_and_hands_the_queue_over(tmp_path: Path, postgres_url: str) -> None:
    async with staged(tmp_path, postgres_url, delay_seconds=1.5) as scene:
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

        answer = await waiting
        assert answer.reply == "alice/main/1 [1]"
        assert await first.wait_exit(20) == 0
        left_at = time.monotonic()

        scene.talk_to(second)
        await asyncio.gather(*(scene.clients.settle(message) for message in [*queued, *other]))
        took = max(message.settled_at for message in queued) - left_at
        print(f"both queued turns of 1.5 s were answered {took:.2f} s after the first process had left")
        assert took <= HAND_OVER_SECONDS + 2 * scene.agent.delay_seconds

        seen = await scene.assert_invariants()
        assert all(turn.attempts == 1 for turn in seen.turns), "nothing had to be run again"
        assert all(session.name != "late" for session in seen.sessions), "what was refused left no trace"


async def test_a_turn_longer_than_the_drain_goes_to_another_process(tmp_path: Path, postgres_url: str) -> None:
    async with staged(tmp_path, postgres_url, delay_seconds=4) as scene:
        first = await scene.start("first", {"ABIDE_DRAIN_SECONDS": "1"})
        second = await scene.start("second")
        scene.talk_to(first)
        (message,) = await scene.clients.burst("alice", "main", 1)
        first.terminate()
        assert await first.wait_exit(6) == 0
        left_at = time.monotonic()
        scene.talk_to(second)
        await scene.clients.settle(message)
        print(f"the cut turn of 4 s was answered {message.settled_at - left_at:.2f} s after the first process had left")
        assert message.settled_at - left_at <= HAND_OVER_SECONDS + scene.agent.delay_seconds
        seen = await scene.assert_invariants()
        assert [turn.attempts for turn in seen.turns] == [2]


async def test_what_a_drain_leaves_queued_is_answered_after_the_next_start(tmp_path: Path, postgres_url: str) -> None:
    async with staged(tmp_path, postgres_url, delay_seconds=1) as scene:
        first = await scene.start("only")
        messages: list[Message] = await scene.clients.burst("alice", "main", 3)
        first.terminate()
        assert await first.wait_exit(25) == 0
        await scene.start("only")
        ready_at = time.monotonic()
        await asyncio.gather(*(scene.clients.settle(message) for message in messages))
        took = max(message.settled_at for message in messages) - ready_at
        print(f"the queue was answered {took:.2f} s after the next start")
        assert took <= HAND_OVER_SECONDS + 3 * scene.agent.delay_seconds
        await scene.assert_invariants()


@pytest.mark.parametrize("postgres", ["there", "away"])
async def test_a_process_without_work_ends_at_once(postgres: str, tmp_path: Path, postgres_url: str) -> None:
    async with staged(tmp_path, postgres_url, delay_seconds=0) as scene:
        if postgres == "there":
            process = await scene.start("only")
        else:
            scene.fleet.postgres_url = "postgresql://abide:none@127.0.0.1:9/abide"
            process = scene.fleet.start("only")
            await until(lambda: is_unready(scene, process), 20, "the process says it is unready")
        process.terminate()
        assert await process.wait_exit(5) == 0
