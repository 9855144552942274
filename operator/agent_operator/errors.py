"""What can go wrong in the operator, and who moves next.

`Waiting`: something else must move first. `Transient`: try again, with growing pauses. `Stalled`: the user must change
something, and status says what. Any other exception is a bug: it is counted, logged once with its traceback, and the
key is tried again like after a transient error.
"""

from agent_api.conditions import Reason


class OperatorError(Exception):
    """Base of all expected errors of the operator."""


class Unusable(OperatorError):  # noqa: N818 - the state of the world, not a mistake
    """The cluster is not as the operator needs it; the text says what to check. The process ends and is restarted."""


class Waiting(OperatorError):  # noqa: N818 - the state of the world, not a mistake
    """Something else must move first; look again after `retry_after` seconds."""

    def __init__(self, message: str, *, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Transient(OperatorError):  # noqa: N818
    """It may work when tried again; `reason` is a short stable word for metrics.

    `retry_after`, in seconds, is the least pause the other side asked for.
    """

    def __init__(self, reason: str, message: str, *, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.reason = reason
        self.retry_after = retry_after


class Stalled(OperatorError):  # noqa: N818
    """Nothing helps until the user changes something; `message` names it and `reason` is what status says."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
