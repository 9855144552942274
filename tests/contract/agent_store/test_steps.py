"""The step journal and approvals of any store."""

import asyncio
from dataclasses import replace
from uuid import uuid4

import pytest

from agent_api.wire import TurnStatus
from agent_store.errors import LeaseLost
from agent_store.ports import Claim, Disposition, Owner
from agent_store.steps import NewApproval, NewStep, StepKind, StepStatus, Verdict
from tests.contract.agent_store.scene import Scene, completed

ANSWER = NewStep(0, StepKind.MODEL, "openai/x", StepStatus.FINISHED, {"text": "ä\0", "calls": []}, finished=0.5)
STARTED = NewStep(1, StepKind.TOOL, "pay", StepStatus.STARTED, key="k-1", started=0.25)
PAID = NewStep(1, StepKind.TOOL, "pay", StepStatus.FINISHED, {"content": "paid"}, finished=0.0)
ASKED = NewApproval("call-1", "pay", {"amount": 5, "to": "ann"}, 60.0, "Reject")


async def resumed(scene: Scene, owner: Owner) -> Claim:
    (claim,) = await scene.store.claim_orphans(scene.agent, owner, limit=10)
    return claim


async def test_steps_come_back_as_they_were_written(scene: Scene) -> None:
    claim = await scene.claim(await scene.start())
    assert (await scene.store.load_journal(claim)).steps == {}
    await scene.store.write_steps(claim, [ANSWER, STARTED])
    journal = await scene.store.load_journal(claim)
    assert [journal.steps[index].result for index in (0, 1)] == [ANSWER.result, None]
    assert (journal.steps[1].status, journal.steps[1].key) == (StepStatus.STARTED, "k-1")
    await scene.store.write_steps(claim, [PAID])
    before, after = journal.steps[1], (await scene.store.load_journal(claim)).steps[1]
    assert (after.status, after.result, after.key) == (StepStatus.FINISHED, {"content": "paid"}, "k-1")
    assert after.started_at == before.started_at
    assert after.finished_at is not None
    assert after.finished_at > after.started_at


async def test_a_step_that_has_its_result_never_changes(scene: Scene) -> None:
    claim = await scene.claim(await scene.start())
    await scene.store.write_steps(claim, [PAID])
    await scene.store.write_steps(claim, [STARTED])
    await scene.store.write_steps(claim, [replace(PAID, result={"content": "other"})])
    step = (await scene.store.load_journal(claim)).steps[1]
    assert (step.status, step.result) == (StepStatus.FINISHED, {"content": "paid"})


async def test_whoever_was_taken_over_writes_no_step_any_more(scene: Scene) -> None:
    claim = await scene.claim(await scene.start("pod-1"))
    await scene.store.write_steps(claim, [ANSWER])
    taken = await resumed(scene, await scene.start("pod-1"))
    assert (taken.is_resumed, taken.attempts, taken.is_alone, taken.is_cancelled) == (True, 2, False, False)
    for call in (scene.store.write_steps(claim, [PAID]), scene.store.park(claim, [ASKED])):
        with pytest.raises(LeaseLost):
            await call
    with pytest.raises(LeaseLost):
        await scene.store.mark_alone(claim, alone=True)
    assert set((await scene.store.load_journal(taken)).steps) == {0}


async def test_results_are_forgotten_once_the_turn_is_finished(scene: Scene) -> None:
    owner = await scene.start()
    claim = await scene.claim(owner)
    await scene.store.write_steps(claim, [ANSWER, PAID])
    await scene.store.forget_results(claim, 2)
    assert (await scene.store.load_journal(claim)).steps[1].result is not None, "the turn still needs it"
    await scene.finish(owner, claim)
    await scene.store.forget_results(claim, 1)
    steps = await scene.store.list_steps(scene.agent, claim.session_id, claim.turn_id)
    assert [(step.index, step.result) for step in steps] == [(0, None), (1, PAID.result)]


async def test_steps_and_approvals_go_with_their_session(scene: Scene) -> None:
    claim = await scene.claim(await scene.start())
    await scene.store.write_steps(claim, [ANSWER])
    assert await scene.store.park(claim, [ASKED])
    await scene.store.delete_session(claim.session)
    assert await scene.store.list_steps(scene.agent, claim.session_id, claim.turn_id) == []
    assert await scene.store.list_approvals(scene.agent) == []


async def test_a_turn_that_waits_holds_its_session_and_nobody_runs_it(scene: Scene) -> None:
    owner = await scene.start()
    claim = await scene.claim(owner)
    assert await scene.store.park(claim, [ASKED])
    assert await scene.store.park(claim, [ASKED]), "said again after an unknown outcome"
    turn = await scene.store.get_turn(scene.agent, claim.turn_id, "ann")
    assert turn is not None
    assert turn.status is TurnStatus.WAITING
    assert (await scene.say(owner, "more")).disposition is Disposition.QUEUED
    assert await scene.store.claim_orphans(scene.agent, owner, limit=10) == []
    assert await scene.store.claim_orphans(scene.agent, await scene.start("pod-2"), limit=10) == []
    (waiting,) = await scene.store.list_approvals(scene.agent)
    assert (waiting.turn_id, waiting.user, waiting.session_name) == (claim.turn_id, "ann", "chat")
    assert (waiting.call_id, waiting.tool, waiting.arguments) == ("call-1", "pay", ASKED.arguments)
    assert (waiting.expires_at - waiting.requested_at).total_seconds() == pytest.approx(60)
    assert await scene.store.list_approvals(scene.agent, turn_id=uuid4()) == []


