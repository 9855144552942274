"""Turns that share a statement, are merged, interrupted, or cancelled from another process."""

import asyncio

import asyncpg
import pytest

from agent_api.wire import TurnStatus
from agent_store.errors import IdempotencyMismatch, LeaseLost, QueueFull
from agent_store.ports import CancelRequest, Claim, Disposition, Owner
from tests.contract.agent_store.scene import Scene, completed

MANY = 40


async def claims(scene: Scene, owner: Owner, count: int) -> list[Claim]:
    """Accept a message in each of `count` sessions at once."""
    accepted = await asyncio.gather(*(scene.say(owner, f"q{n}", session=f"s{n}") for n in range(count)))
    found = [one.claim for one in accepted]
    assert all(found)
    return [claim for claim in found if claim is not None]


async def test_turns_accepted_and_completed_at_once_keep_apart(scene: Scene, owner: Owner) -> None:
    calls: list[str] = []
    scene.store.observe(lambda point, _seconds, _failure: calls.append(point))  # type: ignore[attr-defined]
    made = await claims(scene, owner, MANY)
    assert [claim.content for claim in made] == [f"q{n}" for n in range(MANY)]
    done = await asyncio.gather(*(scene.finish(owner, claim, f"a{n}") for n, claim in enumerate(made)))
    assert calls.count("accept.1") < MANY / 4
    assert calls.count("complete.1") < MANY / 4
    for n, (claim, one) in enumerate(zip(made, done, strict=True)):
        assert one.turn == await scene.store.get_turn(scene.agent, claim.turn_id, "ann")
        assert await scene.history(f"s{n}") == [(1, "user", f"q{n}"), (2, "assistant", f"a{n}")]


async def test_what_one_turn_may_not_do_is_no_matter_of_the_others(scene: Scene, owner: Owner) -> None:
    await scene.say(owner, "runs", session="full")
    await scene.say(owner, "first", session="keyed", idempotency_key="k")
    calls = [
        scene.say(owner, "fine", session="a"),
        scene.say(owner, "too much", session="full", queue_limit=20),
        scene.say(owner, "other body", session="keyed", idempotency_key="k"),
        scene.say(owner, "first", session="keyed", idempotency_key="k"),
        scene.say(owner, "fine", session="z"),
    ]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(answers[2], IdempotencyMismatch)
    found = [one.disposition for one in answers if not isinstance(one, BaseException)]
    assert found == [Disposition.RUN, Disposition.QUEUED, Disposition.DUPLICATE, Disposition.RUN]
    answers = await asyncio.gather(
        *(scene.say(owner, "x", session=name, queue_limit=1) for name in ("b", "full", "y")), return_exceptions=True
    )
    assert [type(one) for one in answers].index(QueueFull) == 1


async def test_a_turn_that_was_taken_over_is_fenced_out_alone(scene: Scene, owner: Owner) -> None:
    made = await claims(scene, owner, 5)
    await scene.store.release(scene.agent, owner)
    other = await scene.start("pod-2")
    taken = await scene.store.claim_orphans(scene.agent, other, limit=2)
    lost = {claim.turn_id for claim in taken}
    assert len(lost) == 2
    answers = await asyncio.gather(*(scene.finish(owner, claim) for claim in made), return_exceptions=True)
    for claim, answer in zip(made, answers, strict=True):
        assert isinstance(answer, LeaseLost) == (claim.turn_id in lost)
    for claim in taken:
        assert (await scene.finish(other, claim)).turn.status is TurnStatus.COMPLETED


async def test_a_locked_session_holds_up_only_itself(scene: Scene, owner: Owner, postgres_url: str) -> None:
    made = await claims(scene, owner, 6)
    connection = await asyncpg.connect(postgres_url)
    try:
        async with connection.transaction():
            await connection.execute("SELECT FROM abide.sessions WHERE name = 's3' FOR UPDATE")
            finishing = [asyncio.create_task(scene.finish(owner, claim)) for claim in made]
            async with asyncio.timeout(3):
                await asyncio.gather(*(task for n, task in enumerate(finishing) if n != 3))
                saying = [asyncio.create_task(scene.say(owner, "next", session=f"s{n}")) for n in range(6)]
                await asyncio.gather(*(task for n, task in enumerate(saying) if n != 3))
            assert not finishing[3].done()
        async with asyncio.timeout(10):
            assert (await finishing[3]).turn.status is TurnStatus.COMPLETED
            await saying[3]
    finally:
        await connection.close()


