"""The Agent as a citizen of the API: explain, columns, names, subresources, merging of status."""

import json
from typing import Any

import pytest

from tests.integration.agent_api.conftest import ROOT, Kubectl
from tests.unit.agent_api.cases import BASE, as_json, put

NOW = "2026-01-02T03:04:05Z"
STATUS: dict[str, Any] = {
    "observedGeneration": 1,
    "conditions": [
        {"type": "Ready", "status": "True", "reason": "Serving", "message": "All well.", "lastTransitionTime": NOW},
        {"type": "Accepted", "status": "True", "reason": "Valid", "lastTransitionTime": NOW},
    ],
    "desiredReplicas": 1,
    "readyReplicas": 1,
    "selector": "abide.dev/agent=assistant",
    "endpoint": "http://agent-assistant.default.svc:8080",
    "revision": {"current": "0123456789", "ready": "0123456789"},
    "model": {"configured": "echo/echo", "answering": "echo/echo"},
    "sessions": {"active": 1, "total": 3},
    "lastError": {"time": NOW, "type": "ModelError", "message": "went wrong"},
}


@pytest.fixture
def agent(kubectl: Kubectl) -> Any:
    """An Agent called assistant with a status, removed afterwards."""
    kubectl("apply", "-f", "-", stdin=as_json(BASE))
    kubectl("patch", "ag", "assistant", "--subresource=status", "--type=merge", "-p", json.dumps({"status": STATUS}))
    yield "assistant"
    kubectl("delete", "agents.abide.dev", "--all", "--wait=true", "--timeout=30s")


def test_the_crd_is_established_without_complaints(kubectl: Kubectl) -> None:
    crd = json.loads(kubectl("get", "crd", "agents.abide.dev", "-o", "json").stdout)
    conditions = {condition["type"]: condition["status"] for condition in crd["status"]["conditions"]}
    assert conditions == {"NamesAccepted": "True", "Established": "True"}


def test_applying_the_crd_again_changes_nothing(kubectl: Kubectl) -> None:
    assert "unchanged" in kubectl("apply", "-f", str(ROOT / "crds")).stdout


def test_explain_tells_about_every_level(kubectl: Kubectl) -> None:
    assert "forgets no acknowledged message" in " ".join(kubectl("explain", "agents.abide.dev").stdout.split())
    explained = kubectl("explain", "agents.abide.dev.spec.models").stdout
    assert "-required-" in explained
    assert "\n  enum: openai, " in explained  # a list shows the first four
    provider = kubectl("explain", "agents.abide.dev.spec.models.provider").stdout
    values = provider.partition("ENUM:")[2].partition("DESCRIPTION:")[0].split()
    assert values == ["openai", "openai-compatible", "anthropic", "google", "echo", "scripted"]
    assert "Most messages given to the model" in kubectl("explain", "ag.spec.history.limit").stdout


def test_columns_show_status(kubectl: Kubectl, agent: str) -> None:
    header, row = kubectl("get", "agents.abide.dev").stdout.splitlines()
    assert header.split() == ["NAME", "READY", "REASON", "MODEL", "DESIRED", "UP", "SESSIONS", "AGE"]
    assert row.split()[:-1] == ["assistant", "True", "Serving", "echo/echo", "1", "1", "3"]


def test_wide_columns_show_more(kubectl: Kubectl, agent: str) -> None:
    header, row = kubectl("get", "ag", "-o", "wide").stdout.splitlines()
    assert header.split()[8:] == ["ANSWERING", "REVISION", "ENDPOINT", "LAST", "ERROR"]
    assert row.split()[8:] == ["echo/echo", "0123456789", "http://agent-assistant.default.svc:8080", "went", "wrong"]


def test_the_category_lists_agents(kubectl: Kubectl, agent: str) -> None:
    assert kubectl("get", "abide", "-o", "name").stdout.split() == ["agent.abide.dev/assistant"]


def test_agents_can_be_selected_by_field(kubectl: Kubectl, agent: str) -> None:
    kubectl("apply", "-f", "-", stdin=as_json(put(BASE, ("metadata.name", "resting"), ("spec.suspend", True))))
    found = kubectl("get", "ag", "--field-selector", "spec.suspend=true", "-o", "name").stdout
    assert found.split() == ["agent.abide.dev/resting"]


def test_scale_reads_and_writes_replicas(kubectl: Kubectl, agent: str) -> None:
    scale = json.loads(kubectl("get", "ag", agent, "--subresource=scale", "-o", "json").stdout)
    assert scale["spec"]["replicas"] == 1
    assert scale["status"] == {"replicas": 1, "selector": "abide.dev/agent=assistant"}
    kubectl("scale", "ag", agent, "--replicas=0")
    assert kubectl("get", "ag", agent, "-o", "jsonpath={.spec.replicas}").stdout == "0"
    refused = kubectl("scale", "ag", agent, "--replicas=101", check=False)
    assert "spec.replicas" in refused.stderr
    assert "should be less than or equal to 100" in refused.stderr


def test_a_new_agent_has_no_invented_status(kubectl: Kubectl) -> None:
    done = kubectl(
        "apply", "--dry-run=server", "-o", "json", "-f", "-", stdin=as_json(put(BASE, ("status.endpoint", "x")))
    )
    assert "status" not in json.loads(done.stdout)


def test_wait_works_on_conditions(kubectl: Kubectl, agent: str) -> None:
    assert "condition met" in kubectl("wait", "--for=condition=Ready", f"ag/{agent}", "--timeout=10s").stdout


def test_writers_of_different_conditions_do_not_overwrite_each_other(kubectl: Kubectl, agent: str) -> None:
    for manager, kind in (("one", "Degraded"), ("two", "Progressing")):
        condition = {"type": kind, "status": "False", "reason": "AllWell", "lastTransitionTime": NOW}
        kubectl(
            "apply", "--server-side", f"--field-manager={manager}", "--subresource=status", "-f", "-",
            stdin=as_json({**put(BASE, ("spec", None)), "status": {"conditions": [condition]}}),
        )  # fmt: skip
    types = kubectl("get", "ag", agent, "-o", "jsonpath={.status.conditions[*].type}").stdout.split()
    assert sorted(types) == ["Accepted", "Degraded", "Progressing", "Ready"]


def test_two_conditions_of_one_type_are_refused(kubectl: Kubectl, agent: str) -> None:
    twice = json.dumps({"status": {"conditions": [STATUS["conditions"][0]] * 2}})
    done = kubectl("patch", "ag", agent, "--subresource=status", "--type=merge", "-p", twice, check=False)
    assert "Duplicate value" in done.stderr
