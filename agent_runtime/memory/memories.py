"""The memories of one agent: kept, found again, told to the model, and given vectors in the background.

No turn depends on them: whatever fails here costs the memory and nothing else.
"""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Final
from uuid import UUID, uuid4, uuid5

from agent_api.v1alpha1 import Memories as MemoriesSpec
from agent_api.wire import MemoryType
from agent_runtime.clock import Clock
from agent_runtime.memory.embedding import MOST_TEXTS, Embedder, EmbeddingError, Vector
from agent_runtime.memory.port import (
    DEFAULT_IMPORTANCE,
    DEFAULT_RECALLED,
    DEFAULT_TYPE,
    MOST_CONTENT,
    MOST_RECALLED,
    MOST_TAG,
    MOST_TAGS,
    InvalidMemory,
    Memory,
)
from agent_runtime.memory.prompt import render_memories
from agent_runtime.memory.ranking import rank
from agent_runtime.telemetry.logs import get_logger
from agent_store.errors import StoreError
from agent_store.ports import MemoryFilter, MemoryRecord, MemoryStore, NewMemory

_LOG = get_logger("memories")
CANDIDATES: Final = 4
"""So many times as many as wanted are taken from each ranking, since a good one need not lead any."""
QUERY_SECONDS: Final = 2.0
"""What a turn waits for a query's vector; then words alone must do."""
PROMPT_SECONDS: Final = 3.0
"""What a turn waits for its memories in all; then it goes without."""
CRITICAL: Final = 10
MOST_CRITICAL: Final = 10
CHECK_SECONDS: Final = 30.0
"""How often memories without a vector are looked for when nothing tells of one: another process may have kept it."""
FIRST_RETRY: Final = 5.0
LONGEST_RETRY: Final = 300.0
REPORT_SECONDS: Final = 60.0
"""A failure of the same kind is written down at most this often."""

OnError = Callable[[str, str], None]
"""Told (error type, message) of what went wrong."""
Pulse = Callable[[], None]


