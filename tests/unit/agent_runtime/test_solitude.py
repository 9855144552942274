"""Solitude: many side by side, or one alone, and nobody waits for ever."""

import asyncio

import pytest

from agent_runtime.loop.solitude import Solitude


class Marks:
    """What was said about being alone."""

    def __init__(self) -> None:
        self.said: list[bool] = []

    async def __call__(self, alone: bool) -> None:
        self.said.append(alone)


async def stay(solitude: Solitude, inside: asyncio.Event, leave: asyncio.Event) -> None:
    async with solitude.beside():
        inside.set()
        await leave.wait()


async def test_one_that_is_alone_waits_for_the_others_and_keeps_new_ones_out() -> None:
    solitude, marks = Solitude(), Marks()
    inside, leave, later = asyncio.Event(), asyncio.Event(), asyncio.Event()
    first = asyncio.create_task(stay(solitude, inside, leave))
    await inside.wait()
    entered, done = asyncio.Event(), asyncio.Event()

    async def suspect() -> None:
        async with solitude.alone(marks) as is_alone:
            assert is_alone
            entered.set()
            await done.wait()

    alone = asyncio.create_task(suspect())
    await asyncio.sleep(0)
    second = asyncio.create_task(stay(solitude, later, leave))
    await asyncio.sleep(0.02)
    assert not entered.is_set()
    assert not later.is_set()
    leave.set()
    async with asyncio.timeout(5):
        await entered.wait()
        assert marks.said == [True]
        assert not later.is_set()
        done.set()
        await asyncio.gather(first, alone, second)
    assert later.is_set()


async def test_suspects_run_one_at_a_time() -> None:
    solitude, marks, running = Solitude(), Marks(), 0

    async def suspect() -> None:
        nonlocal running
        async with solitude.alone(marks):
            running += 1
            assert running == 1
            await asyncio.sleep(0)
            running -= 1

    async with asyncio.timeout(5):
        await asyncio.gather(*(suspect() for _ in range(5)))
    assert marks.said == [True] * 5


async def test_others_that_do_not_end_are_run_beside_after_a_while() -> None:
    solitude, marks = Solitude(quiet=0.02), Marks()
    inside, leave, later = asyncio.Event(), asyncio.Event(), asyncio.Event()
    first = asyncio.create_task(stay(solitude, inside, leave))
    await inside.wait()
    async with solitude.alone(marks) as is_alone:
        assert not is_alone
        second = asyncio.create_task(stay(solitude, later, leave))
        async with asyncio.timeout(5):
            await later.wait()
    assert marks.said == []
    leave.set()
    await asyncio.gather(first, second)


async def test_one_that_takes_too_long_is_no_longer_alone_and_that_is_said_first() -> None:
    solitude, marks = Solitude(alone=0.02), Marks()
    later, leave = asyncio.Event(), asyncio.Event()
    async with solitude.alone(marks):
        second = asyncio.create_task(stay(solitude, later, leave))
        async with asyncio.timeout(5):
            await later.wait()
        assert marks.said == [True, False]
    leave.set()
    await second


async def test_whoever_cannot_be_marked_lets_others_go_on() -> None:
    solitude = Solitude()

    async def refused(alone: bool) -> None:
        raise RuntimeError("fenced out")

    with pytest.raises(RuntimeError):
        async with solitude.alone(refused):
            raise AssertionError("not marked, so not alone")
    async with asyncio.timeout(5), solitude.beside():
        pass
