"""Failpoints: what the environment may say, and what it does."""

import asyncio
import os
import signal
from pathlib import Path

import pytest

from agent_api.conditions import Reason
from agent_store.errors import StoreUnavailable
from agent_store.failpoints import NO_FAILPOINTS, PLAIN_TURN, Failpoints


def test_nothing_set_is_not_active() -> None:
    assert not Failpoints.from_environ({}).active
    assert not NO_FAILPOINTS.active


def test_plain_turn_names_every_point_once() -> None:
    assert len(set(PLAIN_TURN)) == len(PLAIN_TURN) == 6
    assert PLAIN_TURN[0] == "store.accept.1.before"


@pytest.mark.parametrize("value", ["x", "x=", "=kill", "x=stop", "x=kill:many", "x=sleep", "x=sleep:soon"])
def test_mistakes_are_said_with_what_to_write(value: str) -> None:
    with pytest.raises(ValueError, match="name=kill"):
        Failpoints.from_environ({"ABIDE_FAILPOINTS": value})


async def test_error_says_whether_the_statement_was_sent() -> None:
    failpoints = Failpoints.from_environ({"ABIDE_FAILPOINTS": "a.before=error, a.after=error"})
    for name, sent in (("a.before", False), ("a.after", True)):
        with pytest.raises(StoreUnavailable) as caught:
            await failpoints.hit(name)
        assert (caught.value.reason, caught.value.sent) == (Reason.CONNECTION_REFUSED, sent)
    await failpoints.hit("b")
    assert failpoints.hits == {"a.before": 1, "a.after": 1, "b": 1}


async def test_error_stops_after_as_many_hits_as_it_is_told() -> None:
    failpoints = Failpoints.from_environ({"ABIDE_FAILPOINTS": "a=error:2"})
    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            await failpoints.hit("a")
    await failpoints.hit("a")


async def test_sleep_waits_that_long() -> None:
    failpoints = Failpoints.from_environ({"ABIDE_FAILPOINTS": "a=sleep:0.05"})
    loop = asyncio.get_running_loop()
    started = loop.time()
    await failpoints.hit("a")
    assert loop.time() - started >= 0.049


async def test_kill_skips_as_many_hits_as_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: killed.append((pid, number)))
    failpoints = Failpoints.from_environ({"ABIDE_FAILPOINTS": "a=kill:2"})
    for expected in (0, 0, 1):
        await failpoints.hit("a")
        assert len(killed) == expected
    assert killed == [(os.getpid(), signal.SIGKILL)]


async def test_trace_lists_points_in_order(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    failpoints = Failpoints.from_environ({"ABIDE_FAILPOINTS_TRACE": str(trace)})
    assert failpoints.active
    for name in ("a", "b", "a"):
        await failpoints.hit(name)
    assert trace.read_text() == "a\nb\na\n"
