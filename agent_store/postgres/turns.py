"""The life of turns in Postgres: one statement each in the usual case; sql/queries says why they are right."""

from collections.abc import Sequence
from uuid import UUID

import asyncpg

from agent_api.wire import TurnStatus
from agent_store import ids
from agent_store.codec import encode_json, encode_text, text
from agent_store.errors import IdempotencyMismatch, LeaseLost, QueueFull
from agent_store.ports import (
    Accepted,
    Claim,
    Completed,
    Disposition,
    NewMessage,
    NewTurn,
    Outcome,
    Owner,
    StoredMessage,
    TurnRecord,
)
from agent_store.postgres.base import Part
from agent_store.postgres.rows import Row, read_claim, read_message, read_turn

_RACES = 5
"""How often a statement that met a concurrent one is tried again; each time the other one has made progress."""


class PostgresTurns(Part):
    """TurnStore over abide.sessions, turns, active_turns and messages."""

    async def accept(self, turn: NewTurn, owner: Owner) -> Accepted:
        """See agent_store.ports.TurnStore.accept."""
        for _ in range(_RACES):
            try:
                row = await self._insert(turn, owner)
            except asyncpg.UniqueViolationError:
                row = None
            if row is not None and row["id"] is not None:
                return _read_accepted(turn, row)
            existing = await self._find_accepted(turn, owner)
            if existing is not None:
                return existing
            if row is not None:
                raise QueueFull(f"{turn.queue_limit} messages wait in this session already")
        raise QueueFull("the session was deleted and made again too often meanwhile")

    async def _insert(self, turn: NewTurn, owner: Owner) -> Row:
        key = turn.session
        codec = self._codecs.of(key.agent_id)
        rows = await self._db.run(
            "accept",
            key.agent_id,
            key.user,
            key.name,
            turn.id,
            ids.new_id(),
            owner.instance,
            owner.epoch,
            codec.encode(encode_text(turn.content), "messages", turn.id, 0),
            codec.key_id,
            turn.idempotency_key,
            # Without a key nothing is ever compared with it.
            turn.request_hash if turn.idempotency_key is not None else None,
            turn.queue_limit,
            turn.revision,
            point="accept.1",
        )
        if not rows:
            raise LeaseLost(f"{owner.instance} holds no lease (epoch {owner.epoch})")
        row: Row = rows[0]
        return row

    async def _find_accepted(self, turn: NewTurn, owner: Owner) -> Accepted | None:
        key = turn.session
        rows = await self._db.run(
            "find_accepted",
            key.agent_id,
            turn.id,
            turn.idempotency_key,
            key.user,
            key.name,
            owner.instance,
            owner.epoch,
            point="accept.2",
        )
        if not rows:
            return None
        row = rows[0]
        if (row["user_id"], row["session_name"]) != (key.user, key.name):
            raise IdempotencyMismatch("a turn with this id exists in another session")
        if row["idempotency_key"] != turn.idempotency_key or (
            turn.idempotency_key is not None and row["request_hash"] != turn.request_hash
        ):
            raise IdempotencyMismatch("the idempotency key was used with another body")
        stored = read_turn(self._codecs.of(key.agent_id), row)
        if stored.id != turn.id:
            return Accepted(Disposition.DUPLICATE, stored, None)
        if stored.status == TurnStatus.QUEUED:
            return Accepted(Disposition.QUEUED, stored, None)
        if not row["is_held"]:
            return Accepted(Disposition.DUPLICATE, stored, None)
        claim = Claim(
            turn_id=turn.id,
            session_id=stored.session_id,
            session=key,
            turn_seq=stored.turn_seq,
            token=row["token"],
            attempts=stored.attempts,
            content=turn.content,
            steps_before=row["session_steps"],
            accepted_messages=stored.turn_seq,
        )
        return Accepted(Disposition.RUN, stored, claim)

    async def complete(self, claim: Claim, owner: Owner, outcome: Outcome) -> Completed:
        """See agent_store.ports.TurnStore.complete. Raises ValueError if the outcome's status is not final."""
        if not outcome.status.is_final:
            raise ValueError(f"{outcome.status} is not a final status")
        agent_id = claim.session.agent_id
        rows = await self._db.run(
            "complete",
            agent_id,
            claim.session_id,
            claim.turn_id,
            claim.token,
            owner.instance,
            owner.epoch,
            outcome.status,
            outcome.model,
            outcome.steps,
            outcome.input_tokens,
            outcome.output_tokens,
            outcome.error_type,
            None if outcome.error_message is None else text(outcome.error_message),
            [message.role for message in outcome.messages],
            [self._encode_content(claim, index, line) for index, line in enumerate(outcome.messages, 1)],
            [self._encode_calls(claim, index, line) for index, line in enumerate(outcome.messages, 1)],
            [message.tool_call_id for message in outcome.messages],
            _find_reply(outcome),
            self._codecs.of(agent_id).key_id if outcome.messages else None,
            claim.session.user,
            claim.session.name,
            claim.turn_seq,
            point="complete.1",
        )
        if not rows:
            return await self._find_completed(claim)
        return _read_completed(claim, outcome, rows[0])

    async def _find_completed(self, claim: Claim) -> Completed:
        rows = await self._db.run(
            "find_completed", claim.session.agent_id, claim.turn_id, claim.token, point="complete.2"
        )
        if not rows:
            raise LeaseLost(f"turn {claim.turn_id} was taken over or deleted")
        return Completed(read_turn(self._codecs.of(claim.session.agent_id), rows[0]), rows[0]["is_waiting"])

    def _encode_content(self, claim: Claim, index: int, message: NewMessage) -> bytes:
        codec = self._codecs.of(claim.session.agent_id)
        return codec.encode(encode_text(message.content), "messages", claim.turn_id, index)

    def _encode_calls(self, claim: Claim, index: int, message: NewMessage) -> bytes | None:
        if not message.tool_calls:
            return None
        codec = self._codecs.of(claim.session.agent_id)
        return codec.encode(encode_json(list(message.tool_calls)), "tool_calls", claim.turn_id, index)

    async def start_next(self, agent_id: UUID, session_id: UUID, owner: Owner) -> Claim | None:
        """See agent_store.ports.TurnStore.start_next."""
        for _ in range(_RACES):
            rows = await self._db.run(
                "start_next", agent_id, session_id, owner.instance, owner.epoch, point="start_next.1"
            )
            if not rows:
                raise LeaseLost(f"{owner.instance} holds no lease (epoch {owner.epoch})")
            if rows[0]["turn_id"] is not None:
                return read_claim(self._codecs.of(agent_id), rows[0], agent_id)
            if not rows[0]["is_raced"]:
                return None
        return None  # the sweep finds it

    async def claim_orphans(
        self, agent_id: UUID, owner: Owner, *, limit: int, known: Sequence[UUID] = ()
    ) -> list[Claim]:
        """See agent_store.ports.TurnStore.claim_orphans."""
        rows = await self._db.run(
            "take_over", agent_id, owner.instance, owner.epoch, limit, known, point="claim_orphans.1"
        )
        if not rows:
            raise LeaseLost(f"{owner.instance} holds no lease (epoch {owner.epoch})")
        claims = [read_claim(self._codecs.of(agent_id), row, agent_id) for row in rows if row["turn_id"] is not None]
        if len(claims) < limit:
            claims += await self._start_waiting(agent_id, owner, limit - len(claims))
        return claims

    async def _start_waiting(self, agent_id: UUID, owner: Owner, limit: int) -> list[Claim]:
        waiting = await self._db.run("list_waiting", agent_id, limit, point="claim_orphans.2")
        claims = [await self.start_next(agent_id, row["id"], owner) for row in waiting]
        return [claim for claim in claims if claim is not None]

    async def cancel_queued(self, agent_id: UUID, turn_id: UUID, user: str) -> TurnRecord | None:
        """See agent_store.ports.TurnStore.cancel_queued."""
        await self._db.run("cancel_queued", agent_id, turn_id, user, point="cancel_queued.1")
        return await self.get_turn(agent_id, turn_id, user)

    async def get_turn(self, agent_id: UUID, turn_id: UUID, user: str) -> TurnRecord | None:
        """See agent_store.ports.TurnStore.get_turn."""
        rows = await self._db.run("get_turn", agent_id, turn_id, user, point="get_turn.1")
        return read_turn(self._codecs.of(agent_id), rows[0]) if rows else None

    async def load_history(
        self, session_id: UUID, agent_id: UUID, *, before_turn_seq: int, limit: int
    ) -> list[StoredMessage]:
        """See agent_store.ports.TurnStore.load_history."""
        rows = await self._db.run("load_history", agent_id, session_id, before_turn_seq, limit, point="load_history.1")
        return [read_message(self._codecs.of(agent_id), row) for row in reversed(rows)]


