"""Everything a provider can do wrong, over real HTTP: what users read, what the turn says, and who answers instead."""

import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fakes.provider import GREETING, KEY, MODEL, ModelProvider
from tests.integration.agent_runtime.harness import (
    Database,
    Process,
    Talk,
    agent_id,
    echo,
    events_of,
    free_port,
    manifest,
    process,
    serving,
    until,
)
from tests.integration.agent_runtime.models import FALLBACK, compatible, models_of

NAME = f"openai-compatible/{MODEL}"
Setup = Callable[[ModelProvider], None]


def ended(reason: str) -> str:
    """Return a stream that ends for this reason before a word was said."""
    choice = {"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": reason}
    chunk = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": MODEL, "choices": [choice]}
    return f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n"


CASES: dict[str, tuple[Setup, str, str, int]] = {
    # name: (what goes wrong, the turn's error type, the model's part of its message, how often the model is asked)
    "401": (lambda p: p.fail(401), "ModelAuthFailed", "answered 401", 1),
    "403": (lambda p: p.fail(403), "ModelAuthFailed", "answered 403", 1),
    "404": (lambda p: p.fail(404, code="model_not_found"), "ModelNotFound", "answered 404 (model_not_found)", 1),
    "408": (lambda p: p.fail(408), "ModelTimeout", "answered 408", 2),
    "409": (lambda p: p.fail(409), "ModelRefused", "answered 409", 2),
    "413": (lambda p: p.fail(413), "ModelRefused", "answered 413", 1),
    "429": (
        lambda p: p.fail(429, code="rate_limit_exceeded"),
        "ModelRateLimited",
        "answered 429 (rate_limit_exceeded)",
        2,
    ),
    "out of money": (
        lambda p: p.fail(429, code="insufficient_quota"),
        "ModelRateLimited",
        "answered 429 (insufficient_quota)",
        1,
    ),
    "400": (lambda p: p.fail(400, message=f"bad {KEY}"), "ModelRefused", "answered 400", 1),
    "too long": (
        lambda p: p.fail(400, code="context_length_exceeded"),
        "ModelRefused",
        "found the conversation too long for it",
        1,
    ),
    "unknown parameter": (
        lambda p: p.fail(400, code="unsupported_parameter", param="seed"),
        "UnknownParameter",
        "answered 400: it does not take the parameter seed, or not with this value",
        1,
    ),
    "unknown parameter, in other words": (
        lambda p: p.answer(422, '{"detail": "Extra inputs are not permitted: seed"}'),
        "UnknownParameter",
        "answered 422: it does not take the parameter seed, or not with this value",
        1,
    ),
    "a code that holds the key": (lambda p: p.fail(400, code=KEY), "ModelRefused", "answered 400", 1),
    "500": (lambda p: p.fail(500), "ModelUnreachable", "answered 500", 2),
    "502 without JSON": (lambda p: p.answer(502, f"<h1>{KEY}"), "ModelUnreachable", "answered 502", 2),
    "503": (lambda p: p.fail(503), "ModelUnreachable", "answered 503", 2),
    "redirect": (
        lambda p: p.redirect(),
        "ModelUnreachable",
        "answered with a redirect, which is not followed",
        1,
    ),
    "no answer at all": (lambda p: p.drop(), "ModelUnreachable", "broke the connection", 2),
    "cut stream": (lambda p: p.cut(3), "ModelUnreachable", "broke the connection", 2),
    "stream that just ends": (lambda p: p.cut(3, clean=True), "ModelBroken", "broke off its answer", 2),
    "malformed stream": (
        lambda p: p.inject(2, f"data: {{not json {KEY}\n\n"),
        "ModelBroken",
        "gave a malformed answer",
        2,
    ),
    "error in the stream": (
        lambda p: p.inject(2, f'data: {{"error": {{"message": "{KEY}", "code": "server_error"}}}}\n\n'),
        "ModelUnreachable",
        "answered 500 (server_error)",
        2,
    ),
    "200 that is no stream": (lambda p: p.answer(200, "hello"), "ModelBroken", "gave a malformed answer", 2),
    "empty answer": (lambda p: p.answer(200, ended("stop")), "ModelBroken", "gave an empty answer", 2),
    "thought too long": (
        lambda p: p.answer(200, ended("length")),
        "ModelRefused",
        "used all its output tokens before it said anything (parameters.maxOutputTokens)",
        1,
    ),
    "content filter": (
        lambda p: p.answer(200, ended("content_filter")),
        "ModelRefused",
        "refused to answer (content filter)",
        1,
    ),
}


