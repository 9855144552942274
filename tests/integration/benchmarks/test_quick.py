"""Every benchmark runs in its quick form, from its command to its JSON; what it measures is not judged here."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import apply_to_ready, common, engine_turns, processes
from benchmarks.contest import Round, run_rounds

REPOSITORY = Path(__file__).resolve().parents[3]
RUN_SECONDS = 120
ENDS_SECONDS = 40
DENSITY_SECONDS = 300
"""More than the benchmark's own deadlines: for idle connections, and for what one process too many says."""


def run(folder: Path, name: str, *arguments: str, seconds: float = RUN_SECONDS) -> dict[str, Any]:
    """Run a benchmark as the README says, and return its JSON."""
    answer = folder / "answer.json"
    command = [sys.executable, "-m", f"benchmarks.{name}", "--quick", "--json", str(answer), *arguments]
    with subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ}
    ) as process:
        try:
            printed, errors = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)  # a benchmark that is killed leaves its processes behind
            try:
                errors = process.communicate(timeout=ENDS_SECONDS)[1]
            finally:
                process.kill()
            raise AssertionError(f"not done within {seconds:g} s: {errors[-3000:]}") from None
    assert process.returncode == 0, errors[-3000:]
    found: dict[str, Any] = json.loads(answer.read_text())
    for row in found["rows"]:
        assert all(str(value) in printed for value in list(row.values())[:1])
    return found


def test_engine_http_and_pgbench_take_turns(tmp_path: Path) -> None:
    found = run(tmp_path, "engine_turns", "--seconds", "0.5", "--only", "engine", "http", "pgbench")
    rates = {row["contestant"]: row["turns/s"] for row in found["rows"]}
    assert list(rates) == ["engine", "http", "pgbench-5", "pgbench-32"]
    assert all(rate > 0 for rate in rates.values())
    assert [target["what"] for target in found["targets"]] == ["engine, share of pgbench on 32 connections"]


def test_bytes_do_not_grow_with_the_session(tmp_path: Path) -> None:
    rows = run(tmp_path, "bytes_per_turn", "--without-langgraph", "--turns", "300")["rows"]
    assert [row["turns/session"] for row in rows] == [10, 100]
    # Deterministic up to a page or two per index, unlike times: messages are 600 bytes of it.
    assert all(600 < row["bytes/turn"] < 4000 for row in rows)


def test_starting_with_every_import_profile(tmp_path: Path) -> None:
    rows = {row["profile"]: row for row in run(tmp_path, "process_start")["rows"]}
    providers = ["runtime-openai", "runtime-anthropic", "runtime-google"]
    assert list(rows) == ["python", "fastapi", "runtime-echo", "runtime-scripted", *providers]
    memory = {name: row["RSS used MB"] for name, row in rows.items()}
    assert memory["python"] < memory["fastapi"] < memory["runtime-echo"] < min(memory[name] for name in providers)


def test_the_store_alone(tmp_path: Path) -> None:
    rows = run(tmp_path, "store_turns")["rows"]
    assert [row["contestant"] for row in rows] == ["store", "pgbench-5", "pgbench-32"]


def test_sessions_that_are_idle(tmp_path: Path) -> None:
    rows = {row["process"]: row for row in run(tmp_path, "idle_sessions")["rows"]}
    counts = {name: row["sessions in memory"] for name, row in rows.items()}
    assert counts["evicted"] == 0
    assert counts["warmed up"] <= 50
    assert counts["filled again"] <= 200
    assert all(row["RSS MB"] > 20 for row in rows.values())


def test_slow_models_wait_without_threads(tmp_path: Path) -> None:
    (row,) = run(tmp_path, "slow_models")["rows"]
    assert (row["served"], row["failed"]) == (50, 0)
    assert row["threads"] - row["threads idle"] < 10
    assert row["seconds"] >= 1.0


