"""The whole command line against one agent on a real node, in the order in which somebody on call would use it."""

import json
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.kube import Kube, agent, wait_for

PROGRAMS = Path(sys.executable).parent
NAME = "desk"
REPLIES = [{"provider": "scripted", "parameters": {"replies": ["one", {"error": 500}]}}]


class Cli:
    """`abide` as a user of this cluster runs it, on the agent of this module."""

    def __init__(self, kube: Kube, namespace: str) -> None:
        self.kube = kube
        self.namespace = namespace

    def run(self, *arguments: str, stdin: str = "", code: int = 0) -> "subprocess.CompletedProcess[str]":
        """Run a command in the namespace; its exit code must be `code`."""
        done = subprocess.run(
            [str(PROGRAMS / "abide"), *arguments, "-n", self.namespace],
            env=self.kube.environ,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        assert done.returncode == code, f"abide {' '.join(arguments)}: {done.stderr}{done.stdout}"
        return done

    def ask(self, *arguments: str) -> Any:
        """Return the answer of a reading command."""
        return json.loads(self.run(*arguments, "-o", "json").stdout)


@pytest.fixture(scope="module")
def cli(kube: Kube) -> Iterator[Cli]:
    """An agent that answers once per session and then fails, in a namespace of its own."""
    namespace = f"e2e-{uuid.uuid4().hex[:8]}"
    kube.run("create", "namespace", namespace)
    kube.run("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
    try:
        kube.apply(agent(NAME, models=REPLIES), namespace)
        kube.wait_ready(NAME, namespace)
        yield Cli(kube, namespace)
    finally:
        kube.run("delete", "namespace", namespace, "--wait=false")


def test_chat_sessions_and_state(cli: Cli, tmp_path: Path) -> None:
    assert cli.run("chat", NAME, "hello", "--session", "s1").stdout == "one\n"
    failed = cli.run("chat", NAME, "again", "--session", "s1")
    assert "fallback reply" in failed.stderr
    assert [one["name"] for one in cli.ask("sessions", NAME)["items"]] == ["s1"]
    document = json.dumps({"variables": {"language": "en"}})
    assert "version 1 now" in cli.run("state", "load", NAME, "s2", stdin=document).stdout
    assert cli.ask("state", "show", NAME, "s2")["variables"] == {"language": "en"}
    file = tmp_path / "state.json"
    cli.run("state", "save", NAME, "s2", "-f", str(file))
    assert "version 2 now" in cli.run("state", "load", NAME, "s2", "-f", str(file)).stdout
    assert "is deleted" in cli.run("state", "delete", NAME, "s2").stdout


def test_errors_are_those_of_the_failed_turn(cli: Cli) -> None:
    def of_turns() -> list[dict[str, Any]]:
        return [one for one in cli.ask("errors", NAME)["items"] if one["turnId"]]

    told = wait_for(of_turns, seconds=30, what="the recorded error")
    assert cli.ask("errors", NAME)["source"] == "records"
    assert cli.ask("errors", NAME, "--type", told[0]["type"], "--since", "10m", "--limit", "1")["items"]


def test_status_and_the_plugin_say_the_same(cli: Cli) -> None:
    shown = cli.run("status", NAME).stdout
    assert len(shown.splitlines()) <= 15
    assert f"Agent {cli.namespace}/{NAME}: Ready=True" in shown
    assert "status is old" not in shown
    told = cli.ask("status", NAME)
    assert (told["ready"], told["old"], told["replicas"]["ready"]) == ("True", None, 1)
    assert told["timeline"]
    row = cli.run("status").stdout.splitlines()[1].split()
    assert row[:2] == [NAME, "True"]
    environ = {**cli.kube.environ, "PATH": f"{PROGRAMS}:{cli.kube.environ['PATH']}"}
    plugin = subprocess.run(
        [cli.kube.kubectl, "abide", "status", NAME, "-n", cli.namespace, "-o", "json"],
        env=environ, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert json.loads(plugin.stdout)["name"] == NAME


def test_logs_are_shown_rendered_raw_and_followed(cli: Cli) -> None:
    assert "turn_finished" in cli.run("logs", NAME).stdout
    lines = cli.run("logs", NAME, "-o", "json", "--since", "10m").stdout.splitlines()
    assert any(json.loads(line)["event"] == "turn_finished" for line in lines)
    following = subprocess.Popen(
        [str(PROGRAMS / "abide"), "logs", NAME, "-n", cli.namespace, "-f", "--tail", "1"],
        env=cli.kube.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert following.stdout is not None
        assert following.stdout.readline().strip()
        following.send_signal(signal.SIGINT)
        assert following.wait(30) == 130
    finally:
        following.kill()
        following.communicate(timeout=30)


def test_doctor_finds_the_installation_sound(cli: Cli) -> None:
    told = cli.ask("doctor")
    assert told["ok"] is True
    levels = {one["check"]: one["level"] for one in told["checks"]}
    assert {"kubectl", "cluster", "crd", "operator", "postgres", "agents", "versions"} <= set(levels)
    assert levels["postgres"] == "ok"


def test_a_change_is_seen_and_rolled_back(cli: Cli) -> None:
    first = cli.ask("history", NAME)["items"]
    assert [one["ready"] for one in first] == [True]
    cli.kube.apply(agent(NAME, models=REPLIES, systemPrompt="You are rude."), cli.namespace)

    def rolled_out() -> bool:
        items = cli.ask("history", NAME)["items"]
        return len(items) == 2 and items[0]["current"] and items[0]["ready"]

    wait_for(rolled_out, seconds=90, what="the second revision serves")
    (change,) = cli.ask("diff", NAME)["changes"]
    assert (change["path"], change["to"]) == ("spec.systemPrompt", "You are rude.")
    done = cli.run("rollback", NAME, "--yes", "--wait")
    assert "You are rude." in done.stdout
    assert "Ready=True" in done.stdout
    found = cli.kube.get("agents.abide.dev", NAME, cli.namespace)
    assert found is not None
    assert found["spec"]["systemPrompt"] == "You are brief."
    current = next(one for one in cli.ask("history", NAME)["items"] if one["current"])
    assert current["revision"] == first[0]["revision"]


def test_stop_and_start_keep_the_sessions(cli: Cli) -> None:
    assert "no pods are left after" in cli.run("stop", NAME, "--wait").stdout
    refused = cli.run("chat", NAME, "hello", code=1)
    assert "Suspended" in refused.stderr
    assert cli.ask("status", NAME)["next"] == f"abide start {NAME} -n {cli.namespace} --wait"
    assert cli.ask("errors", NAME)["source"] == "status"
    cli.run("logs", NAME, code=1)
    assert "Ready=True" in cli.run("start", NAME, "--wait").stdout
    assert "s1" in [one["name"] for one in cli.ask("sessions", NAME)["items"]]


def test_completion_knows_the_agent(cli: Cli) -> None:
    words = {"COMP_WORDS": f"abide chat -n {cli.namespace} de", "COMP_CWORD": "4", "_ABIDE_COMPLETE": "complete_bash"}
    done = subprocess.run(
        [str(PROGRAMS / "abide")], env={**cli.kube.environ, **words}, capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert done.stdout.split() == [NAME]
