"""Streams of turns, following them, and their form on the wire."""

import asyncio
import json
from dataclasses import replace
from datetime import UTC, datetime
from uuid import UUID, uuid4

import pytest

from agent_api.conditions import Reason
from agent_api.wire import TurnStatus
from agent_runtime.clock import SystemClock
from agent_runtime.loop.stream import KEPT_CHARS, StreamHub, TurnStream, first_attempt
from agent_runtime.loop.watch import TurnEvent, watch_events, watch_outcome
from agent_runtime.web.sse import encode_event, parse_event_id
from agent_store.errors import StoreUnavailable
from agent_store.ports import TurnRecord

CLOCK = SystemClock()
NOW = datetime(2026, 1, 1, tzinfo=UTC)
RUNNING = TurnRecord(
    id=UUID(int=7),
    agent_id=UUID(int=1),
    session_id=UUID(int=2),
    session_name="s",
    user="u",
    turn_seq=1,
    status=TurnStatus.RUNNING,
    attempts=1,
    model=None,
    error_type=None,
    error_message=None,
    reply=None,
    created_at=NOW,
    finished_at=None,
)
DONE = replace(RUNNING, status=TurnStatus.COMPLETED, model="echo/echo", reply="one two", finished_at=NOW)


async def still_running() -> TurnRecord:
    return RUNNING


async def collect(hub: StreamHub, last: tuple[int, int] | None = None, turn: TurnRecord = RUNNING) -> list[TurnEvent]:
    async def poll() -> TurnRecord:
        return turn

    events = watch_events(turn, hub, poll, last, CLOCK)
    async with asyncio.timeout(5):
        return [event async for event in events if event is not None]


def told(events: list[TurnEvent]) -> list[tuple[str, int, int, str]]:
    return [(event.kind, event.attempt, event.index, event.text) for event in events]


async def test_a_listener_hears_everything_in_order() -> None:
    hub = StreamHub()
    with hub.hold(RUNNING.id) as stream:
        listening = asyncio.create_task(collect(hub))
        stream.begin(1)
        stream.add("one ")
        await asyncio.sleep(0)
        stream.add("two")
        stream.finish(DONE)
        events = await listening
    assert told(events) == [
        ("accepted", 0, 0, ""),
        ("delta", 1, 1, "one "),
        ("delta", 1, 2, "two"),
        ("completed", 1, 3, ""),
    ]
    assert events[-1].turn == DONE


async def test_a_resumed_listener_hears_only_the_rest_also_after_the_end() -> None:
    hub = StreamHub()
    with hub.hold(RUNNING.id) as stream:
        stream.begin(1)
        stream.add("one ")
        stream.add("two")
        stream.finish(DONE)
    assert told(await collect(hub, (1, 1))) == [("delta", 1, 2, "two"), ("completed", 1, 3, "")]
    assert told(await collect(hub, (1, 2))) == [("completed", 1, 3, "")]


async def test_a_new_attempt_takes_back_what_was_heard() -> None:
    hub = StreamHub()
    with hub.hold(RUNNING.id) as stream:
        stream.begin(1)
        stream.add("wrong")
        stream.restart()
        stream.add("one two")
        stream.finish(DONE)
        assert told(await collect(hub, (1, 1)))[0] == ("reset", 2, 0, "")
        assert told(await collect(hub)) == [
            ("accepted", 0, 0, ""),
            ("delta", 2, 1, "one two"),
            ("completed", 2, 2, ""),
        ]


async def test_a_turn_that_ended_elsewhere_is_told_whole() -> None:
    assert told(await collect(StreamHub(), (1, 4), DONE)) == [
        ("reset", 2, 0, ""),
        ("delta", 2, 1, "one two"),
        ("completed", 2, 2, ""),
    ]
    assert told(await collect(StreamHub(), None, DONE)) == [
        ("accepted", 0, 0, ""),
        ("delta", 1, 1, "one two"),
        ("completed", 1, 2, ""),
    ]


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (TurnStatus.COMPLETED, "completed"),
        (TurnStatus.FALLBACK, "completed"),
        (TurnStatus.FAILED, "failed"),
        (TurnStatus.CANCELLED, "failed"),
    ],
)
async def test_the_last_event_tells_how_the_turn_ended(status: TurnStatus, kind: str) -> None:
    assert (await collect(StreamHub(), None, replace(DONE, status=status)))[-1].kind == kind


async def test_a_closing_process_ends_the_stream_without_an_outcome() -> None:
    hub = StreamHub()
    listening = asyncio.create_task(collect(hub))
    while len(hub) == 0:
        await asyncio.sleep(0)
    hub.close()
    assert [event.kind for event in await listening] == ["accepted"]


async def test_the_wait_ends_with_the_outcome_or_with_what_stands_then() -> None:
    stream = TurnStream()
    assert (await watch_outcome(RUNNING, stream, still_running, 0.05, CLOCK)).status is TurnStatus.RUNNING
    waiting = asyncio.create_task(watch_outcome(RUNNING, stream, still_running, 5, CLOCK))
    await asyncio.sleep(0)
    stream.finish(DONE)
    assert await waiting == DONE


async def test_an_outcome_of_another_process_is_found_by_asking_the_store_through_outages() -> None:
    answers = iter([StoreUnavailable(Reason.CONNECTION_REFUSED, "down"), DONE])

    async def poll() -> TurnRecord:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert await watch_outcome(RUNNING, TurnStream(), poll, 5, CLOCK) == DONE


def test_streams_leave_memory_after_their_last_holder_unless_small_and_finished() -> None:
    hub = StreamHub()
    with hub.hold(uuid4()), hub.hold(RUNNING.id) as stream:
        stream.finish(DONE)
        stream.add("x" * (KEPT_CHARS + 1))
    assert len(hub) == 0
    with hub.hold(RUNNING.id) as again:
        assert again.outcome is None


def test_attempt_numbers_rise_with_every_takeover() -> None:
    assert first_attempt(1) == 1
    assert first_attempt(2) > first_attempt(1) + 1000 * 16


def test_events_on_the_wire() -> None:
    turn_id = UUID(int=7)
    wire = encode_event(turn_id, TurnEvent("delta", 1, 3, "zwei\nZeilen\u2028")).decode()
    head, data = wire.removesuffix("\n\n").rsplit("\n", 1)
    assert head == f"id: {turn_id}:1:3\nevent: delta"
    assert json.loads(data.removeprefix("data: ")) == {
        "turnId": str(turn_id),
        "attempt": 1,
        "index": 3,
        "text": "zwei\nZeilen\u2028",
    }
    final = encode_event(turn_id, TurnEvent("completed", 1, 4, turn=DONE)).decode()
    body = json.loads(final.split("data: ")[1])
    assert (body["turn"]["status"], body["reply"]) == ("completed", {"content": "one two"})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"{UUID(int=7)}:1:3", (1, 3)),
        (f" {UUID(int=7)}:0:0 ", (0, 0)),
        (f"{UUID(int=8)}:1:3", None),
        (f"{UUID(int=7)}:1", None),
        (f"{UUID(int=7)}:-1:3", None),
        (f"{UUID(int=7)}:1:" + "9" * 5000, None),
        (f"{UUID(int=7)}:1:²", None),
        ("", None),
    ],
)
def test_last_event_ids_that_mean_nothing_start_from_the_beginning(text: str, expected: tuple[int, int] | None) -> None:
    assert parse_event_id(UUID(int=7), text) == expected