def test_half_load(tmp_path: Path) -> None:
    full, half = run(tmp_path, "half_load")["rows"]
    assert (full["failed"], half["failed"]) == (0, 0)
    assert 0 < half["turns/s"] < full["turns/s"]
    assert 0 < half["p50 ms"] <= half["p99 ms"] <= half["max ms"]


def test_automatic_saves_are_timed(tmp_path: Path) -> None:
    (row,) = run(tmp_path, "auto_save")["rows"]
    assert row["saves"] > 0
    assert row["≤ 5 ms"] <= row["≤ 10 ms"] <= row["≤ 1000 ms"]


@pytest.mark.timeout(DENSITY_SECONDS + 60)
def test_processes_on_one_postgres_hold_a_connection_each(tmp_path: Path) -> None:
    found = run(tmp_path, "density", seconds=DENSITY_SECONDS)
    (row,) = found["rows"]
    assert (row["ready"], row["most of one"], row["one more says"]) == (4, 1, "ConnectionLimit")
    assert all(target["reached"] for target in found["targets"])


def test_several_processes_of_one_agent(tmp_path: Path) -> None:
    found = run(tmp_path, "replicas")
    assert [row["processes"] for row in found["rows"]] == ["1", "2"]
    assert all(row["turns/s"] > 0 for row in found["rows"])
    assert [target["seen"] for target in found["targets"]] == [0]


def test_rounds_alternate() -> None:
    order: list[str] = []

    def contestant(name: str) -> Any:
        def one(seconds: float) -> Round:
            order.append(name)
            return Round(10, seconds, 0.001)

        return one

    found = run_rounds({"a": contestant("a"), "b": contestant("b")}, rounds=3, seconds=0.1)
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert engine_turns.ratio(found, "a", "b") == pytest.approx(1.0)
    assert engine_turns.ratio(found, "a", "langgraph") is None
    assert found["a"][0].cpu_micros == pytest.approx(100.0)


def test_targets_say_whether_they_are_reached() -> None:
    assert common.Target("ratio", 31.0, at_least=30.0).reached
    assert not common.Target("bytes", 1501.0, at_most=1500.0).reached
    assert "NOT REACHED" in common.Target("bytes", 1501.0, at_most=1500.0).text()
    table = common.render_table([{"what": "a", "n": 1234.5}, {"what": "bcd", "n": None}])
    assert table.splitlines() == ["what      n", "a     1,234", "bcd       -"]


def test_memory_is_what_the_kernel_says() -> None:
    before = processes.read_memory(os.getpid())
    ballast = bytearray(os.urandom(20_000_000))
    after = processes.read_memory(os.getpid())
    assert after.rss - before.rss > 15_000_000
    assert 0 < after.pss <= after.rss
    del ballast


def test_the_bare_deployment_is_the_agents_own_without_its_labels() -> None:
    template = {"metadata": {"labels": {"abide.dev/agent": "template"}}, "spec": {"containers": [{"name": "agent"}]}}
    found = {
        "metadata": {"name": "agent-template", "namespace": "ns", "uid": "1", "ownerReferences": [{}]},
        "spec": {"replicas": 1, "selector": {"matchLabels": {"abide.dev/agent": "template"}}, "template": template},
    }
    made = apply_to_ready.bare_deployment(found, "bare-1")
    assert made["metadata"] == {"name": "bare-1", "namespace": "ns", "labels": {"abide-bench": "bare-1"}}
    assert made["spec"]["selector"] == {"matchLabels": {"abide-bench": "bare-1"}}
    assert made["spec"]["template"] == {"metadata": {"labels": {"abide-bench": "bare-1"}}, "spec": template["spec"]}
    assert template["metadata"]["labels"] == {"abide.dev/agent": "template"}, "the template stays as it was"
    report = apply_to_ready.describe({"agent": [2.0, 3.0, 2.2], "deployment": [2.0, 2.0, 2.0]})
    assert report.targets[0].seen == pytest.approx(1.1)
