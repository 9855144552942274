"""What can go wrong in the store, and who moves next."""

from agent_api.conditions import Reason


class StoreError(Exception):
    """Base of all errors of the store."""


class StoreUnavailable(StoreError):  # noqa: N818 - the state of the world, not a mistake
    """Postgres cannot be used now; retry later.

    Whether the statement took effect is unknown unless `sent` is False. `reason` says why, as status reports it
    (ConnectionRefused, Timeout, AuthFailed, TLSFailed, ConnectionLimit, ReadOnly or SchemaTooOld); `message` names host
    and port but no secret.
    """

    def __init__(self, reason: Reason, message: str, *, sent: bool = True) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.sent = sent


class QueueFull(StoreError):  # noqa: N818
    """The session already has as many waiting messages as `session.queueLimit` allows; nothing was stored."""


class IdempotencyMismatch(StoreError):  # noqa: N818
    """The idempotency key was used in this session with another body; nothing was stored."""


class LeaseLost(StoreError):  # noqa: N818
    """This process no longer holds its lease, or the turn was taken over; the write was refused (fencing)."""


class SessionGone(StoreError):  # noqa: N818
    """The session does not exist (any more); nothing was stored."""


class StateChanged(StoreError):  # noqa: N818
    """The session's snapshot is not the one the caller knows; nothing was stored."""


class MemoriesFull(StoreError):  # noqa: N818
    """As many memories are kept for this user, or shared, as there may be; nothing was stored."""
