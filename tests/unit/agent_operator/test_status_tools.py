"""What status says of tools: a broken one degrades, names its server and its Secret, and never more."""

from datetime import datetime
from typing import Any

from agent_api.v1alpha1 import AgentStatus, Condition, ToolStatus
from agent_api.wire import ToolCheck
from agent_operator.status.observed import Facts, Observation
from agent_operator.status.pods import PodView
from agent_operator.status.summary import build_status, dump_status, parse_status
from tests.unit.agent_operator.makers import at, health, make_agent, make_pod, observe, ready_pod

GITHUB: dict[str, Any] = {
    "name": "github",
    "type": "MCP",
    "mcp": {
        "url": "https://mcp.example.com/mcp",
        "headersFrom": [{"name": "Authorization", "secretKeyRef": {"name": "gh", "key": "bearer"}}],
    },
}
CLOCK: dict[str, Any] = {"name": "time", "type": "Builtin", "builtin": {"name": "Clock"}}
CLOCK_WORKS = ToolCheck(name="time", type="Builtin", ok=True, since=at(-25), tools=["current_time"])


def github(
    ok: bool | None, message: str = "", *, since: datetime | None = None, tools: tuple[str, ...] = ()
) -> ToolCheck:
    """Return what a pod says of the MCP server."""
    reason = "ToolDown" if ok is False else ""
    return ToolCheck(
        name="github", type="MCP", ok=ok, reason=reason, message=message, since=since or at(-10), tools=list(tools)
    )


def seen(*checks: ToolCheck, pods: tuple[PodView, ...] = (), **changes: Any) -> Observation:
    """Return an observation of serving pods of which the first one's heartbeat says this."""
    pods = pods or (ready_pod(),)
    facts = changes.pop("facts", Facts(tools_by_pod={pods[0].name: checks}))
    spec = make_agent(tools=[GITHUB, CLOCK]).spec
    return observe(*pods, facts=facts, tools=tuple(spec.tools), **changes)


def conditions(observation: Observation, previous: AgentStatus | None = None) -> dict[str, Condition]:
    """Return the conditions by type."""
    return {one.type: one for one in build_status(observation, previous or AgentStatus()).conditions}


def short(found: dict[str, Condition]) -> dict[str, str]:
    """Return what the conditions about tools say."""
    return {name: f"{found[name].status}/{found[name].reason}" for name in ("Ready", "Degraded", "ToolsReady")}


def test_working_tools_are_connected_and_listed() -> None:
    observation = seen(github(True, tools=("get_diff", "create_review")), CLOCK_WORKS)
    assert short(conditions(observation)) == {
        "Ready": "True/Serving",
        "Degraded": "False/AllWell",
        "ToolsReady": "True/Connected",
    }
    assert build_status(observation, AgentStatus()).tools == [
        ToolStatus(name="github", type="MCP", ready=True, tools=["get_diff", "create_review"]),
        ToolStatus(name="time", type="Builtin", ready=True, tools=["current_time"]),
    ]


def test_a_tool_that_is_down_degrades_and_leaves_the_agent_ready() -> None:
    found = conditions(seen(github(False, "refuses connections", tools=("get_diff",)), CLOCK_WORKS))
    assert short(found) == {"Ready": "True/ToolDown", "Degraded": "True/ToolDown", "ToolsReady": "False/ToolDown"}
    assert found["ToolsReady"].message == (
        "Tool github (https://mcp.example.com/mcp) refuses connections since 2026-11-20T14:02:01Z. Users get replies "
        "without it. Check the server and spec.tools[0].mcp.url, and that pods may reach it; it is tried again by "
        "itself within 15 s. docs/reasons/ToolDown.md"
    )


def test_a_refused_header_names_its_secret() -> None:
    found = conditions(seen(github(False, "answers 401"), CLOCK_WORKS))
    assert "Put a valid value into Secret shop/gh, key bearer; it is read within 60 s." in found["ToolsReady"].message


def test_one_of_two_pods_without_a_tool_is_counted() -> None:
    pods = (ready_pod("agent-support-1"), ready_pod("agent-support-2"))
    facts = Facts(
        tools_by_pod={
            "agent-support-1": (github(True), CLOCK_WORKS),
            "agent-support-2": (github(False, "answers 500"), CLOCK_WORKS),
        }
    )
    found = conditions(seen(pods=pods, facts=facts, desired=2))
    assert found["ToolsReady"].message.startswith("1 of 2 pods: Tool github")
    assert found["Ready"].message.startswith("1 of 2 pods: Tool github")


def test_several_tools_that_are_down_are_told_in_one_message() -> None:
    broken = ToolCheck(name="time", type="Builtin", ok=False, message="needs memories", since=at(-5))
    found = conditions(seen(github(False, "answers 500"), broken))
    assert "answers 500 since 2026-11-20T14:02:01Z (1 more are down)." in found["ToolsReady"].message


def test_the_newer_word_of_heartbeat_and_readyz_counts() -> None:
    pod = ready_pod()
    answer = health().model_copy(update={"tools": [github(False, "answers 500", since=at(-3)), CLOCK_WORKS]})
    observation = seen(github(True, since=at(-9)), CLOCK_WORKS, pods=(pod,), probes={pod.uid: answer})
    assert short(conditions(observation))["ToolsReady"] == "False/ToolDown"
    newer = seen(github(True, since=at(-1)), CLOCK_WORKS, pods=(pod,), probes={pod.uid: answer})
    assert short(conditions(newer))["ToolsReady"] == "True/Connected"


def test_what_an_earlier_process_of_the_pod_said_counts_for_nothing() -> None:
    stale = github(False, "refuses connections", since=at(-40))
    observation = seen(stale, CLOCK_WORKS)
    assert short(conditions(observation))["ToolsReady"] == "Unknown/Unknown"


def test_what_nobody_knows_any_more_keeps_its_last_value() -> None:
    before = build_status(seen(github(False, "refuses connections"), CLOCK_WORKS), AgentStatus())
    silent = seen(facts=Facts(), pods=(make_pod(running_since=at(-5)),))
    after = build_status(silent, parse_status(dump_status(before)))
    assert {one.type: f"{one.status}/{one.reason}" for one in after.conditions}["ToolsReady"] == "False/ToolDown"
    assert after.tools == before.tools


def test_no_secret_reaches_status() -> None:
    message = "answers 401 to Authorization: Bearer hunter2hunter2hunter2"
    status = build_status(seen(github(False, message), CLOCK_WORKS), AgentStatus())
    assert "hunter2" not in status.model_dump_json()


def test_computing_it_again_changes_nothing() -> None:
    observation = seen(github(False, "refuses connections", tools=("a", "b")), CLOCK_WORKS)
    live = parse_status(dump_status(build_status(observation, AgentStatus())))
    assert build_status(observation, live) == live
