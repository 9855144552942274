"""Memories: kept once, seen by whom they belong to, found by words, by meaning and by weight."""

from collections.abc import Sequence
from uuid import UUID, uuid4

import asyncpg
import pytest

from agent_store.errors import MemoriesFull
from agent_store.ports import MemoryFilter, NewMemory
from agent_store.postgres import memories
from agent_store.postgres.store import PostgresStore
from tests.contract.agent_store.scene import Scene

ANN = MemoryFilter("ann")
MODEL = "test/words"


def memory(content: str, user: str | None = "ann", *, importance: int = 5, tags: Sequence[str] = (), **more: object):
    return NewMemory(uuid4(), user, content, str(more.pop("type", "general")), importance, tags, **more)


async def keep(scene: Scene, *new: NewMemory) -> list[UUID]:
    return [(await scene.store.save_memory(scene.agent, one)).id for one in new]


async def recall(
    scene: Scene, query: str = "", wanted: MemoryFilter = ANN, vector: Sequence[float] | None = None, limit: int = 10
) -> list[tuple[str, int | None, int | None]]:
    found = await scene.store.recall_memories(
        scene.agent, wanted, query=query, vector=vector, vector_model=MODEL, limit=limit
    )
    return [(one.memory.content, one.word_place, one.meaning_place) for one in found]


async def words(scene: Scene, query: str, wanted: MemoryFilter = ANN) -> list[str]:
    """Return what is found by words, the best first."""
    found = [one for one in await recall(scene, query, wanted) if one[1] is not None]
    return [content for content, _, _ in sorted(found, key=lambda one: one[1] or 0)]


async def listed(scene: Scene, wanted: MemoryFilter = ANN) -> set[str]:
    return {one.content for one in await scene.store.list_memories(scene.agent, wanted, before=None, limit=100)}


async def test_the_same_id_is_kept_once(scene: Scene) -> None:
    new = memory("likes tea", tags=["drink", "habit"])
    first = await scene.store.save_memory(scene.agent, new)
    again = await scene.store.save_memory(scene.agent, new)
    assert again == first
    assert (first.content, first.user, first.tags, first.recalled_at) == ("likes tea", "ann", ("drink", "habit"), None)


async def test_a_user_sees_its_own_and_shared_ones_only(scene: Scene) -> None:
    await keep(scene, memory("of ann"), memory("of bob", "bob"), memory("of all", None))
    other = Scene(scene.store)
    await keep(other, memory("of another agent"))
    assert await listed(scene) == {"of ann", "of all"}
    assert await words(scene, "of") == ["of ann", "of all"] or await words(scene, "of") == ["of all", "of ann"]
    assert {content for content, _, _ in await recall(scene)} == {"of ann", "of all"}


async def test_only_its_own_are_changed_and_deleted_unless_shared_is_allowed(scene: Scene) -> None:
    mine, his, ours = await keep(scene, memory("a"), memory("b", "bob"), memory("c", None))
    change, delete = scene.store.change_memory, scene.store.delete_memory
    assert await change(scene.agent, his, "ann", shared=True, importance=1) is None
    assert await change(scene.agent, ours, "ann", shared=False, importance=1) is None
    assert not await delete(scene.agent, his, "ann", shared=True)
    assert not await delete(scene.agent, ours, "ann", shared=False)
    changed = await change(scene.agent, mine, "ann", shared=False, content="aa", tags=["x"])
    assert changed is not None
    assert (changed.content, changed.importance, changed.tags) == ("aa", 5, ("x",))
    assert changed.updated_at > changed.created_at
    assert (await change(scene.agent, ours, "ann", shared=True, importance=10)) is not None
    assert await delete(scene.agent, ours, "ann", shared=True)
    assert await scene.store.get_memory(scene.agent, ours, "ann") is None
    assert await scene.store.get_memory(scene.agent, his, "ann") is None
    found = await scene.store.get_memory(scene.agent, mine, "ann")
    assert found == changed


async def test_rare_words_count_more_and_long_words_match_their_forms(scene: Scene) -> None:
    await keep(
        scene,
        *(memory(f"she is the {n}th visitor") for n in range(5)),
        memory("her languages are French and Danish"),
        memory("she is a singer"),
    )
    assert (await words(scene, "which language is it?"))[0] == "her languages are French and Danish"
    assert (await words(scene, "she is the singer"))[0] == "she is a singer"
    assert await words(scene, "zebra") == []


async def test_words_that_mean_nothing_alone_do_not_count(scene: Scene) -> None:
    await keep(scene, memory("her father was in the war"), memory("the printer is in the hall"), memory("der Hund"))
    assert await words(scene, "what happened in the war?") == ["her father was in the war"]
    assert await words(scene, "wo ist der hund?") == ["der Hund"]
    assert len(await words(scene, "is in the")) == 2, "unless there are no others"


@pytest.mark.parametrize("query", ["it's", "a\\b", "' | !x & :*", "\0", "(", "'" * 50, "\ud800", "naïve façade 東京"])
async def test_any_text_may_be_asked_for(scene: Scene, query: str) -> None:
    await keep(scene, memory(f"there {query} was"))
    await recall(scene, query)


