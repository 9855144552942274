"""Budgets end to end: real runtimes, a real provider that counts tokens, processes killed in the middle."""

import asyncio
import signal
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fakes.provider import ModelProvider
from tests.integration.agent_runtime.harness import (
    NAMESPACE,
    Database,
    Process,
    Serving,
    Talk,
    agent_id,
    manifest,
    process,
    serving,
    until,
)
from tests.integration.agent_runtime.models import compatible

SESSIONS = 9
REPLY = "word " * 40
PRICE = {"inputPerMillion": "1000", "outputPerMillion": "2000", "currency": "USD"}
BUDGET_TEXT = "That is all for today."
SPENT = "SELECT coalesce(sum(input_tokens + output_tokens), 0)::bigint FROM abide.turns WHERE agent_id = $1"
USED = "SELECT coalesce(sum(tokens_used), 0)::bigint FROM abide.budget_usage WHERE agent_id = $1 AND scope = $2"
HELD = "SELECT coalesce(sum(tokens), 0)::bigint FROM abide.budget_slices WHERE agent_id = $1"


def budgeted(provider: ModelProvider, budget: dict[str, Any] | None, /, **model: Any) -> dict[str, Any]:
    """Return the agent `a` with a budget; what it sends does not grow with the conversation."""
    spec: dict[str, Any] = {"messages": {"budget": BUDGET_TEXT}, "history": {"limit": 1}}
    return manifest("a", compatible(provider, **model), **spec, **({"budget": budget} if budget else {}))


async def budgets_of(served: Serving) -> list[dict[str, Any]]:
    response = await served.http.get(f"{served.base}/readyz")
    assert response.status_code == 200, response.text
    return list(response.json()["budgets"])


async def talk_until_refused(talk: Talk, most: int = 100) -> tuple[int, dict[str, Any]]:
    """Send messages until one is refused; return how many were answered, and the refusal."""
    for number in range(most):
        response = await talk.post("hello")
        assert response.status_code == 200, response.text
        body = response.json()
        if body["turn"]["status"] != "completed":
            return number, body
    raise AssertionError(f"{most} messages were answered")


async def test_turns_are_refused_once_the_tokens_are_used_up(
    postgres_url: str, database: Database, provider: ModelProvider, secrets: Path
) -> None:
    provider.set_reply(REPLY)
    agent = budgeted(provider, {"perDay": {"tokens": 400}})
    async with serving(postgres_url, agent, secrets_dir=secrets) as served:
        answered, body = await talk_until_refused(served.talk("a"))
        assert answered >= 2
        assert body["turn"]["status"] == "failed"
        assert body["turn"]["error"]["type"] == "BudgetExhausted"
        assert body["turn"]["error"]["message"].startswith("The agent's budget of the day is used up; the next day")
        assert body["reply"]["content"] == BUDGET_TEXT
        (check,) = await budgets_of(served)
        assert (check["scope"], check["ok"], check["warns"], check["limit"]) == ("agent", False, True, "400 tokens")
        assert check["usedPercent"] >= 100
        metrics = (await served.http.get(f"{served.base}/metrics")).text
        assert 'abide_turns_over_budget_total{agent="a",agent_namespace="tests",scope="agent"} 1.0' in metrics

        async def told() -> bool:
            details = await database.value("SELECT details->'budgets'->0->>'ok' FROM abide.agent_heartbeats")
            return bool(details == "false")

        await until(told, "the heartbeat says so")
        assert len(provider.asked()) == answered  # the refused message cost nothing
    spent = await database.value(SPENT, agent_id("a"))
    assert await database.value(USED, agent_id("a"), "agent") == spent
    assert spent - 400 < spent / answered + 1  # no more than the last turn's
    assert await database.value(HELD, agent_id("a")) == 0


async def test_money_is_counted_at_the_price_of_the_model(
    postgres_url: str, database: Database, provider: ModelProvider, secrets: Path
) -> None:
    provider.set_reply(REPLY)
    agent = budgeted(provider, {"perDay": {"amount": "0.50", "currency": "USD"}}, price=PRICE)
    async with serving(postgres_url, agent, secrets_dir=secrets) as served:
        answered, body = await talk_until_refused(served.talk("a"))
        assert body["turn"]["error"]["type"] == "BudgetExhausted"
        assert (await budgets_of(served))[0]["limit"] == "0.50 USD"
    (row,) = await database.rows(
        "SELECT sum(cost_micros)::bigint AS cost, sum(input_tokens)::int AS sent, sum(output_tokens)::int AS made "
        "FROM abide.turns WHERE agent_id = $1",
        agent_id("a"),
    )
    assert row["cost"] == row["sent"] * 1000 + row["made"] * 2000
    used = await database.value(
        "SELECT micros_used FROM abide.budget_usage WHERE agent_id = $1 AND scope = 'agent'", agent_id("a")
    )
    assert used == row["cost"]
    assert 500_000 <= used < 500_000 + used / answered + 1


