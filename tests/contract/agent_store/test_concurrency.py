"""Several processes at once on few sessions, some of which die: order, one at a time, one outcome, nothing stranded."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field
from uuid import UUID, uuid4

import asyncpg
import pytest

from agent_api.wire import TurnStatus
from agent_store.errors import LeaseLost, QueueFull
from agent_store.ports import Claim, Disposition, Owner
from agent_store.postgres.store import PostgresStore
from tests.contract.agent_store.scene import Scene

SESSIONS = ("a", "b", "c")
DEADLINE = 60.0

ACTIVE_TWICE = """
    SELECT session_id FROM abide.turns WHERE agent_id = $1 AND status = 'running' GROUP BY session_id HAVING count(*)
    > 1
"""
STRANDED = """
    SELECT id FROM abide.turns WHERE agent_id = $1 AND finished_at IS NULL
"""
CANCELLED = """
    SELECT count(*) FROM abide.turns t JOIN abide.sessions s ON s.agent_id = t.agent_id AND s.id = t.session_id
    WHERE t.agent_id = $1 AND s.name = $2 AND t.status = 'cancelled'
"""
INCONSISTENT = """
    SELECT s.name FROM abide.sessions s
    LEFT JOIN abide.active_turns a ON a.agent_id = s.agent_id AND a.session_id = s.id
    WHERE s.agent_id = $1 AND (
        s.active_turn IS DISTINCT FROM a.turn_id
        OR s.queued <> (SELECT count(*) FROM abide.turns t
            WHERE t.agent_id = s.agent_id AND t.session_id = s.id AND t.status = 'queued')
        OR s.next_seq - 1 <> (SELECT count(*) FROM abide.messages m WHERE m.agent_id = s.agent_id AND m.session_id =
        s.id) OR s.next_turn_seq - 1 <> (SELECT count(*) FROM abide.turns t WHERE t.agent_id = s.agent_id AND
        t.session_id = s.id))
