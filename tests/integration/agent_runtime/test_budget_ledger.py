"""The ledger of budgets over a real Postgres: bounds that hold whatever turns, processes and connections do."""

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from agent_api.v1alpha1 import Budget
from agent_runtime.budgets.ledger import BudgetLedger, Hold, Refusal
from agent_runtime.clock import SystemClock
from agent_store.errors import StoreUnavailable
from agent_store.failpoints import Action, Failpoints
from agent_store.ports import Owner, Spent
from agent_store.postgres.store import PostgresStore
from tests.integration.agent_runtime.harness import Database, until

TTL = 30.0


@dataclass
class Teller:
    """One process of an agent, as far as budgets are concerned."""

    store: PostgresStore
    ledger: BudgetLedger
    agent: UUID
    lease: list[Owner]
    admitted: list[Spent] = field(default_factory=list)
    refused: int = 0

    async def turn(self, cost: int, *, expected: int = 100, user: str = "ann", seconds: float = 0.0) -> bool:
        """Run a turn that uses `cost` tokens; False if it is refused."""
        found = await self.insist(user, expected)
        if isinstance(found, Refusal):
            self.refused += 1
            return False
        if seconds:
            await asyncio.sleep(seconds)
        self.admitted.append((cost, expected))
        self.ledger.settle(found, (cost, 0))
        return True

    async def insist(self, user: str, expected: int) -> Hold | Refusal:
        while True:
            try:
                return await self.ledger.admit(user, (expected, 1), patience=5.0)
            except StoreUnavailable:
                await asyncio.sleep(0.01)


def budget(tokens: int = 0, per_user: int = 0, **more: object) -> Budget:
    limits = {
        "perDay": {"tokens": tokens} if tokens else None,
        "perUserDay": {"tokens": per_user} if per_user else None,
    }
    return Budget.model_validate({**{name: limit for name, limit in limits.items() if limit}, **more})


@asynccontextmanager
async def teller(
    url: str, agent: UUID, limits: Budget, instance: str = "pod-1", *, failpoints: Failpoints | None = None
) -> AsyncIterator[Teller]:
    """Start a process's ledger; it gives back what it holds at the end."""
    store = PostgresStore(url, failpoints=failpoints or Failpoints())
    lease = [await store.register(agent, "tests", "budgeted", instance, ttl=TTL)]
    ledger = BudgetLedger(agent, limits, store, SystemClock(), owner=lambda: lease[0])
    keeper = asyncio.create_task(ledger.keep(lambda: None))
    try:
        yield Teller(store, ledger, agent, lease)
    finally:
        keeper.cancel()
        await asyncio.gather(keeper, return_exceptions=True)
        await ledger.aclose(timeout=5)
        await store.aclose()


async def used(database: Database, agent: UUID, scope: str = "agent") -> int:
    query = "SELECT sum(tokens_used)::bigint FROM abide.budget_usage WHERE agent_id = $1 AND scope = $2"
    return int(await database.value(query, agent, scope) or 0)


async def held(database: Database, agent: UUID) -> int:
    return int(
        await database.value("SELECT sum(tokens)::bigint FROM abide.budget_slices WHERE agent_id = $1", agent) or 0
    )


async def test_turns_one_after_the_other_run_until_the_budget_is_used_up(postgres_url: str, database: Database) -> None:
    agent = uuid4()
    async with teller(postgres_url, agent, budget(1000)) as one:
        ran = [await one.turn(150) for _ in range(9)]
    assert ran == [True] * 7 + [False] * 2  # the seventh begins with 100 left, and needs 50 more
    assert await used(database, agent) == 1050
    assert await held(database, agent) == 0


async def test_a_refusal_names_the_budget_and_when_the_next_day_begins(postgres_url: str) -> None:
    async with teller(postgres_url, uuid4(), budget(10, per_user=1000)) as one:
        await one.turn(10)
        found = await one.insist("ann", 5)
        (agent, user) = one.ledger.checks()
    assert isinstance(found, Refusal)
    assert found.scope == "agent"
    assert found.message.startswith("The agent's budget of the day is used up; the next day begins at 2")
    assert (agent.ok, agent.warns, agent.used_percent, agent.limit) == (False, True, 100, "10 tokens")
    assert (user.ok, user.used_percent) == (True, 1)


async def test_each_user_has_a_budget_of_their_own(postgres_url: str, database: Database) -> None:
    agent = uuid4()
    async with teller(postgres_url, agent, budget(per_user=100)) as one:
        assert [await one.turn(60, user="ann", expected=10) for _ in range(3)] == [True, True, False]
        assert await one.turn(60, user="bob", expected=10)
    assert await used(database, agent, "user:ann") == 120
    assert await used(database, agent, "user:bob") == 60


