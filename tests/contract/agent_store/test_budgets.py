"""Budgets: what is granted never exceeds the limit, and what was spent is counted once, whatever gets lost."""

import asyncio
import random
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from uuid import uuid4

import asyncpg
import pytest

from agent_store.ports import BudgetAccount, BudgetStanding, Owner
from agent_store.postgres.store import PostgresStore
from tests.contract.agent_store.scene import Scene

LIMIT = 1000


@dataclass
class Holder:
    """One process as it sees its budget."""

    scene: Scene
    owner: Owner
    scope: str = "agent"
    limit: int = LIMIT
    day: date | None = None
    serial: int = 0
    held: int = 0
    sent: list[BudgetAccount] = field(default_factory=list)

    def next_account(self, spent: int, want: int) -> BudgetAccount:
        self.serial += 1
        account = BudgetAccount(
            self.day, self.scope, self.serial, (spent, 0), (self.held, 0), (want, 0), (self.limit, 0)
        )
        self.sent.append(account)
        return account

    async def send(self, account: BudgetAccount) -> BudgetStanding:
        (standing,) = await self.scene.store.account_budgets(self.scene.agent, self.owner, "UTC", [account])
        return standing

    async def account(self, spent: int, want: int) -> BudgetStanding:
        standing = await self.send(self.next_account(spent, want))
        self.day, self.held = standing.day, standing.held[0]
        return standing


async def begin(scene: Scene, instance: str = "pod-1", **more: object) -> Holder:
    return Holder(scene, await scene.start(instance), **more)  # type: ignore[arg-type]


async def in_database(url: str, scene: Scene) -> tuple[int, int]:
    """Return what the database says was used, and is held."""
    connection = await asyncpg.connect(url)
    try:
        used = await connection.fetchval(
            "SELECT coalesce(sum(tokens_used), 0) FROM abide.budget_usage WHERE agent_id = $1", scene.agent
        )
        held = await connection.fetchval(
            "SELECT coalesce(sum(tokens), 0) FROM abide.budget_slices WHERE agent_id = $1", scene.agent
        )
    finally:
        await connection.close()
    return int(used), int(held)


async def test_a_slice_is_granted_as_far_as_the_limit_allows(scene: Scene) -> None:
    first, second = await begin(scene), await begin(scene, "pod-2")
    assert (await first.account(0, 700)).held == (700, 0)
    standing = await second.account(0, 700)
    assert (standing.held, standing.held_elsewhere, standing.used) == ((300, 0), (700, 0), (0, 0))
    assert (await first.account(500, 0)).held == (0, 0)
    standing = await second.account(0, 700)
    assert (standing.held, standing.used) == ((500, 0), (500, 0))


async def test_money_and_tokens_have_limits_of_their_own(scene: Scene, owner: Owner) -> None:
    account = BudgetAccount(None, "agent", 1, (0, 0), (0, 0), (50, 900), (0, 600))
    (standing,) = await scene.store.account_budgets(scene.agent, owner, "UTC", [account])
    assert standing.held == (0, 600)  # no limit of tokens: nothing needs to be held


async def test_the_same_account_sent_again_counts_once(scene: Scene, postgres_url: str) -> None:
    holder = await begin(scene)
    await holder.account(0, 400)
    account = holder.next_account(150, 100)
    answers = [await holder.send(account) for _ in range(3)]
    assert [answer.used for answer in answers] == [(150, 0)] * 3
    assert [answer.held for answer in answers] == [(100, 0)] * 3
    assert await in_database(postgres_url, scene) == (150, 100)


async def test_an_account_that_arrives_late_changes_nothing(scene: Scene, postgres_url: str) -> None:
    holder = await begin(scene)
    await holder.account(0, 400)
    late = holder.sent[0]
    await holder.account(100, 50)
    await holder.send(late)
    assert await in_database(postgres_url, scene) == (100, 50)


async def test_what_is_spent_beyond_the_slice_is_counted_too(scene: Scene) -> None:
    holder = await begin(scene)
    await holder.account(0, 100)
    standing = await holder.account(1300, 100)
    assert (standing.used, standing.held) == ((1300, 0), (0, 0))


async def test_the_slice_of_a_dead_process_counts_as_used(scene: Scene, postgres_url: str) -> None:
    first, second = await begin(scene), await begin(scene, "pod-2")
    await first.account(0, 300)
    await scene.store.release(scene.agent, first.owner)
    standing = await second.account(0, 1000)
    assert (standing.used, standing.held, standing.held_elsewhere) == ((300, 0), (700, 0), (0, 0))
    assert await in_database(postgres_url, scene) == (300, 700)


async def test_a_process_that_was_thought_dead_adds_only_what_was_not_counted(scene: Scene) -> None:
    first, second = await begin(scene), await begin(scene, "pod-2")
    await first.account(0, 300)
    await scene.store.release(scene.agent, first.owner)
    await second.account(0, 10)
    standing = await first.account(420, 0)
    assert standing.used == (420, 0)
    assert standing.held == (0, 0)


async def test_without_a_lease_nothing_is_granted(scene: Scene) -> None:
    holder = await begin(scene)
    await holder.account(0, 300)
    await scene.store.release(scene.agent, holder.owner)
    assert (await holder.account(100, 250)).held == (200, 0)
    assert (await holder.account(0, 900)).held == (200, 0)