"""


@dataclass
class Log:
    """What the processes saw, for all to check in the end."""

    accepted: set[UUID] = field(default_factory=set)
    outcomes: Counter[UUID] = field(default_factory=Counter)
    fenced: int = 0


class Process:
    """Accepts messages, runs what it claims, sweeps; dies now and then without a word and starts again."""

    def __init__(self, url: str, agent: UUID, name: str, seed: int, log: Log, *, mortal: bool) -> None:
        self.scene = Scene(PostgresStore(url), agent)
        self.name = name
        self.random = random.Random(seed)
        self.log = log
        self.mortal = mortal
        self.running: dict[UUID, Claim] = {}

    async def live(self, messages: int) -> None:
        owner = await self.scene.start(self.name)
        for number in range(messages):
            try:
                if self.mortal and self.random.random() < 0.1:
                    owner = await self.scene.start(self.name)  # what it ran is orphaned, what it knew forgotten
                    self.running.clear()
                await asyncio.gather(self.accept(owner, number), self.sweep(owner), self.finish_some(owner))
            except LeaseLost:
                self.log.fenced += 1
        await self.scene.store.release(self.scene.agent, owner)

    async def accept(self, owner: Owner, number: int) -> None:
        session = self.random.choice(SESSIONS)
        turn = self.scene.turn(f"{self.name}-{number}", session=session, queue_limit=8)
        try:
            accepted = await self.scene.store.accept(turn, owner)
        except QueueFull:
            return
        self.log.accepted.add(turn.id)
        if accepted.disposition is Disposition.RUN:
            assert accepted.claim is not None
            self.running[turn.id] = accepted.claim
        elif self.random.random() < 0.2:
            found = await self.scene.store.cancel_turn(self.scene.agent, turn.id, "ann")
            assert found is not None
            self.log.outcomes[turn.id] += found.status is TurnStatus.CANCELLED

    async def sweep(self, owner: Owner) -> None:
        if self.random.random() < 0.2:
            known = list(self.running)
            for claim in await self.scene.store.claim_orphans(self.scene.agent, owner, limit=3, known=known):
                self.running.setdefault(claim.turn_id, claim)

    async def finish_some(self, owner: Owner) -> None:
        for claim in [claim for claim in self.running.values() if self.random.random() < 0.7]:
            await self.finish(owner, claim)

    async def finish(self, owner: Owner, claim: Claim) -> None:
        self.running.pop(claim.turn_id, None)
        try:
            done = await self.scene.finish(owner, claim, f"re {claim.content}")
        except LeaseLost:
            self.log.fenced += 1
            return
        self.log.outcomes[claim.turn_id] += 1
        if done.waiting:
            following = await self.scene.store.start_next(self.scene.agent, claim.session_id, owner)
            if following is not None:
                self.running[following.turn_id] = following


@pytest.fixture
async def connection(postgres_url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(postgres_url)
    yield connection
    await connection.close()


async def watch(connection: asyncpg.Connection, agent: UUID, stop: asyncio.Event) -> int:
    """Look again and again for two turns at once in a session; return how often."""
    looks = 0
    while not stop.is_set():
        assert await connection.fetch(ACTIVE_TWICE, agent) == []
        looks += 1
    return looks


@pytest.mark.parametrize("seed", range(3))
async def test_processes_that_come_and_go_lose_nothing_and_answer_nothing_twice(
    postgres_url: str, connection: asyncpg.Connection, seed: int
) -> None:
    agent, log = uuid4(), Log()
    processes = [Process(postgres_url, agent, f"pod-{n}", seed * 10 + n, log, mortal=n > 0) for n in range(4)]
    stop = asyncio.Event()
    watcher = asyncio.create_task(watch(connection, agent, stop))
    try:
        async with asyncio.timeout(DEADLINE):
            await asyncio.gather(*(process.live(60) for process in processes))
            await finish_everything(postgres_url, agent, log)
    finally:
        stop.set()
        for process in processes:
            await process.scene.store.aclose()
    assert await watcher > 0
    assert log.accepted
    assert {turn: log.outcomes[turn] for turn in log.accepted} == dict.fromkeys(log.accepted, 1)
    assert await connection.fetch(STRANDED, agent) == []
    assert await connection.fetch(INCONSISTENT, agent) == []
    await check_order(postgres_url, agent, connection)


async def finish_everything(url: str, agent: UUID, log: Log) -> None:
    """Be the last process: take over what is left until nothing is."""
    last = Process(url, agent, "last", 0, log, mortal=False)
    owner = await last.scene.start("last")
    while claims := await last.scene.store.claim_orphans(agent, owner, limit=5, known=list(last.running)):
        last.running = {claim.turn_id: claim for claim in claims}
        while last.running:
            await last.finish(owner, next(iter(last.running.values())))
    await last.scene.store.aclose()


async def check_order(url: str, agent: UUID, connection: asyncpg.Connection) -> None:
    """Answers come in the order of their questions, only cancelled ones have none, and seq has no gaps."""
    scene = Scene(PostgresStore(url), agent)
    for session in SESSIONS:
        history = await scene.history(session)
        assert [seq for seq, _, _ in history] == list(range(1, len(history) + 1))
        answers = [content for _, role, content in history if role == "assistant"]
        questions = [content for _, role, content in history if role == "user"]
        assert [f"re {content}" for content in questions if f"re {content}" in answers] == answers
        unanswered = sum(f"re {content}" not in answers for content in questions)
        assert unanswered == await connection.fetchval(CANCELLED, agent, session)
    await scene.store.aclose()


async def test_message_accepted_while_a_turn_completes_is_never_stranded(scene: Scene, owner: Owner) -> None:
    for number in range(60):
        claim = await scene.claim(owner, f"{number}")
        accepted, done = await asyncio.gather(scene.say(owner, f"{number} more"), scene.finish(owner, claim))
        if accepted.disposition is Disposition.RUN:
            assert accepted.claim is not None
            assert not done.waiting
            following = accepted.claim
        else:
            assert done.waiting
            started = await scene.store.start_next(scene.agent, claim.session_id, owner)
            assert started is not None
            following = started
        assert not (await scene.finish(owner, following)).waiting


async def test_two_processes_never_start_the_same_queued_turn(scene: Scene, owner: Owner) -> None:
    other = await scene.start("pod-2")
    for number in range(30):
        claim = await scene.claim(owner, f"{number}")
        await scene.say(owner, "second")
        await scene.say(owner, "third")
        await scene.finish(owner, claim)
        starts = [scene.store.start_next(scene.agent, claim.session_id, who) for who in (owner, other) * 3]
        claims = [claim for claim in await asyncio.gather(*starts) if claim is not None]
        assert [claim.content for claim in claims] == ["second"]
        await scene.store.delete_session(scene.key())


async def test_concurrent_sweeps_share_the_orphans(scene: Scene, owner: Owner) -> None:
    for number in range(20):
        await scene.say(owner, session=f"s{number}")
    others = [await scene.start(f"new-{n}") for n in range(4)]
    await scene.store.release(scene.agent, owner)
    # Each knows every turn, so that only takeovers show and not the claims a process is reminded of.
    found: list[Claim] = []
    async with asyncio.timeout(DEADLINE):
        while len({claim.turn_id for claim in found}) < 20:
            known = [claim.turn_id for claim in found]
            sweeps = [scene.store.claim_orphans(scene.agent, other, limit=3, known=known) for other in others]
            for claims in await asyncio.gather(*sweeps):
                found += claims
    assert Counter(claim.turn_id for claim in found).most_common(1)[0][1] == 1
    assert {claim.attempts for claim in found} == {2}


async def test_deleting_a_session_under_load_leaves_nothing_behind(
    scene: Scene, owner: Owner, connection: asyncpg.Connection
) -> None:
    deleted = 0

    async def talk(number: int) -> None:
        while deleted < 5:
            accepted = await scene.say(owner, str(number), queue_limit=1000)
            if accepted.claim is not None:
                with suppress(LeaseLost):
                    await scene.finish(owner, accepted.claim)

    async def delete() -> None:
        nonlocal deleted
        while deleted < 5:
            deleted += await scene.store.delete_session(scene.key())

    async with asyncio.timeout(DEADLINE):
        await asyncio.gather(*(talk(number) for number in range(4)), delete())
    await scene.store.delete_session(scene.key())
    for table in ("sessions", "turns", "messages", "active_turns"):
        assert await connection.fetchval(f"SELECT count(*) FROM abide.{table} WHERE agent_id = $1", scene.agent) == 0
