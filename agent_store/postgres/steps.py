"""The step journal and approvals in Postgres; sql/queries/steps.sql says why the statements are right."""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from agent_store.codec import Codec, decode_json, decode_text, encode_json, encode_text, text
from agent_store.errors import LeaseLost
from agent_store.ports import Claim
from agent_store.postgres.base import Part
from agent_store.postgres.rows import Row
from agent_store.steps import (
    ApprovalRecord,
    Decision,
    Journal,
    NewApproval,
    NewStep,
    StepKind,
    StepRecord,
    StepStatus,
    Verdict,
)

_LEAST_AGO = 0.0


class PostgresSteps(Part):
    """StepStore over abide.steps and abide.approvals."""

    async def write_steps(self, claim: Claim, steps: Sequence[NewStep]) -> None:
        """See agent_store.ports.StepStore.write_steps."""
        codec = self._codecs.of(claim.session.agent_id)
        rows = await self._db.run(
            "write_steps",
            *_turn_of(claim),
            claim.token,
            [step.index for step in steps],
            [step.kind for step in steps],
            [text(step.name) for step in steps],
            [step.status for step in steps],
            [step.key for step in steps],
            [_encode_result(codec, claim.turn_id, step) for step in steps],
            [max(_LEAST_AGO, step.started) for step in steps],
            [None if step.finished is None else max(_LEAST_AGO, step.finished) for step in steps],
            codec.key_id,
            point="write_steps.1",
        )
        if not rows:
            raise LeaseLost(f"turn {claim.turn_id} was taken over or deleted")

    async def load_journal(self, claim: Claim) -> Journal:
        """See agent_store.ports.StepStore.load_journal."""
        codec = self._codecs.of(claim.session.agent_id)
        steps = await self._db.run("load_steps", *_turn_of(claim), point="load_journal.1")
        decisions = await self._db.run("load_decisions", *_turn_of(claim), point="load_journal.2")
        return Journal(
            {row["step_index"]: _read_step(codec, claim.turn_id, row) for row in steps},
            {row["call_id"]: _read_decision(codec, claim.turn_id, row) for row in decisions},
        )

    async def list_steps(self, agent_id: UUID, session_id: UUID, turn_id: UUID) -> list[StepRecord]:
        """See agent_store.ports.StepStore.list_steps."""
        codec = self._codecs.of(agent_id)
        rows = await self._db.run("load_steps", agent_id, session_id, turn_id, point="list_steps.1")
        return [_read_step(codec, turn_id, row) for row in rows]

    async def forget_results(self, claim: Claim, before: int) -> None:
        """See agent_store.ports.StepStore.forget_results."""
        await self._db.run("forget_results", *_turn_of(claim), before, point="forget_results.1")

    async def park(self, claim: Claim, approvals: Sequence[NewApproval]) -> bool:
        """See agent_store.ports.StepStore.park."""
        codec = self._codecs.of(claim.session.agent_id)
        rows = await self._db.run(
            "park",
            *_turn_of(claim),
            claim.token,
            [approval.call_id for approval in approvals],
            [text(approval.tool) for approval in approvals],
            [approval.on_timeout for approval in approvals],
            [_encode_arguments(codec, claim.turn_id, approval) for approval in approvals],
            [approval.timeout for approval in approvals],
            codec.key_id,
            point="park.1",
        )
        if not rows:
            raise LeaseLost(f"turn {claim.turn_id} was taken over or deleted")
        return bool(rows[0]["is_parked"])

    async def list_approvals(
        self, agent_id: UUID, *, turn_id: UUID | None = None, limit: int = 200
    ) -> list[ApprovalRecord]:
        """See agent_store.ports.StepStore.list_approvals."""
        rows = await self._db.run("list_approvals", agent_id, turn_id, limit, point="list_approvals.1")
        return [_read_approval(self._codecs.of(agent_id), row) for row in rows]

    async def find_approval(self, agent_id: UUID, turn_id: UUID, call_id: str) -> ApprovalRecord | None:
        """See agent_store.ports.StepStore.find_approval."""
        rows = await self._db.run("find_approval", agent_id, turn_id, call_id, point="find_approval.1")
        return _read_approval(self._codecs.of(agent_id), rows[0]) if rows else None

    async def decide(self, agent_id: UUID, approval: ApprovalRecord, *, approve: bool, by: str, comment: str) -> bool:
        """See agent_store.ports.StepStore.decide."""
        codec = self._codecs.of(agent_id)
        place = approval.turn_id, approval.call_id
        rows = await self._db.run(
            "decide",
            agent_id,
            approval.turn_id,
            approval.call_id,
            Verdict.APPROVED if approve else Verdict.REJECTED,
            text(by),
            # One key for the row: what was written with an older one is written anew.
            codec.encode(encode_json(approval.arguments), "approvals", *place),
            codec.encode(encode_text(comment), "approval_comments", *place),
            codec.key_id,
            point="decide.1",
        )
        return bool(rows)

    async def expire_approvals(self, agent_id: UUID) -> int:
        """See agent_store.ports.StepStore.expire_approvals."""
        rows = await self._db.run("expire_approvals", agent_id, point="expire_approvals.1")
        return int(rows[0]["woken"])

    async def cancel_waiting(self, agent_id: UUID, turn_id: UUID, user: str) -> bool:
        """See agent_store.ports.StepStore.cancel_waiting."""
        return bool(await self._db.run("cancel_waiting", agent_id, turn_id, user, point="cancel_waiting.1"))

    async def mark_alone(self, claim: Claim, *, alone: bool) -> None:
        """See agent_store.ports.StepStore.mark_alone."""
        rows = await self._db.run("mark_alone", *_turn_of(claim), claim.token, alone, point="mark_alone.1")
        if not rows:
            raise LeaseLost(f"turn {claim.turn_id} was taken over or deleted")


