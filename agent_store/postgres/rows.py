"""Rows of the statements in sql/queries, as the values of the port."""

from collections.abc import Mapping
from typing import Any

from agent_api.wire import TurnStatus
from agent_store.codec import Codec, decode_json, decode_text
from agent_store.ports import (
    Claim,
    ErrorRecord,
    Heartbeat,
    SessionKey,
    SessionRecord,
    StoredMessage,
    TurnRecord,
)

Row = Mapping[str, Any]


def read_message_content(codec: Codec, row: Row, column: str, key_id: str | None, turn_id: Any, index: int) -> str:
    """Return the text of a message that is in `column` of the row."""
    return decode_text(codec.decode(row[column], key_id, "messages", turn_id, index))


def read_turn(codec: Codec, row: Row) -> TurnRecord:
    """Return the turn of get_turn, find_accepted or find_completed."""
    reply = None
    if row["reply"] is not None:
        place = row["reply_turn_id"], row["reply_index"]
        reply = read_message_content(codec, row, "reply", row["reply_key_id"], *place)
    return TurnRecord(
        id=row["id"],
        agent_id=row["agent_id"],
        session_id=row["session_id"],
        session_name=row["session_name"],
        user=row["user_id"],
        turn_seq=row["turn_seq"],
        status=TurnStatus(row["status"]),
        attempts=row["attempts"],
        model=row["model"],
        error_type=row["error_type"],
        error_message=row["error_message"],
        reply=reply,
        created_at=row["created_at"],
        finished_at=row["finished_at"],
        input_tokens=row["input_tokens"],
        output_tokens=row["output_tokens"],
        cost_micros=row["cost_micros"],
        currency=row["currency"],
    )


def read_claim(codec: Codec, row: Row, agent_id: Any) -> Claim:
    """Return the claim of start_next or take_over; one row that cannot be read must not keep others from going on."""
    try:
        content = read_message_content(codec, row, "content", row["key_id"], row["turn_id"], 0)
    except ValueError:
        content = None
    return Claim(
        turn_id=row["turn_id"],
        session_id=row["session_id"],
        session=SessionKey(agent_id, row["user_id"], row["session_name"]),
        turn_seq=row["turn_seq"],
        token=row["token"],
        attempts=row["attempts"],
        content=content or "",
        steps_before=row["steps"],
        accepted_messages=row["turn_seq"],  # every turn stands for one accepted message
        is_unreadable=content is None,
    )


def read_message(codec: Codec, row: Row) -> StoredMessage:
    """Return the message of list_messages or load_history."""
    key_id, turn_id, index = row["key_id"], row["turn_id"], row["turn_index"]
    calls = row["tool_calls"]
    return StoredMessage(
        seq=row["seq"],
        turn_id=turn_id,
        role=row["role"],
        content=read_message_content(codec, row, "content", key_id, turn_id, index),
        created_at=row["created_at"],
        tool_calls=() if calls is None else decode_json(codec.decode(calls, key_id, "tool_calls", turn_id, index)),
        tool_call_id=row["tool_call_id"],
    )


def read_session(row: Row) -> SessionRecord:
    """Return the session of find_session or list_sessions."""
    return SessionRecord(
        id=row["id"],
        name=row["name"],
        user=row["user_id"],
        created_at=row["created_at"],
        last_active_at=row["last_active_at"],
        accepted_messages=row["accepted_messages"],
    )


def read_heartbeat(row: Row) -> Heartbeat:
    """Return the heartbeat of heartbeats."""
    return Heartbeat(agent_id=row["agent_id"], pod=row["pod"], at=row["at"], details=decode_json(row["details"]))


def read_error(row: Row) -> ErrorRecord:
    """Return the error of last_errors or list_errors; only the latter has an id."""
    return ErrorRecord(
        agent_id=row["agent_id"],
        error_type=row["error_type"],
        message=row["message"],
        stack_trace=row["stack_trace"],
        context=decode_json(row["context"]),
        occurred_at=row["occurred_at"],
        id=row.get("id"),
    )
