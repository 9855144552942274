"""Steps of a turn: what is written when, what is taken from the journal, and what is never made twice."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest

from agent_api.wire import ToolCheck
from agent_runtime.clock import SystemClock
from agent_runtime.llm.port import ToolCall, ToolSpec
from agent_runtime.loop.steps import NO_APPROVAL_HERE, NOT_APPROVED, UNKNOWN_OUTCOME, TurnSteps, TurnWaits
from agent_runtime.tools.port import Approval, ToolContext, ToolPolicy, ToolResult
from agent_store.errors import LeaseLost
from agent_store.steps import Decision, Journal, NewStep, StepKind, StepRecord, StepStatus, Verdict

CONTEXT = ToolContext(UUID(int=1), "ann", "main", UUID(int=2), UUID(int=3), key="")
NOW = datetime(2026, 1, 31, tzinfo=UTC)
READS, ACTS = ToolPolicy(side_effects=False), ToolPolicy(side_effects=True)
SAFE = ToolPolicy(side_effects=True, idempotency_argument="key")
ASKED = ToolPolicy(side_effects=True, approval=Approval(60, "Reject"))


class Bench:
    """Tools that say what they were called with, and a journal that remembers what was written, in one log."""

    def __init__(self, **policies: ToolPolicy) -> None:
        self.policies = policies
        self.log: list[str] = []
        self.keys: list[str] = []
        self.gates: dict[str, asyncio.Event] = {}

    def specs(self) -> Sequence[ToolSpec]:
        return ()

    def checks(self) -> Sequence[ToolCheck]:
        return ()

    async def prepare(self) -> None:
        return

    def policy(self, name: str) -> ToolPolicy:
        return self.policies.get(name, READS)

    async def call(self, call: ToolCall, context: ToolContext) -> ToolResult:
        self.log.append(f"call {call.name}")
        self.keys.append(context.key)
        if call.name in self.gates:
            await self.gates[call.name].wait()
        return ToolResult(f"{call.name} done", is_error=call.name == "bad")

    async def write(self, steps: Sequence[NewStep]) -> None:
        await asyncio.sleep(0)
        self.log.append("write " + " ".join(f"{step.index}:{step.status.value}" for step in steps))

    def steps(self, known: Journal | None = None, *, kept: bool = True) -> TurnSteps:
        return TurnSteps(self, SystemClock(), CONTEXT, known or Journal(), self.write if kept else None)


def calls(*names: str, **arguments: Any) -> list[ToolCall]:
    return [ToolCall(f"id-{index}", name, arguments) for index, name in enumerate(names)]


def record(
    index: int, name: str, content: str | None, *, key: str | None = None, kind: StepKind = StepKind.TOOL
) -> StepRecord:
    status = StepStatus.STARTED if content is None else StepStatus.FINISHED
    result = None if content is None else {"content": content}
    return StepRecord(index, kind, name, status, result, key, NOW, NOW)


async def test_reading_costs_one_write_before_the_next_model_call() -> None:
    bench = Bench()
    steps = bench.steps()
    steps.note_answer(0, "m/m", {"text": ""}, 0.0)
    assert await steps.call(1, calls("look", "bad")) == {"id-0": "look done", "id-1": "bad done"}
    assert bench.log == ["call look", "call bad"]
    await steps.flush()
    await steps.flush()
    assert bench.log[2:] == ["write 0:finished 1:finished 2:failed"]
    assert steps.kept


async def test_acting_is_announced_first_and_told_before_anything_follows() -> None:
    bench = Bench(pay=ACTS)
    steps = bench.steps()
    steps.note_answer(0, "m/m", {"text": ""}, 0.0)
    await steps.call(1, calls("pay"))
    await steps.flush()
    assert bench.log == ["write 0:finished 1:started", "call pay", "write 1:finished"]


async def test_what_is_done_is_written_while_others_take_long() -> None:
    bench = Bench(pay=ACTS, slow=ACTS)
    bench.gates["slow"] = asyncio.Event()
    steps = bench.steps()
    work = asyncio.create_task(steps.call(1, calls("pay", "slow")))
    async with asyncio.timeout(5):
        while "write 1:finished" not in bench.log:
            await asyncio.sleep(0)
    bench.gates["slow"].set()
    await work
    assert bench.log == ["write 1:started 2:started", "call pay", "call slow", "write 1:finished"]
    await steps.flush()
    assert bench.log[-1] == "write 2:finished"


async def test_results_are_taken_from_the_journal_and_their_calls_not_made_again() -> None:
    bench = Bench(pay=ACTS)
    known = Journal({1: record(1, "pay", "paid"), 2: record(2, "look", "seen")})
    assert await bench.steps(known).call(1, calls("pay", "look", "look")) == {
        "id-0": "paid",
        "id-1": "seen",
        "id-2": "look done",
    }
    assert bench.log == ["call look"]


async def test_an_unknown_outcome_is_told_and_not_repeated() -> None:
    bench = Bench(pay=ACTS)
    steps = bench.steps(Journal({1: record(1, "pay", None)}))
    assert await steps.call(1, calls("pay")) == {"id-0": UNKNOWN_OUTCOME}
    await steps.flush()
    assert bench.log == ["write 1:failed"]


async def test_a_call_with_a_key_is_made_again_with_the_same_key() -> None:
    bench = Bench(book=SAFE)
    await bench.steps().call(1, calls("book", room=5))
    (key,) = bench.keys
    again = bench.steps(Journal({1: record(1, "book", None, key=key)}))
    assert await again.call(1, calls("book", room=5)) == {"id-0": "book done"}
    assert bench.keys == [key, key]
    assert UUID(key.partition("-")[0]) == CONTEXT.turn_id


async def test_keys_differ_by_step_and_by_arguments() -> None:
    bench = Bench(book=SAFE)
    await bench.steps().call(1, [*calls("book", room=5), ToolCall("b", "book", {"room": 5})])
    await bench.steps().call(1, calls("book", room=6))
    assert len(set(bench.keys)) == 3


async def test_a_call_that_had_a_key_is_not_repeated_once_its_tool_takes_none() -> None:
    bench = Bench(book=ACTS)
    steps = bench.steps(Journal({1: record(1, "book", None, key="k")}))
    assert await steps.call(1, calls("book")) == {"id-0": UNKNOWN_OUTCOME}
    assert "call book" not in bench.log


async def test_a_call_that_needs_approval_waits_until_all_others_are_made_and_written() -> None:
    bench = Bench(wire=ASKED, pay=ACTS)
    steps = bench.steps()
    steps.note_answer(0, "m/m", {"text": ""}, 0.0)
    with pytest.raises(TurnWaits) as caught:
        await steps.call(1, calls("wire", "pay", amount=5))
    (approval,) = caught.value.approvals
    assert (approval.call_id, approval.tool, approval.arguments) == ("call-1", "wire", {"amount": 5})
    assert (approval.timeout, approval.on_timeout) == (60, "Reject")
    assert bench.log == ["write 0:finished 2:started", "call pay", "write 2:finished"]


@pytest.mark.parametrize(
    ("verdict", "on_timeout", "made", "said"),
    [
        (Verdict.APPROVED, "Reject", True, "wire done"),
        (Verdict.REJECTED, "Approve", False, "refused"),
        (Verdict.TIMED_OUT, "Reject", False, "in time"),
        (Verdict.TIMED_OUT, "Approve", True, "wire done"),
    ],
)
async def test_a_decision_is_followed(verdict: Verdict, on_timeout: str, made: bool, said: str) -> None:
    bench = Bench(wire=ASKED)
    steps = bench.steps(Journal({}, {"call-1": Decision(verdict, on_timeout, "too much")}))
    results = await steps.call(1, calls("wire"))
    assert said in results["id-0"]
    assert ("too much" in results["id-0"]) == (verdict is Verdict.REJECTED)
    assert ("call wire" in bench.log) == made
    await steps.flush()
    assert bench.log == (["write 1:started", "call wire", "write 1:finished"] if made else ["write 1:failed"])


async def test_a_decision_counts_for_its_own_call_only() -> None:
    bench = Bench(wire=ASKED)
    steps = bench.steps(Journal({}, {"call-1": Decision(Verdict.APPROVED, "Reject", "")}))
    with pytest.raises(TurnWaits) as caught:
        await steps.call(1, calls("wire", "wire"))
    assert [approval.call_id for approval in caught.value.approvals] == ["call-2"]
    assert bench.log.count("call wire") == 1


async def test_a_tool_that_becomes_known_late_is_called_by_its_policy() -> None:
    bench = Bench(pay=ACTS)

    class Late(Bench):
        looks = 0

        def policy(self, name: str) -> ToolPolicy:
            self.looks += 1
            return READS if self.looks == 1 else self.policies[name]

    late = Late(pay=ACTS)
    await late.steps().call(1, calls("pay"))
    assert late.log[:2] == ["write 1:started", "call pay"]
    late = Late(wire=ASKED)
    assert await late.steps().call(1, calls("wire")) == {"id-0": NOT_APPROVED}
    assert "call wire" not in late.log
    assert bench.log == []


async def test_what_is_kept_nowhere_writes_nothing_and_waits_for_nobody() -> None:
    bench = Bench(pay=ACTS, wire=ASKED)
    steps = bench.steps(kept=False)
    steps.note_answer(0, "m/m", {"text": ""}, 0.0)
    assert await steps.call(1, calls("pay", "wire")) == {"id-0": "pay done", "id-1": NO_APPROVAL_HERE}
    await steps.flush()
    assert bench.log == ["call pay"]


async def test_whoever_was_fenced_out_calls_nothing() -> None:
    bench = Bench(pay=ACTS)

    async def refused(steps: Sequence[NewStep]) -> None:
        raise LeaseLost("taken over")

    steps = TurnSteps(bench, SystemClock(), CONTEXT, Journal(), refused)
    with pytest.raises(LeaseLost):
        await steps.call(1, calls("pay"))
    assert bench.log == []


async def test_being_fenced_out_in_the_middle_is_no_defect() -> None:
    bench = Bench(pay=ACTS, slow=ACTS)
    bench.gates["slow"] = asyncio.Event()
    written: list[Sequence[NewStep]] = []

    async def write(steps: Sequence[NewStep]) -> None:
        written.append(steps)
        if len(written) > 1:
            raise LeaseLost("taken over")

    with pytest.raises(LeaseLost):
        await TurnSteps(bench, SystemClock(), CONTEXT, Journal(), write).call(1, calls("pay", "slow"))


async def test_a_recorded_answer_is_found_by_its_step() -> None:
    answer = {"text": "hm", "calls": []}
    model = StepRecord(0, StepKind.MODEL, "m/m", StepStatus.FINISHED, answer, None, NOW, NOW)
    steps = Bench().steps(Journal({0: model, 1: record(1, "look", "seen")}))
    assert steps.recorded_answer(0) == ("m/m", answer)
    assert steps.recorded_answer(1) is None
    assert steps.recorded_answer(2) is None
