"""Process leases, fencing and recovery: who may commit, and who takes over."""

from dataclasses import replace

import pytest

from agent_api.wire import TurnStatus
from agent_store.errors import LeaseLost
from agent_store.ports import Disposition, Owner
from tests.contract.agent_store.scene import Scene


async def test_epochs_rise_with_every_start_of_any_process(scene: Scene) -> None:
    epochs = [(await scene.start(instance)).epoch for instance in ("a", "b", "a", "a")]
    assert epochs == sorted(set(epochs))


async def test_renewing_keeps_the_lease_alive(scene: Scene) -> None:
    owner = await scene.start(ttl=0.0)
    await scene.store.renew(scene.agent, owner, ttl=30.0)
    assert (await scene.say(owner)).disposition is Disposition.RUN


async def test_renewing_fails_after_a_newer_start_and_after_release(scene: Scene, owner: Owner) -> None:
    newer = await scene.start()
    with pytest.raises(LeaseLost):
        await scene.store.renew(scene.agent, owner, ttl=30.0)
    await scene.store.release(scene.agent, newer)
    await scene.store.release(scene.agent, newer)
    with pytest.raises(LeaseLost):
        await scene.store.renew(scene.agent, newer, ttl=30.0)
    with pytest.raises(LeaseLost):
        await scene.store.renew(scene.agent, Owner("nobody", 1), ttl=30.0)


async def test_releasing_an_old_epoch_leaves_the_new_one_alone(scene: Scene, owner: Owner) -> None:
    newer = await scene.start()
    await scene.store.release(scene.agent, owner)
    assert (await scene.say(newer)).disposition is Disposition.RUN


@pytest.mark.parametrize("end", ["released", "expired", "restarted"])
async def test_turn_of_a_process_that_is_gone_is_taken_over_and_fenced(scene: Scene, end: str) -> None:
    owner = await scene.start()
    claim = await scene.claim(owner, "hello")
    if end == "released":
        await scene.store.release(scene.agent, owner)
    elif end == "expired":
        await scene.store.renew(scene.agent, owner, ttl=0.0)
    other = await scene.start("pod-1" if end == "restarted" else "pod-2")
    (taken,) = await scene.store.claim_orphans(scene.agent, other, limit=10)
    assert (taken.turn_id, taken.session_id, taken.content) == (claim.turn_id, claim.session_id, "hello")
    assert (taken.attempts, taken.turn_seq) == (2, 1)
    assert taken.token > claim.token
    with pytest.raises(LeaseLost):
        await scene.finish(owner, claim, "from the dead")
    done = await scene.finish(other, taken, "from the living")
    assert (done.turn.reply, done.turn.attempts) == ("from the living", 2)
    with pytest.raises(LeaseLost):
        await scene.finish(owner, claim, "from the dead")
    assert [text for _, _, text in await scene.history()] == ["hello", "from the living"]


async def test_process_with_a_newer_start_cannot_complete_even_before_takeover(scene: Scene, owner: Owner) -> None:
    claim = await scene.claim(owner)
    await scene.start()
    with pytest.raises(LeaseLost):
        await scene.finish(owner, claim)


async def test_turns_of_living_processes_are_left_alone(scene: Scene, owner: Owner) -> None:
    await scene.say(owner)
    other = await scene.start("pod-2")
    assert await scene.store.claim_orphans(scene.agent, other, limit=10) == []


async def test_claim_whose_answer_got_lost_comes_back_unchanged(scene: Scene, owner: Owner) -> None:
    known = await scene.claim(owner, "known", session="a")
    lost = await scene.claim(owner, "lost", session="b")
    orphans = await scene.store.claim_orphans(scene.agent, owner, limit=10, known=[known.turn_id])
    # Whether work on it was begun is unknown then, so that its journal must be read.
    assert orphans == [replace(lost, is_resumed=True)]
    both = [known.turn_id, lost.turn_id]
    assert await scene.store.claim_orphans(scene.agent, owner, limit=10, known=both) == []
    assert (await scene.finish(owner, lost)).turn.attempts == 1


async def test_queued_turns_of_idle_sessions_are_started(scene: Scene, owner: Owner) -> None:
    claim = await scene.claim(owner, "one")
    await scene.say(owner, "two")
    assert (await scene.finish(owner, claim)).waiting
    (started,) = await scene.store.claim_orphans(scene.agent, owner, limit=10)
    assert (started.content, started.attempts, started.turn_seq) == ("two", 1, 2)
    assert await scene.store.claim_orphans(scene.agent, owner, limit=10, known=[started.turn_id]) == []
    await scene.finish(owner, started)


async def test_no_more_than_the_limit_is_taken_over(scene: Scene, owner: Owner) -> None:
    for number in range(5):
        await scene.say(owner, session=f"s{number}")
    for number in range(5, 8):
        claim = await scene.claim(owner, session=f"s{number}")
        await scene.say(owner, "waiting", session=f"s{number}")
        await scene.finish(owner, claim)
    fresh = await scene.start()
    sizes: list[int] = []
    known: list[object] = []
    while claims := await scene.store.claim_orphans(scene.agent, fresh, limit=3, known=known):  # type: ignore[arg-type]
        sizes.append(len(claims))
        known += [claim.turn_id for claim in claims]
    assert sizes == [3, 3, 2]
    assert len(set(known)) == 8


async def test_sweep_needs_the_lease(scene: Scene, owner: Owner) -> None:
    await scene.say(owner)
    newer = await scene.start()
    with pytest.raises(LeaseLost):
        await scene.store.claim_orphans(scene.agent, owner, limit=10)
    assert len(await scene.store.claim_orphans(scene.agent, newer, limit=10)) == 1


async def test_other_agents_turns_are_never_taken(scene: Scene, owner: Owner) -> None:
    await scene.say(owner)
    await scene.store.release(scene.agent, owner)
    other = Scene(scene.store)
    assert await scene.store.claim_orphans(other.agent, await other.start(), limit=10) == []


async def test_deleted_session_fences_out_its_running_turn(scene: Scene, owner: Owner) -> None:
    claim = await scene.claim(owner)
    await scene.say(owner, "two")
    assert await scene.store.delete_session(scene.key())
    with pytest.raises(LeaseLost):
        await scene.finish(owner, claim)
    assert await scene.store.start_next(scene.agent, claim.session_id, owner) is None
    assert await scene.store.claim_orphans(scene.agent, owner, limit=10) == []
    assert await scene.store.get_turn(scene.agent, claim.turn_id, "ann") is None
    fresh = await scene.say(owner, "again")
    assert (fresh.disposition, fresh.turn.turn_seq) == (Disposition.RUN, 1)
    with pytest.raises(LeaseLost):
        await scene.finish(owner, claim)
    found = await scene.store.get_turn(scene.agent, fresh.turn.id, "ann")
    assert found is not None
    assert found.status is TurnStatus.RUNNING
