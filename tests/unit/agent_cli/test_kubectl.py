"""What the command says when kubectl complains, with a kubectl that complains on cue."""

import os
import stat
from pathlib import Path

import pytest

from agent_cli.cluster.kubectl import (
    Cluster,
    ForwardFailed,
    ObjectNotFound,
    explain_failure,
    find_kubectl,
    get_object,
    open_port_forward,
)
from agent_cli.errors import CliError


def script(folder: Path, body: str) -> str:
    """Write an executable that stands in for kubectl and return its path."""
    path = folder / "kubectl"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_kubectl_is_taken_from_the_environment_first(tmp_path: Path) -> None:
    path = script(tmp_path, "exit 0")
    assert find_kubectl({"KUBECTL": path, "PATH": "/nowhere"}) == path
    assert find_kubectl({"PATH": str(tmp_path)}) == path


@pytest.mark.parametrize("environ", [{"PATH": "/nowhere"}, {"PATH": "/nowhere", "KUBECTL": "/no/such/kubectl"}])
def test_no_kubectl_is_one_sentence_with_the_remedy(environ: dict[str, str]) -> None:
    with pytest.raises(CliError, match=r"kubectl was not found as .*KUBECTL=/path/to/kubectl") as caught:
        find_kubectl(environ)
    assert len(caught.value.lines) == 1


@pytest.mark.parametrize(
    ("stderr", "expected"),
    [
        (
            'error: the server doesn\'t have a resource type "agents"',
            "This cluster does not know agents.abide.dev: install Abide",
        ),
        (
            'E1120 10:00:00 cache.go:1] "Unhandled"\nThe connection to the server 127.0.0.1:6443 was refused',
            "The cluster cannot be reached: The connection to the server 127.0.0.1:6443 was refused",
        ),
        ("Unable to connect to the server: dial tcp: lookup nowhere: no such host", "The cluster cannot be reached: "),
        (
            'Error from server (Forbidden): secrets "agent-a-api" is forbidden: User "eve" cannot get resource',
            "The cluster forbids this: ",
        ),
        ('error: context "nope" does not exist', 'kubectl: context "nope" does not exist'),
        ("", "kubectl: kubectl failed without a word"),
    ],
)
def test_a_complaint_becomes_one_sentence(stderr: str, expected: str) -> None:
    error = explain_failure(stderr)
    assert len(error.lines) == 1
    assert error.lines[0].startswith(expected)
    assert error.exit_code == 1


def test_an_object_that_does_not_exist_is_told_apart(tmp_path: Path) -> None:
    kubectl = script(tmp_path, """echo 'Error from server (NotFound): agents.abide.dev "a" not found' >&2; exit 1""")
    with pytest.raises(ObjectNotFound):
        get_object(Cluster(kubectl), "agents.abide.dev", "a")


def test_the_users_choices_reach_kubectl(tmp_path: Path) -> None:
    kubectl = script(tmp_path, """printf '{"args": "%s"}' "$*" """)
    cluster = Cluster(kubectl, namespace="shop", context="prod", kubeconfig="/k")
    assert get_object(cluster, "secret", "s")["args"] == (
        "--kubeconfig=/k --context=prod --namespace=shop get secret s --output=json"
    )


@pytest.mark.parametrize("output", ["not json", "[]"])
def test_an_answer_that_is_no_object_is_an_error(tmp_path: Path, output: str) -> None:
    with pytest.raises(CliError, match="kubectl answered no"):
        get_object(Cluster(script(tmp_path, f"echo '{output}'")), "secret", "s")


def test_a_forward_reports_the_port_and_ends_with_its_process(tmp_path: Path) -> None:
    body = """echo 'Forwarding from 127.0.0.1:41234 -> 8080'; exec sleep 60"""
    forward = open_port_forward(Cluster(script(tmp_path, body)), "agent-a", 8080)
    pid = forward._process.pid
    assert forward.port == 41234
    assert forward.is_alive
    forward.close()
    assert not forward.is_alive
    assert not os.path.exists(f"/proc/{pid}")


def test_a_forward_that_cannot_be_made_says_why(tmp_path: Path) -> None:
    body = """echo 'error: unable to forward port because pod is not running. Current status=Pending' >&2; exit 1"""
    with pytest.raises(ForwardFailed, match=r"pod is not running\. Current status=Pending"):
        open_port_forward(Cluster(script(tmp_path, body)), "agent-a", 8080)


def test_a_forward_that_stays_silent_is_given_up_and_ended(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    with pytest.raises(ForwardFailed):
        open_port_forward(
            Cluster(script(tmp_path, f"echo $$ > {pid_file}; exec sleep 60")), "agent-a", 8080, timeout=0.5
        )
    assert not os.path.exists(f"/proc/{pid_file.read_text().strip()}")
