"""What the runtime knows of its models: before the first user comes, from calls, when keys change, and again by itself.

Deadlines leave room for a busy machine; what is promised is measured by the tests on the cluster.
"""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.provider import GREETING, KEY, MODEL, ModelProvider
from tests.integration.agent_runtime.harness import (
    Database,
    Serving,
    agent_id,
    echo,
    manifest,
    scripted,
    serving,
    until,
)
from tests.integration.agent_runtime.models import FALLBACK, compatible, models_of, until_model

NAME = f"openai-compatible/{MODEL}"
NEW_KEY = "sk-test-another-key-0002"


def agent(*models: dict[str, Any], name: str = "a") -> dict[str, Any]:
    """Return an Agent with these models."""
    return manifest(name, *models, messages={"fallback": FALLBACK})


async def heartbeat_of(database: Database, name: str = "a") -> list[dict[str, Any]]:
    """Return what the newest heartbeat says of the models."""
    details = await database.value("SELECT details FROM abide.agent_heartbeats WHERE agent_id = $1", agent_id(name))
    return list(json.loads(details).get("models", [])) if details else []


async def until_heartbeat(database: Database, ok: bool, reason: str, timeout: float = 5.0) -> None:
    """Wait until the heartbeat says this of the first model."""

    async def told() -> bool:
        models = await heartbeat_of(database)
        return bool(models) and (models[0]["ok"], models[0]["reason"]) == (ok, reason)

    await until(told, f"the heartbeat says ok={ok} {reason}", timeout)


# ---- at the start, without any user


async def test_a_good_model_is_known_to_be_good_before_anybody_asks(
    postgres_url: str, database: Database, provider: ModelProvider, secrets: Path
) -> None:
    async with serving(
        postgres_url, agent(compatible(provider, name="primary"), echo()), secrets_dir=secrets
    ) as served:
        found = await until_model(served, True)
        assert (found["name"], found["model"], found["message"]) == ("primary", NAME, "")
        assert found["since"]
        assert found["checkedAt"]
        assert [model["model"] for model in await models_of(served, "/health")] == [NAME, "echo/echo"]
        assert all(model["ok"] for model in await models_of(served))
        await until_heartbeat(database, True, "")
    assert [(request.kind, request.key) for request in provider.requests] == [("list", KEY)], "nothing that costs"


async def noted(served: Serving) -> list[str]:
    """Wait for error rows and return their types."""

    async def found() -> list[str]:
        answer = await served.talk("a").request("GET", "/errors")
        return [item["type"] for item in answer.json()["items"]]

    return await until(found, "an error row", 10.0)


async def test_a_bad_key_is_found_at_the_start(
    postgres_url: str, database: Database, provider: ModelProvider, secrets: Path
) -> None:
    (secrets / "llm" / "key").write_text("sk-wrong")
    async with serving(postgres_url, agent(compatible(provider)), secrets_dir=secrets) as served:
        assert (await served.http.get(served.base + "/readyz")).json()["ok"] is True, "a dead model unreadies no pod"
        found = await until_model(served, False, "ModelAuthFailed")
        assert found["message"] == "answers 401"
        assert await noted(served) == ["ModelAuthFailed"], "whoever looks for the cause finds it, too"
        await until_heartbeat(database, False, "ModelAuthFailed")
    assert not provider.asked("chat")


@pytest.mark.parametrize("content", [None, "", "  \n"])
async def test_a_missing_key_is_named_and_nothing_is_sent(
    postgres_url: str, provider: ModelProvider, secrets: Path, content: str | None
) -> None:
    (secrets / "llm" / "key").unlink()
    if content is not None:
        (secrets / "llm" / "key").write_text(content)
    async with serving(postgres_url, agent(compatible(provider)), secrets_dir=secrets) as served:
        found = await until_model(served, False, "ModelAuthFailed")
        assert found["message"] == 'has no API key: key "key" of Secret "llm" is missing or empty'
        error = (await served.talk("a").post("x")).json()["turn"]["error"]
        assert error == {
            "type": "ModelAuthFailed",
            "message": f'No model answered: {NAME} has no API key: key "key" of Secret "llm" is missing or empty',
        }
        assert not provider.requests
        (secrets / "llm" / "key").write_text(KEY)
        assert (await until_model(served, True, timeout=5.0))["message"] == ""


async def test_openai_must_list_the_model_and_others_need_not(
    postgres_url: str, provider: ModelProvider, secrets: Path
) -> None:
    provider.models = ["something-else"]
    models = [compatible(provider, provider="openai"), compatible(provider, name="second")]
    async with serving(postgres_url, agent(*models), secrets_dir=secrets) as served:
        found = await until_model(served, False, "ModelNotFound")
        assert found["message"] == "is not in the provider's list"
        await until_model(served, True, index=1)


