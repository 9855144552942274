"""OpenAI's own client, unchanged, against the OpenAI-compatible endpoints of a real process."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import openai
import pytest

from agent_runtime.settings import AuthMode
from tests.integration.agent_runtime.harness import echo, manifest, scripted, serving

KEY = "integration-test-key"
ASK: list[Any] = [{"role": "user", "content": "hello"}]


@asynccontextmanager
async def client(
    postgres_url: str, folder: Path, *agents: dict[str, Any], key: str = KEY, retries: int = 0
) -> AsyncIterator[openai.AsyncOpenAI]:
    keys = folder / "keys"
    keys.mkdir()
    (keys / "key").write_text(KEY)
    async with (
        serving(postgres_url, *agents, auth=AuthMode.KEY, api_keys_dir=keys) as served,
        openai.AsyncOpenAI(base_url=f"{served.base}/v1", api_key=key, max_retries=retries, timeout=20) as made,
    ):
        yield made


async def test_a_completion_with_usage(postgres_url: str, tmp_path: Path) -> None:
    async with client(postgres_url, tmp_path, manifest("a")) as made:
        completion = await made.chat.completions.create(
            model="tests/a", messages=ASK, temperature=0.2, max_completion_tokens=50, user="alice"
        )
        assert completion.choices[0].message.content == "hello [1]"
        assert completion.choices[0].finish_reason == "stop"
        assert completion.usage is not None
        assert completion.usage.total_tokens == completion.usage.prompt_tokens + completion.usage.completion_tokens > 0


async def test_a_stream_with_usage_at_its_end(postgres_url: str, tmp_path: Path) -> None:
    async with client(postgres_url, tmp_path, manifest("a")) as made:
        stream = await made.chat.completions.create(
            model="tests/a", messages=ASK, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "hello [1]"
        assert [chunk.usage is not None for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
        # The client's own assembly of a stream checks each chunk's shape.
        async with made.chat.completions.stream(model="tests/a", messages=ASK) as assembled:
            whole = await assembled.get_final_completion()
        assert whole.choices[0].message.content == "hello [1]"


async def test_a_kept_session(postgres_url: str, tmp_path: Path) -> None:
    async with client(postgres_url, tmp_path, manifest("a")) as made:
        for number in (1, 2):
            completion = await made.chat.completions.create(
                model="tests/a", messages=ASK, user="alice", metadata={"session": "s"}
            )
            assert completion.choices[0].message.content == f"hello [{number}]"
        other = await made.chat.completions.create(model="tests/a", messages=ASK, user="bob", metadata={"session": "s"})
        assert other.choices[0].message.content == "hello [1]"


async def test_models(postgres_url: str, tmp_path: Path) -> None:
    async with client(postgres_url, tmp_path, manifest("a"), manifest("b")) as made:
        assert [model.id async for model in made.models.list()] == ["tests/a", "tests/b"]
        assert (await made.models.retrieve("tests/b")).id == "tests/b"
        with pytest.raises(openai.NotFoundError) as caught:
            await made.models.retrieve("tests/c")
        assert caught.value.code == "model_not_found"


async def test_mistakes_are_the_clients_own_exceptions(postgres_url: str, tmp_path: Path) -> None:
    async with client(postgres_url, tmp_path, manifest("a", limits={"requestsPerMinute": 3})) as made:
        create = made.chat.completions.create
        with pytest.raises(openai.NotFoundError) as missing:
            await create(model="gpt-5", messages=ASK)
        assert missing.value.code == "model_not_found"
        with pytest.raises(openai.BadRequestError) as several:
            await create(model="tests/a", messages=ASK, n=2)
        assert (several.value.param, several.value.code) == ("n", "unsupported_parameter")
        tool: Any = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
        with pytest.raises(openai.BadRequestError) as tools:
            await create(model="tests/a", messages=ASK, tools=[tool], stream=True)
        assert tools.value.param == "tools"
        with pytest.raises(openai.AuthenticationError) as unknown:
            await made.with_options(api_key="wrong").chat.completions.create(model="tests/a", messages=ASK)
        assert unknown.value.code == "invalid_api_key"
        for _ in range(3):
            await create(model="tests/a", messages=ASK)
        with pytest.raises(openai.RateLimitError) as often:
            await create(model="tests/a", messages=ASK)
        assert often.value.code == "rate_limit_exceeded"
        assert int(often.value.response.headers["Retry-After"]) >= 1


async def test_the_clients_own_retries_get_through_a_limit(postgres_url: str, tmp_path: Path) -> None:
    async with client(postgres_url, tmp_path, manifest("a", limits={"requestsPerMinute": 60}), retries=2) as made:
        # A minute's worth at once, and one more, for which a place is free after a second.
        completions = await asyncio.gather(
            *(made.chat.completions.create(model="tests/a", messages=ASK) for _ in range(61))
        )
        assert {completion.choices[0].message.content for completion in completions} == {"hello [1]"}


async def test_a_session_deleted_in_the_middle_of_a_stream_is_told(postgres_url: str, tmp_path: Path) -> None:
    slow = manifest("a", scripted({"content": "late", "delaySeconds": 60}), echo())
    async with client(postgres_url, tmp_path, slow) as made:
        stream = await made.chat.completions.create(
            model="tests/a", messages=ASK, user="alice", metadata={"session": "s"}, stream=True
        )
        first = await anext(aiter(stream))
        assert first.choices[0].delta.role == "assistant"
        headers = {"Abide-User": "alice"}
        await made.delete("/agents/tests/a/sessions/s", cast_to=object, options={"headers": headers})
        with pytest.raises(openai.APIError, match="There is no such turn"):
            async for _ in stream:
                pass
