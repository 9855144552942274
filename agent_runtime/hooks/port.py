"""What the turn engine calls before and after a turn."""

from dataclasses import dataclass
from typing import Final, Protocol

from agent_runtime.tools.port import ToolContext
from agent_store.ports import TurnRecord

OWN_CODE_FAILED: Final = "OwnCodeFailed"
"""Type of the error that a turn carries when own code ended it."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a turn begins with: `content` and `system` are what the model reads, `reply` answers without a model."""

    content: str
    system: str
    reply: str | None = None


class HookFailed(Exception):  # noqa: N818 - it ends one turn
    """A hook raised or was too slow: the turn fails. The text is fit for users; the agent's errors tell the rest."""


class TurnHooks(Protocol):
    """Called around every turn of one agent; each call is bounded in time."""

    async def before(self, context: ToolContext, content: str, system: str) -> Prepared:
        """Return what the turn begins with. Called once more when the turn is taken over. Raises HookFailed."""
        ...

    def after(self, context: ToolContext, turn: TurnRecord) -> None:
        """Tell that a turn's outcome is committed; returns at once, and never raises."""
        ...
