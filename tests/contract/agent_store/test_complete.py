"""complete(), start_next() and cancel_turn(): exactly one outcome, in order."""

import asyncio
from dataclasses import replace

import pytest

from agent_api.wire import TurnStatus
from agent_store.errors import LeaseLost, StoreError
from agent_store.ports import NewMessage, Outcome, Owner
from tests.contract.agent_store.scene import Scene, completed


async def test_outcome_reply_and_usage_are_stored(scene: Scene, owner: Owner) -> None:
    claim = await scene.claim(owner, "hello")
    done = await scene.finish(owner, claim, "hi")
    assert not done.waiting
    assert (done.turn.status, done.turn.reply, done.turn.model) == (TurnStatus.COMPLETED, "hi", "echo/echo")
    assert done.turn.finished_at is not None
    assert done.turn == await scene.store.get_turn(scene.agent, claim.turn_id, "ann")
    assert await scene.history() == [(1, "user", "hello"), (2, "assistant", "hi")]


async def test_tool_lines_keep_their_order_and_the_last_assistant_line_is_the_reply(scene: Scene, owner: Owner) -> None:
    claim = await scene.claim(owner)
    calls = [{"name": "look", "arguments": {"at": "€\0"}}]
    lines = [
        NewMessage("assistant", "", tool_calls=calls),
        NewMessage("tool", "seen", tool_call_id="c1"),
        NewMessage("assistant", "done"),
        NewMessage("tool", "late", tool_call_id="c2"),
    ]
    done = await scene.store.complete(claim, owner, Outcome(TurnStatus.COMPLETED, lines, "echo/echo", 2))
    assert done.turn.reply == "done"
    assert done.turn == await scene.store.get_turn(scene.agent, claim.turn_id, "ann")
    messages = await scene.store.list_messages(scene.key(), after_seq=1, limit=10)
    assert [(m.seq, m.role, m.content, list(m.tool_calls), m.tool_call_id) for m in messages] == [
        (2, "assistant", "", calls, None),
        (3, "tool", "seen", [], "c1"),
        (4, "assistant", "done", [], None),
        (5, "tool", "late", [], "c2"),
    ]


async def test_what_no_column_takes_is_no_outage_and_harms_no_other_turn(scene: Scene, owner: Owner) -> None:
    claims = [await scene.claim(owner, "x", session=name) for name in ("a", "b", "c")]
    outcomes = [Outcome(TurnStatus.COMPLETED, [NewMessage("assistant", "y")], "echo/echo", 1) for _ in claims]
    outcomes[1] = replace(outcomes[1], input_tokens=2**40)
    done = await asyncio.gather(
        *(scene.store.complete(claim, owner, outcome) for claim, outcome in zip(claims, outcomes, strict=True)),
        return_exceptions=True,
    )
    assert [isinstance(one, BaseException) for one in done] == [False, True, False]
    assert not isinstance(done[1], StoreError)
    lines = [NewMessage("tool", "odd", tool_call_id="a\0\ud800b")]
    await scene.store.complete(claims[1], owner, Outcome(TurnStatus.COMPLETED, lines, "echo/echo", 1))


@pytest.mark.parametrize("status", [TurnStatus.FALLBACK, TurnStatus.FAILED, TurnStatus.CANCELLED])
async def test_bad_ends_say_why_and_may_have_no_reply(scene: Scene, owner: Owner, status: TurnStatus) -> None:
    claim = await scene.claim(owner)
    outcome = Outcome(status, [], None, 0, error_type="ModelUnavailable", error_message="no\0answer")
    done = await scene.store.complete(claim, owner, outcome)
    assert (done.turn.status, done.turn.reply, done.turn.error_type) == (status, None, "ModelUnavailable")
    found = await scene.store.get_turn(scene.agent, claim.turn_id, "ann")
    assert found is not None
    assert found.error_message == "no\N{REPLACEMENT CHARACTER}answer"
    assert (await scene.claim(owner, "next")).turn_seq == 2


async def test_status_that_is_not_final_is_refused(scene: Scene, owner: Owner) -> None:
    claim = await scene.claim(owner)
    with pytest.raises(ValueError, match="not a final status"):
        await scene.store.complete(claim, owner, Outcome(TurnStatus.RUNNING, [], None, 0))


async def test_completing_again_returns_the_first_outcome(scene: Scene, owner: Owner) -> None:
    claim = await scene.claim(owner)
    await scene.say(owner, "two")
    first = await scene.finish(owner, claim, "hi")
    assert first.waiting
    assert await scene.finish(owner, claim, "something else") == first
    assert [text for _, _, text in await scene.history()] == ["hello", "hi"]
    await scene.store.start_next(scene.agent, claim.session_id, owner)
    again = await scene.finish(owner, claim)
    assert (again.turn, again.waiting) == (first.turn, False)


