"""Finding an agent in a cluster: every way it can fail is one sentence that names the reason."""

import base64
import json
import stat
from pathlib import Path
from typing import Any

import pytest

from agent_cli.cluster.kubectl import Cluster
from agent_cli.cluster.targets import ClusterTarget, not_ready
from agent_cli.errors import CliError
from agent_cli.talk.client import Clock


def agent(status: str = "True", reason: str = "Serving", message: str = "") -> dict[str, Any]:
    ready = {"type": "Ready", "status": status, "reason": reason, "message": message}
    return {"metadata": {"name": "a", "namespace": "shop"}, "status": {"conditions": [ready]}}


def cluster(
    folder: Path, *, found: dict[str, Any] | None, secret: dict[str, Any] | None = None, forward: str = ""
) -> Cluster:
    """Return a cluster whose kubectl knows one agent, perhaps its Secret, and a way to forward ports."""
    answers = {"agents.abide.dev": found, "secret": secret}
    cases = []
    for resource, answer in answers.items():
        (folder / resource).write_text(json.dumps(answer))
        missing = f"echo 'Error from server (NotFound): {resource} not found' >&2; exit 1"
        cases.append(f"*'get {resource} '*) {'cat ' + str(folder / resource) if answer else missing};;")
    cases.append(f"*port-forward*) {forward or 'exit 1'};;")
    path = folder / "kubectl"
    path.write_text('#!/bin/sh\ncase "$*" in\n' + "\n".join(cases) + "\nesac\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return Cluster(str(path))


class Hours:
    """Time that passes only by sleeping."""

    def __init__(self) -> None:
        self.now = 0.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    @property
    def clock(self) -> Clock:
        return Clock(monotonic=lambda: self.now, sleep=self.sleep)


KEY = {"data": {"key": base64.b64encode(b"the-key").decode()}}
FORWARD = "echo 'Forwarding from 127.0.0.1:41234 -> 8080'; exec sleep 60"


def test_an_agent_that_does_not_exist_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(CliError, match=r"There is no agent 'a' in kubectl's current namespace; .* lists all") as caught:
        ClusterTarget(cluster(tmp_path, found=None), "a").find()
    assert caught.value.exit_code == 1


def test_an_agent_is_reached_with_its_own_key_over_a_forwarded_port(tmp_path: Path) -> None:
    target = ClusterTarget(cluster(tmp_path, found=agent(), secret=KEY, forward=FORWARD), "a")
    try:
        assert str(target.find()) == "shop/a"
        way = target.connect(10)
        assert (way.base_url, way.api_key, way.trust_env) == ("http://127.0.0.1:41234", "the-key", False)
        assert "the-key" not in repr(way)
    finally:
        target.drop()


def test_a_suspended_agent_is_an_error_at_once(tmp_path: Path) -> None:
    hours = Hours()
    target = ClusterTarget(
        cluster(tmp_path, found=agent("False", "Suspended", "Set spec.suspend to false.")), "a", clock=hours.clock
    )
    with pytest.raises(CliError, match=r"^Agent shop/a is not ready: Suspended: Set spec.suspend to false\.$"):
        target.connect(60)
    assert hours.now == 0


def test_a_starting_agent_is_waited_for_until_the_deadline(tmp_path: Path) -> None:
    hours, notes = Hours(), list[str]()
    found = agent("False", "Starting", "The first pod is being started.")
    target = ClusterTarget(cluster(tmp_path, found=found, secret=KEY), "a", clock=hours.clock, note=notes.append)
    with pytest.raises(CliError, match=r"^Agent shop/a is not ready: Starting: The first pod is being started\.$"):
        target.connect(3)
    assert 1 <= hours.now <= 3
    assert notes == ["Agent shop/a is not ready: Starting: The first pod is being started; waiting …"]


def test_a_secret_without_its_key_is_named(tmp_path: Path) -> None:
    target = ClusterTarget(cluster(tmp_path, found=agent(), secret={"data": {}}), "a")
    with pytest.raises(CliError, match="Secret shop/agent-a-api has no usable key `key`"):
        target.connect(10)


def test_an_agent_without_status_points_to_the_doctor() -> None:
    assert "`abide doctor` tells" in str(not_ready({"metadata": {"name": "a", "namespace": "shop"}}))
