"""The tools of an agent that has none."""

from collections.abc import Sequence

from agent_runtime.llm.port import ToolCall, ToolSpec
from agent_runtime.tools.port import ToolResult


class NoTools:
    """Answers every call with an error the model can read, so that the turn goes on."""

    def specs(self) -> Sequence[ToolSpec]:
        """Return nothing."""
        return ()

    async def call(self, call: ToolCall) -> ToolResult:
        """Say that the tool is unknown."""
        return ToolResult(f"unknown tool {call.name!r}: this agent has no tools; answer without it", is_error=True)
