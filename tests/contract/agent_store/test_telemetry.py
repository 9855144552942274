"""What is written about agents for people."""

import math
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import asyncpg

from agent_store.ports import ErrorRecord, Metric, Owner
from tests.contract.agent_store.scene import Scene


async def test_heartbeat_is_one_current_row_per_pod(scene: Scene, owner: Owner) -> None:
    other = uuid4()
    await scene.store.beat(scene.agent, "pod-1", {"n": 1})
    await scene.store.beat(scene.agent, "pod-1", {"n": 2})
    await scene.store.beat(scene.agent, "pod-2", {"text": "a\0b", "odd": math.nan})
    await scene.store.beat(other, "pod-1", {})
    beats = await scene.store.heartbeats([scene.agent])
    assert [(beat.pod, beat.details) for beat in beats] == [
        ("pod-1", {"n": 2}),
        ("pod-2", {"text": "a\N{REPLACEMENT CHARACTER}b", "odd": None}),
    ]
    assert abs(datetime.now(UTC) - beats[0].at) < timedelta(minutes=1)
    assert {beat.agent_id for beat in await scene.store.heartbeats()} == {scene.agent, other}
    assert await scene.store.heartbeats([]) == []


async def test_last_error_of_each_agent(scene: Scene, owner: Owner) -> None:
    other = Scene(scene.store)
    await other.start()
    now = datetime.now(UTC)
    newest = ErrorRecord(scene.agent, "Late", "second\0", "trace", {"turn": "t"}, now)
    await scene.store.record_error(newest)
    await scene.store.record_error(ErrorRecord(scene.agent, "Early", "first", occurred_at=now - timedelta(days=20)))
    await scene.store.record_error(ErrorRecord(other.agent, "Own", "theirs"))
    errors = await scene.store.last_errors([scene.agent])
    assert set(errors) == {scene.agent}
    assert errors[scene.agent] == ErrorRecord(
        scene.agent, "Late", "second\N{REPLACEMENT CHARACTER}", "trace", {"turn": "t"}, now
    )
    everything = await scene.store.last_errors()
    assert everything[other.agent].message == "theirs"
    assert everything[other.agent].occurred_at is not None
    assert await scene.store.last_errors([uuid4()]) == {}


async def test_errors_are_listed_newest_first_page_by_page(scene: Scene, owner: Owner) -> None:
    other = Scene(scene.store)
    await other.start()
    now = datetime.now(UTC)
    for number in range(7):
        # Two at each moment: the cursor must tell them apart.
        at = now - timedelta(days=number // 2)
        kind = "Even" if number % 2 == 0 else "Odd"
        await scene.store.record_error(
            ErrorRecord(scene.agent, kind, str(number), "trace", {"turnId": str(number)}, occurred_at=at)
        )
    await scene.store.record_error(ErrorRecord(other.agent, "Even", "theirs", occurred_at=now))
    everything = await scene.store.list_errors(scene.agent, before=None, limit=100)
    assert {error.message for error in everything} == {str(number) for number in range(7)}
    times = [error.occurred_at for error in everything if error.occurred_at]
    assert times == sorted(times, reverse=True)
    assert {(error.stack_trace, error.context["turnId"]) for error in everything} == {
        ("", str(number)) for number in range(7)
    }
    pages: list[ErrorRecord] = []
    before = None
    while page := await scene.store.list_errors(scene.agent, before=before, limit=2):
        pages += page
        last = page[-1]
        assert last.occurred_at is not None
        assert last.id is not None
        before = (last.occurred_at, last.id)
    assert pages == everything
    odd = await scene.store.list_errors(scene.agent, error_type="Odd", before=None, limit=100)
    assert [error.message for error in odd] == ["1", "3", "5"]
    assert await scene.store.list_errors(scene.agent, error_type="a\0b", before=None, limit=1) == []
    assert await scene.store.list_errors(uuid4(), before=None, limit=1) == []


async def test_session_counts(scene: Scene, owner: Owner) -> None:
    for name in ("a", "b"):
        await scene.say(owner, session=name)
    assert await scene.store.session_counts([scene.agent]) == {scene.agent: 2}
    assert await scene.store.session_counts() == {scene.agent: 2}
    assert await scene.store.session_counts([uuid4()]) == {}


async def test_metrics_and_events_are_appended(scene: Scene, postgres_url: str) -> None:
    await scene.store.record_metrics([])
    await scene.store.record_metrics(
        [Metric(scene.agent, "message_received", 3.0, {"count": 3}), Metric(scene.agent, "auto_save", 0.5)]
    )
    await scene.store.record_event(scene.agent, "Restarted", "pod replaced", {"pod": "p"})
    await scene.store.record_event(None, "Upgraded", "the operator", {})
    connection = await asyncpg.connect(postgres_url)
    try:
        metrics = await connection.fetch(
            "SELECT agent_id, metric_type, value, metadata FROM abide.agent_metrics ORDER BY metric_type"
        )
        events = await connection.fetch("SELECT agent_id, event_type FROM abide.system_events ORDER BY event_type")
    finally:
        await connection.close()
    assert [tuple(row) for row in metrics] == [
        (scene.agent, "auto_save", 0.5, "{}"),
        (scene.agent, "message_received", 3.0, '{"count": 3}'),
    ]
    assert [tuple(row) for row in events] == [(scene.agent, "Restarted"), (None, "Upgraded")]
