"""PostgresStore: the store's port on Postgres."""

from agent_store.failpoints import NO_FAILPOINTS, Failpoints
from agent_store.ports import OnStoreCall
from agent_store.postgres.agents import PostgresAgents
from agent_store.postgres.budgets import PostgresBudgets
from agent_store.postgres.executor import Executor
from agent_store.postgres.keys import AgentKeys, PostgresKeys
from agent_store.postgres.leases import PostgresLeases
from agent_store.postgres.memories import PostgresMemories
from agent_store.postgres.pool import PoolStatistics
from agent_store.postgres.sessions import PostgresSessions
from agent_store.postgres.steps import PostgresSteps
from agent_store.postgres.telemetry import PostgresTelemetry
from agent_store.postgres.turns import PostgresTurns
from agent_store.postgres.users import PostgresUsers
from agent_store.settings import NO_KEYS, KeySettings, StoreSettings

_DEFAULTS = StoreSettings()


class PostgresStore(
    PostgresAgents,
    PostgresLeases,
    PostgresTurns,
    PostgresSteps,
    PostgresSessions,
    PostgresTelemetry,
    PostgresMemories,
    PostgresBudgets,
    PostgresKeys,
    PostgresUsers,
):
    """Implements agent_store.ports.Store; made without touching the network, it connects with the first call.

    Belongs to one event loop.
    """

    def __init__(
        self,
        url: str,
        settings: StoreSettings = _DEFAULTS,
        *,
        failpoints: Failpoints = NO_FAILPOINTS,
        keys: KeySettings = NO_KEYS,
    ) -> None:
        db = Executor(url, settings, failpoints)
        super().__init__(db, AgentKeys(db, keys))

    def statistics(self) -> PoolStatistics:
        """See agent_store.ports.Instrumented.statistics."""
        return self._db.statistics()

    def observe(self, on_call: OnStoreCall) -> None:
        """See agent_store.ports.Instrumented.observe."""
        self._db.observe(on_call)

    async def aclose(self) -> None:
        """See agent_store.ports.Store.aclose."""
        await self.finish_turns()
        await self._db.aclose()
