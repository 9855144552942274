"""`abide logs`: order, rendering, which containers have a log, and following them with a scripted kubectl."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from agent_cli.cluster.kubectl import Cluster
from agent_cli.operate.logs import Line, LogOptions, find_sources, merge, render_line, run_logs

AGENT = {"metadata": {"name": "bot", "namespace": "shop"}}


def line(pod: str, at: str, event: str, **fields: Any) -> Line:
    return Line(pod, json.dumps({"timestamp": at, "level": "info", "event": event, **fields}))


def pod(name: str, state: str, restarts: int = 0) -> dict[str, Any]:
    container = {"name": "runtime", "restartCount": restarts, "state": {state: {}}}
    return {"metadata": {"name": name}, "status": {"containerStatuses": [container]}}


def test_lines_of_several_pods_come_in_the_order_of_time() -> None:
    lines = [line("a", "2026-01-01T00:00:03", "third"), line("b", "2026-01-01T00:00:01", "first"), Line("b", "  trace")]
    assert merge(lines) == [lines[1], lines[2], lines[0]]


def test_a_structured_line_is_rendered_for_people() -> None:
    fields = {"timestamp": "2026-01-31T14:02:11.123456Z", "level": "error", "event": "defect", "part": "engine"}
    more = {"ms": 1.5, "why": "two words", "empty": "", "exception": "Traceback\n  File\x1b[31m"}
    shown = render_line(fields | more)
    head, *trace = shown.split("\n")
    assert head == '14:02:11.123 error   defect part=engine ms=1.5 why="two words"'
    assert trace == ["    Traceback", "      File [31m"]


def test_options_become_those_of_kubectl() -> None:
    assert LogOptions(since="10m").arguments() == ["--container=runtime", "--tail=-1", "--since=10m"]
    assert LogOptions(previous=True, tail=5).arguments() == ["--container=runtime", "--tail=5", "--previous"]


def test_only_containers_that_ran_have_a_log_and_a_restart_is_another_one() -> None:
    sources = find_sources([pod("a", "running", 1), pod("b", "waiting"), pod("c", "terminated")])
    assert [(one.pod, one.restarts, one.running) for one in sources] == [("a", 1, True), ("c", 0, False)]
    assert find_sources([pod("a", "running", 2)])[0] != sources[0]
    assert find_sources([pod("a", "terminated", 1)])[0] == sources[0]


def kubectl(folder: Path, pods: list[dict[str, Any]]) -> Cluster:
    """A program that answers as kubectl does about one agent; following waits until it is ended."""
    (folder / "agent.json").write_text(json.dumps(AGENT))
    (folder / "pods.json").write_text(json.dumps({"items": pods}))
    program = folder / "kubectl"
    program.write_text(
        f"""#!/bin/sh
case "$*" in
  *"get agents.abide.dev"*) cat {folder}/agent.json ;;
  *"get pods"*) cat {folder}/pods.json ;;
  *"logs gone"*) echo 'Error from server (NotFound): pods "gone" not found' >&2; exit 1 ;;
  *logs*) echo '{{"timestamp":"2026-01-31T14:02:11.5Z","level":"info","event":"ready"}}'; echo plain
    case "$*" in *--follow*) exec sleep 60 ;; esac ;;
esac
"""
    )
    program.chmod(0o755)
    return Cluster(str(program))


def test_logs_of_all_pods_are_shown_and_one_that_is_gone_is_noted(tmp_path: Path, capsys: Any) -> None:
    cluster = kubectl(tmp_path, [pod("agent-bot-12345", "running"), pod("gone", "running")])
    run_logs(cluster, "bot", LogOptions())
    out, err = capsys.readouterr()
    assert out.splitlines() == ["14:02:11.5   info    ready  [12345]", "plain"]
    assert "pod gone: " in err
    run_logs(cluster, "bot", LogOptions(raw=True))
    assert json.loads(capsys.readouterr().out.splitlines()[0])["event"] == "ready"


def test_following_shows_lines_as_they_come_and_ends_its_kubectl(tmp_path: Path) -> None:
    cluster = kubectl(tmp_path, [pod("agent-bot-12345", "running")])
    process = subprocess.Popen(
        [sys.executable, "-m", "agent_cli.main", "logs", "bot", "-f"],
        env={"KUBECTL": cluster.kubectl, "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        cwd=Path(__file__).parents[3],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "14:02:11.5   info    ready  [12345]\n"
        children = subprocess.run(
            ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, timeout=10, check=True
        ).stdout.split()
        assert children
        process.send_signal(2)
        assert process.wait(20) == 130
        assert not any(Path(f"/proc/{child}").exists() for child in children)
    finally:
        process.kill()
        process.communicate(timeout=10)
