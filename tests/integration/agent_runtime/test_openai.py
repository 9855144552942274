"""The OpenAI-compatible endpoints."""

import inspect
import json
from typing import Any

import httpx
import pytest
from openai.resources.chat.completions import AsyncCompletions

from agent_runtime.web.openai_wire import ChatCompletionRequest
from tests.integration.agent_runtime.harness import Database, Serving, manifest, scripted, serving

ASK = [{"role": "user", "content": "hello"}]


async def complete(served: Serving, **body: Any) -> httpx.Response:
    return await served.http.post(
        f"{served.base}/v1/chat/completions", json={"model": "tests/a", "messages": ASK, **body}
    )


def error_of(response: httpx.Response, status: int, code: str | None = None) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    (key,) = response.json()
    error = response.json()[key]
    assert (key, sorted(error)) == ("error", ["code", "message", "param", "type"])
    assert code in (None, error["code"])
    return dict(error)


def chunks_of(text: str) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in text.split("\n") if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


async def test_a_conversation_is_answered_and_kept_nowhere(postgres_url: str, database: Database) -> None:
    async with serving(postgres_url, manifest("a")) as served:
        conversation = [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "one"},
            {"role": "assistant", "content": "one [1]"},
            {"role": "user", "content": [{"type": "text", "text": "two"}]},
        ]
        body = (await complete(served, messages=conversation, temperature=0.3, user="alice")).json()
        assert (body["object"], body["model"]) == ("chat.completion", "tests/a")
        (choice,) = body["choices"]
        assert choice["message"]["content"] == "two [2]"
        assert choice["finish_reason"] == "stop"
        usage = body["usage"]
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"] > 0
        assert await database.value("SELECT count(*) FROM abide.turns") == 0


async def test_a_stream_has_chunks_usage_and_an_end(postgres_url: str) -> None:
    async with serving(postgres_url, manifest("a")) as served:
        response = await complete(served, stream=True, stream_options={"include_usage": True})
        assert response.headers["content-type"].startswith("text/event-stream")
        chunks = chunks_of(response.text)
        assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
        assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        said = [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks if chunk["choices"]]
        assert "".join(said) == "hello [1]"
        assert [chunk["choices"][0]["finish_reason"] for chunk in chunks if chunk["choices"]][-1] == "stop"
        assert chunks[-1]["usage"]["total_tokens"] > 0
        assert "usage" not in json.dumps(chunks_of((await complete(served, stream=True)).text))


async def test_a_named_session_is_durable_and_the_users_own(postgres_url: str) -> None:
    async with serving(postgres_url, manifest("a")) as served:
        for number in (1, 2):
            body = (await complete(served, user="alice", metadata={"session": "s"})).json()
            assert body["choices"][0]["message"]["content"] == f"hello [{number}]"
            assert body["abide"]["status"] == "completed"
            assert body["usage"]["completion_tokens"] == 2
        streamed = chunks_of((await complete(served, user="alice", metadata={"session": "s"}, stream=True)).text)
        assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in streamed) == "hello [3]"
        assert len(await served.talk("a", "alice").messages()) == 6
        assert await served.talk("a").messages() == []


async def test_when_all_models_fail_the_text_users_should_read_is_the_content(postgres_url: str) -> None:
    agent = manifest("a", scripted({"error": 401}), messages={"fallback": "Sorry."})
    async with serving(postgres_url, agent) as served:
        for metadata in (None, {"session": "s"}):
            body = (await complete(served, metadata=metadata)).json()
            assert body["choices"][0]["message"]["content"] == "Sorry."
            assert (body["abide"]["status"], body["abide"]["error"]) == ("fallback", "ModelAuthFailed")


async def test_agents_are_listed_as_models(postgres_url: str) -> None:
    async with serving(postgres_url, manifest("a"), manifest("b")) as served:
        listed = (await served.http.get(f"{served.base}/v1/models")).json()
        assert [card["id"] for card in listed["data"]] == ["tests/a", "tests/b"]
        card = (await served.http.get(f"{served.base}/v1/models/tests/b")).json()
        assert card["id"] == "tests/b"
        error_of(await served.http.get(f"{served.base}/v1/models/tests/c"), 404, "model_not_found")


async def test_requests_that_make_no_sense_are_refused_by_field(postgres_url: str) -> None:
    async with serving(postgres_url, manifest("a")) as served:
        error_of(await complete(served, model="gpt-5"), 404, "model_not_found")
        for more, field in (
            ({"messages": []}, "messages"),
            ({"messages": [{"role": "assistant", "content": "x"}]}, "messages"),
            ({"messages": [{"role": "user", "content": ""}]}, "messages"),
            ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role"),
            ({"metadata": {"session": "with blank"}}, "metadata"),
            ({"user": "with blank"}, "user"),
        ):
            refused = error_of(await complete(served, **more), 400)
            assert refused["param"] == field
        long = [{"role": "user", "content": "x" * 100_001}]
        error_of(await complete(served, messages=long), 413, "string_above_max_length")
        not_json = await served.http.post(f"{served.base}/v1/chat/completions", content=b"{")
        assert error_of(not_json, 400)["type"] == "invalid_request_error"
        error_of(await served.http.get(f"{served.base}/v1/chat/completions"), 405, "method_not_allowed")
        error_of(await served.http.get(f"{served.base}/v1/chat/elsewhere"), 404, "not_found")


@pytest.mark.parametrize(
    ("field", "refused", "accepted"),
    [
        ("n", 2, 1),
        ("tools", [{"type": "function", "function": {"name": "f", "parameters": {}}}], []),
        ("functions", [{"name": "f"}], None),
        ("tool_choice", {"type": "function", "function": {"name": "f"}}, "none"),
        ("function_call", {"name": "f"}, "none"),
        ("response_format", {"type": "json_object"}, {"type": "text"}),
        ("logprobs", True, False),
        ("top_logprobs", 3, 0),
        ("modalities", ["text", "audio"], ["text"]),
        ("audio", {"voice": "alloy", "format": "wav"}, None),
        ("stop", "END", None),
        ("prediction", {"type": "content", "content": "x"}, None),
        ("web_search_options", {}, None),
    ],
)
async def test_what_would_be_another_kind_of_answer_is_refused(
    postgres_url: str, field: str, refused: Any, accepted: Any
) -> None:
    async with serving(postgres_url, manifest("a")) as served:
        error = error_of(await complete(served, **{field: refused}), 400, "unsupported_parameter")
        assert error["param"].split(".")[0] == field
        assert error["message"].startswith(f"Unsupported value of {field}.")
        assert (await complete(served, **{field: accepted})).status_code == 200


async def test_fields_that_the_protocol_does_not_have_are_refused(postgres_url: str) -> None:
    async with serving(postgres_url, manifest("a")) as served:
        error = error_of(await complete(served, sesion="s"), 400, "unknown_parameter")
        assert (error["param"], error["type"]) == ("sesion", "invalid_request_error")


def test_every_parameter_of_the_official_client_is_known() -> None:
    parameters = set(inspect.signature(AsyncCompletions.create).parameters)
    ours = set(ChatCompletionRequest.model_fields)
    assert parameters - {"self", "extra_headers", "extra_query", "extra_body", "timeout"} == ours
