"""Where encrypted content is: every table with a key id, the columns it is about and the places they are bound to."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ContentColumn:
    """A column with encoded content, and the place its values were encoded for."""

    name: str
    place: Callable[[Row], tuple[object, ...]]


@dataclass(frozen=True, slots=True)
class ContentTable:
    """A table with content: `identity` are the columns of its primary key behind agent_id, `kinds` their types.

    `read_statement` takes agent, identity to go on after (nulls: from the beginning), number of rows, the current key
    id and whether content is wanted; it returns identity, key_id, has_content, what places need, and the content of
    rows under other keys. `rewrite_statement` takes agent and key id, then arrays: identity, the key id that was read,
    `guards` (columns that must not have changed) and new content; it returns a row for each that was changed.
    """

    name: str
    read_statement: str
    rewrite_statement: str
    identity: tuple[str, ...]
    kinds: tuple[Callable[[Any], object], ...]
    columns: tuple[ContentColumn, ...]
    guards: tuple[str, ...] = ()


CONTENT: Final = (
    ContentTable(
        "messages",
        read_statement="pass_messages",
        rewrite_statement="rewrite_messages",
        identity=("session_id", "seq"),
        kinds=(UUID, int),
        columns=(
            ContentColumn("content", lambda row: ("messages", row["turn_id"], row["turn_index"])),
            ContentColumn("tool_calls", lambda row: ("tool_calls", row["turn_id"], row["turn_index"])),
        ),
    ),
    ContentTable(
        "turns",
        read_statement="pass_turns",
        rewrite_statement="rewrite_turns",
        identity=("id",),
        kinds=(UUID,),
        columns=(ContentColumn("pending_content", lambda row: ("messages", row["id"], 0)),),
    ),
    ContentTable(
        "agent_states",
        read_statement="pass_states",
        rewrite_statement="rewrite_states",
        identity=("session_id",),
        kinds=(UUID,),
        columns=(ContentColumn("document", lambda row: ("agent_states", row["session_id"])),),
        guards=("version",),
    ),
    ContentTable(
        "steps",
        read_statement="pass_steps",
        rewrite_statement="rewrite_steps",
        identity=("session_id", "turn_id", "step_index"),
        kinds=(UUID, UUID, int),
        columns=(ContentColumn("result", lambda row: ("steps", row["turn_id"], row["step_index"])),),
    ),
    ContentTable(
        "approvals",
        read_statement="pass_approvals",
        rewrite_statement="rewrite_approvals",
        identity=("session_id", "turn_id", "call_id"),
        kinds=(UUID, UUID, str),
        columns=(
            ContentColumn("arguments", lambda row: ("approvals", row["turn_id"], row["call_id"])),
            ContentColumn("comment", lambda row: ("approval_comments", row["turn_id"], row["call_id"])),
        ),
        guards=("decided_at",),
    ),
    ContentTable(
        "turn_feedback",
        read_statement="pass_feedback",
        rewrite_statement="rewrite_feedback",
        identity=("session_id", "turn_id"),
        kinds=(UUID, UUID),
        columns=(ContentColumn("content", lambda row: ("turn_feedback", row["turn_id"])),),
        guards=("at",),
    ),
)
"""In the order of a pass. What is written during it is under the current key already, or is found by the next pass."""

PLAIN_TABLES: Final = frozenset({"agent_errors"})
"""Have a key id and no encrypted content: errors are scrubbed, hold none, and are read by SQL and the operator."""