@pytest.mark.parametrize("status", [404, 405, 501])
async def test_a_service_without_a_list_counts_as_reachable(
    postgres_url: str, provider: ModelProvider, secrets: Path, status: int
) -> None:
    provider.fail(status, on="list")
    async with serving(postgres_url, agent(compatible(provider)), secrets_dir=secrets) as served:
        await until_model(served, True)


async def test_a_provider_that_is_down_is_found_and_its_return_too(
    postgres_url: str, provider: ModelProvider, secrets: Path
) -> None:
    provider.close_port()
    try:
        async with serving(postgres_url, agent(compatible(provider)), secrets_dir=secrets) as served:
            found = await until_model(served, False, "ModelUnreachable")
            assert found["message"] == "refuses connections"
            provider.open_port()
            await until_model(served, True, timeout=25.0)
        assert not provider.asked("chat")
    finally:
        provider.close_port()
        provider.open_port()


async def test_a_provider_that_hangs_is_found(postgres_url: str, provider: ModelProvider, secrets: Path) -> None:
    provider.hang(on="list")
    async with serving(postgres_url, agent(compatible(provider)), secrets_dir=secrets) as served:
        assert (await models_of(served))[0]["ok"] is None, "nothing is known while the check runs"
        found = await until_model(served, False, "ModelUnreachable", timeout=20.0)
        assert found["message"] == "does not answer within 10 s"


# ---- from calls


async def test_the_first_401_is_told_at_once_and_the_key_is_left_alone(
    postgres_url: str, database: Database, provider: ModelProvider, secrets: Path
) -> None:
    async with serving(postgres_url, agent(compatible(provider), echo()), secrets_dir=secrets) as served:
        await until_heartbeat(database, True, "")
        provider.valid_keys.clear()
        talk = served.talk("a")
        assert await talk.say("one") == "one [1]", "the fallback answers"
        await until_heartbeat(database, False, "ModelAuthFailed", timeout=5.0)
        for _ in range(5):
            assert (await talk.post("again")).json()["turn"]["model"] == "echo/echo"
        assert len(provider.asked("chat")) == 1, "no 401 in a loop"


async def test_a_new_key_is_used_by_the_next_call_and_checked_at_once(
    postgres_url: str, provider: ModelProvider, secrets: Path
) -> None:
    async with serving(postgres_url, agent(compatible(provider)), secrets_dir=secrets) as served:
        await until_model(served, True)
        provider.valid_keys = {NEW_KEY}
        talk = served.talk("a")
        assert (await talk.post("x")).json()["turn"]["error"]["type"] == "ModelAuthFailed"
        replace_file(secrets / "llm" / "key", NEW_KEY)
        assert await talk.say("y") == GREETING
        assert provider.asked("chat")[-1].key == NEW_KEY
        await until_model(served, True, timeout=10.0)


def replace_file(path: Path, text: str) -> None:
    """Put another file in the place of one, as the kubelet does."""
    new = path.with_name(".new")
    new.write_text(text)
    new.rename(path)


async def test_a_new_key_that_works_is_noticed_without_any_user(
    postgres_url: str, provider: ModelProvider, secrets: Path
) -> None:
    provider.valid_keys = {NEW_KEY}
    async with serving(postgres_url, agent(compatible(provider)), secrets_dir=secrets) as served:
        await until_model(served, False, "ModelAuthFailed")
        replace_file(secrets / "llm" / "key", NEW_KEY)
        await until_model(served, True, timeout=10.0)
        replace_file(secrets / "llm" / "key", "sk-wrong-again")
        await until_model(served, False, "ModelAuthFailed", timeout=10.0)
    assert not provider.asked("chat")


async def test_a_provider_that_lists_its_models_to_anybody_is_not_believed_over_its_401(
    postgres_url: str, provider: ModelProvider, secrets: Path
) -> None:
    provider.lists_to_anybody = True
    (secrets / "llm" / "key").write_text("sk-wrong")
    async with serving(postgres_url, agent(compatible(provider)), secrets_dir=secrets) as served:
        await until_model(served, True)
        lists = len(provider.asked("list"))
        assert (await served.talk("a").post("x")).json()["turn"]["error"]["type"] == "ModelAuthFailed"

        async def asked_again() -> bool:
            return len(provider.asked("list")) > lists

        await until(asked_again, "the list is asked for once more", 10.0)
        found = await until_model(served, False, "ModelAuthFailed")
        assert found["message"] == "answers 401 (invalid_api_key)"


