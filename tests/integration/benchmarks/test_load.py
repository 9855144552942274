"""`abide load` as a user runs it: on this machine, against an address, and interrupted."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psycopg

from agent_store.embedded.processes import wait_until
from benchmarks.common import agent_manifest
from benchmarks.processes import Runtime

REPOSITORY = Path(__file__).resolve().parents[3]
COMMAND = [sys.executable, "-m", "agent_cli.main", "load"]
SECONDS = 120


def environment(folder: Path) -> dict[str, str]:
    """Return a fresh shell's environment with temporary files kept apart."""
    (folder / "tmp").mkdir(mode=0o711, exist_ok=True)
    folder.chmod(0o711)
    kept = {"PATH": os.environ["PATH"], "HOME": str(folder), "LANG": "C.UTF-8"}
    return {**kept, "TMPDIR": str(folder / "tmp"), "PYTHONPATH": str(REPOSITORY)}


def run(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run the command to its end."""
    return subprocess.run(
        [*COMMAND, *arguments], env=environment(folder), capture_output=True, text=True, timeout=SECONDS, check=False
    )


def answer(done: "subprocess.CompletedProcess[str]") -> dict[str, Any]:
    """Return what was printed as JSON."""
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_rows_on_this_machine(tmp_path: Path) -> None:
    arguments = ["--dev", "--agents", "1,3", "--sessions", "2", "--messages", "2", "--rate", "60", "-o", "json"]
    found = answer(run(tmp_path, *arguments))
    assert (found["target"], [row["agents"] for row in found["rows"]]) == ("dev", [1, 3])
    for row in found["rows"]:
        sessions = row["agents"] * 2
        assert row["failed"] == 0
        assert [row[what]["count"] for what in ("replyMs", "saveMs", "closeMs")] == [sessions * 2, sessions, sessions]
        assert 0 < row["replyMs"]["p50"] <= row["replyMs"]["p99"] <= row["replyMs"]["max"]
        assert row["startSeconds"] > 0
        assert row["stopSeconds"] > 0
    assert [one["what"] for one in found["growth"]] == ["start", "save", "close", "stop"]
    assert list((tmp_path / "tmp").iterdir()) == [], "nothing stays behind"


def test_agents_at_an_address_keep_nothing_of_it(tmp_path: Path, postgres_url: str) -> None:
    with Runtime(tmp_path, postgres_url, agent_manifest("there", {"provider": "echo"})) as runtime:
        runtime.wait_ready()
        url = f"http://127.0.0.1:{runtime.port}"
        common = ["--url", url, "--agents", "1", "--messages", "2", "--rate", "60", "-o", "json"]
        row = answer(run(tmp_path, *common, "--name", "bench/there"))["rows"][0]
        assert (row["failed"], row["startSeconds"], row["closeMs"]["count"]) == (0, None, 2)
        failed = run(tmp_path, *common, "--name", "bench/nobody")
        assert failed.returncode == 1
        assert json.loads(failed.stdout)["rows"][0]["failures"]["HTTP 404"] == 4
    with psycopg.connect(postgres_url) as connection:
        assert connection.execute("SELECT count(*) FROM abide.sessions").fetchone() == (0,)


def test_an_interrupted_run_leaves_nothing_behind(tmp_path: Path) -> None:
    arguments = [*COMMAND, "--dev", "--agents", "2", "--messages", "1000", "--rate", "50", "--timeout", "600"]
    log = tmp_path / "stderr"
    with log.open("wb") as errors:
        process = subprocess.Popen(
            arguments, env=environment(tmp_path), stdout=subprocess.DEVNULL, stderr=errors, start_new_session=True
        )
    try:
        wait_for_log(tmp_path, process, log)
        assert len(processes_of(tmp_path)) >= 3, "the command, its runtime and its Postgres"
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(10)
    assert "Interrupted" in log.read_text()
    assert list((tmp_path / "tmp").iterdir()) == []
    assert wait_until(lambda: not processes_of(tmp_path), 10), "neither the runtime nor Postgres stays"


def processes_of(folder: Path) -> list[int]:
    """Return the processes that a run started below this folder: by their TMPDIR, or Postgres' data folder."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and any(
                str(folder).encode() in (entry / name).read_bytes() for name in ("environ", "cmdline")
            ):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def wait_for_log(folder: Path, process: "subprocess.Popen[bytes]", log: Path) -> None:
    """Wait until the runtime of the run has answered a message."""
    deadline = time.monotonic() + 60
    while True:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        if any("turn_finished" in found.read_text() for found in (folder / "tmp").glob("abide-dev-*/runtime.log")):
            return
        time.sleep(0.02)


def test_addresses_elsewhere_need_a_yes(tmp_path: Path) -> None:
    refused = run(tmp_path, "--url", "http://192.0.2.1:8080", "--name", "a/b")
    assert refused.returncode == 2
    assert "--yes" in refused.stderr
