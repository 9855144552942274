"""The turn protocol against a model of it: any calls in any order, by processes that may be replaced in between."""

import asyncio
from collections.abc import Awaitable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID, uuid4

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from agent_api.wire import TurnStatus
from agent_store.errors import IdempotencyMismatch, LeaseLost, QueueFull
from agent_store.ports import Accepted, Claim, Disposition, NewTurn, Owner
from agent_store.postgres.store import PostgresStore
from tests.contract.agent_store.scene import Scene

PODS = st.sampled_from(["pod-1", "pod-2"])
SESSIONS = st.sampled_from(["a", "b"])
INDEX = st.integers(0, 50)


@dataclass
class ModelTurn:
    """What the model knows of a turn."""

    new: NewTurn
    seq: int
    status: TurnStatus
    owner: Owner | None = None
    claims: list[tuple[Claim, Owner]] = field(default_factory=list)
    attempts: int = 0
    reply: str | None = None
    asked_at: int | None = None
    answered_at: int = 0

    @property
    def current(self) -> Claim | None:
        return self.claims[-1][0] if self.claims else None


@dataclass
class ModelSession:
    """What the model knows of a session: its turns in order of acceptance."""

    turns: list[ModelTurn] = field(default_factory=list)

    @property
    def active(self) -> ModelTurn | None:
        return next((turn for turn in self.turns if turn.status is TurnStatus.RUNNING), None)

    @property
    def queued(self) -> list[ModelTurn]:
        return [turn for turn in self.turns if turn.status is TurnStatus.QUEUED]

    def messages(self) -> list[tuple[str, str]]:
        found: list[tuple[int, str, str]] = []
        for turn in self.turns:
            if turn.asked_at is not None:
                found.append((turn.asked_at, "user", turn.new.content))
            if turn.reply is not None:
                found.append((turn.answered_at, "assistant", turn.reply))
        return [(role, content) for _, role, content in sorted(found)]


