"""What the turn engine needs from tools."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol
from uuid import UUID

from agent_api.wire import ToolCheck
from agent_runtime.llm.port import ToolCall, ToolSpec


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What a tool call gave; the model reads `content` either way."""

    content: str
    is_error: bool = False


@dataclass(frozen=True, slots=True)
class Approval:
    """A person has to agree before the call is made, within `timeout` seconds; then `on_timeout` decides."""

    timeout: float
    on_timeout: Literal["Approve", "Reject"] = "Reject"


@dataclass(frozen=True, slots=True)
class ToolPolicy:
    """How a tool may be called.

    `side_effects`: calling it twice may do something twice, so that a call whose outcome is unknown is not repeated.
    `idempotency_argument`: the argument in which the tool takes a key that makes repeating safe. `approval`: None if
    nobody has to agree.
    """

    side_effects: bool = True
    idempotency_argument: str | None = None
    approval: Approval | None = None


@dataclass(frozen=True, slots=True)
class ToolContext:
    """For whom a tool is called. `key` is the same each time this very call is made, and differs for every other."""

    agent_id: UUID
    user: str
    session: str
    session_id: UUID
    turn_id: UUID
    key: str


class Tools(Protocol):
    """The tools of one agent."""

    async def prepare(self) -> None:
        """Return once it was looked for tools, after a few seconds at most; at once from then on."""
        ...

    def specs(self) -> Sequence[ToolSpec]:
        """Return what the model may ask for now; a tool that is down is left out."""
        ...

    def policy(self, name: str) -> ToolPolicy:
        """Return how a tool may be called; an unknown one has neither side effects nor approval."""
        ...

    async def call(self, call: ToolCall, context: ToolContext) -> ToolResult:
        """Call a tool. A failing, slow or unknown tool is a result with `is_error`, never an exception."""
        ...

    def checks(self) -> Sequence[ToolCheck]:
        """Return what is known of each entry of spec.tools, in its order."""
        ...