async def test_two_failures_in_a_row_count_and_one_does_not(
    postgres_url: str, provider: ModelProvider, secrets: Path
) -> None:
    async with serving(postgres_url, agent(compatible(provider)), secrets_dir=secrets) as served:
        await until_model(served, True)
        talk = served.talk("a")
        provider.fail(500, 1)
        assert await talk.say("x") == GREETING, "the second try succeeds"
        assert (await models_of(served))[0]["ok"] is True
        provider.fail(500, 2)
        provider.fail(500, 1, on="list")
        assert (await talk.post("x")).json()["turn"]["status"] == "fallback"
        found = (await models_of(served))[0]
        assert (found["ok"], found["reason"], found["message"]) == (False, "ModelUnreachable", "answers 500")
        assert await talk.say("x") == GREETING, "the primary returns by itself"
        assert (await models_of(served))[0]["ok"] is True


async def test_a_message_that_is_to_blame_itself_does_not_count(
    postgres_url: str, provider: ModelProvider, secrets: Path
) -> None:
    async with serving(postgres_url, agent(compatible(provider)), secrets_dir=secrets) as served:
        await until_model(served, True)
        provider.fail(400, code="context_length_exceeded")
        for _ in range(5):
            assert (await served.talk("a").post("x")).json()["turn"]["status"] == "fallback"
        assert (await models_of(served))[0]["ok"] is True
        provider.recover()
        provider.fail(400, 3)
        for refused in (True, True, False):
            await served.talk("a").post("x")
            assert (await models_of(served))[0]["ok"] is refused
        assert (await models_of(served))[0]["reason"] == "ModelRefused"


async def test_an_outage_is_over_when_the_provider_is_back_though_nobody_asks(
    postgres_url: str, provider: ModelProvider, secrets: Path
) -> None:
    async with serving(postgres_url, agent(compatible(provider), echo()), secrets_dir=secrets) as served:
        await until_model(served, True)
        provider.close_port()
        try:
            assert (await served.talk("a").post("x")).json()["turn"]["model"] == "echo/echo"
            found = await until_model(served, False, "ModelUnreachable", timeout=5.0)
            assert found["message"] in ("refuses connections", "breaks connections")

            async def confirmed() -> bool:
                return bool((await models_of(served))[0]["checkedAt"] > found["checkedAt"])

            await until(confirmed, "a check finds the same", 15.0)
        finally:
            provider.open_port()
        await until_model(served, True, timeout=25.0)
        assert (await served.talk("a").post("x")).json()["turn"]["model"] == NAME


# ---- sharing


async def test_agents_that_share_a_key_share_what_is_known_of_it(
    postgres_url: str, provider: ModelProvider, secrets: Path
) -> None:
    provider.models = [MODEL, "other"]
    agents = [
        agent(compatible(provider), name="first"),
        agent(compatible(provider, model="other"), name="second"),
    ]
    async with serving(postgres_url, *agents, secrets_dir=secrets) as served:
        await until_model(served, True, index=0)
        await until_model(served, True, index=1)
        assert len(provider.asked("list")) == 1, "one check for both"
        provider.valid_keys.clear()
        await served.talk("first").post("x")
        await until_model(served, False, "ModelAuthFailed", index=1, timeout=5.0)
        assert (await served.talk("second").post("x")).json()["turn"]["error"]["type"] == "ModelAuthFailed"
        assert len(provider.asked("chat")) == 1, "the second agent need not try"


async def test_another_key_is_another_matter(postgres_url: str, provider: ModelProvider, secrets: Path) -> None:
    (secrets / "llm" / "other").write_text("sk-wrong")
    other = compatible(provider, apiKeySecretRef={"name": "llm", "key": "other"})
    agents = [agent(compatible(provider), name="good"), agent(other, name="bad")]
    async with serving(postgres_url, *agents, secrets_dir=secrets) as served:
        await until_model(served, True, index=0)
        await until_model(served, False, "ModelAuthFailed", index=1)
        assert await served.talk("good").say("x") == GREETING


# ---- built-in models, and the process itself


async def test_built_in_models_are_what_their_calls_say(postgres_url: str) -> None:
    async with serving(postgres_url, agent(scripted({"error": 401}, "fine", name="x"), echo())) as served:
        assert [model["ok"] for model in await models_of(served)] == [True, True]
        assert await served.talk("a").say("one") == "one [1]"
        assert (await models_of(served))[0]["reason"] == "ModelAuthFailed"
        assert await served.talk("a").say("two") == "fine"
        assert (await models_of(served))[0]["ok"] is True


async def test_a_stop_does_not_wait_for_a_provider_that_hangs(
    postgres_url: str, provider: ModelProvider, secrets: Path
) -> None:
    provider.hang(on="list")
    provider.hang()
    async with serving(postgres_url, agent(compatible(provider)), secrets_dir=secrets) as served:
        await served.talk("a").post("x", wait=0)

        async def asked() -> bool:
            return bool(provider.asked("chat"))

        await until(asked, "the call hangs")
        started = time.monotonic()
    assert time.monotonic() - started < 20.0
