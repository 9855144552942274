"""A model that keeps failing is left alone by the whole process, and comes back by itself; over real HTTP."""

import asyncio
import time
from pathlib import Path

from tests.fakes.provider import GREETING, MODEL, ModelProvider
from tests.integration.agent_runtime.harness import Serving, echo, manifest, serving, until
from tests.integration.agent_runtime.models import FALLBACK, compatible, model_of, models_of

NAME = f"openai-compatible/{MODEL}"


async def left_alone(served: Serving) -> bool:
    """Return what the metrics say of the first model."""
    metrics = (await served.http.get(served.base + "/metrics")).text
    (line,) = (line for line in metrics.splitlines() if line.startswith("abide_model_left_alone{"))
    return line.endswith(" 1.0")


async def test_a_hanging_primary_costs_two_turns_their_patience_and_no_more(
    postgres_url: str, provider: ModelProvider, secrets: Path
) -> None:
    provider.hang()
    agent = manifest("a", compatible(provider, timeoutSeconds=2), echo())
    async with serving(postgres_url, agent, secrets_dir=secrets) as served:
        talk = served.talk("a")
        for number in range(2):
            assert (await talk.post("hello", f"patient-{number}")).json()["turn"]["model"] == "echo/echo"
        started = time.monotonic()
        turns = await asyncio.gather(*(talk.post("hello", f"s{number}") for number in range(20)))
        spent = time.monotonic() - started
        assert {turn.json()["turn"]["model"] for turn in turns} == {"echo/echo"}
        assert spent < 2, "nobody waited for the one that hangs"
        assert len(provider.asked()) == 2
        assert await left_alone(served)

        provider.recover()

        async def primary_answers() -> bool:
            return bool((await talk.post("hello", "later")).json()["turn"]["model"] == NAME)

        await until(primary_answers, "the primary answers again")
        assert not await left_alone(served)


async def test_one_turn_probes_while_the_others_go_on(
    postgres_url: str, provider: ModelProvider, secrets: Path
) -> None:
    provider.hang()
    agent = manifest("a", compatible(provider, timeoutSeconds=1), echo())
    async with serving(postgres_url, agent, secrets_dir=secrets) as served:
        talk = served.talk("a")
        for number in range(2):
            await talk.post("hello", f"patient-{number}")

        async def time_is_up() -> bool:
            return not await left_alone(served)

        await until(time_is_up, "the model may be asked again")
        before = len(provider.asked())
        await asyncio.gather(*(talk.post("hello", f"s{number}") for number in range(10)))
        assert len(provider.asked()) - before <= 1


async def test_an_only_model_that_hangs_lets_users_read_the_fallback_at_once(
    postgres_url: str, provider: ModelProvider, secrets: Path
) -> None:
    provider.hang()
    agent = manifest("a", compatible(provider, timeoutSeconds=2), messages={"fallback": FALLBACK})
    async with serving(postgres_url, agent, secrets_dir=secrets) as served:
        talk = served.talk("a")
        for number in range(2):
            await talk.post("hello", f"patient-{number}")
        body = (await talk.post("hello", "s")).json()
        assert body["reply"]["content"] == FALLBACK
        error = body["turn"]["error"]
        assert error["type"] == "ModelTimeout"
        assert f"{NAME} does not answer within 2 s, so it is left alone; it is asked again in" in error["message"]


async def test_an_only_model_is_waited_for_as_long_as_it_wants(
    postgres_url: str, provider: ModelProvider, secrets: Path
) -> None:
    async with serving(postgres_url, manifest("a", compatible(provider)), secrets_dir=secrets) as served:
        talk = served.talk("a")
        await talk.say("warm", "warm")
        provider.requests.clear()
        provider.fail(429, 1, retry_after="2")
        first = asyncio.create_task(talk.say("hello", "first"))

        async def told() -> bool:
            return await left_alone(served)

        await until(told, "the process knows that the provider wants no calls")
        replies = await asyncio.gather(first, *(talk.say("hello", f"s{number}") for number in range(4)))
        assert set(replies) == {GREETING}
        refused, *later = provider.asked()
        assert refused.status == 429
        assert len(later) == 5
        assert min(request.at for request in later) - refused.at >= 1.9


async def test_another_model_answers_while_the_first_wants_no_calls(
    postgres_url: str, provider: ModelProvider, secrets: Path
) -> None:
    agent = manifest("a", compatible(provider), echo())
    async with serving(postgres_url, agent, secrets_dir=secrets) as served:
        talk = served.talk("a")
        await talk.say("warm", "warm")
        provider.requests.clear()
        provider.fail(429, 1, retry_after="30")
        started = time.monotonic()
        for number in range(5):
            assert (await talk.post("hello", f"s{number}")).json()["turn"]["model"] == "echo/echo"
        assert time.monotonic() - started < 10
        assert len(provider.asked()) == 1, "it is not asked before the time it named"
        assert await left_alone(served)


async def test_a_model_that_is_down_is_not_hammered_and_returns_within_seconds(
    postgres_url: str, provider: ModelProvider, secrets: Path
) -> None:
    agent = manifest("a", model_of(provider, "anthropic"), echo())
    async with serving(postgres_url, agent, secrets_dir=secrets) as served:
        talk = served.talk("a")
        await talk.say("warm", "warm")
        provider.requests.clear()
        provider.close_port()
        try:
            for number in range(30):
                assert (await talk.post("hello", f"s{number}")).json()["turn"]["model"] == "echo/echo"
            assert (await models_of(served))[0]["reason"] == "ModelUnreachable"
        finally:
            provider.open_port()

        async def primary_answers() -> bool:
            return bool((await talk.post("hello", "later")).json()["turn"]["model"] == f"anthropic/{MODEL}")

        await until(primary_answers, "the primary answers again", 15)
