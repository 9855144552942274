"""Own code for an agent: subclass `abide.Agent`, name the class, and the runtime calls it around every turn.

    import abide

    class Support(abide.Agent):
        @abide.tool(side_effects=False)
        async def order_status(self, order: str) -> str:
            "Look up where an order is."
            return await self.orders.status(order)

Run it with `abide dev agent.yaml --class shop:Support`, or in an image of your own with
`ABIDE_AGENT_CLASS=shop:Support`. docs/own-code.md tells the rest.
"""

from abide.agent import Agent, Call, Memories, Memory, Outcome, Reply, Services, ToolError, Turn, tool

__all__ = ["Agent", "Call", "Memories", "Memory", "Outcome", "Reply", "Services", "ToolError", "Turn", "tool"]
