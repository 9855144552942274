"""Asking runtimes how they are, in virtual time."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from agent_api.wire import ModelCheck
from agent_operator.health.prober import ANSWER_TIMEOUT, CONCURRENT, PATIENCE, UNSEEN_SECONDS, HealthProber
from agent_operator.keys import AgentKey
from agent_operator.status.models import MODEL_GRACE_SECONDS
from agent_operator.status.observed import ProbeFailure, ProbeResult
from tests.unit.agent_operator.makers import NOW, at, health, make_pod, ready_pod
from tests.unit.agent_operator.virtualtime import run_virtually

KEY = AgentKey("shop", "support")
UNREADY = make_pod(running_since=at(-60), ready_at=at(-10))
BROKEN = health(("store", "Timeout", "x"))


class Pods:
    """Answers for all pods, after `delay` seconds."""

    def __init__(self, answer: ProbeResult = BROKEN, delay: float = 0.01) -> None:
        self.answer = answer
        self.delay = delay
        self.asked: list[float] = []
        self.woken: list[float] = []
        self.at_once = 0
        self.most_at_once = 0

    async def fetch(self, ip: str) -> ProbeResult:
        self.asked.append(asyncio.get_running_loop().time())
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(min(self.delay, ANSWER_TIMEOUT))
        self.at_once -= 1
        return self.answer if self.delay < ANSWER_TIMEOUT else ProbeFailure.NO_ANSWER

    def wake(self, key: AgentKey) -> None:
        self.woken.append(asyncio.get_running_loop().time())


def scene(play: Callable[[Pods, HealthProber], Coroutine[Any, Any, None]], **given: Any) -> Pods:
    pods = Pods(**given)

    async def run() -> None:
        prober = HealthProber(pods.fetch, pods.wake)
        try:
            await play(pods, prober)
        finally:
            await prober.aclose()

    run_virtually(run())
    return pods


def test_a_quick_answer_is_part_of_the_same_reconcile_and_wakes_nobody() -> None:
    async def play(pods: Pods, prober: HealthProber) -> None:
        assert await prober.ask(KEY, [UNREADY], now=NOW) == {UNREADY.uid: BROKEN}
        await asyncio.sleep(30)

    pods = scene(play)
    assert pods.woken == []
    assert len(pods.asked) == 15


def test_a_slow_answer_does_not_hold_up_the_reconcile_and_wakes_later() -> None:
    async def play(pods: Pods, prober: HealthProber) -> None:
        assert await prober.ask(KEY, [UNREADY], now=NOW) == {}
        assert asyncio.get_running_loop().time() == pytest.approx(PATIENCE)
        await asyncio.sleep(1)
        assert await prober.ask(KEY, [UNREADY], now=NOW) == {UNREADY.uid: ProbeFailure.NO_ANSWER}

    assert scene(play, delay=5.0).woken == [pytest.approx(ANSWER_TIMEOUT)]


def test_every_new_answer_wakes_and_the_same_again_does_not() -> None:
    async def play(pods: Pods, prober: HealthProber) -> None:
        await prober.ask(KEY, [UNREADY], now=NOW)
        await asyncio.sleep(10)
        pods.answer = health(("store", "Timeout", "since 17 s"))
        await asyncio.sleep(10)
        assert pods.woken == []
        pods.answer = health(("store", "AuthFailed", "x"))
        await asyncio.sleep(10)
        assert len(pods.woken) == 1

    scene(play)


@pytest.mark.parametrize(("silence", "told"), [(2.0, BROKEN), (6.0, ProbeFailure.NO_ANSWER)])
def test_one_missed_question_does_not_take_back_a_named_cause(silence: float, told: ProbeResult) -> None:
    async def play(pods: Pods, prober: HealthProber) -> None:
        await prober.ask(KEY, [UNREADY], now=NOW)
        await asyncio.sleep(1)
        pods.delay = 5.0
        await asyncio.sleep(silence)
        pods.delay = 0.01
        assert await prober.ask(KEY, [UNREADY], now=NOW) == {UNREADY.uid: told}
        assert pods.woken == ([] if told == BROKEN else [pytest.approx(2 * 3.0, abs=0.2)])

    scene(play)


def test_an_answer_counts_only_for_the_state_it_was_given_in() -> None:
    async def play(pods: Pods, prober: HealthProber) -> None:
        pods.answer = health()
        ready = ready_pod(UNREADY.name)
        assert (await prober.ask(KEY, [ready], now=NOW))[ready.uid] == health()
        pods.delay = 5.0
        assert await prober.ask(KEY, [UNREADY], now=NOW) == {}

    scene(play)


def test_a_ready_pod_is_asked_once() -> None:
    async def play(pods: Pods, prober: HealthProber) -> None:
        for _ in range(3):
            await prober.ask(KEY, [ready_pod()], now=NOW)
            await asyncio.sleep(100)

    assert len(scene(play, answer=health()).asked) == 1


def test_nobody_is_asked_who_cannot_answer() -> None:
    pods = [
        make_pod("a", phase="Pending"),
        make_pod("b", running_since=at(-1)),
        make_pod("c", running_since=at(-60), ip=""),
    ]

    async def play(_: Pods, prober: HealthProber) -> None:
        assert await prober.ask(KEY, pods, now=NOW) == {}

    assert scene(play).asked == []


def test_questions_end_with_the_pod() -> None:
    async def play(pods: Pods, prober: HealthProber) -> None:
        await prober.ask(KEY, [UNREADY], now=NOW)
        await prober.ask(KEY, [], now=NOW)
        await asyncio.sleep(100)
        assert len(pods.asked) == 1
        await prober.ask(KEY, [UNREADY], now=NOW)
        prober.forget(KEY)
        await asyncio.sleep(100)
        assert len(pods.asked) == 2

    scene(play)


def test_a_whole_fleet_in_trouble_is_asked_a_few_at_a_time() -> None:
    async def play(pods: Pods, prober: HealthProber) -> None:
        for number in range(200):
            await prober.ask(AgentKey("shop", str(number)), [UNREADY], now=NOW)
        await asyncio.sleep(60)

    assert scene(play, delay=5.0).most_at_once == CONCURRENT


def knowing(*known: bool | None) -> ProbeResult:
    models = [ModelCheck(name=f"m{number}", model="openai/gpt", ok=ok) for number, ok in enumerate(known)]
    return health().model_copy(update={"models": models})


def test_a_ready_pod_is_asked_on_until_it_knows_its_models() -> None:
    async def play(pods: Pods, prober: HealthProber) -> None:
        pods.answer = knowing(None)
        assert await prober.ask(KEY, [ready_pod()], now=NOW) == {ready_pod().uid: knowing(None)}
        await asyncio.sleep(4.5)
        assert pods.woken == []
        pods.answer = knowing(False)
        await asyncio.sleep(100)
        assert len(pods.woken) == 1
        assert await prober.ask(KEY, [ready_pod()], now=NOW) == {ready_pod().uid: knowing(False)}
        assert len(pods.asked) == 6

    scene(play)


def test_a_ready_pod_that_never_knows_its_models_is_left_alone_at_last() -> None:
    async def play(pods: Pods, prober: HealthProber) -> None:
        await prober.ask(KEY, [ready_pod()], now=NOW)
        await asyncio.sleep(1000)
        assert len(pods.asked) <= MODEL_GRACE_SECONDS + 2

    scene(play, answer=knowing(True, None))


def test_a_ready_pod_that_cannot_be_reached_is_tried_again_soon_and_then_rarely() -> None:
    async def play(pods: Pods, prober: HealthProber) -> None:
        await prober.ask(KEY, [ready_pod()], now=NOW)
        await asyncio.sleep(100)
        assert len(pods.asked) == 5

    scene(play, answer=ProbeFailure.NO_ANSWER)


def test_a_pod_that_is_well_without_becoming_ready_is_said_to_be_unseen() -> None:
    async def play(pods: Pods, prober: HealthProber) -> None:
        assert await prober.ask(KEY, [UNREADY], now=NOW) == {UNREADY.uid: health()}
        await asyncio.sleep(UNSEEN_SECONDS)
        assert pods.woken == []
        await asyncio.sleep(4)
        assert len(pods.woken) == 1
        assert await prober.ask(KEY, [UNREADY], now=NOW) == {UNREADY.uid: ProbeFailure.NOT_SEEN}
        pods.answer = BROKEN
        await asyncio.sleep(4)
        assert await prober.ask(KEY, [UNREADY], now=NOW) == {UNREADY.uid: BROKEN}

    scene(play, answer=health())