async def test_one_user_cannot_use_up_anothers(postgres_url: str, provider: ModelProvider, secrets: Path) -> None:
    provider.set_reply(REPLY)
    agent = budgeted(provider, {"perUserDay": {"tokens": 150}})
    async with serving(postgres_url, agent, secrets_dir=secrets) as served:
        _, body = await talk_until_refused(served.talk("a", "ann"))
        assert body["turn"]["error"]["message"].startswith("The user's budget of the day is used up")
        assert (await served.talk("a", "bob").post("hello")).json()["turn"]["status"] == "completed"
        (check,) = await budgets_of(served)
        assert (check["scope"], check["ok"]) == ("user", False)


async def test_completions_that_are_kept_nowhere_count_too(
    postgres_url: str, database: Database, provider: ModelProvider, secrets: Path
) -> None:
    provider.set_reply(REPLY)
    agent = budgeted(provider, {"perDay": {"tokens": 300}})

    async def complete(served: Serving) -> str:
        body = {"model": f"{NAMESPACE}/a", "messages": [{"role": "user", "content": "hello"}]}
        response = await served.http.post(f"{served.base}/v1/chat/completions", json=body)
        assert response.status_code == 200, response.text
        return str(response.json()["choices"][0]["message"]["content"])

    async with serving(postgres_url, agent, secrets_dir=secrets) as served:
        for _ in range(50):
            if await complete(served) == BUDGET_TEXT:
                break
        assert await complete(served) == BUDGET_TEXT
        asked = len(provider.asked())
        assert 2 <= asked < 50
    assert await database.value(USED, agent_id("a"), "agent") >= 300


async def test_without_a_budget_no_row_is_touched(
    postgres_url: str, database: Database, provider: ModelProvider, secrets: Path
) -> None:
    async with serving(postgres_url, budgeted(provider, None), secrets_dir=secrets) as served:
        assert (await served.talk("a").post("hello")).json()["turn"]["status"] == "completed"
        assert await budgets_of(served) == []
    assert await database.value("SELECT count(*) FROM abide.budget_usage") == 0
    assert await database.value("SELECT count(*) FROM abide.budget_slices") == 0


async def test_a_raised_limit_counts_at_once(
    postgres_url: str, database: Database, provider: ModelProvider, secrets: Path
) -> None:
    provider.set_reply(REPLY)
    async with serving(postgres_url, budgeted(provider, {"perDay": {"tokens": 100}}), secrets_dir=secrets) as served:
        await talk_until_refused(served.talk("a"))
    more = budgeted(provider, {"perDay": {"tokens": 100_000}})
    async with serving(postgres_url, more, secrets_dir=secrets) as served:
        assert (await served.talk("a").post("hello")).json()["turn"]["status"] == "completed"
        (check,) = await budgets_of(served)
        assert (check["ok"], check["usedPercent"]) == (True, 0)


