"""Sessions, their messages and snapshots."""

from uuid import uuid4

import pytest

from agent_store.errors import SessionGone, StateChanged
from agent_store.ports import Owner
from tests.contract.agent_store.scene import Scene


async def test_unknown_session_is_empty(scene: Scene) -> None:
    assert await scene.history("nowhere") == []
    assert await scene.store.find_session(scene.key("nowhere")) is None
    assert await scene.store.delete_session(scene.key("nowhere")) is False
    assert await scene.store.count_sessions(scene.agent) == 0


async def test_messages_come_in_pages(scene: Scene, owner: Owner) -> None:
    for number in range(3):
        await scene.finish(owner, await scene.claim(owner, f"q{number}"), f"a{number}")
    seen, after = [], 0
    while page := await scene.store.list_messages(scene.key(), after_seq=after, limit=4):
        assert len(page) <= 4
        seen += [message.content for message in page]
        after = page[-1].seq
    assert seen == ["q0", "a0", "q1", "a1", "q2", "a2"]


async def test_sessions_come_in_pages_by_newest_activity(scene: Scene, owner: Owner) -> None:
    for name in ("a", "b", "c"):
        await scene.finish(owner, await scene.claim(owner, session=name))
    await scene.finish(owner, await scene.claim(owner, session="a"))
    await scene.say(owner, session="z", user="bob")
    names, before = [], None
    while page := await scene.store.list_sessions(scene.agent, "ann", before=before, limit=2):
        names += [(session.name, session.accepted_messages, session.user) for session in page]
        before = (page[-1].last_active_at, page[-1].id)
    assert names == [("a", 2, "ann"), ("c", 1, "ann"), ("b", 1, "ann")]
    found = await scene.store.find_session(scene.key("a"))
    assert found is not None
    assert found == (await scene.store.list_sessions(scene.agent, "ann", before=None, limit=1))[0]
    assert await scene.store.count_sessions(scene.agent) == 4


async def test_deleting_a_session_takes_everything_in_it_and_nothing_else(scene: Scene, owner: Owner) -> None:
    kept = await scene.claim(owner, session="kept")
    gone = await scene.claim(owner, session="gone")
    for claim in (kept, gone):
        await scene.store.save_state(scene.agent, claim.session_id, {"n": 1})
        await scene.finish(owner, claim)
    assert await scene.store.delete_session(scene.key("gone"))
    assert not await scene.store.delete_session(scene.key("gone"))
    assert await scene.history("gone") == []
    assert await scene.store.get_turn(scene.agent, gone.turn_id, "ann") is None
    assert await scene.store.load_state(scene.agent, gone.session_id) is None
    assert len(await scene.history("kept")) == 2
    assert await scene.store.load_state(scene.agent, kept.session_id) is not None
    assert await scene.store.count_sessions(scene.agent) == 1


async def test_session_of_another_user_cannot_be_deleted(scene: Scene, owner: Owner) -> None:
    await scene.say(owner, user="ann")
    assert not await scene.store.delete_session(scene.key(user="bob"))
    assert len(await scene.history()) == 1


async def test_state_is_versioned_and_comes_back_as_it_was(scene: Scene, owner: Owner) -> None:
    claim = await scene.claim(owner)
    assert await scene.store.load_state(scene.agent, claim.session_id) is None
    document = {"b": [1, 2.5, None, True], "a": {"text": "é\0\ud83d"}}
    first = await scene.store.save_state(scene.agent, claim.session_id, {"old": True})
    second = await scene.store.save_state(scene.agent, claim.session_id, document)
    assert (first.version, second.version) == (1, 2)
    loaded = await scene.store.load_state(scene.agent, claim.session_id)
    assert loaded == second
    assert loaded.document == document
    assert await scene.store.delete_state(scene.agent, claim.session_id)
    assert not await scene.store.delete_state(scene.agent, claim.session_id)
    assert await scene.store.load_state(scene.agent, claim.session_id) is None


async def test_a_state_is_only_replaced_by_those_who_know_it_if_they_say_so(scene: Scene, owner: Owner) -> None:
    claim = await scene.claim(owner)
    save, load = scene.store.save_state, scene.store.load_state
    assert (await save(scene.agent, claim.session_id, {"n": 1}, expected=0)).version == 1
    assert (await save(scene.agent, claim.session_id, {"n": 2}, expected=1)).version == 2
    for stale in (0, 1, 3):
        with pytest.raises(StateChanged):
            await save(scene.agent, claim.session_id, {"n": "lost"}, expected=stale)
    found = await load(scene.agent, claim.session_id)
    assert found is not None
    assert (found.version, found.document) == (2, {"n": 2})
    with pytest.raises(SessionGone):
        await save(scene.agent, uuid4(), {}, expected=0)


async def test_state_needs_its_session(scene: Scene, owner: Owner) -> None:
    with pytest.raises(SessionGone):
        await scene.store.save_state(scene.agent, uuid4(), {})
    claim = await scene.claim(owner)
    with pytest.raises(SessionGone):
        await scene.store.save_state(uuid4(), claim.session_id, {})
