"""What can go wrong in the runtime, and who moves next.

Errors of the store (agent_store.errors) pass through as they are; the web edge translates both to problem details.
"""

from agent_api.conditions import Reason


class AgentRuntimeError(Exception):
    """Base of all errors of the runtime; the text is fit for callers: no secrets, no internals."""


class Waiting(AgentRuntimeError):  # noqa: N818 - the state of the world, not a mistake
    """Something else must move first; try again after `retry_after` seconds."""

    def __init__(self, message: str, *, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after = retry_after


class Draining(Waiting):
    """The process is being stopped and takes no new work; another one will."""


class Overloaded(Waiting):
    """A bound of the process is reached (turns at once, waiting requests)."""


class NotReady(Waiting):
    """No turn can be committed now; `reason` is the cause as status names it."""

    def __init__(self, reason: Reason, message: str, *, retry_after: float = 2.0) -> None:
        super().__init__(message, retry_after=retry_after)
        self.reason = reason


class SessionBusy(Waiting):
    """Another message of the session is being answered, and `session.whenBusy` is Reject; nothing was stored."""


class Stalled(AgentRuntimeError):  # noqa: N818
    """The user must change something."""


class SettingsError(Stalled):
    """The environment or the manifest cannot be used; `problems` has one line per mistake."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class CannotListen(Stalled):
    """The address the process should listen on cannot be had."""


class InvalidState(Stalled):
    """A state document that this version cannot read; `problems` has one (field, message) per mistake."""

    def __init__(self, problems: list[tuple[str, str]]) -> None:
        super().__init__("; ".join(f"{field}: {message}" for field, message in problems))
        self.problems = problems


class InvalidContent(Stalled):
    """A message that does not fit spec.input.schema; `problems` has one (field, message) per mistake."""

    def __init__(self, problems: list[tuple[str, str]]) -> None:
        super().__init__("; ".join(f"{field}: {message}" for field, message in problems))
        self.problems = problems


class NotWaiting(Stalled):
    """A tool call does not wait for a decision any more: it has one, its time is over, or its turn was cancelled."""


class NotFound(Stalled):
    """What was asked for does not exist, or belongs to another user; `what` names the kind of thing."""

    def __init__(self, what: str) -> None:
        super().__init__(f"There is no such {what}.")
        self.what = what
