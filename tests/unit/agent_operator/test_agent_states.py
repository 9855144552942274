"""Metrics about Agents follow their status, with a bounded number of series and without reading what did not change."""

import json
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from agent_api.conditions import ConditionType
from agent_operator.keys import AgentKey
from agent_operator.telemetry.agents import MOST_SERIES, AgentState, AgentStates

KEY = AgentKey("shop", "desk")


def state(version: int, key: AgentKey = KEY, **status: Any) -> AgentState:
    return key, version, json.dumps({"status": status}).encode()


def condition(kind: str, status: str, reason: str) -> dict[str, str]:
    return {"type": kind, "status": status, "reason": reason, "message": "…"}


def read(states: AgentStates) -> dict[tuple[str, ...], float]:
    return {
        (sample.name, *(value for name, value in sorted(sample.labels.items()) if name != "agent_namespace")):
        sample.value
        for family in text_string_to_metric_families(states.render())
        for sample in family.samples
    }  # fmt: skip


def test_an_agent_shows_its_conditions_replicas_and_build() -> None:
    states = AgentStates()
    conditions = [
        condition("Ready", "False", "OOMKilled"),
        condition("Accepted", "True", "Valid"),
        condition("StateStoreReady", "Unknown", "Unknown"),
    ]
    agent = state(
        1, conditions=conditions, desiredReplicas=2, readyReplicas=0, model={"configured": "openai/large"},
        revision={"current": "abc", "ready": "abb"}, runtimeVersion="1.2.3",
    )  # fmt: skip
    states.read_from(lambda: [agent])
    assert read(states) == {
        ("abide_agent_ready", "desk", "OOMKilled"): 0,
        ("abide_agent_condition", "desk", "Valid", "Accepted"): 1,
        ("abide_agent_condition", "desk", "Unknown", "StateStoreReady"): -1,
        ("abide_agent_replicas_desired", "desk"): 2,
        ("abide_agent_replicas_ready", "desk"): 0,
        ("abide_agent_info", "desk", "openai/large", "abc", "1.2.3"): 1,
    }


def test_an_agent_without_status_is_not_known_to_serve() -> None:
    states = AgentStates()
    states.read_from(lambda: [state(1)])
    assert read(states)["abide_agent_ready", "desk", "Unknown"] == -1


def test_a_changed_reason_replaces_the_series_and_a_deleted_agent_leaves_none() -> None:
    states = AgentStates()
    agents = [state(1, conditions=[condition("Ready", "False", "Starting")])]
    states.read_from(lambda: agents)
    assert ("abide_agent_ready", "desk", "Starting") in read(states)
    agents[:] = [state(2, conditions=[condition("Ready", "True", "Serving")])]
    assert [key for key in read(states) if key[0] == "abide_agent_ready"] == [("abide_agent_ready", "desk", "Serving")]
    agents.clear()
    assert read(states) == {}


def test_an_unchanged_agent_is_not_read_again() -> None:
    states = AgentStates()
    agents = [state(1, conditions=[condition("Ready", "True", "Serving")])]
    states.read_from(lambda: agents)
    first = states.render()
    agents[:] = [(KEY, 1, b"not JSON any more")]
    assert states.render() == first


def test_series_of_an_agent_are_bounded_and_reasons_are_escaped() -> None:
    states = AgentStates()
    every = [condition(kind.value, "True", 'odd "\\\n') for kind in ConditionType]
    states.read_from(lambda: [state(1, conditions=every), state(1, AgentKey("shop", "other"), conditions=every)])
    assert len(states.render().splitlines()) == 2 * MOST_SERIES + 2 * len({key[0] for key in read(states)})
    reasons = {
        sample.labels["reason"]
        for family in text_string_to_metric_families(states.render())
        for sample in family.samples
        if "reason" in sample.labels
    }
    assert reasons == {'odd "\\\n'}
