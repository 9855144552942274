"""The life of turns in Postgres: one statement each in the usual case; sql/queries says why they are right."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from uuid import UUID

import asyncpg

from agent_api.conditions import Reason
from agent_api.wire import TurnStatus
from agent_store import ids
from agent_store.codec import PLAIN_CODECS, Codec, Codecs, encode_json, encode_text, text
from agent_store.errors import IdempotencyMismatch, LeaseLost, QueueFull, StoreUnavailable
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
from agent_store.postgres.batches import Batches
from agent_store.postgres.executor import Executor
from agent_store.postgres.rows import Row, read_claim, read_message, read_message_content, read_turn

_RACES = 5
"""How often a statement that met a concurrent one is tried again; each time the other one has made progress."""
_LOCK_PATIENCE = "200ms"
"""How long a statement for several sessions waits for one that is locked, before each is tried alone."""


@dataclass(frozen=True, slots=True)
class _AcceptKey:
    """What the turns of one accept have in common."""

    agent_id: UUID
    owner: Owner
    queue_limit: int
    revision: str


@dataclass(frozen=True, slots=True)
class _Accepting:
    turn: NewTurn

    @property
    def place(self) -> tuple[str, str]:
        return self.turn.session.user, self.turn.session.name

    @property
    def size(self) -> int:
        return len(self.turn.content)


@dataclass(frozen=True, slots=True)
class _CompleteKey:
    """What the turns of one complete have in common."""

    agent_id: UUID
    owner: Owner


@dataclass(frozen=True, slots=True)
class _Completing:
    claim: Claim
    outcome: Outcome

    @property
    def place(self) -> tuple[str, str]:
        return self.claim.session.user, self.claim.session.name

    @property
    def size(self) -> int:
        return sum(len(message.content) for message in self.outcome.messages)


class PostgresTurns(Part):
    """TurnStore over abide.sessions, turns, active_turns and messages."""

    def __init__(self, db: Executor, codecs: Codecs = PLAIN_CODECS) -> None:
        super().__init__(db, codecs)
        self._accepts = Batches[_AcceptKey, _Accepting, Row](self._insert, _is_refusal)
        self._completions = Batches[_CompleteKey, _Completing, Row](self._finish, _is_refusal)

    async def finish_turns(self) -> None:
        """Wait for statements under way, within one deadline; for the end of the store."""
        deadline = self._db.command_timeout
        await asyncio.gather(self._accepts.aclose(deadline), self._completions.aclose(deadline))

    async def accept(self, turn: NewTurn, owner: Owner) -> Accepted:
        """See agent_store.ports.TurnStore.accept."""
        for _ in range(_RACES):
            refused = False
            try:
                row = await self._accepts.call(
                    _AcceptKey(turn.session.agent_id, owner, turn.queue_limit, turn.revision), _Accepting(turn)
                )
            except asyncpg.UniqueViolationError:
                row, refused = None, True
            if row is not None:
                return _read_accepted(turn, row)
            existing = await self._find_accepted(turn, owner)
            if existing is not None:
                return existing
            if not refused:
                raise QueueFull(f"{turn.queue_limit} messages wait in this session already")
        raise QueueFull("the session was deleted and made again too often meanwhile")

    async def _insert(self, key: _AcceptKey, parts: Sequence[_Accepting]) -> Sequence[Row | None]:
        """Send one accept for all of these. Raises LeaseLost."""
        turns = [part.turn for part in parts]
        codec = self._codecs.of(key.agent_id)
        rows = await self._db.run(
            "accept",
            key.agent_id,
            key.owner.instance,
            key.owner.epoch,
            key.queue_limit,
            key.revision,
            codec.key_id,
            [turn.id for turn in turns],
            [ids.new_id() for _ in turns],
            [turn.session.user for turn in turns],
            [turn.session.name for turn in turns],
            [codec.encode(encode_text(turn.content), "messages", turn.id, 0) for turn in turns],
            [turn.idempotency_key for turn in turns],
            # Without a key nothing is ever compared with it.
            [turn.request_hash if turn.idempotency_key is not None else None for turn in turns],
            _LOCK_PATIENCE,
            point="accept.1",
        )
        if not rows:
            raise LeaseLost(f"{key.owner.instance} holds no lease (epoch {key.owner.epoch})")
        found = {row["turn_id"]: row for row in rows}
        return [found.get(turn.id) for turn in turns]

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
        # It may have waited and been started since, together with others.
        (claim,) = await self._with_merged(key.agent_id, [claim])
        return Accepted(Disposition.RUN, stored, claim)

    async def complete(self, claim: Claim, owner: Owner, outcome: Outcome) -> Completed:
        """See agent_store.ports.TurnStore.complete. Raises ValueError if the outcome's status is not final."""
        if not outcome.status.is_final:
            raise ValueError(f"{outcome.status} is not a final status")
        key = _CompleteKey(claim.session.agent_id, owner)
        row = await self._completions.call(key, _Completing(claim, outcome))
        if row is None:
            return await self._find_completed(claim)
        return _read_completed(claim, outcome, row)

    async def _finish(self, key: _CompleteKey, parts: Sequence[_Completing]) -> Sequence[Row | None]:
        """Send one complete for all of these."""
        claims = [part.claim for part in parts]
        outcomes = [part.outcome for part in parts]
        lines = [
            (n, index, part.claim, message)
            for n, part in enumerate(parts, 1)
            for index, message in enumerate(part.outcome.messages, 1)
        ]
        ended = [
            (n, turn_id, turn_seq, turn_id == claim.turn_id)
            for n, claim in enumerate(claims, 1)
            for turn_id, turn_seq in ((claim.turn_id, claim.turn_seq), *claim.merged)
        ]
        rows = await self._db.run(
            "complete",
            key.agent_id,
            key.owner.instance,
            key.owner.epoch,
            self._codecs.of(key.agent_id).key_id if lines else None,
            [claim.session_id for claim in claims],
            [claim.turn_id for claim in claims],
            [claim.token for claim in claims],
            [claim.session.user for claim in claims],
            [claim.session.name for claim in claims],
            [claim.turn_seq for claim in claims],
            [outcome.status for outcome in outcomes],
            [outcome.model for outcome in outcomes],
            [outcome.steps for outcome in outcomes],
            [outcome.input_tokens for outcome in outcomes],
            [outcome.output_tokens for outcome in outcomes],
            [outcome.cost_micros for outcome in outcomes],
            [outcome.currency for outcome in outcomes],
            [outcome.error_type for outcome in outcomes],
            [None if outcome.error_message is None else text(outcome.error_message) for outcome in outcomes],
            [len(outcome.messages) for outcome in outcomes],
            [_find_reply(outcome) for outcome in outcomes],
            [n for n, _, _, _ in lines],
            [index for _, index, _, _ in lines],
            [message.role for _, _, _, message in lines],
            [self._encode_content(claim, index, message) for _, index, claim, message in lines],
            [self._encode_calls(claim, index, message) for _, index, claim, message in lines],
            [None if line.tool_call_id is None else text(line.tool_call_id) for _, _, _, line in lines],
            _LOCK_PATIENCE,
            [n for n, _, _, _ in ended],
            [turn_id for _, turn_id, _, _ in ended],
            [turn_seq for _, _, turn_seq, _ in ended],
            [leads for _, _, _, leads in ended],
            point="complete.1",
        )
        found = {row["n"]: row for row in rows}
        return [found.get(n) for n in range(1, len(parts) + 1)]

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

    async def start_next(self, agent_id: UUID, session_id: UUID, owner: Owner, *, most: int = 1) -> Claim | None:
        """See agent_store.ports.TurnStore.start_next."""
        for _ in range(_RACES):
            rows = await self._db.run(
                "start_next", agent_id, session_id, owner.instance, owner.epoch, most, point="start_next.1"
            )
            if not rows:
                raise LeaseLost(f"{owner.instance} holds no lease (epoch {owner.epoch})")
            if rows[0]["turn_id"] is not None:
                codec = self._codecs.of(agent_id)
                return _merge(read_claim(codec, rows[0], agent_id), codec, rows[1:])
            if not rows[0]["is_raced"]:
                return None
        return None  # the sweep finds it

    async def claim_orphans(
        self, agent_id: UUID, owner: Owner, *, limit: int, known: Sequence[UUID] = (), most: int = 1
    ) -> list[Claim]:
        """See agent_store.ports.TurnStore.claim_orphans."""
        rows = await self._db.run(
            "take_over", agent_id, owner.instance, owner.epoch, limit, known, point="claim_orphans.1"
        )
        if not rows:
            raise LeaseLost(f"{owner.instance} holds no lease (epoch {owner.epoch})")
        codec = self._codecs.of(agent_id)
        claims = [_read_resumed(codec, row, agent_id) for row in rows if row["turn_id"] is not None]
        if claims:
            claims = await self._with_merged(agent_id, claims)
        if len(claims) < limit:
            claims += await self._start_waiting(agent_id, owner, limit - len(claims), most)
        return claims

    async def _with_merged(self, agent_id: UUID, claims: Sequence[Claim]) -> list[Claim]:
        """Return the claims with the turns that were merged into theirs when they were started."""
        rows = await self._db.run(
            "load_merged",
            agent_id,
            [claim.session_id for claim in claims],
            [claim.turn_id for claim in claims],
            [claim.turn_seq for claim in claims],
            point="claim_orphans.3",
        )
        codec = self._codecs.of(agent_id)
        return [_merge(claim, codec, [row for row in rows if row["merged_into"] == claim.turn_id]) for claim in claims]

    async def _start_waiting(self, agent_id: UUID, owner: Owner, limit: int, most: int) -> list[Claim]:
        waiting = await self._db.run("list_waiting", agent_id, limit, point="claim_orphans.2")
        claims = [await self.start_next(agent_id, row["id"], owner, most=most) for row in waiting]
        return [claim for claim in claims if claim is not None]

    async def cancel_turn(self, agent_id: UUID, turn_id: UUID, user: str) -> TurnRecord | None:
        """See agent_store.ports.TurnStore.cancel_turn."""
        for _ in range(2):
            await self._db.run("cancel_turn", agent_id, turn_id, user, point="cancel_turn.1")
            record = await self.get_turn(agent_id, turn_id, user)
            if record is None or record.status is not TurnStatus.RUNNING:
                break
            # It may have been started in the very moment, where the statement's view did not reach.
        return record

    async def interrupt(self, accepted: TurnRecord, error: tuple[str, str]) -> TurnRecord | None:
        """See agent_store.ports.TurnStore.interrupt."""
        rows = await self._db.run(
            "interrupt", accepted.agent_id, accepted.session_id, accepted.turn_seq, *error, point="interrupt.1"
        )
        return await self.get_turn(accepted.agent_id, rows[0]["id"], accepted.user) if rows else None

    async def get_turn(self, agent_id: UUID, turn_id: UUID, user: str) -> TurnRecord | None:
        """See agent_store.ports.TurnStore.get_turn."""
        rows = await self._db.run("get_turn", agent_id, turn_id, user, point="get_turn.1")
        return read_turn(self._codecs.of(agent_id), rows[0]) if rows else None

    async def load_history(
        self, session_id: UUID, agent_id: UUID, *, before_turn_seq: int, limit: int
    ) -> list[StoredMessage]:
        """See agent_store.ports.TurnStore.load_history."""
        rows = await self._db.run("load_history", agent_id, session_id, before_turn_seq, limit, point="load_history.1")
        # A message of a turn that was cancelled while it waited has its seq from then, amid the lines of another turn.
        rows = sorted(rows, key=lambda row: (row["turn_seq"], row["turn_index"]))
        return [read_message(self._codecs.of(agent_id), row) for row in rows]


