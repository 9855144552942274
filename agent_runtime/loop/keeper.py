"""Keeps an agent's lease alive, takes a new one when it is gone, and knows how Postgres answered last."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from agent_api.conditions import Reason
from agent_runtime.clock import Clock
from agent_runtime.lease import Lease
from agent_runtime.settings import LEASE_TTL, RENEW_INTERVAL
from agent_runtime.supervisor import Pulse
from agent_runtime.telemetry.agent import AgentName, AgentTelemetry
from agent_runtime.telemetry.logs import get_logger
from agent_store.errors import LeaseLost, StoreError, StoreUnavailable
from agent_store.ports import CancelRequest, Owner, Store

_LOG = get_logger("lease")
RECONNECT_SECONDS: Final = (0.25, 2.0)
"""Pauses between tries while Postgres is away: the first, and the longest they grow to."""
SILENT_AFTER: Final = 5.0
"""Seconds without an answer from Postgres after which the process is not ready, although no call has failed yet."""
RELEASE_TIMEOUT: Final = 2.0
SETTLE_SECONDS: Final = 10.0
"""So long after the first lease of a process its loss is part of starting, and no error anybody should be shown."""


@dataclass(frozen=True, slots=True)
class StoreContact:
    """How Postgres answered last, and since when it is so."""

    ok: bool
    reason: Reason
    message: str
    since: datetime


class LeaseKeeper:
    """Owns the lease of one agent in this process.

    `on_granted` is called for each new lease, not for renewals; `on_cancel` with the turns that other processes were
    asked to cancel, as each renewal tells.
    """

    def __init__(
        self,
        agent: AgentName,
        instance: str,
        store: Store,
        clock: Clock,
        telemetry: AgentTelemetry,
        *,
        on_granted: Callable[[], None],
        on_lost: Callable[[], None],
        on_cancel: Callable[[Sequence[CancelRequest]], None] = lambda _requests: None,
    ) -> None:
        self._agent = agent
        self._instance = instance
        self._store = store
        self._clock = clock
        self._telemetry = telemetry
        self._on_granted = on_granted
        self._on_lost = on_lost
        self._on_cancel = on_cancel
        self._lease = Lease(clock, LEASE_TTL, self._lost)
        self._wake = asyncio.Event()
        self._granted = asyncio.Event()
        self._contact_at = clock.monotonic()
        self._needs_room = False
        self._first_granted_at: float | None = None
        self._contact = StoreContact(False, Reason.STARTING, "Not connected to Postgres yet.", clock.now())

    @property
    def owner(self) -> Owner | None:
        """Who may commit now, or None."""
        return self._lease.owner

    def contact(self) -> StoreContact:
        """Return how Postgres answered last; silence counts as a timeout."""
        contact = self._contact
        if contact.ok and self._clock.monotonic() - self._contact_at > SILENT_AFTER:
            return StoreContact(False, Reason.TIMEOUT, "Postgres does not answer in time.", contact.since)
        return contact

    def probe(self, error: StoreUnavailable | None = None) -> None:
        """Some call failed, with this error: find out at once whether Postgres can be used."""
        if error is not None and error.reason is Reason.READ_ONLY:
            # With a full disk the lease can still be renewed, in the place its row has, while no message can be kept.
            self._needs_room = True
            self._note(error.reason, error.message)
        self._wake.set()

    def fenced(self, owner: Owner | None = None) -> None:
        """The store refused a write of `owner` because a newer process took over: stop, and take a new lease.

        Nothing happens if another lease was taken since.
        """
        if owner is None or self._lease.owner in (owner, None):
            self._lease.lose("a newer process took it")

    async def keep(self, pulse: Pulse) -> None:
        """Renew for ever; tries are at most RECONNECT_SECONDS[1] apart while there is no lease."""
        pause = RECONNECT_SECONDS[0]
        while True:
            pulse()
            self._wake.clear()
            if await self._renew():
                pause = RECONNECT_SECONDS[0]
                await wait_event(self._wake, RENEW_INTERVAL)
            else:
                await self._clock.sleep(pause)
                pause = min(pause * 2, RECONNECT_SECONDS[1])

    async def watch_expiry(self, pulse: Pulse) -> None:
        """Give the lease up the moment its time is over, whatever a renewal under way is waiting for."""
        while True:
            pulse()
            if self._lease.expire():
                self._granted.clear()
                await wait_event(self._granted, 10.0)
            else:
                await self._clock.sleep(min(self._lease.remaining(), 10.0) + 0.001)

    async def release(self) -> None:
        """End the lease now, so that another process takes over at once; bounded in time, failures only logged."""
        owner = self._lease.owner
        if owner is None:
            return
        try:
            async with asyncio.timeout(RELEASE_TIMEOUT):
                await self._store.release(self._agent.id, owner)
            _LOG.info("lease_released", agent=self._agent.name, epoch=owner.epoch)
        except (StoreError, TimeoutError) as error:
            # It runs out by itself.
            _LOG.warning("lease_not_released", agent=self._agent.name, error=type(error).__name__)

    async def _renew(self) -> bool:
        """Renew the lease, or take a new one; True if it is held afterwards."""
        held = self._lease.owner
        try:
            if held is None:
                await self._store.check()
            sent_at = self._clock.monotonic()
            owner = held or await self._register()
            if held is not None:
                self._on_cancel(await self._store.renew(self._agent.id, held, ttl=LEASE_TTL))
        except LeaseLost:
            self.fenced()
            return False
        except StoreUnavailable as error:
            self._note(error.reason, error.message)
            return False
        self._lease.granted(owner, sent_at)
        await self._look_for_room()
        if held is None and self._lease.owner is not None:
            if self._first_granted_at is None:
                self._first_granted_at = self._clock.monotonic()
            self._granted.set()
            self._on_granted()
        return self._lease.owner is not None

    async def _look_for_room(self) -> None:
        """Note that Postgres can be used; after it could not write, only once there is room again."""
        try:
            if self._needs_room:
                await self._store.check_room()
            self._needs_room = False
            self._note(None, "")
        except StoreUnavailable as error:
            self._note(error.reason, error.message)

    async def _register(self) -> Owner:
        agent = self._agent
        owner = await self._store.register(agent.id, agent.namespace, agent.name, self._instance, ttl=LEASE_TTL)
        _LOG.info("lease_taken", agent=agent.name, namespace=agent.namespace, epoch=owner.epoch)
        return owner

    def _note(self, problem: Reason | None, message: str) -> None:
        self._contact_at = self._clock.monotonic()
        reason = problem or Reason.CONNECTED
        if reason is self._contact.reason:
            self._contact = replace(self._contact, message=message)
            return
        self._contact = StoreContact(problem is None, reason, message, self._clock.now())
        # Nothing but a change of keys mends this one; also `abide dev`, which shows warnings only, must say it.
        tell = _LOG.warning if reason is Reason.ENCRYPTION_KEY_MISMATCH else _LOG.info
        tell("store_contact", agent=self._agent.name, reason=reason.value, message=message)
        # Before the first lease the process is starting: a database that is being set up is nobody's error.
        if problem is not None and self._first_granted_at is not None:
            self._telemetry.error("StoreUnavailable", f"{reason.value}: {message}")

    def _lost(self, why: str) -> None:
        first = self._first_granted_at
        self._telemetry.lease_lost(why, told=first is not None and self._clock.monotonic() - first > SETTLE_SECONDS)
        self._wake.set()
        self._on_lost()


async def wait_event(event: asyncio.Event, timeout: float) -> None:
    """Return once the event is set, or after `timeout` seconds."""
    with suppress(TimeoutError):
        async with asyncio.timeout(timeout):
            await event.wait()
