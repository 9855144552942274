"""Memories in Postgres."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from agent_store.codec import text
from agent_store.errors import MemoriesFull
from agent_store.ports import MemoryCandidate, MemoryFilter, MemoryRecord, NewMemory
from agent_store.postgres.base import Part

MOST_MEMORIES: Final = 10_000
"""Of one user of an agent, and of those that all users share."""


class PostgresMemories(Part):
    """MemoryStore over abide.memories."""

    async def save_memory(self, agent_id: UUID, memory: NewMemory) -> MemoryRecord:
        """See agent_store.ports.MemoryStore.save_memory."""
        rows = await self._db.run(
            "save_memory",
            agent_id,
            memory.id,
            memory.user,
            memory.type,
            memory.importance,
            [text(tag) for tag in memory.tags],
            text(memory.content),
            memory.vector_model,
            memory.vector,
            MOST_MEMORIES,
            point="save_memory.1",
        )
        if not rows:
            raise MemoriesFull(f"{MOST_MEMORIES} memories are kept already; delete some first")
        return _read(rows[0])

    async def seed_memories(self, agent_id: UUID, memories: Sequence[NewMemory]) -> None:
        """See agent_store.ports.MemoryStore.seed_memories."""
        if not memories:
            return
        await self._db.run(
            "seed_memories",
            agent_id,
            [memory.id for memory in memories],
            [memory.type for memory in memories],
            [memory.importance for memory in memories],
            [",".join(text(tag) for tag in memory.tags) for memory in memories],
            [text(memory.content) for memory in memories],
            point="seed_memories.1",
        )

    async def get_memory(self, agent_id: UUID, memory_id: UUID, user: str) -> MemoryRecord | None:
        """See agent_store.ports.MemoryStore.get_memory."""
        rows = await self._db.run("get_memory", agent_id, memory_id, user, point="get_memory.1")
        return _read(rows[0]) if rows else None

    async def change_memory(
        self,
        agent_id: UUID,
        memory_id: UUID,
        user: str,
        *,
        shared: bool,
        content: str | None = None,
        type: str | None = None,  # noqa: A002 - the column's name
        importance: int | None = None,
        tags: Sequence[str] | None = None,
    ) -> MemoryRecord | None:
        """See agent_store.ports.MemoryStore.change_memory."""
        rows = await self._db.run(
            "change_memory",
            agent_id,
            memory_id,
            user,
            shared,
            None if content is None else text(content),
            type,
            importance,
            None if tags is None else [text(tag) for tag in tags],
            point="change_memory.1",
        )
        return _read(rows[0]) if rows else None

    async def delete_memory(self, agent_id: UUID, memory_id: UUID, user: str, *, shared: bool) -> bool:
        """See agent_store.ports.MemoryStore.delete_memory."""
        return bool(await self._db.run("delete_memory", agent_id, memory_id, user, shared, point="delete_memory.1"))

    async def list_memories(
        self, agent_id: UUID, wanted: MemoryFilter, *, before: tuple[datetime, UUID] | None, limit: int
    ) -> list[MemoryRecord]:
        """See agent_store.ports.MemoryStore.list_memories."""
        rows = await self._db.run(
            "list_memories", agent_id, *_filter(wanted), *(before or (None, None)), limit, point="list_memories.1"
        )
        return [_read(row) for row in rows]

    async def recall_memories(
        self,
        agent_id: UUID,
        wanted: MemoryFilter,
        *,
        query: str,
        vector: Sequence[float] | None,
        vector_model: str | None,
        limit: int,
    ) -> list[MemoryCandidate]:
        """See agent_store.ports.MemoryStore.recall_memories."""
        rows = await self._db.run(
            "recall_memories",
            agent_id,
            *_filter(wanted),
            text(query),
            vector,
            vector_model,
            limit,
            point="recall_memories.1",
        )
        return [MemoryCandidate(_read(row), row["weight"], row["word_place"], row["meaning_place"]) for row in rows]

    async def touch_memories(self, agent_id: UUID, memory_ids: Sequence[UUID]) -> None:
        """See agent_store.ports.MemoryStore.touch_memories."""
        if memory_ids:
            await self._db.run("touch_memories", agent_id, list(memory_ids), point="touch_memories.1")

    async def list_unembedded(self, agent_id: UUID, vector_model: str, limit: int) -> list[tuple[UUID, str]]:
        """See agent_store.ports.MemoryStore.list_unembedded."""
        rows = await self._db.run("list_unembedded", agent_id, vector_model, limit, point="list_unembedded.1")
        return [(row["id"], row["content"]) for row in rows]

    async def embed_memory(
        self, agent_id: UUID, memory_id: UUID, content: str, vector_model: str, vector: Sequence[float]
    ) -> bool:
        """See agent_store.ports.MemoryStore.embed_memory."""
        rows = await self._db.run(
            "embed_memory", agent_id, memory_id, content, vector_model, vector, point="embed_memory.1"
        )
        return bool(rows)


def _filter(wanted: MemoryFilter) -> tuple[str, str | None, list[str], int]:
    return wanted.user, wanted.type, [text(tag) for tag in wanted.tags], wanted.least_importance


def _read(row: Mapping[str, Any]) -> MemoryRecord:
    return MemoryRecord(
        id=row["id"],
        user=row["user_id"],
        content=row["content"],
        type=row["type"],
        importance=row["importance"],
        tags=tuple(row["tags"]),
        created_at=row["created_at"],
        updated_at=row["updated_at"],
        recalled_at=row["recalled_at"],
    )
