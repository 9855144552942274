"""Memories end to end: REST, the manifest's, the model's prompt and tool, and meaning by a service over HTTP."""

import asyncio
import json
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests.fakes.embeddings import Embeddings, embeddings
from tests.fakes.provider import ModelProvider
from tests.integration.agent_runtime.harness import (
    Database,
    Serving,
    Talk,
    echo,
    manifest,
    scripted,
    serving,
    until,
)
from tests.integration.agent_runtime.models import compatible

ON = {"enabled": True}


async def keep(talk: Talk, content: str, expected: int = 201, **fields: Any) -> dict[str, Any]:
    response = await talk.request("POST", "/memories", json={"content": content, **fields})
    assert response.status_code == expected, response.text
    return dict(response.json())


async def recall(talk: Talk, query: str = "", **fields: Any) -> list[str]:
    response = await talk.request("POST", "/memories/recall", json={"query": query, **fields})
    assert response.status_code == 200, response.text
    return [item["content"] for item in response.json()["items"]]


async def contents(talk: Talk, **params: Any) -> list[str]:
    response = await talk.request("GET", "/memories", params=params)
    assert response.status_code == 200, response.text
    return [item["content"] for item in response.json()["items"]]


async def test_kept_read_changed_found_and_deleted(postgres_url: str) -> None:
    async with serving(postgres_url, manifest("a", memories=ON)) as served:
        ann, bob = served.talk("a", "ann"), served.talk("a", "bob")
        made = await keep(ann, "Prefers French.", importance=7, tags=["language"], type="learning")
        shared = await keep(ann, "We open at nine.", shared=True)
        assert (made["user"], shared["user"], made["importance"]) == ("ann", None, 7)
        assert await contents(bob) == ["We open at nine."]
        assert await contents(ann, type="learning", tag="language") == ["Prefers French."]
        assert await recall(ann, "Does she like french?") == ["Prefers French."]
        path = f"/memories/{made['id']}"
        assert (await bob.request("GET", path)).status_code == 404
        assert (await bob.request("PATCH", path, json={"importance": 1})).status_code == 404
        assert (await bob.request("DELETE", path)).status_code == 404
        changed = await ann.request("PATCH", path, json={"content": "Prefers Danish.", "tags": []})
        assert (changed.json()["content"], changed.json()["tags"], changed.json()["importance"]) == (
            "Prefers Danish.",
            [],
            7,
        )
        assert (await ann.request("GET", path)).json()["content"] == "Prefers Danish."
        assert await recall(ann, "french") == []
        assert (await ann.request("DELETE", path)).status_code == 204
        assert (await ann.request("DELETE", path)).status_code == 404
        assert await contents(ann) == ["We open at nine."]


async def test_pages_and_the_same_key_keeps_one(postgres_url: str) -> None:
    async with serving(postgres_url, manifest("a", memories=ON)) as served:
        talk = served.talk("a", "ann")
        for number in (1, 1, 2, 3):
            response = await talk.request(
                "POST", "/memories", json={"content": f"{number}"}, headers={"Idempotency-Key": f"k{number}"}
            )
            assert response.status_code == 201
        first = (await talk.request("GET", "/memories", params={"limit": 2})).json()
        rest = (await talk.request("GET", "/memories", params={"cursor": first["nextCursor"]})).json()
        assert [one["content"] for one in (*first["items"], *rest["items"])] == ["3", "2", "1"]
        assert rest["nextCursor"] is None
        assert (await talk.request("GET", "/memories", params={"cursor": "x"})).status_code == 422


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "content"),
        ({"content": ""}, "content"),
        ({"content": "   "}, "content"),
        ({"content": "x" * 8001}, "content"),
        ({"content": "x", "importance": 0}, "importance"),
        ({"content": "x", "importance": 11}, "importance"),
        ({"content": "x", "type": "poem"}, "type"),
        ({"content": "x", "tags": ["two words"]}, "tags.0"),
        ({"content": "x", "tags": ["t"] * 33}, "tags"),
        ({"content": "x", "colour": "red"}, "colour"),
    ],
)
async def test_bad_input_names_the_field(postgres_url: str, body: dict[str, Any], field: str) -> None:
    async with serving(postgres_url, manifest("a", memories=ON)) as served:
        response = await served.talk("a").request("POST", "/memories", json=body)
        assert (response.status_code, response.json()["errors"][0]["field"]) == (422, field)


