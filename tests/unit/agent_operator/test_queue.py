"""The work queue, in virtual time."""

import asyncio
import random
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_operator.reconcile.queue import BACKOFF_LIMIT, QueueClosed, WorkQueue
from tests.unit.agent_operator.virtualtime import run_virtually


def now() -> float:
    return asyncio.get_running_loop().time()


def test_a_key_that_waits_is_not_queued_twice() -> None:
    async def scene() -> None:
        queue: WorkQueue[str] = WorkQueue()
        for key in ("a", "b", "a"):
            queue.add(key)
        assert [(await queue.get())[0], (await queue.get())[0]] == ["a", "b"]
        assert queue.statistics().depth == 0

    run_virtually(scene())


def test_a_key_added_while_it_is_worked_on_comes_again_afterwards_and_never_twice_at_once() -> None:
    async def scene() -> None:
        queue: WorkQueue[str] = WorkQueue()
        queue.add("a")
        await queue.get()
        queue.add("a")
        assert queue.statistics().depth == 0
        queue.done("a")
        assert (await queue.get())[0] == "a"

    run_virtually(scene())


def test_a_delayed_key_comes_when_due_and_an_event_brings_it_earlier() -> None:
    async def scene() -> None:
        queue: WorkQueue[str] = WorkQueue()
        queue.add_after("a", 30)
        queue.add_after("b", 10)
        queue.add_after("a", 60)
        assert (await queue.get())[0] == "b"
        assert now() == pytest.approx(10)
        queue.add("a")
        assert (await queue.get())[0] == "a"
        assert now() == pytest.approx(10)
        queue.done("a")
        assert queue.statistics().delayed == 0

    run_virtually(scene())


def test_an_earlier_due_time_wins() -> None:
    async def scene() -> None:
        queue: WorkQueue[str] = WorkQueue()
        queue.add_after("a", 30)
        queue.add_after("a", 5)
        await queue.get()
        assert now() == pytest.approx(5)
        queue.done("a")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(100):
                await queue.get()

    run_virtually(scene())


def test_a_recheck_planned_while_worked_on_is_kept() -> None:
    async def scene() -> None:
        queue: WorkQueue[str] = WorkQueue()
        queue.add("a")
        await queue.get()
        queue.add_after("a", 7)
        queue.done("a")
        await queue.get()
        assert now() == pytest.approx(7)

    run_virtually(scene())


def test_pauses_double_up_to_a_limit_and_start_over_after_success() -> None:
    async def scene() -> None:
        queue: WorkQueue[str] = WorkQueue(random_source=random.Random(1))
        pauses = []
        for _ in range(14):
            pauses.append(queue.retry("a"))
            await queue.get()
            queue.done("a")
        assert pauses[0] == pytest.approx(0.2, rel=0.2)
        assert pauses[3] == pytest.approx(1.6, rel=0.2)
        assert max(pauses) <= BACKOFF_LIMIT * 1.2
        queue.forget("a")
        assert queue.retry("a") == pytest.approx(0.2, rel=0.2)
        assert queue.statistics().retries == 15

    run_virtually(scene())


def test_the_other_side_may_ask_for_a_longer_pause() -> None:
    async def scene() -> None:
        queue: WorkQueue[str] = WorkQueue()
        assert queue.retry("a", at_least=9) == 9

    run_virtually(scene())


def test_a_closed_queue_lets_work_end_and_takes_no_more() -> None:
    async def scene() -> None:
        queue: WorkQueue[str] = WorkQueue()
        queue.add("a")
        queue.add("b")
        await queue.get()
        queue.close()
        queue.add("c")
        with pytest.raises(QueueClosed):
            await queue.get()
        idle = asyncio.create_task(queue.wait_idle())
        await asyncio.sleep(1)
        assert not idle.done()
        queue.done("a")
        await idle

    run_virtually(scene())


def test_closing_ends_every_waiting_worker() -> None:
    async def scene() -> None:
        queue: WorkQueue[str] = WorkQueue()
        workers = [asyncio.create_task(queue.get()) for _ in range(5)]
        await asyncio.sleep(1)
        queue.close()
        results = await asyncio.gather(*workers, return_exceptions=True)
        assert all(isinstance(result, QueueClosed) for result in results)

    run_virtually(scene())


async def work(queue: WorkQueue[int], handle: Callable[[int], Awaitable[None]]) -> None:
    while True:
        try:
            key, _ = await queue.get()
        except QueueClosed:
            return
        try:
            await handle(key)
        finally:
            queue.done(key)


steps = st.lists(
    st.tuples(st.sampled_from(["add", "after", "retry"]), st.integers(0, 5), st.floats(0, 20)), min_size=1, max_size=40
)


@settings(max_examples=60, deadline=None)
@given(steps=steps, workers=st.integers(1, 4))
def test_every_key_is_worked_on_after_its_last_call_and_never_by_two(
    steps: list[tuple[str, int, float]], workers: int
) -> None:
    async def scene() -> None:
        queue: WorkQueue[int] = WorkQueue()
        running: set[int] = set()
        finished: dict[int, float] = {}

        async def handle(key: int) -> None:
            assert key not in running
            running.add(key)
            begun = now()
            await asyncio.sleep(3)
            running.discard(key)
            finished[key] = begun

        tasks = [asyncio.create_task(work(queue, handle)) for _ in range(workers)]
        asked: dict[int, float] = {}
        for what, key, delay in steps:
            await asyncio.sleep(delay)
            asked[key] = now()
            if what == "add":
                queue.add(key)
            elif what == "after":
                queue.add_after(key, delay)
            else:
                queue.retry(key)
        await asyncio.sleep(2000)
        assert set(finished) == set(asked)
        assert all(finished[key] >= asked[key] for key in asked)
        queue.close()
        await asyncio.gather(*tasks)

    run_virtually(scene())