@pytest.mark.parametrize("approve", [True, False])
async def test_a_decision_hands_the_turn_to_any_process_without_counting_an_attempt(
    scene: Scene, approve: bool
) -> None:
    owner = await scene.start()
    claim = await scene.claim(owner)
    await scene.store.write_steps(claim, [ANSWER])
    await scene.store.park(claim, [ASKED])
    waiting = await scene.store.find_approval(scene.agent, claim.turn_id, "call-1")
    assert waiting is not None
    assert await scene.store.decide(scene.agent, waiting, approve=approve, by="bob", comment="söre\0")
    assert not await scene.store.decide(scene.agent, waiting, approve=not approve, by="eve", comment="")
    other = await scene.start("pod-2")
    taken = await resumed(scene, other)
    assert (taken.turn_id, taken.attempts, taken.is_resumed) == (claim.turn_id, 1, True)
    journal = await scene.store.load_journal(taken)
    decision = journal.decisions["call-1"]
    assert (decision.allows, decision.comment) == (approve, "söre\0")
    assert set(journal.steps) == {0}
    turn = await scene.store.get_turn(scene.agent, claim.turn_id, "ann")
    assert turn is not None
    assert turn.status is TurnStatus.RUNNING
    assert await scene.store.list_approvals(scene.agent) == []
    with pytest.raises(LeaseLost):
        await scene.store.park(claim, [ASKED])
    await scene.store.complete(taken, other, completed("done"))


async def test_of_decisions_at_the_same_time_the_last_one_wakes_the_turn(scene: Scene) -> None:
    owner = await scene.start()
    for number in range(10):
        claim = await scene.claim(owner, session=f"s{number}")
        asked = [replace(ASKED, call_id=f"call-{index}") for index in range(4)]
        await scene.store.park(claim, asked)
        waiting = await scene.store.list_approvals(scene.agent, turn_id=claim.turn_id)
        one, *rest = waiting
        assert await scene.store.decide(scene.agent, one, approve=True, by="bob", comment="")
        assert await scene.store.claim_orphans(scene.agent, owner, limit=10, known=[]) == []
        decided = await asyncio.gather(
            *(scene.store.decide(scene.agent, each, approve=True, by="bob", comment="") for each in rest)
        )
        assert decided == [True, True, True]
        taken = await resumed(scene, owner)
        assert taken.turn_id == claim.turn_id
        await scene.finish(owner, taken)


@pytest.mark.parametrize(("on_timeout", "allows"), [("Reject", False), ("Approve", True)])
async def test_an_approval_that_nobody_gives_times_out(scene: Scene, on_timeout: str, allows: bool) -> None:
    owner = await scene.start()
    claim = await scene.claim(owner)
    await scene.store.park(claim, [replace(ASKED, timeout=0.0, on_timeout=on_timeout)])
    (waiting,) = await scene.store.list_approvals(scene.agent)
    assert not await scene.store.decide(scene.agent, waiting, approve=True, by="late", comment="")
    assert await scene.store.expire_approvals(scene.agent) == 1
    assert await scene.store.expire_approvals(scene.agent) == 0
    taken = await resumed(scene, owner)
    decision = (await scene.store.load_journal(taken)).decisions["call-1"]
    assert (decision.verdict, decision.allows) == (Verdict.TIMED_OUT, allows)


async def test_a_waiting_turn_can_be_cancelled(scene: Scene) -> None:
    owner = await scene.start()
    claim = await scene.claim(owner)
    assert not await scene.store.cancel_waiting(scene.agent, claim.turn_id, "ann")
    await scene.store.park(claim, [ASKED])
    assert not await scene.store.cancel_waiting(scene.agent, claim.turn_id, "eve")
    assert await scene.store.cancel_waiting(scene.agent, claim.turn_id, "ann")
    assert await scene.store.list_approvals(scene.agent) == []
    taken = await resumed(scene, owner)
    assert (taken.is_cancelled, taken.attempts) == (True, 1)
    assert not await scene.store.park(taken, [ASKED]), "who is to be cancelled waits for nobody"


async def test_who_ran_alone_when_its_process_ended_is_known_by_it(scene: Scene) -> None:
    claim = await scene.claim(await scene.start("pod-1"))
    await scene.store.mark_alone(claim, alone=True)
    taken = await resumed(scene, await scene.start("pod-1"))
    assert taken.is_alone
    await scene.store.mark_alone(taken, alone=False)
    assert not (await resumed(scene, await scene.start("pod-1"))).is_alone