async def test_a_lower_limit_takes_the_slice_back(scene: Scene) -> None:
    holder = await begin(scene)
    await holder.account(0, 800)
    holder.limit = 500
    assert (await holder.account(100, 700)).held == (400, 0)


async def test_users_and_agents_do_not_share(scene: Scene, owner: Owner) -> None:
    accounts = [
        BudgetAccount(None, scope, 1, (10, 0), (0, 0), (900, 0), (LIMIT, 0))
        for scope in ("user:bob", "agent", "user:ann")
    ]
    other = Scene(scene.store)
    answers = await scene.store.account_budgets(scene.agent, owner, "UTC", accounts)
    assert [answer.held for answer in answers] == [(900, 0)] * 3
    assert (await (await begin(other)).account(0, 1000)).held == (1000, 0)


async def test_days_begin_at_midnight_of_the_time_zone(scene: Scene, owner: Owner) -> None:
    for zone in ("UTC", "Pacific/Kiritimati", "Pacific/Pago_Pago"):
        standing = await scene.store.read_budget(scene.agent, "agent", zone)
        left = (standing.resets_at - datetime.now(UTC)).total_seconds()
        assert 0 <= left <= 86400
        assert standing.seconds_left == pytest.approx(left, abs=5)
        # Neither zone has summer time: +14 and -11 hours.
        offset = {"UTC": 0, "Pacific/Kiritimati": 14, "Pacific/Pago_Pago": -11}[zone]
        assert standing.day == (standing.resets_at + timedelta(hours=offset - 1)).date()


async def test_old_days_are_forgotten(scene: Scene, postgres_url: str) -> None:
    holder = await begin(scene)
    holder.day = date(2020, 1, 1)
    await holder.account(5, 5)
    await holder.scene.store.account_budgets(
        scene.agent, holder.owner, "UTC", [replace(holder.sent[0], day=None, spent=(7, 0))]
    )
    await scene.store.forget_budgets(scene.agent, "UTC", keep_days=35)
    used, _ = await in_database(postgres_url, scene)
    assert used == 7


@pytest.mark.parametrize("seed", range(6))
async def test_any_accounts_of_processes_that_come_and_go_keep_the_bound(
    store: PostgresStore, postgres_url: str, seed: int
) -> None:
    """Random accounts, lost answers, deaths: used + held is within the limit but for what was spent without a slice."""
    chance = random.Random(seed)
    scene = Scene(store, uuid4())
    holders = [await begin(scene, f"pod-{number}") for number in range(3)]
    spent = beyond = dead = 0
    for _ in range(120):
        position = chance.randrange(3)
        holder = holders[position]
        match chance.choice(["account", "account", "account", "again", "die"]):
            case "account":
                amount = chance.choice([0, chance.randint(0, holder.held), chance.randint(0, 60)])
                spent += amount
                beyond += max(0, amount - holder.held)
                account = holder.next_account(amount, chance.randint(0, 400))
                for _ in range(chance.choice([1, 1, 2])):  # the first answer may get lost
                    standing = await holder.send(account)
                holder.day, holder.held = standing.day, standing.held[0]
            case "again" if holder.sent:
                await holder.send(chance.choice(holder.sent[-3:]))
            case "die":
                dead += holder.held
                holders[position] = await begin(scene, f"pod-{position}")
        used, held = await in_database(postgres_url, scene)
        assert used + held <= LIMIT + beyond
        assert spent <= used + held
        assert used <= spent + dead


async def test_processes_that_want_at_once_share_what_there_is(postgres_url: str) -> None:
    stores = [PostgresStore(postgres_url) for _ in range(4)]
    agent = uuid4()
    holders = [await begin(Scene(store, agent), f"pod-{number}") for number, store in enumerate(stores)]
    granted = 0

    async def spend(holder: Holder) -> None:
        nonlocal granted
        for _ in range(60):
            standing = await holder.account(holder.held, 37)
            granted += standing.held[0]

    await asyncio.gather(*map(spend, holders))
    for holder in holders:
        await holder.account(holder.held, 0)
    assert granted == LIMIT
    assert await in_database(postgres_url, holders[0].scene) == (LIMIT, 0)
    for store in stores:
        await store.aclose()


async def test_late_accounts_do_not_bring_back_what_was_erased_of_a_user(scene: Scene, postgres_url: str) -> None:
    holder = await begin(scene, scope="user:ann")
    other = await begin(scene, "pod-2", scope="user:bob")
    await holder.account(0, 100)
    await holder.account(50, 100)
    await other.account(0, 70)
    (usage,) = await scene.store.user_usage(scene.agent, "ann")
    assert (usage["day"], usage["tokens_used"], usage["micros_used"]) == (holder.day, 50, 0)
    while not (await scene.store.erase_user(scene.agent, "ann")).done:
        pass
    standing = await holder.account(40, 100)
    assert (standing.held, standing.used, standing.held_elsewhere) == ((0, 0), (0, 0), (0, 0))
    assert await scene.store.user_usage(scene.agent, "ann") == []
    assert await in_database(postgres_url, scene) == (0, 70), "only what bob's process holds is left"
    assert (await holder.account(0, 100)).held == (100, 0), "a new turn of the user begins anew"
    assert len(await scene.store.user_usage(scene.agent, "ann")) == 1
