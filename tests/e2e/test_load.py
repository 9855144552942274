"""`abide load` makes agents in a cluster, measures them, and leaves nothing behind."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.e2e.kube import Kube, wait_for

ABIDE = str(Path(sys.executable).with_name("abide"))


def test_rows_in_a_namespace_of_its_own(kube: Kube) -> None:
    before = set(kube.run("get", "namespaces", "-o", "name").split())
    command = [ABIDE, "load", "--agents", "1,2", "--sessions", "2", "--messages", "3", "--rate", "10", "-o", "json"]
    done = subprocess.run(command, env=kube.environ, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert [(row["agents"], row["failed"], row["replyMs"]["count"]) for row in rows] == [(1, 0, 6), (2, 0, 12)]
    assert all(row["startSeconds"] > 0 and row["stopSeconds"] > 0 for row in rows)
    wait_for(
        lambda: not set(kube.run("get", "namespaces", "-o", "name").split()) - before,
        seconds=120,
        what="the run's namespace is gone",
    )


def test_an_interrupted_run_removes_its_agents(kube: Kube, namespace: str) -> None:
    command = [
        ABIDE,
        "load",
        "-n",
        namespace,
        "--agents",
        "1",
        "--messages",
        "1000",
        "--rate",
        "5",
        "--timeout",
        "3600",
    ]
    process = subprocess.Popen(
        command, env={**kube.environ, "PYTHONUNBUFFERED": "1"}, stdout=subprocess.DEVNULL, start_new_session=True
    )

    def agents() -> list[str]:
        return kube.run("get", "agents.abide.dev", "-n", namespace, "-o", "name").split()

    try:
        wait_for(lambda: len(agents()) == 1, seconds=60, what="the run's agent is there")
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(120) == 130
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(10)
    wait_for(lambda: not agents(), seconds=60, what="the run's agent is gone")
