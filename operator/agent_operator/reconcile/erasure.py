"""Erasing what Postgres keeps of an agent: which rows are its own, and deleting them in bounded steps."""

import asyncio
import json
from collections.abc import Callable, Iterable
from typing import Final
from uuid import UUID

from agent_api import labels
from agent_operator.keys import AgentKey
from agent_store.ports import AgentStore

CONCURRENT: Final = 3
"""So many agents are erased at once: heartbeats and status need connections, too."""

Living = Callable[[], Iterable[tuple[AgentKey, int, bytes]]]
"""Yields key, version and content (JSON) of every Agent there is."""


class Eraser:
    """Erases agents' rows. Every method raises StoreError; what was deleted until then stays deleted."""

    def __init__(self, store: AgentStore, living: Living) -> None:
        self._store = store
        self._living = living
        self._slots = asyncio.Semaphore(CONCURRENT)

    async def find_ids(self, key: AgentKey, uid: str, adopted_id: str) -> list[UUID]:
        """Return under which ids the rows of a deleted Agent are kept: its uid, and the id it adopted.

        An adopted id counts only if its rows are those of an agent of that name, and no other Agent uses it by now.
        """
        ids = [UUID(uid)]
        if adopted_id and not self._is_used(adopted_id, by_others_than=uid):
            found = await self._store.find_agent(UUID(adopted_id))
            if found is not None and (found.namespace, found.name) == (key.namespace, key.name):
                ids.append(UUID(adopted_id))
        return ids

    async def erase(self, ids: Iterable[UUID], *, budget: float) -> bool:
        """Delete rows for at most about `budget` seconds; return whether none are left."""
        loop = asyncio.get_running_loop()
        async with self._slots:
            deadline = loop.time() + budget
            for agent_id in ids:
                while not await self._store.erase_agent(agent_id):
                    if loop.time() > deadline:
                        return False
        return True

    def _is_used(self, state_id: str, *, by_others_than: str) -> bool:
        """Whether a living Agent has or adopts this id."""
        needle = state_id.encode()
        for _, _, content in self._living():
            if needle not in content:
                continue
            metadata = json.loads(content)["metadata"]
            adopts = (metadata.get("annotations") or {}).get(labels.ANNOTATION_ADOPT_STATE)
            if metadata["uid"] != by_others_than and state_id in (metadata["uid"], adopts):
                return True
        return False
