"""Long conversations with a real provider: what it is shown, what is kept, and summaries that never get in the way."""

from pathlib import Path
from typing import Any

from agent_runtime.history.compaction import HEADING, INSTRUCTIONS
from tests.fakes.provider import ModelProvider, Request
from tests.integration.agent_runtime.harness import (
    Database,
    Serving,
    agent_id,
    echo,
    manifest,
    serving,
    until,
)
from tests.integration.agent_runtime.models import compatible

SUMMARY = "They count numbers."


def counting(provider: ModelProvider, **history: Any) -> dict[str, Any]:
    """Return the agent `a`, which is asked to summarize early."""
    wanted = {"limit": 8, "compaction": {"afterMessages": 8}, **history}
    return manifest("a", compatible(provider), history=wanted)


def is_summary(request: Request) -> bool:
    return bool(request.body["messages"][0]["content"] == INSTRUCTIONS)


def summaries(provider: ModelProvider) -> list[Request]:
    return [request for request in provider.asked() if is_summary(request)]


def turns(provider: ModelProvider) -> list[Request]:
    return [request for request in provider.asked() if not is_summary(request)]


async def say_numbers(served: Serving, first: int, last: int) -> None:
    for number in range(first, last + 1):
        assert await served.talk("a").say(f"number {number}")


async def until_summary(served: Serving, seq: int) -> dict[str, Any]:
    async def kept() -> dict[str, Any] | None:
        response = await served.talk("a").request("GET", "/sessions/s/state")
        if response.status_code != 200 or response.json()["cursor"].get("summarySeq", 0) < seq:
            return None
        return dict(response.json())

    found = await until(kept, f"a summary that covers message {seq}")
    assert found is not None
    return found


async def test_a_summary_takes_the_place_of_what_the_model_loses_sight_of(
    postgres_url: str, database: Database, provider: ModelProvider, secrets: Path
) -> None:
    provider.set_reply(SUMMARY)
    async with serving(postgres_url, counting(provider), secrets_dir=secrets) as served:
        await say_numbers(served, 1, 4)
        assert summaries(provider) == []
        await say_numbers(served, 5, 5)
        state = await until_summary(served, 1)
        (request,) = summaries(provider)
        material = request.body["messages"][1]["content"]
        assert material.startswith(f"user: number 1\nassistant: {SUMMARY}\nuser: number 2")
        assert (state["summary"], state["cursor"]["summarySeq"]) == (SUMMARY, 6)
        await say_numbers(served, 6, 6)
        shown = turns(provider)[-1].body["messages"]
        assert shown[0]["content"] == f"You are a test.\n\n{HEADING}\n{SUMMARY}"
        assert [line["content"] for line in shown[1:]] == ["number 4", SUMMARY, "number 5", SUMMARY, "number 6"]
        # Nothing of the record is gone.
        assert len(await served.talk("a").messages(limit=100)) == 12
        await say_numbers(served, 7, 9)
        await until_summary(served, 7)
        assert summaries(provider)[-1].body["messages"][1]["content"].startswith(f"{HEADING}\n{SUMMARY}")
    await restored(postgres_url, provider, secrets)


async def restored(postgres_url: str, provider: ModelProvider, secrets: Path) -> None:
    """Another process goes on from the summary and the messages after it."""
    async with serving(postgres_url, counting(provider), secrets_dir=secrets) as served:
        state = (await served.talk("a").request("GET", "/sessions/s/state")).json()
        messages = await served.talk("a").messages(limit=100)
        after = [line["content"] for line in messages if line["seq"] > state["cursor"]["summarySeq"]]
        await say_numbers(served, 10, 10)
        shown = turns(provider)[-1].body["messages"]
        assert shown[0]["content"].endswith(f"{HEADING}\n{SUMMARY}")
        assert [line["content"] for line in shown[1:]] == [*after, "number 10"]


async def test_every_message_is_shown_or_summarized(postgres_url: str, provider: ModelProvider, secrets: Path) -> None:
    """With a summary after each due turn, no message is ever out of both."""
    provider.set_reply(SUMMARY)
    async with serving(postgres_url, counting(provider), secrets_dir=secrets) as served:
        for number in range(1, 21):
            await say_numbers(served, number, number)

            async def quiet() -> bool:
                metrics = (await served.http.get(f"{served.base}/metrics")).text
                done = sum(
                    float(line.rpartition(" ")[2])
                    for line in metrics.splitlines()
                    if line.startswith("abide_history_summaries_total{")
                )
                return done >= len(summaries(provider))

            await until(quiet, "no summary is being written")
            shown = {line["content"] for line in turns(provider)[-1].body["messages"]}
            covered = "".join(request.body["messages"][1]["content"] for request in summaries(provider))
            for earlier in range(1, number + 1):
                assert f"number {earlier}" in shown or f"number {earlier}\n" in covered


async def test_a_summary_that_fails_costs_no_turn(postgres_url: str, provider: ModelProvider, secrets: Path) -> None:
    provider.set_reply(SUMMARY)
    async with serving(postgres_url, counting(provider), secrets_dir=secrets) as served:
        await say_numbers(served, 1, 4)
        provider.pause(1, 0.01, 1)  # the turn; what comes next is its summary
        provider.fail(400, 1, message="no summaries today")
        await say_numbers(served, 5, 5)

        async def failed() -> bool:
            metrics = (await served.http.get(f"{served.base}/metrics")).text
            return 'abide_history_summaries_total{agent="a",agent_namespace="tests",result="failed"} 1.0' in metrics

        await until(failed, "the summary failed")
        await say_numbers(served, 6, 8)
        assert len(turns(provider)[-1].body["messages"]) == 9  # the system prompt and the newest eight


async def test_history_is_cut_by_tokens_too(postgres_url: str, provider: ModelProvider, secrets: Path) -> None:
    provider.set_reply("word " * 100)
    agent = manifest("a", compatible(provider), history={"limit": 50, "maxTokens": 400})
    async with serving(postgres_url, agent, secrets_dir=secrets) as served:
        await say_numbers(served, 1, 12)
    sizes = [sum(len(line["content"]) for line in request.body["messages"]) for request in turns(provider)]
    assert sizes[1] > sizes[0]
    assert max(sizes) < 400 * 8
    assert len(turns(provider)[-1].body["messages"]) < 12


async def test_summaries_count_in_the_budget(
    postgres_url: str, database: Database, provider: ModelProvider, secrets: Path
) -> None:
    provider.set_reply(SUMMARY)
    agent = counting(provider)
    agent["spec"]["budget"] = {"perDay": {"tokens": 100_000}}
    async with serving(postgres_url, agent, secrets_dir=secrets) as served:
        await say_numbers(served, 1, 5)
        await until_summary(served, 1)
    spent = await database.value(
        "SELECT sum(input_tokens + output_tokens)::int FROM abide.turns WHERE agent_id = $1", agent_id("a")
    )
    used = await database.value("SELECT tokens_used FROM abide.budget_usage WHERE agent_id = $1", agent_id("a"))
    assert used > spent + 50


async def test_built_in_models_write_no_summaries(postgres_url: str, database: Database) -> None:
    agent = manifest("a", echo(), history={"limit": 4, "compaction": {"afterMessages": 2}})
    async with serving(postgres_url, agent) as served:
        for number in range(1, 10):
            await served.talk("a").say(f"number {number}")
        response = await served.talk("a").request("GET", "/sessions/s/state")
        assert response.json()["summary"] is None
