"""Only what was started is ended: ids, start times and boots must all agree."""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.commands import daemon_environment, lasting_problem, run_long
from tests.cluster.errors import ClusterError
from tests.cluster.processes import (
    Daemons,
    Identity,
    find_processes,
    identify,
    is_alive,
    kill_all,
    read_pid_file,
)

FOREVER = [sys.executable, "-c", "import signal; signal.pause()"]


@pytest.fixture
def daemons(tmp_path: Path) -> Iterator[Daemons]:
    started = Daemons(tmp_path)
    yield started
    started.kill()


def write_proc(proc: Path, pid: int, *, name: str = "x", state: str = "S", started: int = 7, boot: str = "b") -> None:
    """Write what /proc shows of one process: field 22 of `stat` is the start time (proc_pid_stat(5))."""
    (proc / str(pid)).mkdir(parents=True)
    zeros = " ".join(["0"] * 18)
    (proc / str(pid) / "stat").write_text(f"{pid} ({name}) {state} {zeros} {started} 0 0\n")
    (proc / "sys/kernel/random").mkdir(parents=True, exist_ok=True)
    (proc / "sys/kernel/random/boot_id").write_text(f"{boot}\n")


def test_process_is_known_by_id_start_and_boot(tmp_path: Path) -> None:
    write_proc(tmp_path, 12, name="a (b) c")
    assert identify(12, tmp_path) == Identity(12, 7, "b")
    assert is_alive(Identity(12, 7, "b"), tmp_path)


@pytest.mark.parametrize("stale", [Identity(12, 6, "b"), Identity(12, 7, "a"), Identity(13, 7, "b")])
def test_recycled_id_is_not_the_process(tmp_path: Path, stale: Identity) -> None:
    write_proc(tmp_path, 12)
    assert not is_alive(stale, tmp_path)


@pytest.mark.parametrize("state", ["Z", "X"])
def test_zombie_is_not_alive(tmp_path: Path, state: str) -> None:
    write_proc(tmp_path, 12, state=state)
    assert identify(12, tmp_path) is None


def test_process_that_merely_got_the_id_is_left_alone() -> None:
    with subprocess.Popen(FOREVER) as process:
        try:
            real = identify(process.pid)
            assert real is not None
            assert kill_all([dataclasses.replace(real, started=real.started - 1)]) == 0
            assert kill_all([dataclasses.replace(real, boot="another")]) == 0
            assert process.poll() is None
        finally:
            process.kill()


def test_daemon_is_remembered_seen_dead_and_ended(daemons: Daemons, tmp_path: Path) -> None:
    one = daemons.start("one", FOREVER, daemon_environment())
    two = daemons.start("two", FOREVER, daemon_environment())
    assert Daemons(tmp_path).known() == {"one": one, "two": two}
    assert os.getsid(one.pid) == one.pid  # no signal to the caller's terminal reaches it
    kill_all([one])
    assert daemons.dead() == ["one"]
    assert daemons.kill() == 1
    assert not is_alive(two)
    assert daemons.known() == {}


def test_daemon_that_ends_while_it_is_waited_for_is_reported_with_its_last_words(daemons: Daemons) -> None:
    daemons.start("poor", [sys.executable, "-c", "raise SystemExit('no such port')"], daemon_environment())
    with pytest.raises(ClusterError, match="poor ended while waiting for peace: no such port"):
        daemons.wait_until(lambda: False, what="peace", timeout=10)


@pytest.mark.parametrize(
    "text", ["", "12", "{}", '{"pid": 12}', "[1]", '{"pid": 1, "started": 2, "boot": "b", "x": 1}']
)
def test_broken_pid_file_names_no_process(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.pid").write_text(text)
    assert read_pid_file(tmp_path / "x.pid") is None


def test_pid_file_is_read_back(tmp_path: Path) -> None:
    (tmp_path / "x.pid").write_text(json.dumps({"pid": 1, "started": 2, "boot": "b"}))
    assert read_pid_file(tmp_path / "x.pid") == Identity(1, 2, "b")


def test_lost_daemon_is_found_by_program_and_directory(daemons: Daemons, tmp_path: Path) -> None:
    program = Path(os.path.realpath(sys.executable))
    state = tmp_path / "state"
    ours = daemons.start("ours", [*FOREVER, f"--config={state}/x"], daemon_environment())
    daemons.start("neighbour", [*FOREVER, f"--config={state}-other/x"], daemon_environment())
    names = frozenset({program.name})
    assert find_processes(program.parent, names, state) == [ours]
    assert find_processes(program.parent, frozenset({"other"}), state) == []
    assert find_processes(tmp_path, names, state) == []


def test_failed_long_command_shows_the_end_of_its_output(tmp_path: Path) -> None:
    failing = [sys.executable, "-c", "print('line'); raise SystemExit('the reason')"]
    with pytest.raises(ClusterError, match=r"ended with 1: line\nthe reason|ended with 1: the reason\nline"):
        run_long(failing, timeout=20, log=tmp_path / "log", still=lambda: None)


def test_long_command_that_overruns_is_ended(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="did not end within 0 s"):
        run_long(FOREVER, timeout=0.1, log=tmp_path / "log", still=lambda: None)


def test_problem_that_passes_in_time_is_none() -> None:
    found = iter(["busy", "busy", None])
    said: list[str] = []
    assert lasting_problem(lambda: next(found), patience=20, waiting=said.append, interval=0) is None
    assert said == ["busy"]


def test_problem_that_lasts_is_told() -> None:
    assert lasting_problem(lambda: "broken", patience=0, waiting=lambda _: None) == "broken"
