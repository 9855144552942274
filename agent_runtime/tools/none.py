"""The tools of an agent that has none."""

from collections.abc import Sequence

from agent_api.wire import ToolCheck
from agent_runtime.llm.port import ToolCall, ToolSpec
from agent_runtime.tools.port import ToolContext, ToolPolicy, ToolResult

_POLICY = ToolPolicy(side_effects=False)


class NoTools:
    """Answers every call with an error the model can read, so that the turn goes on."""

    async def prepare(self) -> None:
        """There is nothing to look for."""

    def specs(self) -> Sequence[ToolSpec]:
        """Return nothing."""
        return ()

    def policy(self, name: str) -> ToolPolicy:
        """Return the policy of an unknown tool."""
        return _POLICY

    async def call(self, call: ToolCall, context: ToolContext) -> ToolResult:
        """Say that the tool is unknown."""
        return ToolResult(f"unknown tool {call.name!r}: this agent has no tools; answer without it", is_error=True)

    def checks(self) -> Sequence[ToolCheck]:
        """Return nothing."""
        return ()