def _is_refusal(error: Exception) -> bool:
    """Whether a statement was undone because of what was in it, not because Postgres cannot be used."""
    return not isinstance(error, LeaseLost | StoreUnavailable) or (
        isinstance(error, StoreUnavailable) and not error.sent and error.reason in (Reason.UNKNOWN, Reason.TIMEOUT)
    )


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


def _read_resumed(codec: Codec, row: Row, agent_id: UUID) -> Claim:
    claim = read_claim(codec, row, agent_id)
    return replace(claim, is_resumed=True, is_alone=row["is_alone"], is_cancelled=row["is_cancelled"])


def _read_completed(claim: Claim, outcome: Outcome, row: Row) -> Completed:
    reply = _find_reply(outcome)
    record = TurnRecord(
        id=claim.turn_id,
        agent_id=claim.session.agent_id,
        session_id=claim.session_id,
        session_name=claim.session.name,
        user=claim.session.user,
        turn_seq=claim.turn_seq,
        status=outcome.status,
        attempts=row["attempts"],
        model=outcome.model,
        error_type=outcome.error_type,
        error_message=outcome.error_message,
        reply=None if reply is None else outcome.messages[reply].content,
        created_at=row["created_at"],
        finished_at=row["finished_at"],
        input_tokens=outcome.input_tokens,
        output_tokens=outcome.output_tokens,
        cost_micros=outcome.cost_micros,
        currency=outcome.currency,
    )
    return Completed(record, row["is_waiting"])


def _merge(claim: Claim, codec: Codec, rows: Sequence[Row]) -> Claim:
    """Return the claim with the turns of `rows` merged into it: each message follows after a blank line."""
    if not rows:
        return claim
    try:
        texts = [read_message_content(codec, row, "content", row["key_id"], row["turn_id"], 0) for row in rows]
    except ValueError:
        texts, claim = ["" for _ in rows], replace(claim, is_unreadable=True)
    return replace(
        claim,
        content="\n\n".join([claim.content, *texts]),
        texts=(claim.content, *texts),
        accepted_messages=rows[-1]["turn_seq"],
        merged=tuple((row["turn_id"], row["turn_seq"]) for row in rows),
    )


def _find_reply(outcome: Outcome) -> int | None:
    """Return the index of the last assistant line: what users read."""
    for index in reversed(range(len(outcome.messages))):
        if outcome.messages[index].role == "assistant":
            return index
    return None
