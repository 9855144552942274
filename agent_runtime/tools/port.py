"""What the turn engine needs from tools."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from agent_runtime.llm.port import ToolCall, ToolSpec


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What a tool call gave; the model reads `content` either way."""

    content: str
    is_error: bool = False


class Tools(Protocol):
    """The tools of one agent."""

    def specs(self) -> Sequence[ToolSpec]:
        """Return what the model may ask for."""
        ...

    async def call(self, call: ToolCall) -> ToolResult:
        """Call a tool. A failing or unknown tool is a result with `is_error`, never an exception."""
        ...
