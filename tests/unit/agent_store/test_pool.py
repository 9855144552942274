"""The pool's bookkeeping, with connections that do nothing."""

import asyncio

import pytest

from agent_store.postgres.pool import Pool, PoolStatistics


class FakeConnection:
    def __init__(self) -> None:
        self.closed = False

    def is_closed(self) -> bool:
        return self.closed

    def terminate(self) -> None:
        self.closed = True

    async def close(self, timeout: float) -> None:
        self.closed = True


async def connect() -> FakeConnection:
    await asyncio.sleep(0)
    return FakeConnection()


async def test_nothing_is_opened_before_it_is_needed() -> None:
    assert Pool(connect, 5, 60.0).statistics() == PoolStatistics(open=0, idle=0)


async def test_last_given_back_is_used_next() -> None:
    pool = Pool(connect, 5, 60.0)
    (first, reused), (second, _) = await pool.acquire(1.0), await pool.acquire(1.0)
    assert not reused
    pool.release(first, usable=True)
    pool.release(second, usable=True)
    assert await pool.acquire(1.0) == (second, True)
    assert pool.statistics() == PoolStatistics(open=2, idle=1)
    await pool.aclose(1.0)


async def test_no_more_than_the_maximum_and_waiting_ends() -> None:
    pool = Pool(connect, 1, 60.0)
    connection, _ = await pool.acquire(1.0)
    with pytest.raises(TimeoutError):
        await pool.acquire(0.01)
    waiting = asyncio.create_task(pool.acquire(5.0))
    await asyncio.sleep(0)
    pool.release(connection, usable=True)
    assert await waiting == (connection, True)


async def test_broken_connections_are_replaced() -> None:
    pool = Pool(connect, 1, 60.0)
    connection, _ = await pool.acquire(1.0)
    pool.release(connection, usable=False)
    assert connection.closed
    assert pool.statistics() == PoolStatistics(open=0, idle=0)
    other, reused = await pool.acquire(1.0)
    assert not reused
    pool.release(other, usable=True)
    other.closed = True  # by the server, while idle
    third, reused = await pool.acquire(1.0)
    assert (third is other, reused) == (False, False)
    assert pool.statistics() == PoolStatistics(open=1, idle=0)


@pytest.mark.parametrize("error", [OSError(), asyncio.CancelledError()])
async def test_failed_connect_gives_its_place_back(error: BaseException) -> None:
    async def fail() -> FakeConnection:
        raise error

    pool = Pool(fail, 1, 60.0)
    for _ in range(3):
        with pytest.raises(type(error)):
            await pool.acquire(1.0)
    assert pool.statistics() == PoolStatistics(open=0, idle=0)


async def test_waiter_that_gives_up_does_not_take_a_place() -> None:
    pool = Pool(connect, 1, 60.0)
    connection, _ = await pool.acquire(1.0)
    waiting = asyncio.create_task(pool.acquire(5.0))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    pool.release(connection, usable=True)
    assert await pool.acquire(1.0) == (connection, True)


async def test_a_place_is_handed_over_in_the_order_of_asking_past_those_who_gave_up() -> None:
    pool = Pool(connect, 1, 60.0)
    connection, _ = await pool.acquire(1.0)
    first, gone, last = (asyncio.create_task(pool.acquire(5.0), name=name) for name in ("first", "gone", "last"))
    await asyncio.sleep(0)
    gone.cancel()  # it has not noticed when the place comes by
    pool.release(connection, usable=True)
    assert await first == (connection, True)
    assert not last.done()
    pool.release(connection, usable=True)
    assert await last == (connection, True)
    with pytest.raises(asyncio.CancelledError):
        await gone
    pool.release(connection, usable=True)
    assert pool.statistics() == PoolStatistics(open=1, idle=1)


async def test_who_is_cancelled_in_the_moment_of_the_handover_gives_the_place_back() -> None:
    pool = Pool(connect, 1, 60.0)
    connection, _ = await pool.acquire(1.0)
    waiting = asyncio.create_task(pool.acquire(5.0))
    await asyncio.sleep(0)
    pool.release(connection, usable=True)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert await pool.acquire(0.5) == (connection, True)


async def test_idle_connections_are_closed_oldest_first() -> None:
    pool = Pool(connect, 2, 0.05)
    (first, _), (second, _) = await pool.acquire(1.0), await pool.acquire(1.0)
    pool.release(first, usable=True)
    pool.release(second, usable=True)
    async with asyncio.timeout(5):
        while not first.closed:
            kept, _ = await pool.acquire(1.0)
            assert kept is second
            pool.release(kept, usable=True)
            await asyncio.sleep(0.005)
        assert not second.closed
        while not second.closed:
            await asyncio.sleep(0.005)
    assert pool.statistics() == PoolStatistics(open=0, idle=0)


async def test_closing_closes_what_is_idle_and_later_what_was_in_use() -> None:
    pool = Pool(connect, 2, 60.0)
    (idle, _), (used, _) = await pool.acquire(1.0), await pool.acquire(1.0)
    pool.release(idle, usable=True)
    await pool.aclose(1.0)
    assert idle.closed
    assert not used.closed
    pool.release(used, usable=True)
    assert used.closed
    with pytest.raises(ConnectionError, match="closed"):
        await pool.acquire(1.0)