@pytest.mark.parametrize("case", CASES)
async def test_a_failure_is_named_and_users_read_the_fallback(
    postgres_url: str, database: Database, provider: ModelProvider, secrets: Path, case: str
) -> None:
    go_wrong, error, message, asked = CASES[case]
    agent = manifest("a", compatible(provider, parameters={"extra": {"seed": 1}}), messages={"fallback": FALLBACK})
    go_wrong(provider)
    async with serving(postgres_url, agent, secrets_dir=secrets) as served:
        response = await served.talk("a").post("hello")
        assert response.status_code == 200, response.text
        body = response.json()
        assert body["reply"]["content"] == FALLBACK
        assert body["turn"]["status"] == "fallback"
        assert body["turn"]["error"] == {"type": error, "message": f"No model answered: {NAME} {message}"}
        assert len(provider.asked()) == asked
        assert KEY not in response.text

        async def recorded() -> list[dict[str, Any]]:
            return await database.rows(
                "SELECT * FROM abide.agent_errors WHERE agent_id = $1 AND error_type = $2", agent_id("a"), error
            )

        assert KEY not in str(await until(recorded, "the error is recorded"))


async def test_the_key_is_nowhere_but_in_its_header(
    postgres_url: str, database: Database, provider: ModelProvider, tmp_path: Path, secrets: Path
) -> None:
    wrong = "sk-wrong-planted-0123456789"
    (secrets / "llm" / "key").write_text(wrong)
    content = "a secret nobody else may read"
    environ = {"ABIDE_SECRETS_DIR": str(secrets), "ABIDE_LOG_LEVEL": "debug", "OPENAI_LOG": "debug"}
    agent = manifest("a", compatible(provider), messages={"fallback": FALLBACK})
    async with process(tmp_path, postgres_url, agent, **environ) as running, served_by(running) as talk:
        said = [(await talk.post(content)).text]
        (secrets / "llm" / "key").write_text(KEY)

        async def answered() -> bool:
            response = await talk.post(content)
            said.append(response.text)
            return bool(response.json()["turn"]["status"] == "completed")

        await until(answered, "the new key is used")
        provider.fail(500, message=f"{KEY} {content}")
        said.append((await talk.post(content)).text)
        said += [(await talk.http.get(running.base + path)).text for path in ("/readyz", "/health", "/metrics")]

        async def beaten() -> list[dict[str, Any]]:
            return await database.rows(
                "SELECT details::text FROM abide.agent_heartbeats WHERE details->'models'->0->>'ok' = 'false'"
            )

        rows: list[Any] = list(await until(beaten, "a heartbeat tells of the model"))
        rows += await database.rows("SELECT * FROM abide.agent_errors")
        rows += await database.rows("SELECT error_type, error_message FROM abide.turns")
        running_logs = running.logs()
    assert {request.key for request in provider.requests} == {wrong, KEY}
    assert {request.key for request in provider.asked()} == {KEY}, "a key known to be refused is not tried by turns"
    for text in (*said, running_logs, *map(str, rows)):
        assert wrong not in text
        assert KEY not in text
    for text in (running_logs, *map(str, rows)):
        assert content not in text


@asynccontextmanager
async def served_by(running: Process) -> AsyncIterator[Talk]:
    """Give a way to talk to a runtime process once it is ready."""
    async with httpx.AsyncClient(timeout=30) as http:
        await running.wait_ready(http)
        yield Talk(http, running.base, running.agent)


# ---- addresses


async def refused_error(postgres_url: str, secrets: Path, url: str) -> str:
    """Return what a turn says of a model at this address."""
    model = {"provider": "openai-compatible", "model": MODEL, "baseURL": url}
    async with serving(postgres_url, manifest("a", model), secrets_dir=secrets) as served:
        turn = (await served.talk("a").post("x")).json()["turn"]
        found = (await models_of(served))[0]
        assert (found["ok"], found["reason"]) == (False, "ModelUnreachable")
        assert turn["error"]["type"] == "ModelUnreachable"
        return str(turn["error"]["message"]).removeprefix(f"No model answered: {NAME} ")


async def test_a_refused_connection_is_named(postgres_url: str, secrets: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}/v1"
    assert await refused_error(postgres_url, secrets, url) == "refused the connection"


