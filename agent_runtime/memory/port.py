"""What tools, prompts and own code need from an agent's memories."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Protocol
from uuid import UUID

from agent_api.wire import MEMORY_CONTENT_MAX_LENGTH, MEMORY_TAG_MAX_LENGTH, MEMORY_TAGS_MOST, MemoryType

DEFAULT_TYPE: Final = MemoryType.GENERAL
DEFAULT_IMPORTANCE: Final = 5
DEFAULT_RECALLED: Final = 5
MOST_RECALLED: Final = 50
MOST_CONTENT: Final = MEMORY_CONTENT_MAX_LENGTH
MOST_TAGS: Final = MEMORY_TAGS_MOST
MOST_TAG: Final = MEMORY_TAG_MAX_LENGTH


@dataclass(frozen=True, slots=True)
class Memory:
    """One memory. `user`: whose it is; None: shared by all users of the agent. Higher `importance` (1-10) counts more.

    `score` is set by recall alone: comparable within one answer, higher is better.
    """

    id: UUID
    content: str
    type: MemoryType
    importance: int
    tags: Sequence[str]
    user: str | None
    created_at: datetime
    updated_at: datetime
    recalled_at: datetime | None = None
    score: float | None = None


class InvalidMemory(ValueError):  # noqa: N818 - what was asked for, not a defect
    """A field cannot be taken; `problems` are (field, what to write instead), readable for models too."""

    def __init__(self, problems: Sequence[tuple[str, str]]) -> None:
        super().__init__("; ".join(f"{name}: {message}" for name, message in problems))
        self.problems = problems


class MemoryTools(Protocol):
    """What a model may do with memories, always on behalf of one user.

    A user sees its own memories and the shared ones, and changes only its own. Every method may raise
    StoreUnavailable.
    """

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
        """Keep a memory. The same `key` (ToolContext.key) keeps it once, however often it is called.

        `kind` is a MemoryType's word. Raises InvalidMemory; MemoriesFull of the store.
        """
        ...

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
        """Return the memories that fit best, best first; an empty query ranks by importance and recency.

        `tags`: only memories that have all of them. Raises InvalidMemory.
        """
        ...

    async def forget(self, user: str, memory_id: UUID) -> bool:
        """Delete one of the user's own memories; False if there is none of that id."""
        ...
