"""Two processes, several clients, and no peace: kill -9, SIGTERM, freezes and restarts in random order."""

import asyncio
import itertools
import random
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.faults.driver import RuntimeProcess
from tests.faults.scene import Scene, staged

CHAOS_SECONDS = 22.0
CLIENTS = (
    ("alice", "main"),
    ("alice", "main"),
    ("alice", "side"),
    ("bob", "main"),
    ("bob", "burst"),
    ("carol", "once"),
)


async def torment(scene: Scene, instance: str, dice: random.Random, deadline: float, blows: Counter[str]) -> None:
    """Keep one instance running and hit it again and again until the deadline; leave it running."""
    process, ready = await scene.start(instance), True
    while time.monotonic() < deadline:
        # Not a wait for anything: the time between two blows is part of the fault.
        await asyncio.sleep(dice.uniform(0.2, 2.0))
        blow = dice.choices(("kill", "terminate", "freeze"), weights=(5, 3, 1))[0]
        blows[blow] += 1
        if blow == "freeze":
            process.freeze()
            await asyncio.sleep(dice.choice((0.5, 3.0, 9.0)))  # shorter and longer than the lease
            process.thaw()
            continue
        await end(process, kill=blow == "kill", ready=ready)
        process, ready = scene.fleet.start(instance), dice.random() < 0.7
        if ready:
            await process.wait_ready(scene.http)


async def end(process: RuntimeProcess, *, kill: bool, ready: bool) -> None:
    """End the process and judge how it left; one hit while it starts may not have its signal handlers yet."""
    if kill:
        process.kill()
    else:
        process.terminate()
    code = await process.wait_exit()
    expected = {-9} if kill else {0} if ready else {0, -15}
    assert code in expected, f"exit code {code}\n{process.logs()}"


async def chat(scene: Scene, user: str, session: str, dice: random.Random, deadline: float) -> None:
    """Talk until the deadline: single messages, bursts, and in one session messages without a key."""
    while time.monotonic() < deadline:
        if session == "once":
            await scene.clients.say_once(user, session)
            await asyncio.sleep(dice.uniform(0.05, 0.3))  # a refusal comes at once; people do not
        elif session == "burst":
            for message in await scene.clients.burst(user, session, dice.randint(1, 4)):
                await scene.clients.settle(message, patience=3)
        else:
            message = scene.clients.compose(user, session)
            await scene.clients.settle(message, patience=3)


@pytest.mark.parametrize("seed", [20300101])
async def test_random_kills_of_two_processes_break_no_promise(seed: int, tmp_path: Path, postgres_url: str) -> None:
    async with staged(tmp_path, postgres_url, delay_seconds=0.05) as scene:
        dice = [random.Random(f"{seed}/{number}") for number in range(2 + len(CLIENTS))]
        blows: Counter[str] = Counter()
        deadline = time.monotonic() + CHAOS_SECONDS
        async with asyncio.TaskGroup() as group:
            for number, instance in enumerate(("left", "right")):
                group.create_task(torment(scene, instance, dice[number], deadline, blows))
            for (user, session), own in zip(CLIENTS, itertools.islice(dice, 2, None), strict=True):
                group.create_task(chat(scene, user, session, own, deadline))
        for process in scene.fleet.running():
            await process.wait_ready(scene.http)
        seen = await scene.assert_invariants()
        again = sum(turn.attempts > 1 for turn in seen.turns)
        print(f"{dict(blows)}; {len(seen.turns)} turns in {len(seen.sessions)} sessions, {again} run more than once")
        assert blows["kill"] >= 3, "too few kills to prove anything"
        assert again >= 1, "no kill ever hit a running turn"
