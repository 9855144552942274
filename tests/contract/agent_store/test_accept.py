"""accept(): what is acknowledged is stored, once, in order."""

import asyncio
from dataclasses import replace
from uuid import uuid4

import asyncpg
import pytest

from agent_api.wire import TurnStatus
from agent_store.errors import IdempotencyMismatch, LeaseLost, QueueFull
from agent_store.ports import Disposition, Owner, SessionKey
from tests.contract.agent_store.scene import Scene


async def test_first_message_of_a_session_runs_at_once(scene: Scene, owner: Owner) -> None:
    turn = scene.turn("hello")
    accepted = await scene.store.accept(turn, owner)
    assert accepted.disposition is Disposition.RUN
    assert accepted.claim is not None
    assert accepted.claim.turn_id == accepted.turn.id == turn.id
    assert accepted.claim.content == "hello"
    assert (accepted.claim.turn_seq, accepted.claim.attempts, accepted.claim.steps_before) == (1, 1, 0)
    assert accepted.claim.accepted_messages == 1
    assert accepted.turn.status is TurnStatus.RUNNING
    assert accepted.turn == await scene.store.get_turn(scene.agent, turn.id, "ann")
    assert await scene.history() == [(1, "user", "hello")]


async def test_second_message_waits_and_shows_under_turns_but_not_under_messages(scene: Scene, owner: Owner) -> None:
    await scene.say(owner, "one")
    accepted = await scene.say(owner, "two")
    assert accepted.disposition is Disposition.QUEUED
    assert accepted.claim is None
    assert (accepted.turn.status, accepted.turn.turn_seq, accepted.turn.attempts) == (TurnStatus.QUEUED, 2, 0)
    assert accepted.turn == await scene.store.get_turn(scene.agent, accepted.turn.id, "ann")
    assert await scene.history() == [(1, "user", "one")]


async def test_sessions_do_not_wait_for_each_other(scene: Scene, owner: Owner) -> None:
    await scene.say(owner, "one", session="a")
    assert (await scene.say(owner, "two", session="b")).disposition is Disposition.RUN


async def test_two_users_with_the_same_session_name_never_meet(scene: Scene, owner: Owner) -> None:
    mine = await scene.say(owner, "mine", user="ann")
    yours = await scene.say(owner, "yours", user="bob")
    assert yours.disposition is Disposition.RUN
    assert mine.turn.session_id != yours.turn.session_id
    assert await scene.history(user="bob") == [(1, "user", "yours")]
    assert await scene.store.get_turn(scene.agent, mine.turn.id, "bob") is None
    assert await scene.store.get_turn(uuid4(), mine.turn.id, "ann") is None


async def test_message_behind_a_free_session_with_a_queue_waits_its_turn(scene: Scene, owner: Owner) -> None:
    claim = await scene.claim(owner, "one")
    await scene.say(owner, "two")
    await scene.finish(owner, claim)
    third = await scene.say(owner, "three")
    assert third.disposition is Disposition.QUEUED
    claim = await scene.store.start_next(scene.agent, claim.session_id, owner)
    assert claim is not None
    assert claim.content == "two"


async def test_full_queue_refuses_and_stores_nothing(scene: Scene, owner: Owner) -> None:
    await scene.say(owner, "one")
    await scene.say(owner, "two", queue_limit=1)
    refused = scene.turn("three", queue_limit=1)
    with pytest.raises(QueueFull):
        await scene.store.accept(refused, owner)
    assert await scene.store.get_turn(scene.agent, refused.id, "ann") is None
    found = await scene.store.find_session(scene.key())
    assert found is not None
    assert found.accepted_messages == 2


async def test_queue_limit_zero_allows_only_the_running_message(scene: Scene, owner: Owner) -> None:
    await scene.say(owner, "one", queue_limit=0)
    with pytest.raises(QueueFull):
        await scene.say(owner, "two", queue_limit=0)


async def test_same_key_and_body_is_the_same_turn(scene: Scene, owner: Owner) -> None:
    first = await scene.say(owner, "hello", idempotency_key="k")
    again = await scene.say(owner, "hello", idempotency_key="k")
    assert again.disposition is Disposition.DUPLICATE
    assert again.claim is None
    assert again.turn == first.turn
    assert first.claim is not None
    await scene.finish(owner, first.claim, "hi")
    later = await scene.say(owner, "hello", idempotency_key="k")
    assert (later.disposition, later.turn.status, later.turn.reply) == (
        Disposition.DUPLICATE,
        TurnStatus.COMPLETED,
        "hi",
    )
    assert await scene.history() == [(1, "user", "hello"), (2, "assistant", "hi")]


async def test_same_key_with_another_body_is_refused(scene: Scene, owner: Owner) -> None:
    await scene.say(owner, "hello", idempotency_key="k")
    with pytest.raises(IdempotencyMismatch):
        await scene.say(owner, "goodbye", idempotency_key="k")
    assert await scene.history() == [(1, "user", "hello")]


async def test_keys_are_told_apart_by_session_and_user(scene: Scene, owner: Owner) -> None:
    turns = [
        await scene.say(owner, "1", idempotency_key="k"),
        await scene.say(owner, "2", idempotency_key="k", session="other"),
        await scene.say(owner, "3", idempotency_key="k", user="bob"),
    ]
    assert {accepted.disposition for accepted in turns} == {Disposition.RUN}


