"""Facts from Postgres: what wakes an agent and when, in virtual time; what a heartbeat says of models."""

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from datetime import datetime
from typing import Any, cast
from uuid import UUID, uuid4

import pytest

from agent_api.conditions import Reason
from agent_api.wire import ModelCheck
from agent_operator.health.facts import COUNT_EVERY, ERRORS_EVERY, FactsBoard, ModelsParser, combine
from agent_operator.keys import AgentKey
from agent_store.errors import StoreUnavailable
from agent_store.ports import ErrorRecord, Heartbeat, TelemetryStore
from tests.unit.agent_operator.makers import AGENT_ID, NOW, at
from tests.unit.agent_operator.virtualtime import run_virtually

KEY = AgentKey("shop", "support")
INTERVAL = 2.0


def model(ok: bool | None, reason: str = "", *, checked: datetime = NOW, message: str = "") -> dict[str, Any]:
    check = ModelCheck(
        name="primary", model="openai/gpt", ok=ok, reason=reason, message=message, since=NOW, checked_at=checked
    )
    return check.model_dump(mode="json", by_alias=True)


class Postgres:
    """A store that holds what the test puts into it."""

    def __init__(self) -> None:
        self.details: dict[str, Any] = {"sessions": {"active": 1}, "models": [model(True)]}
        self.error: ErrorRecord | None = None
        self.total = 0
        self.down = False
        self.asked: dict[str, int] = {}

    def _ask(self, what: str) -> None:
        self.asked[what] = self.asked.get(what, 0) + 1
        if self.down:
            raise StoreUnavailable(Reason.CONNECTION_REFUSED, "down")

    async def heartbeats(self, agent_ids: Sequence[UUID] | None = None) -> list[Heartbeat]:
        self._ask("heartbeats")
        return [Heartbeat(AGENT_ID, "pod-1", NOW, self.details)]

    async def last_errors(self, agent_ids: Sequence[UUID] | None = None) -> dict[UUID, ErrorRecord]:
        self._ask("errors")
        return {AGENT_ID: self.error} if self.error else {}

    async def session_counts(self, agent_ids: Sequence[UUID] | None = None) -> dict[UUID, int]:
        self._ask("counts")
        return {AGENT_ID: self.total}


Play = Callable[[Postgres, FactsBoard, list[float]], Coroutine[Any, Any, None]]


def scene(play: Play, agents: Mapping[AgentKey, str] | None = None) -> Postgres:
    postgres, woken = Postgres(), list[float]()
    known = agents if agents is not None else {KEY: str(AGENT_ID)}

    async def run() -> None:
        loop = asyncio.get_running_loop()
        board = FactsBoard(
            cast(TelemetryStore, postgres), lambda: known, lambda _: woken.append(loop.time()),
            interval=INTERVAL, counters_interval=60.0,
        )  # fmt: skip
        reading = asyncio.create_task(board.run())
        await asyncio.sleep(0.1)
        assert len(woken) == len(known)
        woken.clear()
        try:
            await play(postgres, board, woken)
        finally:
            reading.cancel()

    run_virtually(run())
    return postgres


@pytest.mark.parametrize(
    "change", [[model(False, "ModelAuthFailed")], [model(None)], []], ids=["broken", "unknown", "silent"]
)
def test_a_model_that_changes_wakes_within_one_reading(change: list[Any]) -> None:
    async def play(postgres: Postgres, board: FactsBoard, woken: list[float]) -> None:
        begun = asyncio.get_running_loop().time()
        postgres.details = {**postgres.details, "models": change}
        await asyncio.sleep(INTERVAL)
        assert len(woken) == 1
        assert woken[0] - begun <= INTERVAL
        await asyncio.sleep(50)
        assert len(woken) == 1

    scene(play)


def test_a_check_that_says_the_same_again_wakes_nobody() -> None:
    async def play(postgres: Postgres, board: FactsBoard, woken: list[float]) -> None:
        for second in range(200):
            postgres.details = {**postgres.details, "models": [model(True, checked=at(second))]}
            await asyncio.sleep(1)
        assert woken == []
        (check,) = (board.facts(AGENT_ID).models_by_pod or {})["pod-1"]
        assert check.checked_at == at(199)

    scene(play)


