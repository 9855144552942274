"""Settings, watches, facts, Events, migrations: the small parts."""

import asyncio
import sys
from datetime import timedelta
from typing import Any

import pytest

from agent_api.v1alpha1 import AgentStatus
from agent_operator.events import WINDOW_SECONDS, build_event, find_happenings
from agent_operator.health.facts import combine
from agent_operator.kube.port import AGENT, POD, resource_path
from agent_operator.migrations import Migrations
from agent_operator.settings import OperatorSettings, SettingsError
from agent_operator.status.observed import Verdict
from agent_operator.status.summary import build_status
from agent_operator.watches import Watches
from agent_store.ports import ErrorRecord, Heartbeat
from tests.unit.agent_operator.makers import AGENT_ID, NOW, UID, at, make_pod, observe, ready_pod
from tests.unit.agent_operator.virtualtime import run_virtually

AGENT_BODY = {"metadata": {"name": "support", "namespace": "shop", "uid": UID}}


def test_settings_come_from_the_environment() -> None:
    settings = OperatorSettings.from_environ(
        {
            "ABIDE_POSTGRES_URL": "postgresql://a",
            "ABIDE_AGENT_POSTGRES_URL": "postgresql://b",
            "ABIDE_WATCH_NAMESPACES": " shop, web ,shop",
            "ABIDE_PORT": "9000",
            "ABIDE_LOG_LEVEL": "debug",
        }
    )
    assert settings.postgres_url == "postgresql://a"
    assert settings.agent_postgres_url == "postgresql://b"
    assert settings.watch_namespaces == ("shop", "web")
    assert (settings.port, settings.log_level) == (9000, "DEBUG")


def test_agents_get_the_operators_url_unless_they_have_their_own() -> None:
    assert OperatorSettings.from_environ({"ABIDE_POSTGRES_URL": "u"}).agent_postgres_url == "u"


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({}, "ABIDE_POSTGRES_URL is not set"),
        ({"ABIDE_POSTGRES_URL": "u", "ABIDE_PORT": "http"}, "write a whole number from 1 to 65535"),
        ({"ABIDE_POSTGRES_URL": "u", "ABIDE_PORT": "70000"}, "ABIDE_PORT"),
        ({"ABIDE_POSTGRES_URL": "u", "ABIDE_LOG_FORMAT": "xml"}, "write one of json, console"),
    ],
)
def test_wrong_settings_say_what_to_write(environ: dict[str, str], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        OperatorSettings.from_environ(environ)


def test_settings_do_not_show_secrets_when_printed() -> None:
    assert "hunter2" not in repr(OperatorSettings.from_environ({"ABIDE_POSTGRES_URL": "postgresql://a:hunter2@b"}))


def test_watches_are_open_when_each_was_answered_and_age_by_the_quietest() -> None:
    clock = [100.0]
    watches = Watches((AGENT, POD), ("shop", "web"), clock=lambda: clock[0])
    paths = [resource_path(kind, scope) for kind in (AGENT, POD) for scope in ("shop", "web")]
    assert paths[0] == "/apis/abide.dev/v1alpha1/namespaces/shop/agents"
    assert watches.missing == sorted(paths)
    for path in paths[1:]:
        watches.opened(path)
    assert watches.missing == [paths[0]]
    clock[0] = 160.0
    watches.opened(paths[0])
    watches.asked("/api/v1/nodes")
    assert watches.missing == []
    assert watches.age() == 60.0
    run_virtually(watches.wait_open())


def beat(pod: str, seconds: float, **details: Any) -> Heartbeat:
    return Heartbeat(AGENT_ID, pod, at(seconds), details)


def test_heartbeats_of_all_pods_become_one_agents_facts() -> None:
    error = ErrorRecord(AGENT_ID, "ModelUnavailable", "key sk-abcdefghijkl refused", occurred_at=NOW)
    facts = combine(
        [
            beat("b", 5, sessions={"active": 3}, model={"answering": "echo/new"}),
            beat("a", 1, sessions={"active": 2}, model={"answering": "echo/old"}),
            beat("c", 9, sessions={"active": 1}, model={"answering": None}),
        ],
        {AGENT_ID: error},
        {AGENT_ID: 8},
    )[AGENT_ID]
    assert facts.sessions_by_pod == {"a": 2, "b": 3, "c": 1}
    assert (facts.sessions_total, facts.answering) == (8, "echo/new")
    assert facts.last_error is not None
    assert "sk-" not in facts.last_error.message


def test_heartbeats_of_another_version_do_no_harm() -> None:
    facts = combine([beat("a", 1, sessions=7, model="echo"), beat("b", 2)], {}, {})[AGENT_ID]
    assert facts.sessions_by_pod == {"a": 0, "b": 0}
    assert facts.answering is None


def status_of(*pods: Any, before: AgentStatus | None = None, **changes: Any) -> AgentStatus:
    return build_status(observe(*pods, **changes), before or AgentStatus())


def test_events_tell_what_changed_each_reason_once() -> None:
    starting = status_of()
    serving = status_of(ready_pod(), before=starting)
    broken = status_of(make_pod(waiting=("ErrImagePull", "x"), phase="Pending"), before=serving)
    assert [happening.reason for happening in find_happenings(AgentStatus(), starting)] == ["Starting"]
    assert [(happening.reason, happening.normal) for happening in find_happenings(starting, serving)] == [
        ("Serving", True)
    ]
    assert [(happening.reason, happening.normal) for happening in find_happenings(serving, broken)] == [
        ("ImagePullFailed", False)
    ]
    assert list(find_happenings(broken, broken)) == []


def test_an_event_is_within_the_bounds_of_its_api() -> None:
    verdict = Verdict(observe().verdict.reason.__class__.INVALID_SPEC, "x" * 3000)
    (happening,) = find_happenings(AgentStatus(), status_of(verdict=verdict))
    event = build_event(AGENT_BODY, happening, NOW + timedelta(microseconds=5), "operator-1")
    assert len(event["note"]) <= 1024
    assert event["type"] == "Warning"
    assert event["eventTime"] == "2026-11-20T14:02:11.000005Z"
    assert WINDOW_SECONDS == 300


async def run_until_done(script: str) -> Migrations:
    migrations = Migrations({}, command=(sys.executable, "-c", script))
    async with asyncio.timeout(20):
        await migrations.run()
    return migrations


async def test_migrations_are_tried_until_they_succeed(tmp_path: Any) -> None:
    marker = tmp_path / "tried"
    script = (
        f"import pathlib, sys; p = pathlib.Path({str(marker)!r})\n"
        "if not p.exists(): p.touch(); sys.exit('no such host')"
    )
    migrations = await run_until_done(script)
    assert migrations.done
    assert migrations.failures == 1


async def test_a_cancelled_migration_leaves_no_process(tmp_path: Any) -> None:
    pid_file = tmp_path / "pid"
    script = f"import os,pathlib,time; pathlib.Path({str(pid_file)!r}).write_text(str(os.getpid())); time.sleep(600)"
    migrations = Migrations({}, command=(sys.executable, "-c", script))
    task = asyncio.create_task(migrations.run())
    async with asyncio.timeout(20):
        while not pid_file.exists() or not pid_file.read_text():
            await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(ProcessLookupError):
        __import__("os").kill(int(pid_file.read_text()), 0)
    assert not migrations.done
