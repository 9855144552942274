"""Budgets in Postgres: what was used of each, by day, and what each process holds of it."""

from collections.abc import Sequence
from uuid import UUID

from agent_store.ports import BudgetAccount, BudgetStanding, Owner
from agent_store.postgres.base import Part
from agent_store.postgres.rows import Row


class PostgresBudgets(Part):
    """BudgetStore over abide.budget_usage and budget_slices; the function abide.account_budget says why it is right."""

    async def account_budgets(
        self, agent_id: UUID, owner: Owner, time_zone: str, accounts: Sequence[BudgetAccount]
    ) -> list[BudgetStanding]:
        """See agent_store.ports.BudgetStore.account_budgets."""
        if not accounts:
            return []
        # One order in all processes, so that they wait for each other in a row; the agent's own budget last, since its
        # row is wanted by everybody and is then locked for the shortest time.
        order = sorted(range(len(accounts)), key=lambda n: (accounts[n].scope, str(accounts[n].day)), reverse=True)
        given = [accounts[n] for n in order]
        rows = await self._db.run(
            "account_budgets",
            agent_id,
            owner.instance,
            owner.epoch,
            time_zone,
            [one.day for one in given],
            [one.scope for one in given],
            [one.serial for one in given],
            [one.spent[0] for one in given],
            [one.spent[1] for one in given],
            [one.held[0] for one in given],
            [one.held[1] for one in given],
            [one.want[0] for one in given],
            [one.want[1] for one in given],
            [one.limit[0] for one in given],
            [one.limit[1] for one in given],
            point="account_budgets.1",
        )
        found = dict(zip(order, map(_read_standing, rows), strict=True))
        return [found[n] for n in range(len(accounts))]

    async def read_budget(self, agent_id: UUID, scope: str, time_zone: str) -> BudgetStanding:
        """See agent_store.ports.BudgetStore.read_budget."""
        (row,) = await self._db.run("read_budget", agent_id, scope, time_zone, point="read_budget.1")
        return BudgetStanding(
            day=row["day"],
            held=(0, 0),
            used=(row["tokens_used"], row["micros_used"]),
            held_elsewhere=(0, 0),
            resets_at=row["resets_at"],
            seconds_left=row["seconds_left"],
        )

    async def forget_budgets(self, agent_id: UUID, time_zone: str, *, keep_days: int) -> None:
        """See agent_store.ports.BudgetStore.forget_budgets."""
        await self._db.run("forget_budgets", agent_id, time_zone, keep_days, point="forget_budgets.1")


def _read_standing(row: Row) -> BudgetStanding:
    return BudgetStanding(
        day=row["day"],
        held=(row["tokens"], row["micros"]),
        used=(row["tokens_used"], row["micros_used"]),
        held_elsewhere=(row["tokens_held"], row["micros_held"]),
        resets_at=row["resets_at"],
        seconds_left=row["seconds_left"],
    )
