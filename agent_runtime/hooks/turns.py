"""What happens around the turns of one agent: memories for the prompt, and own code."""

from agent_runtime.hooks.code import OwnCode
from agent_runtime.hooks.port import Prepared
from agent_runtime.memory.memories import AgentMemories
from agent_runtime.tools.port import ToolContext
from agent_store.ports import TurnRecord


class AgentHooks:
    """Implements TurnHooks. Own code speaks first: what it answers itself needs no memories."""

    def __init__(self, memories: AgentMemories | None, code: OwnCode | None) -> None:
        self._memories = memories
        self._code = code

    async def before(self, context: ToolContext, content: str, system: str) -> Prepared:
        """See TurnHooks.before."""
        prepared = Prepared(content, system)
        if self._code is not None:
            prepared = await self._code.before(context, content, system)
        if self._memories is None or prepared.reply is not None:
            return prepared
        remembered = await self._memories.prompt(context.user, prepared.content)
        return Prepared(prepared.content, _joined(prepared.system, remembered))

    def after(self, context: ToolContext, turn: TurnRecord) -> None:
        """See TurnHooks.after."""
        if self._code is not None:
            self._code.after(context, turn)


def _joined(*parts: str) -> str:
    return "\n\n".join(part for part in parts if part)


def build_hooks(memories: AgentMemories | None, code: OwnCode | None) -> AgentHooks | None:
    """Return the hooks of an agent, None where nothing is to be done."""
    return None if memories is None and code is None else AgentHooks(memories, code)