async def test_duplicate_of_a_message_is_found_although_the_queue_is_full(scene: Scene, owner: Owner) -> None:
    await scene.say(owner, "one")
    queued = await scene.say(owner, "two", idempotency_key="k", queue_limit=1)
    again = await scene.say(owner, "two", idempotency_key="k", queue_limit=1)
    assert (again.disposition, again.turn.id) == (Disposition.DUPLICATE, queued.turn.id)
    with pytest.raises(IdempotencyMismatch):
        await scene.say(owner, "other", idempotency_key="k", queue_limit=1)


async def test_same_turn_again_gives_the_claim_again(scene: Scene, owner: Owner) -> None:
    turn = scene.turn("hello")
    first = await scene.store.accept(turn, owner)
    assert await scene.store.accept(turn, owner) == first
    assert await scene.history() == [(1, "user", "hello")]


@pytest.mark.parametrize("key", [None, "k"])
async def test_same_queued_turn_again_stays_queued_once(scene: Scene, owner: Owner, key: str | None) -> None:
    await scene.say(owner, "one")
    turn = scene.turn("two", idempotency_key=key, queue_limit=1)
    first = await scene.store.accept(turn, owner)
    assert await scene.store.accept(turn, owner) == first
    found = await scene.store.find_session(scene.key())
    assert found is not None
    assert found.accepted_messages == 2


async def test_same_turn_again_after_its_end_gives_no_claim(scene: Scene, owner: Owner) -> None:
    turn = scene.turn("hello")
    accepted = await scene.store.accept(turn, owner)
    assert accepted.claim is not None
    await scene.finish(owner, accepted.claim, "hi")
    again = await scene.store.accept(turn, owner)
    assert (again.disposition, again.claim, again.turn.reply) == (Disposition.DUPLICATE, None, "hi")


async def test_same_turn_again_after_takeover_gives_no_claim(scene: Scene, owner: Owner) -> None:
    turn = scene.turn("hello")
    await scene.store.accept(turn, owner)
    await scene.store.release(scene.agent, owner)
    other = await scene.start("pod-2")
    await scene.store.claim_orphans(scene.agent, other, limit=10)
    fresh = await scene.start()
    again = await scene.store.accept(turn, fresh)
    assert (again.disposition, again.claim) == (Disposition.DUPLICATE, None)


async def test_turn_id_of_another_session_is_refused(scene: Scene, owner: Owner) -> None:
    turn = scene.turn("hello")
    await scene.store.accept(turn, owner)
    with pytest.raises(IdempotencyMismatch):
        await scene.store.accept(replace(turn, session=scene.key("other")), owner)


async def test_only_the_newest_live_epoch_may_accept(scene: Scene, owner: Owner) -> None:
    newer = await scene.start()
    assert newer.epoch > owner.epoch
    with pytest.raises(LeaseLost):
        await scene.say(owner)
    await scene.store.release(scene.agent, newer)
    with pytest.raises(LeaseLost):
        await scene.say(newer)
    with pytest.raises(LeaseLost):
        await scene.say(Owner("nobody", 1))
    assert await scene.store.count_sessions(scene.agent) == 0


async def test_expired_lease_may_not_accept(scene: Scene) -> None:
    expired = await scene.start(ttl=0.0)
    with pytest.raises(LeaseLost):
        await scene.say(expired)


async def test_agents_share_nothing(scene: Scene, owner: Owner) -> None:
    other = Scene(scene.store)
    other_owner = await other.start()
    turn = scene.turn("hello", idempotency_key="k")
    await scene.store.accept(turn, owner)
    same = replace(turn, session=SessionKey(other.agent, "ann", "chat"))
    assert (await scene.store.accept(same, other_owner)).disposition is Disposition.RUN


@pytest.mark.parametrize("content", ["\0", "\ud83d", "é\u2028\ufeff", "x" * 100_000, "' ; -- $1"])
async def test_any_text_comes_back_as_it_came(scene: Scene, owner: Owner, content: str) -> None:
    claim = await scene.claim(owner, content)
    await scene.say(owner, content)
    await scene.finish(owner, claim, content)
    queued = await scene.store.start_next(scene.agent, claim.session_id, owner)
    assert queued is not None
    assert queued.content == content
    assert [text for _, _, text in await scene.history()] == [content] * 3


async def test_concurrent_duplicates_become_one_turn(scene: Scene, owner: Owner) -> None:
    results = await asyncio.gather(*(scene.say(owner, "hello", idempotency_key="k") for _ in range(8)))
    assert len({accepted.turn.id for accepted in results}) == 1
    assert sorted(accepted.disposition for accepted in results) == ["duplicate"] * 7 + ["run"]
    assert await scene.history() == [(1, "user", "hello")]


async def test_concurrent_first_messages_make_one_session(scene: Scene, owner: Owner) -> None:
    results = await asyncio.gather(*(scene.say(owner, str(n)) for n in range(8)))
    assert sorted(accepted.disposition for accepted in results) == ["queued"] * 7 + ["run"]
    assert sorted(accepted.turn.turn_seq for accepted in results) == list(range(1, 9))
    assert len({accepted.turn.session_id for accepted in results}) == 1


async def test_every_turn_tells_the_revision_that_took_it(scene: Scene, owner: Owner, postgres_url: str) -> None:
    await scene.say(owner, "one")
    await scene.store.accept(replace(scene.turn("two"), revision="rev-2"), owner)
    connection = await asyncpg.connect(postgres_url)
    found = await connection.fetch(
        "SELECT revision FROM abide.turns WHERE agent_id = $1 ORDER BY turn_seq", scene.agent
    )
    await connection.close()
    assert [row["revision"] for row in found] == ["rev-1", "rev-2"]