@pytest.mark.parametrize("limit", [3000, 6000])
async def test_processes_that_are_killed_never_overspend_beyond_the_bound(
    postgres_url: str, database: Database, provider: ModelProvider, secrets: Path, tmp_path: Path, limit: int
) -> None:
    """Three processes serve many sessions; one after the other is killed (-9) in the middle of turns, and started anew.

    The bound: beyond the limit goes only what turns under way needed and did not hold, and a session has one at most.
    """
    provider.set_reply(REPLY)
    provider.delay(0.05)
    agent = budgeted(provider, {"perDay": {"tokens": limit}})
    environ = {"ABIDE_SECRETS_DIR": str(secrets)}
    refused = asyncio.Event()

    async with AsyncExitStack() as stack:
        http = await stack.enter_async_context(httpx.AsyncClient(timeout=30))
        pods = [
            await stack.enter_async_context(process(tmp_path, postgres_url, agent, f"pod-{number}", **environ))
            for number in range(3)
        ]
        for pod in pods:
            await pod.wait_ready(http)

        async def talk(number: int) -> None:
            while not refused.is_set():
                pod = pods[number % len(pods)]
                try:
                    body = (await Talk(http, pod.base, "a").post("hello", f"s{number}")).json()
                except httpx.TransportError:
                    await asyncio.sleep(0.05)
                    continue
                if body.get("turn", {}).get("status") == "failed":
                    refused.set()

        async def kill_in_turn() -> None:
            for number in range(2):
                before = len(provider.asked())

                async def some_more(before: int = before) -> bool:
                    return len(provider.asked()) >= before + 8 or refused.is_set()

                await until(some_more, "turns run", 30)
                await kill_and_start(pods[number], http)

        async with asyncio.timeout(120):
            await asyncio.gather(kill_in_turn(), *map(talk, range(SESSIONS)))

        async def quiet() -> bool:
            return bool(await database.value("SELECT count(*) FROM abide.active_turns") == 0)

        await until(quiet, "all turns have an outcome", 30)

        async def settled() -> bool:
            held = await database.value(HELD, agent_id("a"))
            used = await database.value(USED, agent_id("a"), "agent")
            return bool(held == 0 and used >= await database.value(SPENT, agent_id("a")))

        await until(settled, "all slices are given back, and all that was used is accounted for", 30)
        # What the provider was asked for, also by processes that were killed before they could tell.
        calls = len(provider.asked())
        spent = await database.value(SPENT, agent_id("a"))
        each = await database.value(
            "SELECT max(input_tokens + output_tokens) FROM abide.turns WHERE agent_id = $1", agent_id("a")
        )
        used = await database.value(USED, agent_id("a"), "agent")
        statuses = await database.rows("SELECT DISTINCT status FROM abide.turns WHERE agent_id = $1", agent_id("a"))
    assert spent <= used <= limit + SESSIONS * each
    assert calls * each <= limit + SESSIONS * each, f"{calls} calls of {each} tokens"
    assert calls * each >= limit / 4, "most of the budget was of use"
    assert {row["status"] for row in statuses} <= {"completed", "failed", "fallback"}


async def kill_and_start(pod: Process, http: httpx.AsyncClient) -> None:
    pod.signal(signal.SIGKILL)
    await pod.wait_exit()
    await pod.start()
    await pod.wait_ready(http)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("skip", [0, 1, 2])
async def test_a_process_killed_at_an_account_leaves_the_budget_right(
    postgres_url: str, database: Database, provider: ModelProvider, secrets: Path, tmp_path: Path, when: str, skip: int
) -> None:
    """It dies right before or after the statement that reserves or accounts; the next one goes on within the bound."""
    provider.set_reply(REPLY)
    limit = 2000
    agent = budgeted(provider, {"perDay": {"tokens": limit}})
    environ = {"ABIDE_SECRETS_DIR": str(secrets)}
    point = f"store.account_budgets.1.{when}=kill:{skip}"
    async with httpx.AsyncClient(timeout=30) as http:
        async with process(tmp_path, postgres_url, agent, "pod-1", ABIDE_FAILPOINTS=point, **environ) as dying:
            await dying.wait_ready(http)
            dead = asyncio.create_task(dying.wait_exit(60))
            while not dead.done():
                try:
                    await Talk(http, dying.base, "a").post("hello")
                except httpx.TransportError:
                    await asyncio.wait([dead], timeout=5)
            assert await dead == -signal.SIGKILL
        async with process(tmp_path, postgres_url, agent, "pod-1", **environ) as pod:
            await pod.wait_ready(http)
            answered, body = await talk_until_refused(Talk(http, pod.base, "a"))

            async def settled() -> bool:
                return bool(await database.value(HELD, agent_id("a")) == 0)

            await until(settled, "all slices are given back", 30)
    spent = await database.value(SPENT, agent_id("a"))
    used = await database.value(USED, agent_id("a"), "agent")
    each = spent / max(1, await database.value("SELECT count(*) FROM abide.turns WHERE status = 'completed'"))
    assert body["turn"]["error"]["type"] == "BudgetExhausted", body
    assert answered >= 10, "most of the budget is still of use"
    assert len(provider.asked()) * each <= used + 1
    assert limit <= used <= limit + each + 1
    assert await database.value("SELECT count(*) FROM abide.turns WHERE finished_at IS NULL") == 0
