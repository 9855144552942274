"""Each provider's own protocol over real HTTP: what goes out, what comes back, and what its failures are called."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.provider import GREETING, KEY, MODEL, ModelProvider
from tests.integration.agent_runtime.harness import Database, agent_id, echo, events_of, manifest, serving, until
from tests.integration.agent_runtime.models import FALLBACK, PROTOCOLS, model_of, until_model
from tests.integration.agent_runtime.test_models_failures import Setup

# aimock ends Gemini's tool calls with a word that Gemini does not use, at which Google's library wonders aloud.
pytestmark = pytest.mark.filterwarnings("ignore:.* is not a valid FinishReason:UserWarning")

OWN = pytest.mark.parametrize("protocol", ["anthropic", "google"])
EVERY = pytest.mark.parametrize("protocol", PROTOCOLS)
PRICE = {"inputPerMillion": "3.00", "outputPerMillion": "15.00", "currency": "USD"}


def texts(body: dict[str, Any]) -> list[tuple[str, str]]:
    """Return roles and texts of a conversation as it was sent, whatever the protocol."""
    if "contents" in body:
        lines = [(line["role"], line["parts"]) for line in body["contents"]]
    else:
        lines = [(line["role"], line["content"]) for line in body["messages"] if line["role"] != "system"]
    return [
        ("assistant" if role == "model" else role, content if isinstance(content, str) else content[0].get("text", ""))
        for role, content in lines
    ]


def system_of(body: dict[str, Any]) -> str:
    """Return the system prompt as it was sent."""
    if "systemInstruction" in body:
        return str(body["systemInstruction"]["parts"][0]["text"])
    return str(body.get("system") or body["messages"][0]["content"])


@EVERY
async def test_a_conversation_goes_out_and_replies_come_back_with_their_cost(
    postgres_url: str, database: Database, provider: ModelProvider, secrets: Path, protocol: str
) -> None:
    agent = manifest("a", model_of(provider, protocol, price=PRICE))
    async with serving(postgres_url, agent, secrets_dir=secrets) as served:
        talk = served.talk("a")
        provider.set_reply("It is in the mail.")
        body = (await talk.post("Where is my order?")).json()
        assert body["reply"]["content"] == "It is in the mail."
        assert (body["turn"]["status"], body["turn"]["model"]) == ("completed", f"{protocol}/{MODEL}")
        await talk.say("And my bill?")
        row, _ = await database.rows(
            "SELECT input_tokens, output_tokens, cost_micros, currency FROM abide.turns WHERE agent_id = $1",
            agent_id("a"),
        )
        assert row["input_tokens"] > 0
        assert row["output_tokens"] > 0
        assert row["cost_micros"] == 3 * row["input_tokens"] + 15 * row["output_tokens"]
        assert row["currency"] == "USD"
        metrics = (await served.http.get(served.base + "/metrics")).text
        labels = f'{{agent="a",agent_namespace="tests",currency="USD",model="{protocol}/{MODEL}"}}'
        assert f"abide_model_cost_total{labels}" in metrics
    first, second = provider.asked()
    assert {request.key for request in provider.requests} == {KEY}
    assert {request.protocol for request in provider.requests} == {protocol.removesuffix("-compatible")}
    assert system_of(first.body) == "You are a test."
    assert texts(first.body) == [("user", "Where is my order?")]
    assert texts(second.body) == [
        ("user", "Where is my order?"),
        ("assistant", "It is in the mail."),
        ("user", "And my bill?"),
    ]


@OWN
async def test_the_reply_streams_token_by_token(
    postgres_url: str, provider: ModelProvider, secrets: Path, protocol: str
) -> None:
    text = "".join(f"word{number} " for number in range(500))
    provider.set_reply(text, chunk=10)
    async with serving(postgres_url, manifest("a", model_of(provider, protocol)), secrets_dir=secrets) as served:
        response = await served.talk("a").post("go", Accept="text/event-stream")
        events = events_of(response.text)
        deltas = [event["data"]["text"] for event in events if event["event"] == "delta"]
        assert "".join(deltas) == text
        assert len(deltas) > 50
        assert events[-1]["event"] == "completed"


@OWN
async def test_a_tool_call_and_its_result_go_back_to_the_model(
    postgres_url: str, provider: ModelProvider, secrets: Path, protocol: str
) -> None:
    provider.set_reply("There is no such tool.", tool_calls=[{"name": "search", "arguments": {"query": "x"}}])
    async with serving(postgres_url, manifest("a", model_of(provider, protocol)), secrets_dir=secrets) as served:
        assert await served.talk("a").say("look it up") == "There is no such tool."
    sent = provider.asked()[1].body
    if protocol == "google":
        called, result = (line["parts"][0] for line in sent["contents"][1:])
        assert (called["functionCall"]["name"], called["functionCall"]["args"]) == ("search", {"query": "x"})
        assert result["functionResponse"]["id"] == called["functionCall"]["id"]
        assert called["thoughtSignature"], "Gemini refuses calls without one"
    else:
        called, result = (line["content"][0] for line in sent["messages"][1:])
        assert (called["name"], called["input"]) == ("search", {"query": "x"})
        assert result["tool_use_id"] == called["id"]
    assert "unknown tool 'search'" in json.dumps(result)


@OWN
async def test_parameters_are_sent_where_the_provider_wants_them(
    postgres_url: str, provider: ModelProvider, secrets: Path, protocol: str
) -> None:
    extra: dict[str, Any] = {"top_k": 7} if protocol == "anthropic" else {"generationConfig": {"topK": 7}}
    parameters = {"temperature": 0.2, "topP": 0.9, "maxOutputTokens": 77, "extra": extra}
    model = model_of(provider, protocol, parameters=parameters)
    async with serving(postgres_url, manifest("a", model), secrets_dir=secrets) as served:
        await served.talk("a").say("x")
    sent = provider.asked()[0].body
    if protocol == "anthropic":
        assert (sent["temperature"], sent["top_p"], sent["max_tokens"], sent["top_k"]) == (0.2, 0.9, 77, 7)
    else:
        expected = {"temperature": 0.2, "topP": 0.9, "maxOutputTokens": 77, "topK": 7}
        assert sent["generationConfig"].items() >= expected.items()


TOO_LONG = "found the conversation too long for it"
GARBAGE = {
    "anthropic": "event: content_block_delta\ndata: {not json " + KEY + "\n\n",
    "google": "data: {not json " + KEY + "\n\n",
}
STREAM_ERROR = {
    "anthropic": 'event: error\ndata: {"type": "error", "error": {"type": "overloaded_error", "message": "'
    + KEY
    + '"}}\n\n',
    "google": 'data: {"error": {"code": 503, "status": "UNAVAILABLE", "message": "' + KEY + '"}}\n\n',
}
ENDED = {
    "anthropic": "event: message_start\ndata: "
    + json.dumps(
        {
            "type": "message_start",
            "message": {
                "id": "m", "type": "message", "role": "assistant", "content": [], "model": MODEL, "stop_reason": None,
                "stop_sequence": None, "usage": {"input_tokens": 1, "output_tokens": 1},
            },
        }
    )
    + '\n\nevent: message_delta\ndata: {"type": "message_delta", "delta": {"stop_reason": "%s"}, '
    '"usage": {"output_tokens": 1}}\n\nevent: message_stop\ndata: {"type": "message_stop"}\n\n',
    "google": 'data: {"candidates": [{"content": {"role": "model"}, "finishReason": "%s", "index": 0}]}\n\n',
}  # fmt: skip
REASONS = {
    "anthropic": {"stop": "end_turn", "length": "max_tokens", "refused": "refusal"},
    "google": {"stop": "STOP", "length": "MAX_TOKENS", "refused": "SAFETY"},
}

CASES: dict[str, tuple[Setup, str, str, int]] = {
    # name: (what goes wrong, the turn's error type, the model's part of its message, how often the model is asked)
    "anthropic 401": (lambda p: p.fail(401), "ModelAuthFailed", "answered 401", 1),
    "anthropic 403": (lambda p: p.fail(403), "ModelAuthFailed", "answered 403", 1),
    "anthropic 404": (lambda p: p.fail(404), "ModelNotFound", "answered 404", 1),
    "anthropic 413": (lambda p: p.fail(413), "ModelRefused", "answered 413 (request_too_large)", 1),
    "anthropic 429": (lambda p: p.fail(429), "ModelRateLimited", "answered 429 (rate_limit_error)", 2),
    "anthropic out of money": (
        lambda p: p.fail(400, message="Your credit balance is too low to access the API"),
        "ModelRateLimited",
        "answered 400",
        1,
    ),
    "anthropic 529": (lambda p: p.fail(529), "ModelUnreachable", "answered 529 (overloaded_error)", 2),
    "anthropic too long": (
        lambda p: p.fail(400, message="prompt is too long: 210000 tokens > 200000 maximum"),
        "ModelRefused",
        TOO_LONG,
        1,
    ),
    "anthropic unknown parameter": (
        lambda p: p.fail(400, message="seed: Extra inputs are not permitted"),
        "UnknownParameter",
        "answered 400: it does not take the parameter seed, or not with this value",
        1,
    ),
    "google refused key": (
        lambda p: p.answer(400, '{"error": {"code": 400, "details": [{"reason": "API_KEY_INVALID"}]}}'),
        "ModelAuthFailed",
        "answered 400 (API_KEY_INVALID)",
        1,
    ),
    "google 403": (lambda p: p.fail(403), "ModelAuthFailed", "answered 403 (PERMISSION_DENIED)", 1),
    "google 404": (lambda p: p.fail(404), "ModelNotFound", "answered 404", 1),
    "google 429": (lambda p: p.fail(429), "ModelRateLimited", "answered 429 (RESOURCE_EXHAUSTED)", 2),
    "google 503": (lambda p: p.fail(503), "ModelUnreachable", "answered 503 (UNAVAILABLE)", 2),
    "google too long": (
        lambda p: p.fail(400, message="The input token count (1200000) exceeds the maximum number of tokens allowed"),
        "ModelRefused",
        TOO_LONG,
        1,
    ),
    "google unknown parameter": (
        lambda p: p.fail(400, message='Invalid JSON payload received. Unknown name "seed": Cannot find field.'),
        "UnknownParameter",
        "answered 400: it does not take the parameter seed, or not with this value",
        1,
    ),
}
for own in ("anthropic", "google"):
    CASES |= {
        f"{own} 500": (lambda p: p.fail(500), "ModelUnreachable", "answered 500", 2),
        f"{own} 502 without JSON": (lambda p: p.answer(502, f"<h1>{KEY}"), "ModelUnreachable", "answered 502", 2),
        f"{own} a reason that holds the key": (lambda p: p.fail(400, code=KEY), "ModelRefused", "answered 400", 1),
        f"{own} redirect": (
            lambda p: p.redirect(),
            "ModelUnreachable",
            "answered with a redirect, which is not followed",
            1,
        ),
        f"{own} no answer at all": (lambda p: p.drop(), "ModelUnreachable", "broke the connection", 2),
        f"{own} cut stream": (lambda p: p.cut(1), "ModelUnreachable", "broke the connection", 2),
        f"{own} stream that just ends": (lambda p: p.cut(1, clean=True), "ModelBroken", "broke off its answer", 2),
        f"{own} malformed stream": (
            lambda p, own=own: p.inject(2, GARBAGE[own]),  # type: ignore[misc]
            "ModelBroken",
            "gave a malformed answer",
            2,
        ),
        f"{own} error in the stream": (
            lambda p, own=own: p.inject(2, STREAM_ERROR[own]),  # type: ignore[misc]
            "ModelUnreachable",
            "answered 529 (overloaded_error)" if own == "anthropic" else "answered 503 (UNAVAILABLE)",
            2,
        ),
        f"{own} 200 that is no stream": (
            lambda p: p.answer(200, "hello"),
            "ModelBroken",
            "gave a malformed answer",
            2,
        ),
        f"{own} empty answer": (
            lambda p, own=own: p.answer(200, ENDED[own] % REASONS[own]["stop"]),  # type: ignore[misc]
            "ModelBroken",
            "gave an empty answer",
            2,
        ),
        f"{own} thought too long": (
            lambda p, own=own: p.answer(200, ENDED[own] % REASONS[own]["length"]),  # type: ignore[misc]
            "ModelRefused",
            "used all its output tokens before it said anything (parameters.maxOutputTokens)",
            1,
        ),
        f"{own} content filter": (
            lambda p, own=own: p.answer(200, ENDED[own] % REASONS[own]["refused"]),  # type: ignore[misc]
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
    protocol = case.partition(" ")[0]
    model = model_of(provider, protocol, parameters={"extra": {"seed": 1}})
    go_wrong(provider)
    async with serving(
        postgres_url, manifest("a", model, messages={"fallback": FALLBACK}), secrets_dir=secrets
    ) as served:
        response = await served.talk("a").post("hello")
        body = response.json()
        assert body["reply"]["content"] == FALLBACK
        assert body["turn"]["status"] == "fallback"
        assert body["turn"]["error"] == {"type": error, "message": f"No model answered: {protocol}/{MODEL} {message}"}
        assert len(provider.asked()) == asked
        assert KEY not in response.text

        async def recorded() -> list[dict[str, Any]]:
            return await database.rows(
                "SELECT * FROM abide.agent_errors WHERE agent_id = $1 AND error_type = $2", agent_id("a"), error
            )

        assert KEY not in str(await until(recorded, "the error is recorded"))


@OWN
async def test_a_conversation_too_long_for_the_model_is_shown_in_part(
    postgres_url: str, provider: ModelProvider, secrets: Path, protocol: str
) -> None:
    words = "prompt is too long" if protocol == "anthropic" else "The input token count (9) exceeds the maximum"
    async with serving(postgres_url, manifest("a", model_of(provider, protocol)), secrets_dir=secrets) as served:
        talk = served.talk("a")
        for number in range(4):
            await talk.say(f"line {number}")
        provider.requests.clear()
        provider.fail(400, 2, message=words)
        assert (await talk.post("and now?")).json()["turn"]["status"] == "completed"
        shown = [texts(request.body) for request in provider.asked()]
        assert [len([text for _, text in lines if text]) for lines in shown] in ([9, 3, 1], [9, 4, 2])
        assert all(lines[0][0] == "user" and lines[-1] == ("user", "and now?") for lines in shown)
        assert len(await talk.messages()) == 10


@OWN
async def test_keys_and_models_are_checked_before_anybody_asks(
    postgres_url: str, provider: ModelProvider, secrets: Path, protocol: str
) -> None:
    good, unknown = model_of(provider, protocol), model_of(provider, protocol, model="nobody-knows", name="unknown")
    async with serving(postgres_url, manifest("a", good, unknown), secrets_dir=secrets) as served:
        assert (await until_model(served, True))["model"] == f"{protocol}/{MODEL}"
        found = await until_model(served, False, "ModelNotFound", index=1)
        assert found["message"] == "is not in the provider's list"
        assert not provider.asked(), "checks cost nothing"
        (secrets / "llm" / "key").write_text("sk-wrong")
        found = await until_model(served, False, "ModelAuthFailed")
        assert "sk-wrong" not in found["message"]
        (secrets / "llm" / "key").write_text(KEY)
        await until_model(served, True)
        assert await served.talk("a").say("hello") == GREETING


@EVERY
async def test_a_silent_stream_is_left_for_the_next_model(
    postgres_url: str, provider: ModelProvider, secrets: Path, protocol: str
) -> None:
    provider.set_reply("half an answer and then nothing", chunk=4)
    provider.pause(4)
    agent = manifest("a", model_of(provider, protocol, streamIdleSeconds=1), echo())
    async with serving(postgres_url, agent, secrets_dir=secrets) as served:
        body = (await served.talk("a").post("hello")).json()
        assert (body["turn"]["model"], body["reply"]["content"]) == ("echo/echo", "hello [1]")
