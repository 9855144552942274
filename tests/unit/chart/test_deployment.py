"""What `make up` decides and says, from the JSON that kubectl and helm print."""

import json
from pathlib import Path
from typing import Any

import pytest

from tools.deployment import (
    AgentState,
    Release,
    agent_state,
    change_in_words,
    chart_fingerprint,
    image_values,
    is_ready,
    next_steps,
    parse_image_tags,
    parse_release,
    pods_in_words,
)


def test_a_fingerprint_changes_with_any_file_and_any_value(tmp_path: Path) -> None:
    (tmp_path / "templates").mkdir()
    (tmp_path / "Chart.yaml").write_text("a")
    (tmp_path / "templates" / "b.yaml").write_text("b")
    values: dict[str, Any] = {"image": {"tag": "1"}}
    first = chart_fingerprint(tmp_path, values)
    assert chart_fingerprint(tmp_path, {"image": {"tag": "1"}}) == first
    assert chart_fingerprint(tmp_path, {"image": {"tag": "2"}}) != first
    (tmp_path / "templates" / "b.yaml").write_text("c")
    second = chart_fingerprint(tmp_path, values)
    (tmp_path / "templates" / "b.yaml").rename(tmp_path / "templates" / "c.yaml")
    assert len({first, second, chart_fingerprint(tmp_path, values)}) == 3


def test_tags_of_built_images_become_values() -> None:
    said = (
        "runtime abide/runtime:0.1.0-aaa\noperator registry:5000/abide/operator:0.1.0-bbb\npostgres abide/postgres:p\n"
    )
    tags = parse_image_tags(said)
    assert tags == {"runtime": "0.1.0-aaa", "operator": "0.1.0-bbb", "postgres": "p"}
    assert image_values(tags, {}) == {
        "operator": {"image": {"tag": "0.1.0-bbb"}},
        "runtime": {"image": {"tag": "0.1.0-aaa"}},
        "postgres": {"embedded": {"image": {"tag": "p"}}},
    }


def test_the_environment_says_where_a_foreign_cluster_pulls_from() -> None:
    environ = {"ABIDE_IMAGE_REGISTRY": "registry.example.com", "ABIDE_IMAGE_TAG": ""}
    assert image_values({}, environ) == {"image": {"registry": "registry.example.com"}}
    assert image_values({}, {}) == {}


@pytest.mark.parametrize(
    ("status", "interrupted"),
    [("deployed", False), ("failed", False), ("pending-install", True), ("pending-upgrade", True)],
)
def test_a_release_tells_whether_helm_was_killed_in_the_middle(status: str, interrupted: bool) -> None:
    found = parse_release(json.dumps({"info": {"status": status, "description": "d"}}))
    assert (found, found.is_interrupted) == (Release(status, "d"), interrupted)


def workload(**status: int) -> dict[str, Any]:
    return {"metadata": {"generation": 2}, "spec": {"replicas": 1}, "status": status}


def test_a_workload_is_ready_when_its_present_spec_is() -> None:
    assert is_ready(workload(observedGeneration=2, updatedReplicas=1, readyReplicas=1))
    assert not is_ready(workload(observedGeneration=1, updatedReplicas=1, readyReplicas=1))
    assert not is_ready(workload(observedGeneration=2, updatedReplicas=0, readyReplicas=1))
    assert not is_ready(workload(observedGeneration=2))


def pod(name: str, *, ready: bool = False, **status: Any) -> dict[str, Any]:
    conditions = [{"type": "Ready", "status": str(ready)}, *status.pop("conditions", [])]
    return {"metadata": {"name": name}, "status": {"conditions": conditions, **status}}


def test_pods_that_are_not_ready_say_why() -> None:
    waiting = {"ready": False, "state": {"waiting": {"reason": "ErrImagePull", "message": "no such host"}}}
    unscheduled = [{"type": "PodScheduled", "status": "False", "message": "0/1 nodes are available"}]
    pods = [
        pod("fine", ready=True),
        pod("image", containerStatuses=[waiting]),
        pod("slow", containerStatuses=[{"ready": False, "state": {"running": {}}}]),
        pod("homeless", phase="Pending", conditions=unscheduled),
        {"metadata": {"name": "old", "deletionTimestamp": "now"}},
    ]
    assert pods_in_words(pods) == (
        "image: ErrImagePull no such host, slow: running, not ready yet, homeless: 0/1 nodes are available, old: ending"
    )


def agent(generation: int, observed: int, status: str = "True") -> dict[str, Any]:
    ready = {"type": "Ready", "status": status, "reason": "Serving", "message": "By echo/echo."}
    return {"metadata": {"generation": generation}, "status": {"observedGeneration": observed, "conditions": [ready]}}


def test_an_agent_is_ready_for_its_present_generation_only() -> None:
    assert agent_state(agent(2, 2)) == AgentState(True, "Serving", "By echo/echo.")
    assert agent_state(agent(2, 2, "False")).is_ready is False
    assert agent_state(agent(2, 1)).reason == "Waiting"
    assert agent_state({"metadata": {"generation": 1}}).reason == "Waiting"


def test_an_apply_is_told_by_what_it_did() -> None:
    def at(generation: int) -> list[dict[str, Any]]:
        return [{"metadata": {"uid": "u", "generation": generation}}]

    said = [change_in_words([], at(1)), change_in_words(at(1), at(1)), change_in_words(at(1), at(2))]
    assert said == ["created", "unchanged", "changed"]


def test_next_steps_can_be_pasted() -> None:
    told = next_steps("/tmp/config", ["/a", "/b"], "/repository")
    assert "export KUBECONFIG=/tmp/config PATH=/a:/b:$PATH" in told
    assert """-d '{"content": "hello"}'""" in told
    assert "{{.data.key | base64decode}}" in told
