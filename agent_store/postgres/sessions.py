"""Sessions and their snapshots in Postgres."""

from datetime import datetime
from typing import Any
from uuid import UUID

from agent_store.codec import decode_json, encode_json
from agent_store.errors import SessionGone, StateChanged
from agent_store.ids import new_id
from agent_store.ports import SessionKey, SessionRecord, SessionState, StoredMessage
from agent_store.postgres.base import Part
from agent_store.postgres.rows import read_message, read_session


class PostgresSessions(Part):
    """SessionStore over abide.sessions, messages and agent_states."""

    async def list_messages(self, key: SessionKey, *, after_seq: int, limit: int) -> list[StoredMessage]:
        """See agent_store.ports.SessionStore.list_messages."""
        rows = await self._db.run(
            "list_messages", key.agent_id, key.user, key.name, after_seq, limit, point="list_messages.1"
        )
        return [read_message(self._codecs.of(key.agent_id), row) for row in rows]

    async def list_sessions(
        self, agent_id: UUID, user: str, *, before: tuple[datetime, UUID] | None, limit: int
    ) -> list[SessionRecord]:
        """See agent_store.ports.SessionStore.list_sessions."""
        moment, session_id = before or (None, None)
        rows = await self._db.run("list_sessions", agent_id, user, moment, session_id, limit, point="list_sessions.1")
        return [read_session(row) for row in rows]

    async def delete_session(self, key: SessionKey) -> bool:
        """See agent_store.ports.SessionStore.delete_session."""
        rows = await self._db.run("delete_session", key.agent_id, key.user, key.name, point="delete_session.1")
        return bool(rows)

    async def find_session(self, key: SessionKey) -> SessionRecord | None:
        """See agent_store.ports.SessionStore.find_session."""
        rows = await self._db.run("find_session", key.agent_id, key.user, key.name, point="find_session.1")
        return read_session(rows[0]) if rows else None

    async def open_session(self, key: SessionKey) -> SessionRecord:
        """See agent_store.ports.SessionStore.open_session."""
        rows = await self._db.run("open_session", key.agent_id, key.user, key.name, new_id(), point="open_session.1")
        return read_session(rows[0])

    async def save_state(
        self, agent_id: UUID, session_id: UUID, document: dict[str, Any], *, expected: int | None = None
    ) -> SessionState:
        """See agent_store.ports.SessionStore.save_state."""
        codec = self._codecs.of(agent_id)
        stored = codec.encode(encode_json(document), "agent_states", session_id)
        rows = await self._db.run(
            "save_state", agent_id, session_id, stored, codec.key_id, expected, point="save_state.1", repeatable=False
        )
        if not rows:
            raise SessionGone(f"session {session_id} does not exist")
        if rows[0]["version"] is None:
            raise StateChanged(f"the snapshot of session {session_id} is not version {expected} any more")
        return SessionState(session_id, rows[0]["version"], document, rows[0]["updated_at"])

    async def load_state(self, agent_id: UUID, session_id: UUID) -> SessionState | None:
        """See agent_store.ports.SessionStore.load_state."""
        rows = await self._db.run("load_state", agent_id, session_id, point="load_state.1")
        if not rows:
            return None
        row = rows[0]
        codec = self._codecs.of(agent_id)
        document = decode_json(codec.decode(row["document"], row["key_id"], "agent_states", session_id))
        return SessionState(session_id, row["version"], document, row["updated_at"])

    async def delete_state(self, agent_id: UUID, session_id: UUID) -> bool:
        """See agent_store.ports.SessionStore.delete_state."""
        return bool(await self._db.run("delete_state", agent_id, session_id, point="delete_state.1"))

    async def delete_old_sessions(self, agent_id: UUID, *, days: int, limit: int) -> list[UUID]:
        """See agent_store.ports.SessionStore.delete_old_sessions."""
        rows = await self._db.run("delete_old_sessions", agent_id, days, limit, point="delete_old_sessions.1")
        return [row["id"] for row in rows]

    async def count_sessions(self, agent_id: UUID) -> int:
        """See agent_store.ports.SessionStore.count_sessions."""
        rows = await self._db.run("count_sessions", agent_id, point="count_sessions.1")
        return int(rows[0]["sessions"])
