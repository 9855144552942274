"""Recording, listing and striking off debts: rows of deleted agents that are still to be erased."""

import asyncio

import structlog

from agent_operator.kube.port import CONFIG_MAP, AlreadyExists, Cluster
from agent_operator.resources.debt import DEBTS, Debt, build_debt, parse_debt

log = structlog.get_logger(__name__)


class Debts:
    """The debts in the operator's own namespace. `recorded` is set whenever one was added by this process."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self._cluster = cluster
        self.namespace = namespace
        self.recorded = asyncio.Event()

    async def record(self, debt: Debt) -> None:
        """Make sure that the debt is recorded. Idempotent. Raises what `Cluster.create` raises."""
        try:
            await self._cluster.create(CONFIG_MAP, build_debt(debt, self.namespace))
        except AlreadyExists:
            return
        finally:
            self.recorded.set()

    async def list(self) -> list[tuple[Debt, str]]:
        """Return all debts, oldest first, each with its object's uid. Raises what `Cluster.list_pages` raises."""
        found: list[tuple[Debt, str]] = []
        async for page in self._cluster.list_pages(CONFIG_MAP, namespace=self.namespace, selector=DEBTS):
            for body in page:
                if (debt := parse_debt(body)) is not None:
                    found.append((debt, body["metadata"]["uid"]))
                else:
                    log.warning("a recorded debt cannot be read and is left alone", name=body["metadata"]["name"])
        return sorted(found, key=lambda one: (one[0].recorded_at, one[0].uid))

    async def strike_off(self, debt: Debt, object_uid: str) -> None:
        """Remove a debt that was paid. Idempotent. Raises what `Cluster.delete` raises."""
        name = build_debt(debt, self.namespace)["metadata"]["name"]
        await self._cluster.delete(CONFIG_MAP, self.namespace, name, uid=object_uid)