async def test_batches_of_two_processes_on_the_same_sessions_do_not_wait_in_a_circle(
    scene: Scene, owner: Owner, postgres_url: str
) -> None:
    other = await scene.start("pod-2")
    names = [f"s{n}" for n in range(20)]
    made = await claims(scene, owner, 20)
    for _ in range(10):
        finished, accepted = await asyncio.gather(
            asyncio.gather(*(scene.finish(owner, claim) for claim in made)),
            asyncio.gather(*(scene.say(other, "more", session=name) for name in reversed(names))),
        )
        made = [one.claim for one in accepted if one.claim is not None]
        sessions = {claim.session_id for claim in made}
        started = [
            await scene.store.start_next(scene.agent, one.turn.session_id, owner)
            for one in finished
            if one.turn.session_id not in sessions
        ]
        made = [*made, *(claim for claim in started if claim is not None)]
        assert len(made) == 20
        made = [await hand_over(scene, claim, owner, other) for claim in made]
    await scene.store.aclose()
    connection = await asyncpg.connect(postgres_url)
    async with asyncio.timeout(10):  # a server process tells its counts when it ends
        while await connection.fetchval("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'abide'"):
            await asyncio.sleep(0.02)
    query = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    assert await connection.fetchval(query) == 0
    await connection.close()


async def hand_over(scene: Scene, claim: Claim, owner: Owner, other: Owner) -> Claim:
    """Return a claim of `owner` on the session's turn: one that `other` has is completed, and the next one made."""
    try:
        await scene.store.complete(claim, other, completed("ok"))
    except LeaseLost:
        return claim
    return await scene.claim(owner, "again", session=claim.session.name)


# ---- merged


async def test_waiting_turns_start_as_one_and_share_the_outcome(scene: Scene, owner: Owner) -> None:
    first = await scene.claim(owner, "one")
    others = [await scene.say(owner, text) for text in ("two", "three", "four")]
    assert (await scene.finish(owner, first, "1")).waiting
    claim = await scene.store.start_next(scene.agent, first.session_id, owner, most=2)
    assert claim is not None
    assert (claim.turn_id, claim.content, claim.accepted_messages) == (others[0].turn.id, "two\n\nthree", 3)
    assert claim.merged == ((others[1].turn.id, 3),)
    done = await scene.finish(owner, claim, "2 and 3")
    assert done.waiting
    for accepted in others[:2]:
        turn = await scene.store.get_turn(scene.agent, accepted.turn.id, "ann")
        assert turn is not None
        assert (turn.status, turn.reply, turn.model) == (TurnStatus.COMPLETED, "2 and 3", "echo/echo")
    assert turn is not None
    assert (done.turn.input_tokens, turn.input_tokens) == (3, 0)  # counted once
    last = await scene.store.start_next(scene.agent, first.session_id, owner, most=2)
    assert last is not None
    assert (last.content, last.merged) == ("four", ())
    await scene.finish(owner, last, "4")
    in_order = ["one", "1", "two", "three", "2 and 3", "four", "4"]
    assert [text for _, _, text in await scene.history()] == in_order
    known = await scene.store.load_history(first.session_id, scene.agent, before_turn_seq=5, limit=50)
    assert [line.content for line in known] == in_order


async def test_merged_turns_are_taken_over_together(scene: Scene, owner: Owner) -> None:
    first = await scene.claim(owner, "one")
    for text in ("two", "three"):
        await scene.say(owner, text)
    await scene.finish(owner, first)
    claim = await scene.store.start_next(scene.agent, first.session_id, owner, most=5)
    assert claim is not None
    newer = await scene.start()
    (taken,) = await scene.store.claim_orphans(scene.agent, newer, limit=5)
    assert (taken.content, taken.merged, taken.accepted_messages) == (claim.content, claim.merged, 3)
    with pytest.raises(LeaseLost):
        await scene.finish(owner, claim)
    done = await scene.finish(newer, taken, "both")
    assert not done.waiting
    turn = await scene.store.get_turn(scene.agent, claim.merged[0][0], "ann")
    assert turn is not None
    assert (turn.status, turn.reply) == (TurnStatus.COMPLETED, "both")