class AgentMemories:
    """Implements MemoryTools for the models' tools and own code; REST uses the rest. One per agent and process."""

    def __init__(
        self,
        agent_id: UUID,
        spec: MemoriesSpec,
        store: MemoryStore,
        clock: Clock,
        *,
        embedder: Embedder | None,
        on_error: OnError,
    ) -> None:
        self._agent_id = agent_id
        self._spec = spec
        self._store = store
        self._clock = clock
        self._embedder = embedder
        self._on_error = on_error
        self._reported: dict[str, float] = {}
        self._wake = asyncio.Event()
        self._seeded = not spec.initial

    # ---- on behalf of a user

    async def remember(
        self,
        user: str,
        content: str,
        *,
        kind: str = DEFAULT_TYPE,
        importance: int = DEFAULT_IMPORTANCE,
        tags: Sequence[str] = (),
        key: str | None = None,
    ) -> Memory:
        """See MemoryTools.remember."""
        return await self.keep(user, content, kind=kind, importance=importance, tags=tags, key=key)

    async def recall(
        self,
        user: str,
        query: str = "",
        *,
        kind: str | None = None,
        tags: Sequence[str] = (),
        least_importance: int = 1,
        limit: int = DEFAULT_RECALLED,
    ) -> list[Memory]:
        """See MemoryTools.recall."""
        problems = [*_kind_problems(kind), *_tag_problems(tags), *_importance_problems(least_importance)]
        if not 1 <= limit <= MOST_RECALLED:
            problems.append(("limit", f"write a whole number from 1 to {MOST_RECALLED}"))
        if problems:
            raise InvalidMemory(problems)
        wanted = MemoryFilter(user, kind, tuple(tags), least_importance)
        vector, name = await self._query_vector(query)
        candidates = await self._store.recall_memories(
            self._agent_id, wanted, query=query, vector=vector, vector_model=name, limit=limit * CANDIDATES
        )
        best = rank(candidates, limit)
        if best:
            with suppress(StoreError):
                await self._store.touch_memories(self._agent_id, [memory.id for memory, _ in best])
        return [_memory(memory, score) for memory, score in best]

    async def forget(self, user: str, memory_id: UUID) -> bool:
        """See MemoryTools.forget."""
        return await self._store.delete_memory(self._agent_id, memory_id, user, shared=False)

    # ---- for whoever may do more

    async def keep(
        self,
        user: str | None,
        content: str,
        *,
        kind: str = DEFAULT_TYPE,
        importance: int = DEFAULT_IMPORTANCE,
        tags: Sequence[str] = (),
        key: str | None = None,
    ) -> Memory:
        """Keep a memory of a user, or (None) one that all users share. Raises InvalidMemory, MemoriesFull."""
        _check(content=content, kind=kind, importance=importance, tags=tags)
        memory_id = uuid4() if key is None else uuid5(self._agent_id, f"memory:{user}:{key}")
        new = NewMemory(memory_id, user, content, str(kind), importance, tuple(dict.fromkeys(tags)))
        kept = await self._store.save_memory(self._agent_id, new)
        self._wake.set()
        return _memory(kept)

    async def get(self, user: str, memory_id: UUID) -> Memory | None:
        """Return one of the user's memories or a shared one, or None."""
        found = await self._store.get_memory(self._agent_id, memory_id, user)
        return _memory(found) if found else None

    async def change(
        self,
        user: str,
        memory_id: UUID,
        *,
        shared: bool,
        content: str | None = None,
        kind: str | None = None,
        importance: int | None = None,
        tags: Sequence[str] | None = None,
    ) -> Memory | None:
        """Change what is given; `shared`: also of a shared one. None if there is none. Raises InvalidMemory."""
        _check(content=content, kind=kind, importance=importance, tags=tags)
        found = await self._store.change_memory(
            self._agent_id,
            memory_id,
            user,
            shared=shared,
            content=content,
            type=kind,
            importance=importance,
            tags=None if tags is None else tuple(dict.fromkeys(tags)),
        )
        self._wake.set()
        return _memory(found) if found else None

    async def delete(self, user: str, memory_id: UUID, *, shared: bool) -> bool:
        """Delete one of the user's memories; `shared`: or a shared one. False if there is none."""
        return await self._store.delete_memory(self._agent_id, memory_id, user, shared=shared)

    async def page(self, wanted: MemoryFilter, *, before: tuple[datetime, UUID] | None, limit: int) -> list[Memory]:
        """Return memories, the newest change first."""
        return [
            _memory(found)
            for found in await self._store.list_memories(self._agent_id, wanted, before=before, limit=limit)
        ]

    # ---- for the prompt

    async def prompt(self, user: str, message: str) -> str:
        """Return what the model should remember for this message: critical memories, then those that fit.

        Empty if there are none, or if they cannot be had within PROMPT_SECONDS.
        """
        try:
            async with asyncio.timeout(PROMPT_SECONDS):
                critical = await self._store.recall_memories(
                    self._agent_id,
                    MemoryFilter(user, least_importance=CRITICAL),
                    query="",
                    vector=None,
                    vector_model=None,
                    limit=MOST_CRITICAL,
                )
                fitting = await self.recall(user, message[:MOST_CONTENT])
        except TimeoutError:
            self._report("MemoryFailed", f"No memories within {PROMPT_SECONDS:g} s: the turn went on without.")
            return ""
        except StoreError as error:
            self._report("MemoryFailed", f"No memories could be read, the turn went on without: {error}")
            return ""
        first = [_memory(memory) for memory, _ in rank(critical, MOST_CRITICAL)]
        known = {memory.id for memory in first}
        return render_memories([*first, *(memory for memory in fitting if memory.id not in known)])

    async def _query_vector(self, query: str) -> tuple[Vector | None, str | None]:
        if self._embedder is None or not query.strip():
            return None, None
        try:
            async with asyncio.timeout(QUERY_SECONDS):
                (vector,) = await self._embedder.embed([query[:MOST_CONTENT]])
        except TimeoutError:
            self._failed(EmbeddingError(f"does not answer within {QUERY_SECONDS:g} s"))
            return None, None
        except EmbeddingError as error:
            self._failed(error)
            return None, None
        return vector, self._embedder.name

    # ---- in the background

    async def tend_for_ever(self, pulse: Pulse) -> None:
        """Write what the manifest tells, and make vectors where there are none."""
        retry = FIRST_RETRY
        while True:
            pulse()
            self._wake.clear()
            try:
                await self._seed()
                await self._embed_missing(pulse)
                pause, retry = CHECK_SECONDS, FIRST_RETRY
            except StoreError:
                pause = FIRST_RETRY
            except EmbeddingError as error:
                self._failed(error)
                pause, retry = retry, min(retry * 2, LONGEST_RETRY)
                await self._rest(pause, pulse)
                continue
            await self._wait(pause)

    async def _seed(self) -> None:
        if self._seeded:
            return
        await self._store.seed_memories(
            self._agent_id,
            [
                NewMemory(
                    uuid5(self._agent_id, f"initial:{one.content}"),
                    None,
                    one.content,
                    one.type,
                    one.importance,
                    tuple(one.tags),
                )
                for one in {one.content: one for one in self._spec.initial}.values()
            ],
        )
        self._seeded = True

    async def _embed_missing(self, pulse: Pulse) -> None:
        if self._embedder is None:
            return
        name = self._embedder.name
        while missing := await self._store.list_unembedded(self._agent_id, name, MOST_TEXTS):
            pulse()
            vectors = await self._embedder.embed([content for _, content in missing])
            for (memory_id, content), vector in zip(missing, vectors, strict=True):
                await self._store.embed_memory(self._agent_id, memory_id, content, name, vector)
            _LOG.info("memories_embedded", number=len(missing), model=name)

    async def _wait(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._wake.wait()

    async def _rest(self, seconds: float, pulse: Pulse) -> None:
        """Wait in any case: asking a failing service again for every new memory would help nobody."""
        while seconds > 0:
            pulse()
            step = min(seconds, CHECK_SECONDS)
            await self._clock.sleep(step)
            seconds -= step

    def _failed(self, error: EmbeddingError) -> None:
        name = self._embedder.name if self._embedder else ""
        self._report("EmbeddingFailed", f"{name} {error}; memories are found by their words alone.")

    def _report(self, kind: str, message: str) -> None:
        now = self._clock.monotonic()
        if now - self._reported.get(kind, -REPORT_SECONDS) >= REPORT_SECONDS:
            self._reported[kind] = now
            _LOG.warning("memory_trouble", kind=kind, message=message)
            self._on_error(kind, message)

    async def aclose(self) -> None:
        """Close connections."""
        if self._embedder is not None:
            await self._embedder.aclose()


Problems = list[tuple[str, str]]


def _check(*, content: str | None, kind: str | None, importance: int | None, tags: Sequence[str] | None) -> None:
    problems: Problems = [
        *(_content_problems(content) if content is not None else []),
        *_kind_problems(kind),
        *(_importance_problems(importance) if importance is not None else []),
        *(_tag_problems(tags) if tags is not None else []),
    ]
    if problems:
        raise InvalidMemory(problems)


def _content_problems(content: str) -> Problems:
    if isinstance(content, str) and content.strip() and len(content) <= MOST_CONTENT:
        return []
    return [("content", f"write 1 to {MOST_CONTENT} characters")]


def _kind_problems(kind: str | None) -> Problems:
    known = [one.value for one in MemoryType]
    return [] if kind is None or kind in known else [("type", f"write one of {', '.join(known)}")]


def _importance_problems(importance: int) -> Problems:
    if isinstance(importance, int) and not isinstance(importance, bool) and 1 <= importance <= CRITICAL:
        return []
    return [("importance", "write a whole number from 1 to 10")]


def _tag_problems(tags: Sequence[str]) -> Problems:
    if len(tags) > MOST_TAGS:
        return [("tags", f"write at most {MOST_TAGS} tags")]
    if all(isinstance(tag, str) and 0 < len(tag) <= MOST_TAG and not set(tag) & set(" \t\r\n,\0") for tag in tags):
        return []
    return [("tags", f"write words of 1 to {MOST_TAG} characters without blanks and commas")]


def _memory(record: MemoryRecord, score: float | None = None) -> Memory:
    return Memory(
        id=record.id,
        content=record.content,
        type=MemoryType(record.type),
        importance=record.importance,
        tags=tuple(record.tags),
        user=record.user,
        created_at=record.created_at,
        updated_at=record.updated_at,
        recalled_at=record.recalled_at,
        score=score,
    )
