"""The OpenAI-compatible endpoints."""

import json
from typing import Any

import httpx

from tests.integration.agent_runtime.harness import Database, Serving, manifest, scripted, serving
from tests.integration.agent_runtime.test_messages import problem_of

ASK = [{"role": "user", "content": "hello"}]


async def complete(served: Serving, **body: Any) -> httpx.Response:
    return await served.http.post(
        f"{served.base}/v1/chat/completions", json={"model": "tests/a", "messages": ASK, **body}
    )


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
        problem_of(await served.http.get(f"{served.base}/v1/models/tests/c"), 404, "agent-not-found")


async def test_requests_that_make_no_sense_are_refused_by_field(postgres_url: str) -> None:
    async with serving(postgres_url, manifest("a")) as served:
        problem_of(await complete(served, model="gpt-5"), 404, "agent-not-found")
        for more, field in (
            ({"messages": []}, "messages"),
            ({"messages": [{"role": "assistant", "content": "x"}]}, "messages"),
            ({"messages": [{"role": "user", "content": ""}]}, "messages"),
            ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role"),
            ({"metadata": {"session": "with blank"}}, "metadata"),
            ({"user": "with blank"}, "user"),
        ):
            refused = problem_of(await complete(served, **more), 422, "invalid-request")
            assert [error["field"] for error in refused["errors"]] == [field]
        long = [{"role": "user", "content": "x" * 100_001}]
        problem_of(await complete(served, messages=long), 413, "too-large")