async def test_without_memories_it_says_how_to_have_them(postgres_url: str) -> None:
    async with serving(postgres_url, manifest("a")) as served:
        response = await served.talk("a").request("GET", "/memories")
        assert response.status_code == 404
        assert response.json()["type"].endswith("/memories-not-enabled")
        assert "spec.memories.enabled" in response.json()["detail"]
        assert (await served.talk("nobody").request("GET", f"/memories/{uuid4()}")).status_code == 404


async def test_what_the_manifest_knows_is_there_once_and_follows_the_manifest(postgres_url: str) -> None:
    def knowing(importance: int) -> dict[str, Any]:
        known = [{"content": "We open at nine.", "importance": importance, "tags": ["hours"]}]
        return manifest("a", memories={**ON, "initial": known})

    for importance in (5, 5, 8):
        async with serving(postgres_url, knowing(importance)) as served:
            talk = served.talk("a", "ann")

            async def known(talk: Talk = talk, importance: int = importance) -> bool:
                items = (await talk.request("GET", "/memories")).json()["items"]
                return [(one["content"], one["importance"]) for one in items] == [("We open at nine.", importance)]

            await until(known, f"known with importance {importance}")


def systems(provider: ModelProvider) -> list[str]:
    """Return the system prompts that the model was given, oldest first."""
    return [
        message["content"]
        for request in provider.asked("chat")
        for message in request.body["messages"]
        if message["role"] == "system"
    ]


async def test_the_model_is_told_what_fits_and_what_is_critical(
    postgres_url: str, provider: ModelProvider, secrets: Path
) -> None:
    agent = manifest("a", compatible(provider), memories=ON)
    async with serving(postgres_url, agent, secrets_dir=secrets) as served:
        talk = served.talk("a", "ann")
        await talk.say("hello", "s0")
        await keep(talk, "Her cat is called Mimi.\nShe is three.")
        await keep(talk, "Allergic to nuts.", importance=10)
        await keep(talk, "The printer is broken.")
        await keep(served.talk("a", "bob"), "Bob's cat is called Tom.")
        await talk.say("What is the name of my cat?", "s1")
        await talk.say("anything else", "s2")
        first, second, third = systems(provider)
        assert first == "You are a test."
        assert second.startswith("You are a test.\n\n")
        assert "Her cat is called Mimi. She is three." in second
        assert "Allergic to nuts." in second
        assert "Bob" not in second
        assert "printer" not in second
        assert "Allergic to nuts." in third
        assert "Mimi" not in third


async def test_a_turn_goes_on_without_memories_that_cannot_be_read(postgres_url: str, database: Database) -> None:
    async with serving(postgres_url, manifest("a", echo(), memories=ON)) as served:
        talk = served.talk("a", "ann")
        await database.rows("ALTER TABLE abide.memories RENAME TO hidden")
        assert await talk.say("hello") == "hello [1]"
        await database.rows("ALTER TABLE abide.hidden RENAME TO memories")
        assert await talk.say("again") == "again [2]"

        async def recorded() -> bool:
            rows = await database.rows("SELECT message FROM abide.agent_errors WHERE error_type = 'MemoryFailed'")
            return len(rows) == 1

        await until(recorded, "the failure is written down once")


async def test_the_models_tool_remembers_recalls_and_forgets(postgres_url: str, database: Database) -> None:
    def call(name: str, **arguments: Any) -> dict[str, Any]:
        return {"toolCalls": [{"name": name, "arguments": arguments}]}

    model = scripted(
        call("remember", content="Likes green tea.", importance=6, tags=["drink"]),
        "noted",
        call("recall", query="tea"),
        "green",
    )
    tools = [{"name": "memory", "type": "Builtin", "builtin": {"name": "Memory"}}]
    async with serving(postgres_url, manifest("a", model, memories=ON, tools=tools)) as served:
        talk = served.talk("a", "ann")
        assert await talk.say("I like green tea") == "noted"
        assert await contents(talk) == ["Likes green tea."]
        assert await talk.say("what do I like?") == "green"
        results = [one["content"] for one in await talk.messages() if one["role"] == "tool"]
        assert json.loads(results[1])["memories"][0]["content"] == "Likes green tea."
        assert await contents(served.talk("a", "bob")) == []


