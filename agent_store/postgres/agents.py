"""Agents as Postgres knows them: whose rows an id stands for, and erasing them."""

from uuid import UUID

from agent_store.ports import AgentRecord
from agent_store.postgres.base import Part

ERASE_BATCH = 2000
"""Rows deleted by one statement, so that it stays far below its deadline."""


class PostgresAgents(Part):
    """AgentStore over abide.agents and the SQL function abide.erase_agent."""

    async def find_agent(self, agent_id: UUID) -> AgentRecord | None:
        """See agent_store.ports.AgentStore.find_agent."""
        rows = await self._db.run("find_agent", agent_id, point="find_agent.1")
        return AgentRecord(**dict(rows[0])) if rows else None

    async def erase_agent(self, agent_id: UUID, *, batch: int = ERASE_BATCH) -> bool:
        """See agent_store.ports.AgentStore.erase_agent."""
        rows = await self._db.run("erase_agent", agent_id, batch, point="erase_agent.1")
        return bool(rows[0]["is_done"])
