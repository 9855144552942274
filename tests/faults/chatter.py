"""What clients say while faults happen: rounds of single messages, queues, repeats, sends without a key, and reads."""

import asyncio
from contextlib import suppress

from tests.faults.scene import Scene

# What clients think between two rounds; without it they would be most of the load.
PAUSE_SECONDS = 0.3
# Two processes die, the second after waiting for a lease to run out, and all that on a busy machine.
PATIENCE_SECONDS = 150.0


async def chatter(scene: Scene, enough: asyncio.Event) -> None:
    """Say round after round until it is enough; the round under way is finished."""
    while not enough.is_set():
        await asyncio.gather(_one_by_one(scene), _queueing(scene), _once(scene))
        await scene.clients.glance("alice", "main")
        await scene.clients.follow(scene.clients.said[0])
        with suppress(TimeoutError):
            async with asyncio.timeout(PAUSE_SECONDS):
                await enough.wait()


def answered(scene: Scene) -> int:
    """Return how many messages have their outcome."""
    return sum(message.final is not None for message in scene.clients.said)


async def _one_by_one(scene: Scene) -> None:
    """Three messages, each after the last one's reply; the last is sent twice."""
    for _ in range(3):
        message = await scene.clients.say("alice", "main", timeout=PATIENCE_SECONDS)
    await scene.clients.repeat(message)


async def _queueing(scene: Scene) -> None:
    """Three messages at once, so that two wait behind the first."""
    for message in await scene.clients.burst("bob", "main", 3, timeout=PATIENCE_SECONDS):
        await scene.clients.settle(message, timeout=PATIENCE_SECONDS)


async def _once(scene: Scene) -> None:
    """One message without a key: sent once, whatever comes of it."""
    message = await scene.clients.say_once("alice", "side", timeout=PATIENCE_SECONDS)
    if message.acknowledged:
        await scene.clients.settle(message, timeout=PATIENCE_SECONDS)