async def test_filters(scene: Scene) -> None:
    await keep(
        scene,
        memory("one", type="learning", tags=["a", "b"], importance=9),
        memory("two", tags=["a"], importance=3),
    )
    assert await listed(scene, MemoryFilter("ann", type="learning")) == {"one"}
    assert await listed(scene, MemoryFilter("ann", tags=("a",))) == {"one", "two"}
    assert await listed(scene, MemoryFilter("ann", tags=("a", "b"))) == {"one"}
    assert await listed(scene, MemoryFilter("ann", least_importance=4)) == {"one"}
    assert await recall(scene, "", MemoryFilter("ann", tags=("b",))) == [("one", None, None)]


async def test_without_a_query_weight_decides(scene: Scene, postgres_url: str) -> None:
    old, *_ = await keep(scene, memory("old", importance=6), memory("new", importance=6), memory("dull", importance=1))
    connection = await asyncpg.connect(postgres_url)
    await connection.execute("UPDATE abide.memories SET updated_at = now() - interval '90 days' WHERE id = $1", old)
    await connection.close()
    assert {content for content, _, _ in await recall(scene, limit=1)} == {"new"}
    assert {content for content, _, _ in await recall(scene, limit=2)} == {"new", "dull"}
    await scene.store.touch_memories(scene.agent, [old])
    assert {content for content, _, _ in await recall(scene, limit=2)} == {"new", "old"}


async def test_pages(scene: Scene) -> None:
    await keep(scene, *(memory(str(n)) for n in range(5)))
    seen, before = [], None
    while True:
        page = await scene.store.list_memories(scene.agent, ANN, before=before, limit=2)
        if not page:
            break
        seen += [one.content for one in page]
        before = (page[-1].updated_at, page[-1].id)
    assert seen == ["4", "3", "2", "1", "0"]


@pytest.fixture(params=["plain", "pgvector"])
async def vectors(request: pytest.FixtureRequest, postgres_url: str, store: PostgresStore) -> str:
    """Postgres with and without the extension."""
    if request.param == "pgvector":
        connection = await asyncpg.connect(postgres_url)
        await connection.execute("CREATE SCHEMA elsewhere; CREATE EXTENSION vector SCHEMA elsewhere")
        await connection.close()
    return str(request.param)


async def test_the_nearest_are_found_by_meaning(scene: Scene, vectors: str) -> None:
    await keep(
        scene,
        memory("north", vector_model=MODEL, vector=[0.0, 1.0]),
        memory("east", vector_model=MODEL, vector=[1.0, 0.0]),
        memory("north-east", vector_model=MODEL, vector=[0.6, 0.8]),
        memory("of another model", vector_model="other", vector=[0.0, 1.0]),
        memory("of another size", vector_model=MODEL, vector=[0.0, 1.0, 0.0]),
        memory("bob's", "bob", vector_model=MODEL, vector=[0.0, 1.0]),
        memory("words only"),
    )
    found = await recall(scene, "only", vector=[0.0, 1.0], limit=2)
    assert set(found) == {("north", None, 1), ("north-east", None, 2), ("words only", 1, None)}


async def test_vectors_are_made_for_what_has_none_or_has_changed(scene: Scene) -> None:
    first, second = await keep(scene, memory("a", vector_model=MODEL, vector=[1.0, 0.0]), memory("b"))
    assert await scene.store.list_unembedded(scene.agent, MODEL, 10) == [(second, "b")]
    assert not await scene.store.embed_memory(scene.agent, second, "changed meanwhile", MODEL, [0.0, 1.0])
    assert await scene.store.embed_memory(scene.agent, second, "b", MODEL, [0.0, 1.0])
    assert await scene.store.list_unembedded(scene.agent, MODEL, 10) == []
    await scene.store.change_memory(scene.agent, first, "ann", shared=False, importance=7)
    assert await scene.store.list_unembedded(scene.agent, MODEL, 10) == []
    await scene.store.change_memory(scene.agent, first, "ann", shared=False, content="aa")
    assert await scene.store.list_unembedded(scene.agent, MODEL, 10) == [(first, "aa")]
    assert len(await scene.store.list_unembedded(scene.agent, "another model", 10)) == 2


async def test_seeds_win_over_what_was_changed_and_come_once(scene: Scene) -> None:
    seed = memory("opens at nine", None, importance=8, tags=["hours"])
    await scene.store.seed_memories(scene.agent, [seed])
    await scene.store.change_memory(scene.agent, seed.id, "ann", shared=True, importance=2)
    await scene.store.seed_memories(scene.agent, [seed, memory("closes at five", None)])
    await scene.store.seed_memories(scene.agent, [])
    found = await scene.store.list_memories(scene.agent, ANN, before=None, limit=10)
    assert {(one.content, one.importance, one.tags) for one in found} == {
        ("opens at nine", 8, ("hours",)),
        ("closes at five", 5, ()),
    }


async def test_there_is_a_limit_per_user(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memories, "MOST_MEMORIES", 3)
    new = [memory(str(n)) for n in range(3)]
    await keep(scene, *new)
    with pytest.raises(MemoriesFull):
        await scene.store.save_memory(scene.agent, memory("one too many"))
    assert (await scene.store.save_memory(scene.agent, new[0])).content == "0", "what is kept is no new one"
    await keep(scene, memory("bob's", "bob"), memory("shared", None))


async def test_erasing_the_agent_takes_its_memories(scene: Scene) -> None:
    await scene.start()
    await keep(scene, memory("a"), memory("b", None))
    while not await scene.store.erase_agent(scene.agent):
        pass
    assert await listed(scene) == set()
