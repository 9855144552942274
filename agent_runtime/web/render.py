"""From what the store holds to what callers see."""

import base64
import binascii
import json
from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from uuid import UUID

from agent_api.wire import (
    ApprovalOut,
    ErrorOut,
    MessageOut,
    Reply,
    SessionOut,
    StepOut,
    TurnError,
    TurnOut,
    TurnResponse,
    TurnStatus,
    TurnUsage,
)
from agent_store.ports import ErrorRecord, SessionRecord, StoredMessage, TurnRecord
from agent_store.steps import ApprovalRecord, StepRecord


def turn_response(
    turn: TurnRecord,
    *,
    waiting: str = "",
    steps: Sequence[StepRecord] | None = None,
    approvals: Sequence[ApprovalRecord] | None = None,
) -> TurnResponse:
    """Return a turn with its reply; a turn without an outcome, and a cancelled one, have none.

    `waiting` is what users read while the turn waits for a person.
    """
    text = turn.reply if turn.status.is_final and turn.status is not TurnStatus.CANCELLED else None
    if turn.status is TurnStatus.WAITING and waiting:
        text = waiting
    error = TurnError(type=turn.error_type, message=turn.error_message or "") if turn.error_type else None
    out = TurnOut(
        id=turn.id,
        status=turn.status,
        model=turn.model,
        error=error,
        session=turn.session_name,
        attempts=turn.attempts,
        created_at=turn.created_at,
        finished_at=turn.finished_at,
        usage=_usage(turn) if turn.status.is_final else None,
        steps=None if steps is None else [_step_out(step) for step in steps],
        approvals=None if approvals is None else [approval_out(approval) for approval in approvals],
    )
    return TurnResponse(turn=out, reply=None if text is None else Reply(content=text))


def _step_out(step: StepRecord) -> StepOut:
    return StepOut(
        index=step.index,
        kind=step.kind.value,
        name=step.name,
        status=step.status.value,
        started_at=step.started_at,
        finished_at=step.finished_at,
    )


def approval_out(approval: ApprovalRecord) -> ApprovalOut:
    """Return a tool call that waits for a person."""
    return ApprovalOut(
        turn_id=approval.turn_id,
        call_id=approval.call_id,
        tool=approval.tool,
        arguments=approval.arguments,
        session=approval.session_name,
        user=approval.user,
        requested_at=approval.requested_at,
        expires_at=approval.expires_at,
        on_timeout="Approve" if approval.on_timeout == "Approve" else "Reject",
    )


def _usage(turn: TurnRecord) -> TurnUsage:
    return TurnUsage(
        input_tokens=turn.input_tokens,
        output_tokens=turn.output_tokens,
        cost=None if turn.cost_micros is None else format_micros(turn.cost_micros),
        currency=turn.currency,
    )


def format_micros(micros: int) -> str:
    """Return millionths as a decimal number, without zeros at its end: 420 is 0.00042."""
    return format((Decimal(micros) / 1_000_000).normalize(), "f")


def message_out(message: StoredMessage) -> MessageOut:
    """Return one line of history."""
    return MessageOut.model_validate(
        {
            "seq": message.seq,
            "role": message.role,
            "content": message.content,
            "turnId": message.turn_id,
            "createdAt": message.created_at,
        }
    )


def session_out(session: SessionRecord) -> SessionOut:
    """Return one session."""
    return SessionOut(
        name=session.name,
        user=session.user,
        created_at=session.created_at,
        last_active_at=session.last_active_at,
        messages=session.accepted_messages,
    )


def error_out(error: ErrorRecord) -> ErrorOut:
    """Return one recorded error; its trace and the session's internal id stay inside."""
    assert error.occurred_at is not None, "what is listed has a time"  # noqa: S101
    return ErrorOut(
        time=error.occurred_at, type=error.error_type, message=error.message, turn_id=_uuid(error.context.get("turnId"))
    )


def _uuid(value: object) -> UUID | None:
    """Return the id, or None for anything else: users may write rows of `agent_errors` themselves."""
    try:
        return UUID(value) if isinstance(value, str) else None
    except ValueError:
        return None


def encode_seq_cursor(seq: int) -> str:
    """Return an opaque cursor behind the message `seq`."""
    return _encode(["m", seq])


def decode_seq_cursor(cursor: str) -> int | None:
    """Return the seq a cursor stands for, or None if it is not one of ours."""
    match _decode(cursor):
        case ["m", int(seq)] if not isinstance(seq, bool) and 0 <= seq < 2**31:
            return seq
    return None


def encode_session_cursor(session: SessionRecord) -> str:
    """Return an opaque cursor behind a listed session."""
    return _encode_place("s", session.last_active_at, session.id)


def decode_session_cursor(cursor: str) -> tuple[datetime, UUID] | None:
    """Return the place a cursor stands for, or None if it is not one of ours."""
    return _decode_place("s", cursor)


def encode_error_cursor(error: ErrorRecord) -> str:
    """Return an opaque cursor behind a listed error."""
    assert error.occurred_at is not None  # noqa: S101 - what is listed has both
    assert error.id is not None  # noqa: S101
    return _encode_place("e", error.occurred_at, error.id)


def decode_error_cursor(cursor: str) -> tuple[datetime, UUID] | None:
    """Return the place a cursor stands for, or None if it is not one of ours."""
    return _decode_place("e", cursor)


def encode_memory_cursor(updated_at: datetime, memory: UUID) -> str:
    """Return an opaque cursor behind a listed memory."""
    return _encode_place("r", updated_at, memory)


def decode_memory_cursor(cursor: str) -> tuple[datetime, UUID] | None:
    """Return the place a cursor stands for, or None if it is not one of ours."""
    return _decode_place("r", cursor)


def _encode_place(kind: str, at: datetime, row: UUID) -> str:
    return _encode([kind, at.isoformat(), str(row)])


def _decode_place(kind: str, cursor: str) -> tuple[datetime, UUID] | None:
    match _decode(cursor):
        case [str(found), str(at), str(row)] if found == kind:
            try:
                moment = datetime.fromisoformat(at)
                return (moment, UUID(row)) if moment.tzinfo is not None else None
            except ValueError:
                return None
    return None


def _encode(value: list[str | int]) -> str:
    return base64.urlsafe_b64encode(json.dumps(value, separators=(",", ":")).encode()).rstrip(b"=").decode()


def _decode(cursor: str) -> object:
    try:
        return json.loads(base64.urlsafe_b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4)))
    except (ValueError, binascii.Error, RecursionError):
        return None