async def test_an_unknown_host_is_named(postgres_url: str, secrets: Path) -> None:
    said = await refused_error(postgres_url, secrets, "http://no-such-host.invalid/v1")
    assert said == "was not found: its host name has no address"


async def test_a_service_without_tls_is_named(postgres_url: str, secrets: Path, provider: ModelProvider) -> None:
    url = provider.base_url.replace("http://", "https://")
    assert await refused_error(postgres_url, secrets, url) == "made no trusted TLS connection"


# ---- time


async def test_a_model_that_hangs_is_left_after_its_timeout(
    postgres_url: str, provider: ModelProvider, secrets: Path
) -> None:
    provider.hang()
    agent = manifest("a", compatible(provider, timeoutSeconds=1), echo())
    async with serving(postgres_url, agent, secrets_dir=secrets) as served:
        await warm(served.talk("a"))
        started = time.monotonic()
        body = (await served.talk("a").post("hello", "t")).json()
        assert (body["turn"]["model"], body["reply"]["content"]) == ("echo/echo", "hello [1]")
        assert 0.9 <= time.monotonic() - started < 15


async def warm(talk: Talk) -> None:
    """Have the client library loaded, so that times measured afterwards are the model's."""
    await talk.post("warm", "warm")


async def test_a_stream_that_falls_silent_is_left_and_taken_back(
    postgres_url: str, provider: ModelProvider, secrets: Path
) -> None:
    provider.set_reply("half an answer and then nothing", chunk=4)
    provider.pause(4)
    agent = manifest("a", compatible(provider, streamIdleSeconds=1), echo())
    async with serving(postgres_url, agent, secrets_dir=secrets) as served:
        response = await served.talk("a").post("hello", Accept="text/event-stream")
        events = events_of(response.text)
        attempts: dict[int, str] = {}
        for event in events:
            if event["event"] == "delta":
                attempt = event["data"]["attempt"]
                attempts[attempt] = attempts.get(attempt, "") + event["data"]["text"]
        assert list(attempts.values()) == ["half an answ", "hello [1]"]
        assert "reset" in [event["event"] for event in events]
        assert events[-1]["data"]["reply"]["content"] == "hello [1]"


async def test_slow_tokens_are_no_silence(postgres_url: str, provider: ModelProvider, secrets: Path) -> None:
    provider.set_reply("x" * 12, chunk=1, chunk_seconds=0.25)
    agent = manifest("a", compatible(provider, timeoutSeconds=2, streamIdleSeconds=2))
    async with serving(postgres_url, agent, secrets_dir=secrets) as served:
        await warm(served.talk("a"))
        started = time.monotonic()
        assert await served.talk("a").say("hello") == "x" * 12
        assert time.monotonic() - started > 2.5, "it took longer than each of its timeouts"


async def test_sessions_do_not_wait_for_one_whose_model_hangs(
    postgres_url: str, provider: ModelProvider, secrets: Path
) -> None:
    async with serving(postgres_url, manifest("a", compatible(provider)), secrets_dir=secrets) as served:
        talk = served.talk("a")
        provider.hang(times=1)
        hanging = (await talk.post("hang", "first", wait=0)).json()["turn"]["id"]

        async def asked() -> bool:
            return bool(provider.asked())

        await until(asked, "the first session's call hangs")
        assert await talk.say("hello", "second") == GREETING
        assert (await talk.turn(hanging))["turn"]["status"] == "running"


# ---- the chain


async def test_every_model_of_the_chain_is_tried_and_named(
    postgres_url: str, provider: ModelProvider, secrets: Path
) -> None:
    provider.models = [MODEL, "second", "third"]
    provider.fail(500, 2)
    provider.fail(404, 1)
    agent = manifest(
        "a",
        compatible(provider),
        compatible(provider, model="second"),
        compatible(provider, model="third"),
    )
    async with serving(postgres_url, agent, secrets_dir=secrets) as served:
        turn = (await served.talk("a").post("x")).json()["turn"]
        assert turn["model"] == "openai-compatible/third"
    assert [request.body["model"] for request in provider.asked()] == [MODEL, MODEL, "second", "third"]


async def test_a_transient_failure_is_tried_again_and_nobody_notices(
    postgres_url: str, provider: ModelProvider, secrets: Path
) -> None:
    provider.fail(503, 1)
    async with serving(postgres_url, manifest("a", compatible(provider)), secrets_dir=secrets) as served:
        assert await served.talk("a").say("x") == GREETING
        assert (await models_of(served))[0]["ok"] is True
    assert len(provider.asked()) == 2
