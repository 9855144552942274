"""The lines of `abide status`."""

from typing import Any

import pytest

from agent_cli.status import LINES_MAX, next_command, render_status

TIMES = "2026-01-02T14:02:11Z"


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
    assert lines[0] == "Agent shop/assistant: Ready=True Serving since 2026-01-02T14:02:11Z"
    text = "\n".join(lines)
    for part in ("echo/echo", "1 of 1 ready", "5, 1 of them", "http://agent-assistant.shop.svc:8080", "Accepted=Valid"):
        assert part in text
    assert lines[-1].endswith('abide chat assistant -n shop "hello"')


def test_the_worst_status_still_fits_and_keeps_the_next_command() -> None:
    error = {"time": TIMES, "type": "ModelUnavailable", "message": "x" * 1000}
    lines = render_status(agent([*BROKEN, *HEALTHY[2:4]], lastError=error), width=100)
    assert len(lines) <= LINES_MAX
    assert all(len(line) <= 100 and "\n" not in line for line in lines)
    assert "kubectl logs -n shop deployment/agent-assistant" in lines[-1]
    assert lines[1].strip().startswith("Postgres pg.shop:5432 refuses connections")
    assert any("StateStoreReady" in line and "ConnectionRefused: d second line" in line for line in lines)


def test_a_failed_rollout_and_a_fallback_are_not_called_well() -> None:
    failed = condition("Progressing", "False", "RolloutFailed", "Revision 9 does not start; revision 8 keeps serving.")
    fallback = condition("ModelReachable", "True", "FallbackOnly", "openai answers 401.")
    lines = render_status(agent([HEALTHY[0], failed, fallback, HEALTHY[1]]))
    assert any(line.split()[:3] == ["Progressing", "False", "RolloutFailed:"] for line in lines)
    assert any(line.split()[:3] == ["ModelReachable", "True", "FallbackOnly:"] for line in lines)
    assert [line.split()[2:] for line in lines if "all well" in line] == [["Accepted=Valid"]]


def test_of_an_agent_that_does_not_serve_degraded_says_nothing() -> None:
    lines = render_status(agent([BROKEN[0], condition("Degraded", "False", "NotServing")]))
    assert not any("Degraded" in line for line in lines if "timeline" not in line)


def test_a_status_about_an_older_spec_says_so() -> None:
    assert any("spec 3 is not processed yet" in line for line in render_status(agent(HEALTHY, observedGeneration=2)))
    assert not any("not processed" in line for line in render_status(agent(HEALTHY)))


def test_an_agent_without_status_points_to_the_operator() -> None:
    lines = render_status({"metadata": {"name": "a", "namespace": "b", "generation": 1}})
    assert lines[0] == "Agent b/a: no status yet"
    assert "operator" in lines[-1]


@pytest.mark.parametrize(
    ("reason", "command"),
    [
        (
            "Suspended",
            'kubectl patch agents.abide.dev assistant -n shop --type=merge -p \'{"spec":{"suspend":false}}\'',
        ),
        ("ScaledToZero", "kubectl scale agents.abide.dev assistant -n shop --replicas=1"),
        ("SecretMissing", "kubectl describe agents.abide.dev assistant -n shop"),
        ("CrashLoop", "kubectl logs -n shop deployment/agent-assistant --tail=50"),
    ],
)
def test_the_next_command_fits_the_reason(reason: str, command: str) -> None:
    assert next_command(agent([condition("Ready", "False", reason)])) == command
