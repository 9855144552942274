"""The process's lease on an agent: the right to commit turns, kept alive against the database's clock.

The deadline is counted on this process's own monotonic clock from before the renewal was sent, so it never lies behind
the database's. After it nothing may be committed; the token of each turn fences whatever is still on its way.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from agent_runtime.clock import Clock
from agent_store.ports import Owner

SAFETY: Final = 0.25
"""Seconds before the deadline at which work stops: clocks of two machines do not run equally fast."""


@dataclass(frozen=True, slots=True)
class Held:
    """A lease that was granted, until `deadline` (monotonic seconds)."""

    owner: Owner
    deadline: float


class Lease:
    """Holds or does not hold; tells `on_lost` once each time it is lost. Decides nothing by itself but expiry."""

    def __init__(self, clock: Clock, ttl: float, on_lost: Callable[[str], None]) -> None:
        self._clock = clock
        self._ttl = ttl
        self._on_lost = on_lost
        self._held: Held | None = None

    @property
    def owner(self) -> Owner | None:
        """Return who may commit now, or None if the lease is not held."""
        return self._held.owner if self._held is not None and self.remaining() > 0 else None

    def granted(self, owner: Owner, sent_at: float) -> None:
        """Note that a registration or renewal sent at `sent_at` was granted."""
        if self._held is None or owner == self._held.owner or owner.epoch > self._held.owner.epoch:
            self._held = Held(owner, sent_at + self._ttl - SAFETY)

    def remaining(self) -> float:
        """Return the seconds until work must stop; 0 if it must not run."""
        return max(0.0, self._held.deadline - self._clock.monotonic()) if self._held is not None else 0.0

    def expire(self) -> bool:
        """Give the lease up if its time is over; True if it is not held (any more)."""
        if self._held is not None and self.remaining() == 0:
            self.lose("it was not renewed in time")
        return self._held is None

    def lose(self, why: str) -> None:
        """Stop holding the lease."""
        if self._held is not None:
            self._held = None
            self._on_lost(why)
