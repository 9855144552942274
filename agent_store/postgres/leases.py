"""Process leases in Postgres."""

from typing import Final
from uuid import UUID

from agent_api.conditions import Reason
from agent_store.errors import LeaseLost, StoreUnavailable
from agent_store.ports import CancelRequest, Owner
from agent_store.postgres.base import Part

NEEDED_VERSION: Final = "0003"
"""The oldest schema this version works on; a newer one is fine."""


class PostgresLeases(Part):
    """LeaseStore over abide.runtime_instances."""

    async def check(self) -> None:
        """See agent_store.ports.Store.check."""
        await self._check("check.1")

    async def _check(self, point: str) -> None:
        (row,) = await self._db.run("check", point=point)
        where = f"Postgres at {self._db.address}"
        if row["in_recovery"] or row["read_only"]:
            what = "is a standby" if row["in_recovery"] else "is set to read-only"
            raise StoreUnavailable(
                Reason.READ_ONLY, f"{where}: it {what}; check that this is the primary and writable", sent=False
            )
        if (row["version"] or "") < NEEDED_VERSION:
            raise StoreUnavailable(
                Reason.SCHEMA_TOO_OLD,
                f"{where}: its schema is version {row['version'] or 'none'}, needed is {NEEDED_VERSION}; "
                "run: abide migrate",
                sent=False,
            )

    async def check_room(self) -> None:
        """See agent_store.ports.Store.check_room."""
        await self._db.run("check_room", point="check_room.1")

    async def register(self, agent_id: UUID, namespace: str, name: str, instance: str, *, ttl: float) -> Owner:
        """See agent_store.ports.LeaseStore.register."""
        await self._check("register.1")
        await self._codecs.open(agent_id)
        rows = await self._db.run("register", agent_id, namespace, name, instance, ttl, point="register.2")
        if not rows:
            raise StoreUnavailable(
                Reason.UNKNOWN,
                f"Postgres at {self._db.address}: the state of agent {agent_id} was erased for good; "
                "make the Agent again under a new uid",
                sent=False,
            )
        return Owner(instance, rows[0]["epoch"])

    async def renew(self, agent_id: UUID, owner: Owner, *, ttl: float) -> list[CancelRequest]:
        """See agent_store.ports.LeaseStore.renew."""
        self._codecs.check(agent_id)
        rows = await self._db.run("renew", agent_id, owner.instance, owner.epoch, ttl, point="renew.1")
        if not rows:
            raise LeaseLost(f"the lease of {owner.instance} was released or taken by a newer process")
        return [CancelRequest(row["turn_id"], row["is_interrupted"]) for row in rows if row["turn_id"] is not None]

    async def release(self, agent_id: UUID, owner: Owner) -> None:
        """See agent_store.ports.LeaseStore.release."""
        await self._db.run("release", agent_id, owner.instance, owner.epoch, point="release.1")