def test_counters_wake_once_a_minute() -> None:
    async def play(postgres: Postgres, board: FactsBoard, woken: list[float]) -> None:
        for second in range(300):
            postgres.details = {**postgres.details, "sessions": {"active": second}}
            await asyncio.sleep(1)
        assert len(woken) == 5

    scene(play)


def test_a_new_kind_of_error_is_told_with_the_next_look_at_errors() -> None:
    async def play(postgres: Postgres, board: FactsBoard, woken: list[float]) -> None:
        postgres.error = ErrorRecord(AGENT_ID, "ModelUnreachable", "x", occurred_at=NOW)
        await asyncio.sleep((ERRORS_EVERY + 1) * INTERVAL)
        assert len(woken) == 1
        assert board.facts(AGENT_ID).last_error is not None

    scene(play)


def test_what_costs_more_is_read_more_rarely() -> None:
    async def play(postgres: Postgres, board: FactsBoard, woken: list[float]) -> None:
        await asyncio.sleep(600)

    asked = scene(play).asked
    assert asked["heartbeats"] == pytest.approx(600 / INTERVAL, abs=2)
    assert asked["errors"] == pytest.approx(600 / INTERVAL / ERRORS_EVERY, abs=2)
    assert asked["counts"] == pytest.approx(600 / INTERVAL / COUNT_EVERY, abs=2)


def test_while_postgres_is_away_what_was_known_stays() -> None:
    async def play(postgres: Postgres, board: FactsBoard, woken: list[float]) -> None:
        known = board.facts(AGENT_ID)
        postgres.down = True
        await asyncio.sleep(30)
        assert board.failing
        assert board.facts(AGENT_ID) == known
        postgres.down = False
        postgres.details = {**postgres.details, "models": [model(False, "ModelUnreachable")]}
        await asyncio.sleep(INTERVAL)
        assert not board.failing
        assert len(woken) == 1

    scene(play)


def test_only_agents_of_which_something_changed_are_woken() -> None:
    others = {AgentKey("shop", f"other-{number}"): str(uuid4()) for number in range(50)}

    async def play(postgres: Postgres, board: FactsBoard, woken: list[float]) -> None:
        await asyncio.sleep(100)
        woken.clear()
        postgres.details = {**postgres.details, "models": [model(False, "ModelAuthFailed")]}
        await asyncio.sleep(INTERVAL)
        assert len(woken) == 1

    scene_of_many(play, {KEY: str(AGENT_ID), **others})


def scene_of_many(play: Play, agents: Mapping[AgentKey, str]) -> None:
    """Like scene(), of agents of which most have nothing in Postgres: these are not woken at first."""
    postgres, woken = Postgres(), list[float]()

    async def run() -> None:
        loop = asyncio.get_running_loop()
        board = FactsBoard(
            cast(TelemetryStore, postgres), lambda: agents, lambda _: woken.append(loop.time()),
            interval=INTERVAL, counters_interval=60.0,
        )  # fmt: skip
        reading = asyncio.create_task(board.run())
        try:
            await play(postgres, board, woken)
        finally:
            reading.cancel()

    run_virtually(run())


def beat(pod: str, models: Any) -> Heartbeat:
    return Heartbeat(AGENT_ID, pod, NOW, {"models": models} if models is not None else {})


def test_models_of_heartbeats_are_read_by_pod() -> None:
    facts = combine([beat("a", [model(False, "ModelNotFound", message="answers 404")]), beat("b", None)], {}, {})
    by_pod = facts[AGENT_ID].models_by_pod
    assert by_pod is not None
    assert list(by_pod) == ["a"]
    (check,) = by_pod["a"]
    assert (check.ok, check.reason, check.message, check.checked_at) == (False, "ModelNotFound", "answers 404", NOW)


@pytest.mark.parametrize("models", ["nonsense", [7], [{"ok": True}], {"a": 1}, 9])
def test_models_that_another_version_writes_otherwise_do_no_harm(models: Any) -> None:
    assert combine([beat("a", models)], {}, {})[AGENT_ID].models_by_pod == {}


def test_what_is_repeated_word_for_word_is_read_once() -> None:
    parser = ModelsParser()
    first = parser.parse([beat("a", [model(True)])])
    again = parser.parse([beat("a", [model(True)])])
    assert again[(AGENT_ID, "a")] is first[(AGENT_ID, "a")]
    assert parser.parse([beat("a", [model(False, "ModelNotFound")])])[(AGENT_ID, "a")][0].ok is False
    assert parser.parse([]) == {}
