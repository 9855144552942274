"""Real models over real HTTP: replies, streams, memory, parameters, and `abide dev`'s way to a key."""

import json
from pathlib import Path

import pytest

from tests.fakes.provider import KEY, MODEL, ModelProvider
from tests.integration.agent_runtime.harness import Database, agent_id, echo, events_of, manifest, serving
from tests.integration.agent_runtime.models import compatible


async def test_the_model_answers_and_the_turn_records_it(
    postgres_url: str, database: Database, provider: ModelProvider, secrets: Path
) -> None:
    provider.set_reply("It is in the mail.")
    async with serving(postgres_url, manifest("a", compatible(provider)), secrets_dir=secrets) as served:
        response = await served.talk("a").post("Where is my order?")
        body = response.json()
        assert body["reply"]["content"] == "It is in the mail."
        assert (body["turn"]["status"], body["turn"]["model"]) == ("completed", f"openai-compatible/{MODEL}")
        (row,) = await database.rows(
            "SELECT model, input_tokens, output_tokens FROM abide.turns WHERE agent_id = $1", agent_id("a")
        )
        assert row["model"] == f"openai-compatible/{MODEL}"
        assert row["input_tokens"] > 0
        assert row["output_tokens"] > 0
    (request,) = provider.asked()
    assert request.key == KEY
    assert request.body["messages"] == [
        {"role": "system", "content": "You are a test."},
        {"role": "user", "content": "Where is my order?"},
    ]


async def test_the_reply_streams_token_by_token(postgres_url: str, provider: ModelProvider, secrets: Path) -> None:
    text = "".join(f"word{number} " for number in range(1250))[:10_000]
    provider.set_reply(text, chunk=10)
    async with serving(postgres_url, manifest("a", compatible(provider)), secrets_dir=secrets) as served:
        response = await served.talk("a").post("go", Accept="text/event-stream")
        events = events_of(response.text)
        deltas = [event["data"]["text"] for event in events if event["event"] == "delta"]
        assert "".join(deltas) == text
        assert len(deltas) > 100
        assert events[-1]["event"] == "completed"
        assert (await served.talk("a").messages())[-1]["content"] == text


async def test_the_first_words_are_sent_before_the_last_ones_exist(
    postgres_url: str, provider: ModelProvider, secrets: Path
) -> None:
    provider.set_reply("one two three four five six", chunk=4)
    provider.pause(2)
    async with serving(postgres_url, manifest("a", compatible(provider)), secrets_dir=secrets) as served:
        talk = served.talk("a")
        async with served.http.stream(
            "POST",
            f"{talk.path}/sessions/s/messages",
            json={"content": "go"},
            headers={"Accept": "text/event-stream"},
        ) as response:
            async for line in response.aiter_lines():
                if line.startswith("data:") and json.loads(line[5:]).get("text") == "one ":
                    break
            else:
                pytest.fail("the stream ended without its first words")


async def test_the_model_is_given_the_conversation(postgres_url: str, provider: ModelProvider, secrets: Path) -> None:
    async with serving(postgres_url, manifest("a", compatible(provider)), secrets_dir=secrets) as served:
        talk = served.talk("a")
        for number in range(3):
            provider.set_reply(f"answer {number}")
            assert await talk.say(f"question {number}") == f"answer {number}"
        await talk.say("elsewhere", "another-session")
    roles = [(message["role"], message["content"]) for message in provider.asked()[2].body["messages"]]
    assert roles == [
        ("system", "You are a test."),
        ("user", "question 0"),
        ("assistant", "answer 0"),
        ("user", "question 1"),
        ("assistant", "answer 1"),
        ("user", "question 2"),
    ]
    assert [message["content"] for message in provider.asked()[3].body["messages"]] == ["You are a test.", "elsewhere"]


async def test_a_conversation_too_long_for_the_model_is_shown_in_part_and_kept_whole(
    postgres_url: str, provider: ModelProvider, secrets: Path
) -> None:
    async with serving(postgres_url, manifest("a", compatible(provider)), secrets_dir=secrets) as served:
        talk = served.talk("a")
        for number in range(4):
            assert (await talk.post(f"line {number}")).json()["turn"]["status"] == "completed"
        provider.requests.clear()
        provider.fail(400, 2, code="context_length_exceeded")
        assert (await talk.post("and now?")).json()["turn"]["status"] == "completed"
        shown = [request.body["messages"][1:] for request in provider.asked()]
        assert [len(messages) for messages in shown] == [9, 4, 2]
        assert all(messages[-1] == {"role": "user", "content": "and now?"} for messages in shown)
        assert len(await talk.messages()) == 10


async def test_a_tool_call_and_its_result_go_back_to_the_model(
    postgres_url: str, provider: ModelProvider, secrets: Path
) -> None:
    provider.set_reply("There is no such tool.", tool_calls=[{"name": "search", "arguments": {"query": "x"}}])
    async with serving(postgres_url, manifest("a", compatible(provider)), secrets_dir=secrets) as served:
        assert await served.talk("a").say("look it up") == "There is no such tool."
    first, second = provider.asked()
    called, result = second.body["messages"][len(first.body["messages"]) :]
    assert called["tool_calls"][0]["function"]["name"] == "search"
    assert json.loads(called["tool_calls"][0]["function"]["arguments"]) == {"query": "x"}
    assert (result["role"], result["tool_call_id"]) == ("tool", called["tool_calls"][0]["id"])
    assert "unknown tool 'search'" in result["content"]


@pytest.mark.parametrize(
    ("kind", "longest"), [("openai", "max_completion_tokens"), ("openai-compatible", "max_tokens")]
)
async def test_parameters_are_sent_as_they_are(
    postgres_url: str, provider: ModelProvider, secrets: Path, kind: str, longest: str
) -> None:
    parameters = {"temperature": 0.2, "topP": 0.9, "maxOutputTokens": 77, "extra": {"seed": 7, "user": "test"}}
    model = compatible(provider, provider=kind, parameters=parameters)
    async with serving(postgres_url, manifest("a", model), secrets_dir=secrets) as served:
        await served.talk("a").say("x")
    sent = provider.asked()[0].body
    assert {name: sent[name] for name in ("temperature", "top_p", longest, "seed", "user")} == {
        "temperature": 0.2,
        "top_p": 0.9,
        longest: 77,
        "seed": 7,
        "user": "test",
    }
    assert sent["stream"] is True


async def test_a_service_without_keys_is_asked_without_one(postgres_url: str, provider: ModelProvider) -> None:
    provider.checks_keys = False
    model = compatible(provider)
    del model["apiKeySecretRef"]
    async with serving(postgres_url, manifest("a", model)) as served:
        await served.talk("a").say("x")
    assert [request.key for request in provider.requests] == [""] * len(provider.requests)


async def test_a_working_model_needs_no_fallback(postgres_url: str, provider: ModelProvider, secrets: Path) -> None:
    async with serving(postgres_url, manifest("a", compatible(provider), echo()), secrets_dir=secrets) as served:
        first = (await served.talk("a").post("x")).json()["turn"]["model"]
        assert first == f"openai-compatible/{MODEL}"