def _read_accepted(turn: NewTurn, row: Row) -> Accepted:
    runs = row["runs"]
    record = TurnRecord(
        id=turn.id,
        agent_id=turn.session.agent_id,
        session_id=row["id"],
        session_name=turn.session.name,
        user=turn.session.user,
        turn_seq=row["turn_seq"],
        status=TurnStatus.RUNNING if runs else TurnStatus.QUEUED,
        attempts=int(runs),
        model=None,
        error_type=None,
        error_message=None,
        reply=None,
        created_at=row["created_at"],
        finished_at=None,
    )
    if not runs:
        return Accepted(Disposition.QUEUED, record, None)
    claim = Claim(
        turn_id=turn.id,
        session_id=row["id"],
        session=turn.session,
        turn_seq=row["turn_seq"],
        token=row["token"],
        attempts=1,
        content=turn.content,
        steps_before=row["steps"],
        accepted_messages=row["turn_seq"],
    )
    return Accepted(Disposition.RUN, record, claim)


def _read_completed(claim: Claim, outcome: Outcome, row: Row) -> Completed:
    reply = _find_reply(outcome)
    record = TurnRecord(
        id=claim.turn_id,
        agent_id=claim.session.agent_id,
        session_id=claim.session_id,
        session_name=row["name"],
        user=row["user_id"],
        turn_seq=row["turn_seq"],
        status=outcome.status,
        attempts=row["attempts"],
        model=outcome.model,
        error_type=outcome.error_type,
        error_message=outcome.error_message,
        reply=None if reply is None else outcome.messages[reply].content,
        created_at=row["created_at"],
        finished_at=row["finished_at"],
    )
    return Completed(record, row["is_waiting"])


def _find_reply(outcome: Outcome) -> int | None:
    """Return the index of the last assistant line: what users read."""
    for index in reversed(range(len(outcome.messages))):
        if outcome.messages[index].role == "assistant":
            return index
    return None