class Protocol(RuleBasedStateMachine):
    """Each rule is one call of the store; what it answers must be what the model says."""

    url: str
    runner: asyncio.Runner

    def __init__(self) -> None:
        super().__init__()
        self.store = PostgresStore(self.url)
        self.scene = Scene(self.store)
        self.sessions: dict[str, ModelSession] = {}
        self.deleted: list[ModelTurn] = []
        self.live: dict[str, Owner] = {}
        self.past: list[Owner] = []
        self.count = 0

    def do(self, call: Awaitable[Any]) -> Any:
        async def bounded() -> Any:
            async with asyncio.timeout(30):
                return await call

        return self.runner.run(bounded())

    def all_turns(self) -> Iterator[tuple[ModelSession, ModelTurn]]:
        for session in self.sessions.values():
            for turn in session.turns:
                yield session, turn

    def is_orphaned(self, turn: ModelTurn) -> bool:
        return turn.owner is not None and self.live.get(turn.owner.instance) != turn.owner

    # Processes --------------------------------------------------------------------------------------------------

    @rule(pod=PODS)
    def start(self, pod: str) -> None:
        if pod in self.live:
            self.past.append(self.live[pod])
        self.live[pod] = self.do(self.scene.start(pod))

    @rule(pod=PODS)
    def release(self, pod: str) -> None:
        if pod in self.live:
            owner = self.live.pop(pod)
            self.past.append(owner)
            self.do(self.store.release(self.scene.agent, owner))

    @precondition(lambda self: self.past)
    @rule(index=INDEX)
    def act_with_a_lost_lease(self, index: int) -> None:
        owner = self.past[index % len(self.past)]
        for call in (
            self.scene.say(owner, session="a"),
            self.store.claim_orphans(self.scene.agent, owner, limit=5),
            self.store.renew(self.scene.agent, owner, ttl=30.0),
            self.store.start_next(self.scene.agent, uuid4(), owner),
        ):
            try:
                self.do(call)
            except LeaseLost:
                continue
            raise AssertionError("a lost lease still acts")

    # Turns ------------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.live)
    @rule(pod=PODS, name=SESSIONS, key=st.sampled_from([None, None, "k1", "k2"]), body=st.integers(0, 1))
    def accept(self, pod: str, name: str, key: str | None, body: int) -> None:
        owner = self.live.get(pod) or next(iter(self.live.values()))
        self.count += 1
        content = f"{name} {self.count}" if key is None else f"{name} {key} {body}"
        self.accept_turn(self.scene.turn(content, session=name, idempotency_key=key, queue_limit=2), owner)

    @precondition(lambda self: self.live and self.sessions)
    @rule(pod=PODS, index=INDEX)
    def accept_again(self, pod: str, index: int) -> None:
        owner = self.live.get(pod) or next(iter(self.live.values()))
        turns = [turn for _, turn in self.all_turns()]
        if turns:
            self.accept_turn(turns[index % len(turns)].new, owner)

    def accept_turn(self, new: NewTurn, owner: Owner) -> None:
        session = self.sessions.setdefault(new.session.name, ModelSession())
        same = next((turn for turn in session.turns if turn.new.id == new.id), None)
        keyed = [
            turn for turn in session.turns if new.idempotency_key and turn.new.idempotency_key == new.idempotency_key
        ]
        known = same or next(iter(keyed), None)
        try:
            accepted: Accepted = self.do(self.store.accept(new, owner))
        except QueueFull:
            assert known is None
            assert len(session.queued) >= new.queue_limit
            return
        except IdempotencyMismatch:
            assert known is not None
            assert known.new.request_hash != new.request_hash
            return
        if known is None:
            self.note_new(session, new, owner, accepted)
            return
        assert known.new.request_hash == new.request_hash
        assert accepted.turn.id == known.new.id
        assert accepted.turn.status is known.status
        assert accepted.turn.reply == known.reply
        if accepted.disposition is Disposition.RUN:
            assert same is not None
            assert (known.status, known.owner) == (TurnStatus.RUNNING, owner)
            assert accepted.claim == known.current
        elif accepted.disposition is Disposition.QUEUED:
            assert same is not None
            assert known.status is TurnStatus.QUEUED
        else:
            assert same is None or known.status is not TurnStatus.QUEUED
            assert same is None or known.owner != owner or known.status is not TurnStatus.RUNNING

    def note_new(self, session: ModelSession, new: NewTurn, owner: Owner, accepted: Accepted) -> None:
        runs = session.active is None and not session.queued
        assert runs or len(session.queued) < new.queue_limit
        turn = ModelTurn(new, len(session.turns) + 1, TurnStatus.RUNNING if runs else TurnStatus.QUEUED)
        assert accepted.disposition is (Disposition.RUN if runs else Disposition.QUEUED)
        assert (accepted.turn.turn_seq, accepted.turn.status) == (turn.seq, turn.status)
        session.turns.append(turn)
        if runs:
            assert accepted.claim is not None
            self.note_start(turn, accepted.claim, owner)

    def note_start(self, turn: ModelTurn, claim: Claim, owner: Owner) -> None:
        turn.attempts += 1
        assert (claim.turn_id, claim.content, claim.turn_seq) == (turn.new.id, turn.new.content, turn.seq)
        assert claim.attempts == turn.attempts
        assert turn.current is None or claim.token > turn.current.token
        turn.status, turn.owner = TurnStatus.RUNNING, owner
        turn.claims.append((claim, owner))
        self.note_asked(turn)

    def note_asked(self, turn: ModelTurn) -> None:
        self.count += 1
        turn.asked_at = turn.asked_at or self.count

    @precondition(lambda self: any(turn.claims for _, turn in self.all_turns()))
    @rule(index=INDEX, which=INDEX)
    def complete(self, index: int, which: int) -> None:
        started = [(session, turn) for session, turn in self.all_turns() if turn.claims]
        session, turn = started[index % len(started)]
        self.complete_claim(session, turn, *turn.claims[-1 - which % len(turn.claims)])

    def complete_claim(self, session: ModelSession, turn: ModelTurn, claim: Claim, owner: Owner) -> None:
        is_current = turn.current is not None and claim.token == turn.current.token
        was_running = turn.status is TurnStatus.RUNNING
        is_live = self.live.get(owner.instance) == owner
        superseded = any(other.instance == owner.instance and other.epoch > owner.epoch for other in self.everybody())
        self.count += 1
        reply = f"reply {self.count}"
        try:
            done = self.do(self.scene.finish(owner, claim, reply))
        except LeaseLost:
            assert not is_current or (was_running and superseded and not is_live)
            return
        assert is_current
        if was_running:
            assert not superseded
            turn.status, turn.reply, turn.owner = TurnStatus.COMPLETED, reply, None
            turn.answered_at = self.count
        assert (done.turn.status, done.turn.reply) == (turn.status, turn.reply)
        assert done.waiting == (bool(session.queued) and session.active is None)

    def everybody(self) -> list[Owner]:
        return [*self.live.values(), *self.past]

    @precondition(lambda self: self.live and any(turn.claims for _, turn in self.all_turns()))
    @rule(pod=PODS, index=INDEX)
    def start_next(self, pod: str, index: int) -> None:
        owner = self.live.get(pod) or next(iter(self.live.values()))
        started = [(session, turn) for session, turn in self.all_turns() if turn.current]
        session, some = started[index % len(started)]
        assert some.current is not None
        claim = self.do(self.store.start_next(self.scene.agent, some.current.session_id, owner))
        if session.active is not None or not session.queued:
            assert claim is None
        else:
            self.note_start(session.queued[0], claim, owner)

    @precondition(lambda self: self.live)
    @rule(pod=PODS, limit=st.integers(1, 4), forget=st.booleans())
    def sweep(self, pod: str, limit: int, forget: bool) -> None:
        owner = self.live.get(pod) or next(iter(self.live.values()))
        own = [turn.new.id for _, turn in self.all_turns() if turn.owner == owner]
        self.sweep_as(owner, limit, [] if forget else own)

    def sweep_as(self, owner: Owner, limit: int, known: list[UUID]) -> int:
        lost = {turn.new.id: turn for _, turn in self.all_turns() if turn.owner == owner and turn.new.id not in known}
        orphans = {turn.new.id: turn for _, turn in self.all_turns() if self.is_orphaned(turn)}
        idle = {s.queued[0].new.id: s.queued[0] for s in self.sessions.values() if s.queued and s.active is None}
        claims = self.do(self.store.claim_orphans(self.scene.agent, owner, limit=limit, known=known))
        assert len(claims) == min(limit, len(lost) + len(orphans) + len(idle))
        for claim in claims:
            if claim.turn_id in lost:
                current = lost[claim.turn_id].current
                assert current is not None
                assert replace(claim, is_resumed=False, is_cancelled=False) == replace(current, is_resumed=False)
            else:
                self.note_start((orphans | idle)[claim.turn_id], claim, owner)
        return len(claims)

    @precondition(lambda self: any(session.turns for session in self.sessions.values()))
    @rule(index=INDEX)
    def cancel(self, index: int) -> None:
        turns = [turn for _, turn in self.all_turns()]
        turn = turns[index % len(turns)]
        found = self.do(self.store.cancel_turn(self.scene.agent, turn.new.id, "ann"))
        if turn.status is TurnStatus.QUEUED:
            turn.status = TurnStatus.CANCELLED
            self.note_asked(turn)
        assert found.status is turn.status

    @rule(name=SESSIONS, sure=st.integers(0, 3))
    def delete(self, name: str, sure: int) -> None:
        if sure or name not in self.sessions or not self.sessions[name].turns:
            return
        assert self.do(self.store.delete_session(self.scene.key(name)))
        self.deleted += self.sessions.pop(name).turns

    @precondition(lambda self: any(turn.claims for turn in self.deleted))
    @rule(index=INDEX)
    def complete_deleted(self, index: int) -> None:
        claims = [pair for turn in self.deleted for pair in turn.claims]
        claim, owner = claims[index % len(claims)]
        try:
            self.do(self.scene.finish(owner, claim))
        except LeaseLost:
            return
        raise AssertionError("a turn of a deleted session was completed")

    # What is stored ---------------------------------------------------------------------------------------------

    @rule(name=SESSIONS)
    def compare(self, name: str) -> None:
        session = self.sessions.get(name, ModelSession())
        history = self.do(self.scene.history(name))
        assert [(role, content) for _, role, content in history] == session.messages()
        assert [seq for seq, _, _ in history] == list(range(1, len(history) + 1))
        for turn in session.turns:
            found = self.do(self.store.get_turn(self.scene.agent, turn.new.id, "ann"))
            assert (found.status, found.reply, found.attempts, found.turn_seq) == (
                turn.status,
                turn.reply,
                turn.attempts,
                turn.seq,
            )

    def teardown(self) -> None:
        """Whatever happened: one new process brings every accepted turn to its one outcome."""
        last = self.do(self.scene.start("last"))
        for pod, owner in list(self.live.items()):
            self.do(self.store.release(self.scene.agent, owner))
            self.past.append(self.live.pop(pod))
        self.live["last"] = last
        while self.sweep_as(last, 10, []):
            for session, turn in list(self.all_turns()):
                if turn.owner == last:
                    self.complete_claim(session, turn, *turn.claims[-1])
        assert all(turn.status.is_final for _, turn in self.all_turns())
        for name in list(self.sessions):
            self.compare(name)
        self.do(self.store.aclose())


def test_any_sequence_of_calls_keeps_the_protocol(postgres_url: str) -> None:
    with asyncio.Runner() as runner:
        machine = type("BoundProtocol", (Protocol,), {"url": postgres_url, "runner": runner})
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=60,
                stateful_step_count=40,
                deadline=None,
                suppress_health_check=list(HealthCheck),
                print_blob=True,
            ),
        )
