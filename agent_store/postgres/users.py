"""Everything about one user of an agent, and what users think of turns, in Postgres."""

from typing import Any, Final
from uuid import UUID

from agent_store.codec import Codec, decode_json, decode_text, encode_text
from agent_store.ports import ErasedUser, FeedbackRecord, SessionRecord
from agent_store.postgres.base import Part
from agent_store.postgres.rows import read_session

SESSIONS_PER_STEP: Final = 20
"""Sessions that one statement erases: each may be long, and a statement stays far below its deadline."""
MEMORIES_PER_STEP: Final = 2000


class PostgresUsers(Part):
    """UserStore over the tables that name a user, or belong to a session of one."""

    async def user_sessions(self, agent_id: UUID, user: str, *, after: str | None, limit: int) -> list[SessionRecord]:
        """See agent_store.ports.UserStore.user_sessions."""
        rows = await self._db.run("user_sessions", agent_id, user, after, limit, point="user_sessions.1")
        return [read_session(row) for row in rows]

    async def session_turns(
        self, agent_id: UUID, session_id: UUID, *, after_seq: int, limit: int
    ) -> list[dict[str, Any]]:
        """See agent_store.ports.UserStore.session_turns."""
        rows = await self._db.run("session_turns", agent_id, session_id, after_seq, limit, point="session_turns.1")
        codec = self._codecs.of(agent_id)
        return [_turn(codec, row) for row in rows]

    async def session_feedback(
        self, agent_id: UUID, session_id: UUID, *, after: UUID | None, limit: int
    ) -> list[FeedbackRecord]:
        """See agent_store.ports.UserStore.session_feedback."""
        rows = await self._db.run("session_feedback", agent_id, session_id, after, limit, point="session_feedback.1")
        codec = self._codecs.of(agent_id)
        return [_feedback(codec, row) for row in rows]

    async def session_approvals(
        self, agent_id: UUID, session_id: UUID, *, after: tuple[UUID, str] | None, limit: int
    ) -> list[dict[str, Any]]:
        """See agent_store.ports.UserStore.session_approvals."""
        turn_id, call_id = after or (None, None)
        rows = await self._db.run(
            "session_approvals", agent_id, session_id, turn_id, call_id, limit, point="session_approvals.1"
        )
        codec = self._codecs.of(agent_id)
        return [_approval(codec, row) for row in rows]

    async def user_memories(self, agent_id: UUID, user: str, *, after: UUID | None, limit: int) -> list[dict[str, Any]]:
        """See agent_store.ports.UserStore.user_memories."""
        rows = await self._db.run("user_memories", agent_id, user, after, limit, point="user_memories.1")
        return [dict(row) for row in rows]

    async def user_usage(self, agent_id: UUID, user: str) -> list[dict[str, Any]]:
        """See agent_store.ports.UserStore.user_usage."""
        rows = await self._db.run("user_usage", agent_id, user, point="user_usage.1")
        return [dict(row) for row in rows]

    async def erase_user(self, agent_id: UUID, user: str) -> ErasedUser:
        """See agent_store.ports.UserStore.erase_user."""
        sessions = await self._db.run("erase_user_sessions", agent_id, user, SESSIONS_PER_STEP, point="erase_user.1")
        memories = await self._db.run("erase_user_memories", agent_id, user, MEMORIES_PER_STEP, point="erase_user.2")
        done = not sessions and not memories
        if done:
            await self._db.run("erase_user_usage", agent_id, user, point="erase_user.3")
        return ErasedUser(tuple(row["id"] for row in sessions), len(memories), done)

    async def save_feedback(
        self, agent_id: UUID, turn_id: UUID, user: str, *, score: int, comment: str
    ) -> FeedbackRecord | None:
        """See agent_store.ports.UserStore.save_feedback."""
        codec = self._codecs.of(agent_id)
        stored = codec.encode(encode_text(comment), "turn_feedback", turn_id) if comment else None
        key_id = codec.key_id if comment else None
        rows = await self._db.run(
            "save_feedback", agent_id, turn_id, user, score, stored, key_id, point="save_feedback.1"
        )
        return _feedback(codec, rows[0]) if rows else None

    async def load_feedback(self, agent_id: UUID, turn_id: UUID, user: str) -> FeedbackRecord | None:
        """See agent_store.ports.UserStore.load_feedback."""
        rows = await self._db.run("load_feedback", agent_id, turn_id, user, point="load_feedback.1")
        return _feedback(self._codecs.of(agent_id), rows[0]) if rows else None


def _feedback(codec: Codec, row: Any) -> FeedbackRecord:
    stored = row["content"]
    place = "turn_feedback", row["turn_id"]
    comment = "" if stored is None else decode_text(codec.decode(stored, row["key_id"], *place))
    return FeedbackRecord(row["turn_id"], row["at"], row["score"], comment, row["revision"])


def _turn(codec: Codec, row: Any) -> dict[str, Any]:
    """Return a turn's columns, with the message of one that has not started."""
    columns = {name: value for name, value in row.items() if name not in ("pending_content", "key_id")}
    stored = row["pending_content"]
    pending = None if stored is None else decode_text(codec.decode(stored, row["key_id"], "messages", row["id"], 0))
    return {**columns, "pending_content": pending}


def _approval(codec: Codec, row: Any) -> dict[str, Any]:
    place = row["turn_id"], row["call_id"]
    comment = row["comment"]
    return {
        **{name: value for name, value in row.items() if name != "key_id"},
        "arguments": decode_json(codec.decode(row["arguments"], row["key_id"], "approvals", *place)),
        "comment": None
        if comment is None
        else decode_text(codec.decode(comment, row["key_id"], "approval_comments", *place)),
    }