def with_embedding(service: Embeddings, **fields: Any) -> dict[str, Any]:
    embedding = {"provider": "openai-compatible", "model": "meanings", "baseURL": service.url, **fields}
    return manifest("a", memories={**ON, "embedding": embedding})


async def embedded(served: Serving, database: Database, number: int) -> None:
    async def all_have_vectors() -> bool:
        rows = await database.rows("SELECT 1 FROM abide.memories WHERE embedding IS NOT NULL")
        return len(rows) == number

    await until(all_have_vectors, f"{number} memories have vectors")


@pytest.mark.parametrize("extension", ["plain", "pgvector"])
async def test_found_by_meaning_and_words_together(postgres_url: str, database: Database, extension: str) -> None:
    if extension == "pgvector":
        await database.rows("CREATE EXTENSION vector")
    async with embeddings() as service, serving(postgres_url, with_embedding(service)) as served:
        talk = served.talk("a", "ann")
        await keep(talk, "She has a puppy.")
        await keep(talk, "She drives an automobile.")
        await keep(talk, "Her locker is number 7.")
        await embedded(served, database, 3)
        assert (await recall(talk, "Which pet is there?", limit=1)) == ["She has a puppy."]
        assert (await recall(talk, "vehicle", limit=1)) == ["She drives an automobile."]
        assert (await recall(talk, "locker", limit=1)) == ["Her locker is number 7."]
        assert service.asked[0]["model"] == "meanings"
        assert service.asked[0]["encoding_format"] == "float"


async def test_a_service_that_fails_costs_meaning_only(postgres_url: str, database: Database) -> None:
    async with embeddings() as service, serving(postgres_url, with_embedding(service)) as served:
        service.status = 500
        talk = served.talk("a", "ann")
        await keep(talk, "She has a puppy.")
        assert await recall(talk, "puppy") == ["She has a puppy."]
        assert await recall(talk, "dog") == []

        async def recorded() -> list[str]:
            rows = await database.rows("SELECT message FROM abide.agent_errors WHERE error_type = 'EmbeddingFailed'")
            return [row["message"] for row in rows]

        (message,) = await until(recorded, "the failure is written down")
        assert message == "openai-compatible/meanings answers 500; memories are found by their words alone."
        service.status = 200
        await embedded(served, database, 1)
        assert await recall(talk, "dog") == ["She has a puppy."]


async def test_a_slow_service_is_not_waited_for(postgres_url: str) -> None:
    async with embeddings() as service, serving(postgres_url, with_embedding(service)) as served:
        service.hang = True
        talk = served.talk("a", "ann")
        await keep(talk, "She has a puppy.")
        async with asyncio.timeout(10):
            assert await recall(talk, "puppy") == ["She has a puppy."]


async def test_the_key_is_read_again_when_it_changes(postgres_url: str, database: Database, secrets: Path) -> None:
    async with embeddings() as service:
        agent = with_embedding(service, apiKeySecretRef={"name": "llm", "key": "embedding"}, dimensions=3)
        async with serving(postgres_url, agent, secrets_dir=secrets) as served:
            talk = served.talk("a", "ann")
            await keep(talk, "She has a puppy.")
            assert await recall(talk, "dog") == [], "there is no key yet, so nothing was asked"
            assert service.asked == []
            (secrets / "llm" / "embedding").write_text("sk-embedding-1\n")
            await embedded(served, database, 1)
            assert set(service.keys) == {"Bearer sk-embedding-1"}
            assert service.asked[0]["dimensions"] == 3
            assert await recall(talk, "dog") == ["She has a puppy."]
