"""A turn that ends every process that runs it is found out; those that ran beside it are answered."""

import asyncio
import time
from contextlib import suppress
from pathlib import Path
from uuid import UUID

import pytest

from tests.faults.driver import Message, RuntimeProcess, until
from tests.faults.scene import Scene, staged_with
from tests.faults.shop import DONE, Buyer, Call, Shop, asks, http_tool

SESSIONS = 6
SLOW_SECONDS = 0.4
PATIENCE_SECONDS = 120.0


class Doom:
    """Kills the process that makes the call of one turn, each time; the calls of others take a while."""

    def __init__(self, shop: Shop) -> None:
        self.turn = ""
        self.deaths = 0
        self.victim: RuntimeProcess | None = None
        self.beside: list[bool] = []
        """For each death, whether calls of other turns were under way."""
        self._others = 0
        shop.before_answer = self

    def __call__(self, call: Call) -> None:
        """Kill, or wait; called in a thread of the service."""
        if call.key.startswith(self.turn) and self.turn and self.victim is not None:
            self.beside.append(self._others > 0)
            self.deaths += 1
            self.victim.kill()
            return
        self._others += 1
        time.sleep(SLOW_SECONDS)  # the service is slow, so that turns overlap
        self._others -= 1


async def keep_running(scene: Scene, doom: Doom) -> None:
    """Start the process again whenever it ended, as a kubelet does."""
    while True:
        if doom.victim is None or not doom.victim.running:
            doom.victim = scene.fleet.start("only")
        await asyncio.sleep(0.02)


async def talk(scene: Scene, user: str, enough: asyncio.Event) -> list[Message]:
    """Say one thing after another until it is enough."""
    said = []
    while not enough.is_set():
        said.append(await scene.clients.say(user, "main", timeout=PATIENCE_SECONDS))
    return said


@pytest.mark.asyncio
async def test_the_culprit_fails_and_nobody_beside_it(postgres_url: str, tmp_path: Path) -> None:
    with Shop().serving() as shop:
        safe = {"book": {"idempotencyArgument": "Idempotency-Key"}}
        tools = (http_tool(shop, "book", "PUT", sideEffects=safe),)
        agent = Buyer(name="buyer", delay_seconds=0, folder=tmp_path, tools=tools, replies=(asks("book"), DONE))
        async with staged_with(agent, postgres_url) as scene:
            doom, enough = Doom(shop), asyncio.Event()
            keeper = asyncio.create_task(keep_running(scene, doom))
            innocents = [asyncio.create_task(talk(scene, f"user{n}", enough)) for n in range(SESSIONS)]
            try:
                await until(lambda: len(shop.calls) > SESSIONS, 60, "turns run")
                # Queued behind a slow turn, so that it is known before it runs.
                _, culprit = await scene.clients.burst("mallory", "main", 2)
                assert culprit.answers[0].turn_status == "queued"
                doom.turn = UUID(culprit.answers[0].turn_id).hex
                await scene.clients.settle(culprit, timeout=PATIENCE_SECONDS)
                after = await scene.clients.say("mallory", "main", timeout=PATIENCE_SECONDS)
                enough.set()
                answered = [message for said in await asyncio.gather(*innocents) for message in said]
            finally:
                keeper.cancel()
                with suppress(asyncio.CancelledError):
                    await keeper
            assert culprit.final is not None
            assert culprit.final.turn_status == "failed"
            assert doom.deaths == 3, "twice beside others, and once alone"
            assert doom.beside[-1] is False, "it was alone when it was found out"
            assert after.final is not None
            assert after.final.turn_status == "completed", "its session goes on"
            assert len(answered) > SESSIONS
            assert {message.final.turn_status for message in answered if message.final} == {"completed"}
