"""The lines of `abide status`."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from agent_api.conditions import Reason
from agent_cli.cluster.agents import Happening, parse_events, silence
from agent_cli.operate.advice import next_command
from agent_cli.operate.status import LINES_MAX, describe, fleet_row, render_status, timeline
from agent_cli.output import Cell

GOOD = {"Serving", "Valid", "UpToDate", "AllWell", "Connected", "Reachable", "NotSuspended", "NotServing"}
TIMES = "2026-01-02T14:02:11Z"
NOW = datetime(2026, 1, 2, 15, 0, tzinfo=UTC)


def condition(kind: str, status: str, reason: str, message: str = "") -> dict[str, Any]:
    return {"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": TIMES}


HEALTHY = [
    condition("Ready", "True", "Serving", "Serving since 14:02:11Z."),
    condition("Accepted", "True", "Valid"),
    condition("Progressing", "False", "UpToDate"),
    condition("Degraded", "False", "AllWell"),
    condition("StateStoreReady", "True", "Connected"),
    condition("ModelReachable", "True", "Reachable"),
    condition("Suspended", "False", "NotSuspended"),
]
BROKEN = [
    condition("Ready", "False", "StateStoreUnreachable", "Postgres pg.shop:5432 refuses connections since 14:02:11Z."),
    condition("Accepted", "Unknown", "Unknown", "a"),
    condition("Progressing", "True", "RollingOut", "b"),
    condition("Degraded", "True", "ProbeFailing", "c"),
    condition("StateStoreReady", "False", "ConnectionRefused", "d\nsecond line"),
    condition("ModelReachable", "False", "Unknown", "e"),
    condition("ChannelsReady", "False", "Unknown", "f"),
    condition("ToolsReady", "False", "Unknown", "g"),
    condition("Suspended", "True", "Suspended", "h"),
]


def agent(conditions: list[dict[str, Any]], **status: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": "assistant", "namespace": "shop", "generation": 3},
        "status": {
            "observedGeneration": 3,
            "conditions": conditions,
            "desiredReplicas": 1,
            "readyReplicas": 1,
            "endpoint": "http://agent-assistant.shop.svc:8080",
            "model": {"configured": "echo/echo", "answering": "echo/echo"},
            "revision": {"current": "8f00aa11bb", "ready": "8f00aa11bb"},
            "sessions": {"active": 1, "total": 5},
        }
        | status,
    }


def test_a_healthy_agent_shows_in_few_lines_what_it_is_and_how_to_talk_to_it() -> None:
    lines = render_status(agent(HEALTHY))
    assert lines[0] == "Agent shop/assistant: Ready=True since 2026-01-02T14:02:11Z, Serving"
    text = "\n".join(lines)
    endpoint = "http://agent-assistant.shop.svc:8080"
    for part in ("echo/echo", "1 of 1 ready", "5 kept, 1 in memory", endpoint, "timeline"):
        assert part in text
    assert lines[-1].endswith('abide chat assistant -n shop "hello"')
    assert "old" not in text


def test_the_worst_status_still_fits_and_keeps_the_next_command() -> None:
    error = {"time": TIMES, "type": "ModelUnavailable", "message": "x" * 1000}
    moments = [Happening(NOW, "Restarted", "again")] * 30
    told = agent([condition("Ready", "False", "CrashLoop", "word " * 200), *BROKEN[1:], *HEALTHY[2:4]], lastError=error)
    lines = render_status(told, width=80, old="status is old: the operator is silent since now", moments=moments)
    assert len(lines) == LINES_MAX
    assert all(len(line) <= 80 and "\n" not in line for line in lines[:-1])
    assert lines[-1].endswith("abide logs assistant -n shop --previous")
    assert any("status is old" in line for line in lines)
    assert sum(line.startswith("  word") for line in lines) == 4


def test_a_message_is_shown_whole_where_the_terminal_is_narrow() -> None:
    message = "Postgres pg.shop:5432 refuses connections since 14:02:11Z. Messages are refused. Start Postgres again."
    lines = render_status(agent([condition("Ready", "False", "StateStoreUnreachable", message)]), width=60)
    assert " ".join(line.strip() for line in lines[1:3]) == message


def test_a_failed_rollout_and_a_fallback_are_not_called_well() -> None:
    failed = condition("Progressing", "False", "RolloutFailed", "Revision 9 does not start; revision 8 keeps serving.")
    fallback = condition("ModelReachable", "True", "FallbackOnly", "openai answers 401.")
    lines = render_status(agent([HEALTHY[0], failed, fallback, HEALTHY[1]]))
    assert any(line.split()[:3] == ["Progressing", "False", "RolloutFailed:"] for line in lines)
    assert any(line.split()[:3] == ["ModelReachable", "True", "FallbackOnly:"] for line in lines)
    assert "abide rollback assistant -n shop" in lines[-1]


def test_of_an_agent_that_does_not_serve_degraded_says_nothing() -> None:
    lines = render_status(agent([BROKEN[0], condition("Degraded", "False", "NotServing")]), moments=[])
    assert not any("Degraded" in line for line in lines)


def test_a_status_about_an_older_spec_says_so() -> None:
    assert any("spec 3 is not processed yet" in line for line in render_status(agent(HEALTHY, observedGeneration=2)))
    assert not any("not processed" in line for line in render_status(agent(HEALTHY)))


def test_an_agent_without_status_points_to_the_doctor() -> None:
    lines = render_status({"metadata": {"name": "a", "namespace": "b", "generation": 1}})
    assert lines[0] == "Agent b/a: no status yet"
    assert lines[-1].endswith("abide doctor")


@pytest.mark.parametrize(
    ("reason", "command"),
    [
        ("Suspended", "abide start assistant -n shop --wait"),
        ("ScaledToZero", "abide start assistant -n shop --wait"),
        ("SecretMissing", "kubectl describe agents.abide.dev assistant -n shop"),
        ("CrashLoop", "abide logs assistant -n shop --previous"),
        ("StateStoreUnreachable", "abide doctor"),
        ("SomethingNew", "abide logs assistant -n shop --since 10m"),
    ],
)
def test_the_next_command_fits_the_reason(reason: str, command: str) -> None:
    assert next_command(agent([condition("Ready", "False", reason)])) == command


@pytest.mark.parametrize("reason", [one for one in Reason if one not in GOOD])
def test_every_reason_for_trouble_has_a_next_command(reason: Reason) -> None:
    trouble = agent([condition("Ready", "False", reason)])
    trouble["spec"] = {"models": [{"apiKeySecretRef": {"name": "llm", "key": "openai"}}]}
    command = next_command(trouble)
    assert command.startswith(("abide ", "kubectl "))
    assert "{" not in command


def test_a_missing_key_is_put_there_without_showing_it() -> None:
    told = agent([condition("Ready", "False", "SecretMissing", 'spec.models[0]: Secret shop/llm has no key "openai".')])
    told["spec"] = {"models": [{"provider": "openai", "apiKeySecretRef": {"name": "llm", "key": "openai"}}]}
    make = "kubectl create secret generic llm -n shop --from-file=openai=/dev/stdin"
    # The other keys of a Secret that is there stay: `kubectl apply` would remove those an earlier apply wrote.
    merge = f"{make} --dry-run=client -o yaml | kubectl patch secret llm -n shop --patch-file=/dev/stdin"
    assert next_command(told) == merge
    told["status"]["conditions"] = [
        condition("Ready", "False", "SecretMissing", "spec.models[0].apiKeySecretRef: Secret shop/llm does not exist.")
    ]
    assert next_command(told) == make


def test_a_missing_secret_of_a_variable_is_put_there_too() -> None:
    message = 'spec.runtime.env[0].valueFrom.secretKeyRef: Secret shop/proxy has no key "token".'
    told = agent([condition("Ready", "False", "SecretMissing", message)])
    told["spec"] = {"runtime": {"env": [{"valueFrom": {"secretKeyRef": {"name": "proxy", "key": "token"}}}]}}
    assert next_command(told).startswith("kubectl create secret generic proxy -n shop --from-file=token=/dev/stdin")


def test_a_refused_header_of_a_tool_is_put_there_and_anything_else_is_read_about() -> None:
    headers = [{"name": "Authorization", "secretKeyRef": {"name": "gh", "key": "bearer"}}]
    spec = {"tools": [{"name": "github", "type": "MCP", "mcp": {"url": "https://x/mcp", "headersFrom": headers}}]}
    for said, command in (
        ("Put a valid value into Secret shop/gh, key bearer;", "kubectl create secret generic gh -n shop"),
        ("Check the server and spec.tools[0].mcp.url", "abide errors assistant -n shop --since 1h"),
    ):
        found = {**agent([condition("Ready", "True", "ToolDown", f"Tool github is down. {said}")]), "spec": spec}
        assert next_command(found).startswith(command)


def test_a_missing_prompt_names_its_config_map() -> None:
    told = agent([condition("Ready", "False", "ConfigMapMissing")])
    told["spec"] = {"systemPromptFrom": {"configMapKeyRef": {"name": "prompts", "key": "bot"}}}
    make = "kubectl create configmap prompts -n shop --from-file=bot=prompt.txt"
    assert next_command(told) == make
    told["status"]["conditions"] = [
        condition("Ready", "False", "ConfigMapMissing", 'ConfigMap shop/prompts has no key "bot".')
    ]
    assert next_command(told) == (
        f"{make} --dry-run=client -o yaml | kubectl patch configmap prompts -n shop --patch-file=/dev/stdin"
    )


def test_the_timeline_joins_conditions_and_events_newest_first() -> None:
    moments = timeline(
        agent(HEALTHY),
        [Happening(NOW, "Restarted", "by hand"), Happening(NOW - timedelta(days=1), "Serving", "told already")],
    )
    assert (moments[0].what, moments[0].at) == ("Restarted", NOW)
    assert "Ready=True Serving" in [moment.what for moment in moments]
    assert "Serving" not in [moment.what for moment in moments]


def test_a_reason_that_changed_alone_has_the_time_of_its_event() -> None:
    long_ago = datetime.fromisoformat(TIMES)
    broken = agent([condition("Ready", "False", "OOMKilled"), condition("Accepted", "True", "Valid")])
    starting = Happening(long_ago + timedelta(seconds=1), "Starting", "…")
    moments = timeline(broken, [Happening(long_ago + timedelta(seconds=8), "OOMKilled", "…"), starting])
    assert [(moment.what, moment.at - long_ago) for moment in moments] == [
        ("Ready=False OOMKilled", timedelta(seconds=8)),
        ("Starting", timedelta(seconds=1)),
        ("Accepted=True Valid", timedelta()),
    ]


def test_an_event_has_the_newest_time_it_names() -> None:
    events = [
        {"reason": "A", "eventTime": TIMES, "series": {"lastObservedTime": "2026-01-02T16:00:00Z"}},
        {"reason": "B", "eventTime": TIMES},
        {"reason": "C"},
    ]
    assert [(one.what, one.at.hour) for one in parse_events(events)] == [("A", 16), ("B", 14)]


def operator(available: int) -> dict[str, Any]:
    conditions = [{"type": "Available", "status": "False", "lastTransitionTime": TIMES}]
    return {"status": {"availableReplicas": available, "conditions": conditions}}


def test_a_status_is_old_only_where_something_says_so() -> None:
    well = agent(HEALTHY)
    assert silence(well, [operator(1)], NOW) == ""
    assert silence(well, None, NOW) == ""  # who may not see the operator is not told stories
    assert silence(well, [operator(0)], NOW) == f"status is old: the operator is silent since {TIMES}"
    assert "no operator is installed" in silence(well, [], NOW)
    behind = agent(HEALTHY, observedGeneration=2)
    written = {"manager": "kubectl", "time": "2026-01-02T14:59:00Z"}
    behind["metadata"]["managedFields"] = [written, {"subresource": "status", "time": "2026-01-02T14:59:59Z"}]
    assert silence(behind, [operator(1)], NOW).endswith("since the spec was changed at 2026-01-02T14:59:00Z")
    assert silence(behind, [operator(1)], NOW - timedelta(seconds=55)) == ""


def test_the_table_and_the_answer_for_programs() -> None:
    degraded = agent([HEALTHY[0], condition("Degraded", "True", "ServingOnFallback")])
    row = fleet_row(degraded, NOW)
    assert row[:3] == ["assistant", Cell("True", "green"), "Serving, ServingOnFallback"]
    twice = agent([condition("Ready", "True", "SecretMissing"), condition("Degraded", "True", "SecretMissing")])
    assert fleet_row(twice, NOW)[2] == "SecretMissing"
    told = describe(degraded)
    assert set(told) == {
        "namespace", "name", "ready", "reason", "message", "since", "old", "conditions", "model", "replicas", "suspend",
        "revision", "sessions", "endpoint", "runtimeVersion", "lastError", "observedAt", "next",
    }  # fmt: skip
    assert told["revision"] == {"current": "8f00aa11bb", "ready": "8f00aa11bb"}
