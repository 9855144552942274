"""Has a summary written by the agent's own models: a turn without tools that is kept nowhere, within the budgets."""

from collections.abc import Sequence
from typing import Final
from uuid import UUID

from agent_runtime.budgets.ledger import Hold
from agent_runtime.budgets.turns import TurnBudgets
from agent_runtime.history.compaction import INSTRUCTIONS
from agent_runtime.loop.driver import TurnDriver, TurnWork
from agent_runtime.loop.machine import Plan
from agent_runtime.loop.stream import TurnStream
from agent_runtime.tools.port import ToolContext
from agent_store.ports import Outcome

SUMMARY_SECONDS: Final = 120.0


class SummaryWriter:
    """Asks the models of one agent, the primary first; `models` are their names, as provider/model."""

    def __init__(self, agent_id: UUID, driver: TurnDriver, models: Sequence[str], budgets: TurnBudgets | None) -> None:
        self._agent_id = agent_id
        self._driver = driver
        self._plan = Plan(models=models, max_steps=1, fallback="-")
        self._budgets = budgets

    async def write(self, user: str, session_id: UUID, material: str) -> Outcome | None:
        """Return what became of it; None: a budget is used up. Raises StoreUnavailable, LeaseLost."""
        hold: Hold | None = None
        if self._budgets is not None:
            found = await self._budgets.admit_quietly(user, len(material))
            if found is None:
                return None
            hold = found
        outcome: Outcome | None = None
        try:
            outcome = await self._driver.prepare(self._work(user, session_id, material), TurnStream()).run()
        finally:
            if hold is not None and self._budgets is not None:
                self._budgets.settle(hold, outcome, len(material))
        return outcome

    def _work(self, user: str, session_id: UUID, material: str) -> TurnWork:
        return TurnWork(
            content=material,
            history=(),
            system=INSTRUCTIONS,
            history_limit=1,
            steps_before=0,
            turn_seconds=SUMMARY_SECONDS,
            plan=self._plan,
            context=ToolContext(self._agent_id, user, "", session_id, session_id, key=""),
            session=str(session_id),
        )