async def test_one_message_that_cannot_be_read_keeps_no_other_turn_from_going_on(
    scene: Scene, owner: Owner, postgres_url: str
) -> None:
    spoilt, sound = await scene.claim(owner, "one", session="a"), await scene.claim(owner, "two", session="b")
    connection = await asyncpg.connect(postgres_url)
    try:
        await connection.execute(
            "UPDATE abide.messages SET key_id = 'lost', content = '\\x00' WHERE turn_id = $1", spoilt.turn_id
        )
    finally:
        await connection.close()
    newer = await scene.start()
    claims = {claim.turn_id: claim for claim in await scene.store.claim_orphans(scene.agent, newer, limit=5)}
    assert (claims[sound.turn_id].content, claims[sound.turn_id].is_unreadable) == ("two", False)
    assert (claims[spoilt.turn_id].content, claims[spoilt.turn_id].is_unreadable) == ("", True)
    await scene.finish(newer, claims[spoilt.turn_id], "it could not be read")


async def test_an_accept_repeated_after_its_turn_began_brings_the_merged_along(scene: Scene, owner: Owner) -> None:
    first = await scene.claim(owner, "one")
    turn = scene.turn("two")
    assert (await scene.store.accept(turn, owner)).claim is None
    await scene.say(owner, "three")
    await scene.finish(owner, first)
    claim = await scene.store.start_next(scene.agent, first.session_id, owner, most=5)
    again = await scene.store.accept(turn, owner)
    assert claim is not None
    assert again.claim is not None
    assert (again.claim.content, again.claim.merged) == (claim.content, claim.merged)


# ---- cancelled and interrupted


async def test_the_owner_learns_with_its_renewal_what_to_cancel(scene: Scene, owner: Owner) -> None:
    claim = await scene.claim(owner)
    assert list(await scene.store.renew(scene.agent, owner, ttl=30)) == []
    await scene.store.cancel_turn(scene.agent, claim.turn_id, "ann")
    for _ in range(2):
        assert list(await scene.store.renew(scene.agent, owner, ttl=30)) == [CancelRequest(claim.turn_id, False)]
    await scene.finish(owner, claim)
    assert list(await scene.store.renew(scene.agent, owner, ttl=30)) == []


async def test_a_newer_message_cancels_what_waits_before_it_and_asks_for_the_end_of_what_runs(
    scene: Scene, owner: Owner
) -> None:
    claim = await scene.claim(owner, "one")
    second, third, fourth = [(await scene.say(owner, text)).turn for text in ("two", "three", "four")]
    before = await scene.store.interrupt(third, ("Interrupted", "newer"))
    assert before is not None
    assert before.id == claim.turn_id
    turn = await scene.store.get_turn(scene.agent, second.id, "ann")
    assert turn is not None
    assert (turn.status, turn.error_type) == (TurnStatus.CANCELLED, "Interrupted")
    assert list(await scene.store.renew(scene.agent, owner, ttl=30)) == [CancelRequest(claim.turn_id, True)]
    await scene.finish(owner, claim, "late")
    following = await scene.store.start_next(scene.agent, claim.session_id, owner)
    assert following is not None
    assert following.turn_id == third.id
    # It runs, and came before: to interrupt for it again ends nothing that is newer.
    assert await scene.store.interrupt(third, ("Interrupted", "newer")) is None
    turn = await scene.store.get_turn(scene.agent, fourth.id, "ann")
    assert turn is not None
    assert turn.status is TurnStatus.QUEUED


# ---- retention


async def test_old_sessions_go_a_bounded_number_at_a_time_and_busy_ones_stay(
    scene: Scene, owner: Owner, postgres_url: str
) -> None:
    for claim in await claims(scene, owner, 5):
        await scene.finish(owner, claim)
    await scene.claim(owner, session="busy")
    connection = await asyncpg.connect(postgres_url)
    await connection.execute(
        "UPDATE abide.sessions SET last_active_at = now() - interval '8 days' WHERE name NOT IN ('s0', 's1')"
    )
    delete = scene.store.delete_old_sessions
    assert [len(await delete(scene.agent, days=days, limit=2)) for days in (9, 7, 7, 7)] == [0, 2, 1, 0]
    left = await scene.store.list_sessions(scene.agent, "ann", before=None, limit=10)
    assert sorted(session.name for session in left) == ["busy", "s0", "s1"]
    assert await connection.fetchval("SELECT count(*) FROM abide.messages") == 5
    await connection.close()