async def test_turns_of_a_session_run_one_after_the_other_in_order(scene: Scene, owner: Owner) -> None:
    claim = await scene.claim(owner, "1")
    for number in range(2, 5):
        await scene.say(owner, str(number))
    for number in range(2, 5):
        assert await scene.store.start_next(scene.agent, claim.session_id, owner) is None
        done = await scene.finish(owner, claim, f"re {number - 1}")
        assert done.waiting
        following = await scene.store.start_next(scene.agent, claim.session_id, owner)
        assert following is not None
        assert (following.content, following.turn_seq, following.attempts) == (str(number), number, 1)
        assert following.token > claim.token
        assert (following.steps_before, following.accepted_messages) == (number - 1, number)
        claim = following
    assert not (await scene.finish(owner, claim, "re 4")).waiting
    assert await scene.store.start_next(scene.agent, claim.session_id, owner) is None
    assert [text for _, _, text in await scene.history()] == ["1", "re 1", "2", "re 2", "3", "re 3", "4", "re 4"]
    assert [seq for seq, _, _ in await scene.history()] == list(range(1, 9))


async def test_steps_of_a_session_add_up(scene: Scene, owner: Owner) -> None:
    claim = await scene.claim(owner)
    await scene.store.complete(claim, owner, completed("a", steps=3))
    claim = await scene.claim(owner)
    assert claim.steps_before == 3
    await scene.store.complete(claim, owner, completed("b", steps=2))
    assert (await scene.claim(owner)).steps_before == 5


async def test_start_next_needs_the_lease(scene: Scene, owner: Owner) -> None:
    claim = await scene.claim(owner)
    await scene.say(owner, "two")
    await scene.finish(owner, claim)
    newer = await scene.start()
    with pytest.raises(LeaseLost):
        await scene.store.start_next(scene.agent, claim.session_id, owner)
    assert await scene.store.start_next(scene.agent, claim.session_id, newer) is not None


async def test_history_is_the_newest_of_finished_turns_oldest_first(scene: Scene, owner: Owner) -> None:
    for number in range(3):
        claim = await scene.claim(owner, f"q{number}")
        await scene.finish(owner, claim, f"a{number}")
    claim = await scene.claim(owner, "now")
    load = scene.store.load_history
    history = await load(claim.session_id, scene.agent, before_turn_seq=claim.turn_seq, limit=3)
    assert [message.content for message in history] == ["a1", "q2", "a2"]
    history = await load(claim.session_id, scene.agent, before_turn_seq=2, limit=10)
    assert [message.content for message in history] == ["q0", "a0"]
    history = await load(claim.session_id, scene.agent, before_turn_seq=99, limit=10)
    assert [message.content for message in history] == ["q0", "a0", "q1", "a1", "q2", "a2"]


async def test_cancelling_a_queued_turn_ends_it_and_the_next_one_moves_up(scene: Scene, owner: Owner) -> None:
    claim = await scene.claim(owner, "one")
    second = await scene.say(owner, "two")
    third = await scene.say(owner, "three")
    cancelled = await scene.store.cancel_turn(scene.agent, second.turn.id, "ann")
    assert cancelled is not None
    assert cancelled.status is TurnStatus.CANCELLED
    assert cancelled.finished_at is not None
    assert await scene.store.cancel_turn(scene.agent, second.turn.id, "ann") == cancelled
    assert (await scene.finish(owner, claim)).waiting
    following = await scene.store.start_next(scene.agent, claim.session_id, owner)
    assert following is not None
    assert following.turn_id == third.turn.id
    assert not (await scene.finish(owner, following)).waiting
    # It was said, so it is part of the history, where it stood when it was cancelled.
    assert await scene.history() == [
        (1, "user", "one"), (2, "user", "two"), (3, "assistant", "ok"), (4, "user", "three"), (5, "assistant", "ok"),
    ]  # fmt: skip
    history = await scene.store.load_history(claim.session_id, scene.agent, before_turn_seq=99, limit=10)
    assert [message.content for message in history] == ["one", "ok", "two", "three", "ok"]


async def test_cancelling_the_last_queued_turn_frees_the_queue(scene: Scene, owner: Owner) -> None:
    claim = await scene.claim(owner, "one")
    second = await scene.say(owner, "two", queue_limit=1)
    await scene.store.cancel_turn(scene.agent, second.turn.id, "ann")
    third = await scene.say(owner, "three", queue_limit=1)
    await scene.store.cancel_turn(scene.agent, third.turn.id, "ann")
    assert not (await scene.finish(owner, claim)).waiting
    assert (await scene.say(owner, "four")).claim is not None


async def test_cancel_leaves_turns_that_started_and_those_of_others_alone(scene: Scene, owner: Owner) -> None:
    claim = await scene.claim(owner, "one")
    second = await scene.say(owner, "two")
    running = await scene.store.cancel_turn(scene.agent, claim.turn_id, "ann")
    assert running is not None
    assert running.status is TurnStatus.RUNNING
    assert await scene.store.cancel_turn(scene.agent, second.turn.id, "bob") is None
    found = await scene.store.get_turn(scene.agent, second.turn.id, "ann")
    assert found is not None
    assert found.status is TurnStatus.QUEUED
    done = await scene.finish(owner, claim)
    assert done.waiting
    assert await scene.store.cancel_turn(scene.agent, claim.turn_id, "ann") == done.turn