def _turn_of(claim: Claim) -> tuple[UUID, UUID, UUID]:
    return claim.session.agent_id, claim.session_id, claim.turn_id


def _encode_result(codec: Codec, turn_id: UUID, step: NewStep) -> bytes | None:
    return None if step.result is None else codec.encode(encode_json(step.result), "steps", turn_id, step.index)


def _encode_arguments(codec: Codec, turn_id: UUID, approval: NewApproval) -> bytes:
    return codec.encode(encode_json(approval.arguments), "approvals", turn_id, approval.call_id)


def _read_step(codec: Codec, turn_id: UUID, row: Row) -> StepRecord:
    index, stored = row["step_index"], row["result"]
    result: dict[str, Any] | None = None
    if stored is not None:
        result = decode_json(codec.decode(stored, row["key_id"], "steps", turn_id, index))
    return StepRecord(
        index=index,
        kind=StepKind(row["kind"]),
        name=row["name"],
        status=StepStatus(row["status"]),
        result=result,
        key=row["idempotency_key"],
        started_at=row["started_at"],
        finished_at=row["finished_at"],
    )


def _read_decision(codec: Codec, turn_id: UUID, row: Row) -> Decision:
    stored = row["comment"]
    comment = ""
    if stored is not None:
        comment = decode_text(codec.decode(stored, row["key_id"], "approval_comments", turn_id, row["call_id"]))
    return Decision(Verdict(row["decision"]), row["on_timeout"], comment)


def _read_approval(codec: Codec, row: Row) -> ApprovalRecord:
    arguments = codec.decode(row["arguments"], row["key_id"], "approvals", row["turn_id"], row["call_id"])
    return ApprovalRecord(
        turn_id=row["turn_id"],
        session_id=row["session_id"],
        session_name=row["session_name"],
        user=row["user_id"],
        call_id=row["call_id"],
        tool=row["tool"],
        arguments=decode_json(arguments),
        requested_at=row["requested_at"],
        expires_at=row["expires_at"],
        on_timeout=row["on_timeout"],
        verdict=None if row["decision"] is None else Verdict(row["decision"]),
    )