async def test_turns_at_once_wait_for_what_others_hold(postgres_url: str, database: Database) -> None:
    """Ten turns expect all that is left; each uses a tenth of it, so all of them run, one after the other."""
    agent = uuid4()
    async with teller(postgres_url, agent, budget(1000)) as one:
        ran = await asyncio.gather(*(one.turn(90, expected=1000, seconds=0.02) for _ in range(10)))
    assert ran == [True] * 10
    assert await used(database, agent) == 900


async def test_idle_processes_hold_nothing(postgres_url: str, database: Database) -> None:
    agent = uuid4()
    async with teller(postgres_url, agent, budget(100_000)) as one:
        await asyncio.gather(*(one.turn(100) for _ in range(20)))

        async def settled() -> bool:
            return (await used(database, agent), await held(database, agent)) == (2000, 0)

        await until(settled, "the slice is given back")


async def test_busy_processes_ask_seldom(postgres_url: str, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    points = Failpoints(trace=str(trace))
    async with teller(postgres_url, uuid4(), budget(10_000_000), failpoints=points) as one:
        started = time.monotonic()
        for _ in range(2000):
            await one.turn(100)
        seconds = time.monotonic() - started
    asked = trace.read_text().count("store.account_budgets.1.before")
    # Once for each doubling of the pace at most, then once a second; never once a turn.
    assert asked <= 200 + 3 * seconds


@pytest.mark.parametrize("seed", range(4))
async def test_processes_together_stay_within_the_bound(postgres_url: str, database: Database, seed: int) -> None:
    """Three processes, users, lost answers: used is what turns used; beyond the limit goes what turns needed more."""
    chance, agent, limit = random.Random(seed), uuid4(), 5000
    flaky = Failpoints({"store.account_budgets.1.after": Action("error", 3)})
    async with (
        teller(postgres_url, agent, budget(limit, per_user=2500), "pod-1") as one,
        teller(postgres_url, agent, budget(limit, per_user=2500), "pod-2", failpoints=flaky) as two,
        teller(postgres_url, agent, budget(limit, per_user=2500), "pod-3") as three,
    ):
        tellers = (one, two, three)

        async def talk(teller: Teller, user: str) -> None:
            for _ in range(25):
                cost, expected = chance.randint(1, 150), chance.randint(1, 150)
                await teller.turn(cost, expected=expected, user=user, seconds=chance.random() / 100)

        await asyncio.gather(*(talk(teller, user) for teller in tellers for user in ("ann", "bob", "cid")))
    spent = sum(cost for teller in tellers for cost, _ in teller.admitted)
    assert await used(database, agent) == spent
    assert await held(database, agent) == 0
    assert (
        sum(await asyncio.gather(*(used(database, agent, f"user:{user}") for user in ("ann", "bob", "cid")))) == spent
    )
    # Nine turns ran at once at most, and none used more than 150: that is the stated bound.
    assert limit * 0.8 <= spent <= limit + 9 * 150
    assert all(await asyncio.gather(*(within(database, agent, user) for user in ("ann", "bob", "cid"))))


async def within(database: Database, agent: UUID, user: str) -> bool:
    return await used(database, agent, f"user:{user}") <= 2500 + 3 * 150


async def test_a_lease_taken_anew_loses_nothing_and_counts_nothing_twice(postgres_url: str, database: Database) -> None:
    agent = uuid4()
    async with teller(postgres_url, agent, budget(100_000)) as one:
        hold = await one.insist("ann", 400)
        await one.turn(70)
        one.lease[0] = await one.store.register(agent, "tests", "budgeted", "pod-1", ttl=TTL)
        await one.turn(30)
        assert isinstance(hold, Hold)
        one.ledger.settle(hold, (500, 0))  # it ran under the lease before
    assert await used(database, agent) == 600
    assert await held(database, agent) == 0


async def test_work_that_ended_without_an_outcome_counts_as_expected(postgres_url: str, database: Database) -> None:
    agent = uuid4()
    async with teller(postgres_url, agent, budget(100_000)) as one:
        hold = await one.insist("ann", 400)
        assert isinstance(hold, Hold)
        one.ledger.settle(hold, None)
    assert await used(database, agent) == 400


async def test_a_turn_that_was_begun_is_never_refused(postgres_url: str, database: Database) -> None:
    agent = uuid4()
    async with teller(postgres_url, agent, budget(100)) as one:
        await one.turn(100)
        hold = await one.ledger.admit_anyway("ann", (50, 1))
        one.ledger.settle(hold, (30, 0))
    assert await used(database, agent) == 130


async def test_the_next_day_begins_with_all_of_it(postgres_url: str, database: Database) -> None:
    """The database's day is what counts; here it is moved by hand, as midnight would."""
    agent = uuid4()
    async with teller(postgres_url, agent, budget(100)) as one:
        await one.turn(100)
        assert not await one.turn(1)
        await database.rows("UPDATE abide.budget_usage SET day = day - 1 WHERE agent_id = $1", agent)
        await database.rows("UPDATE abide.budget_slices SET day = day - 1 WHERE agent_id = $1", agent)

        async def again() -> bool:
            return await one.turn(1, expected=1)

        await until(again, "turns run again")
