"""The embedded Postgres: first and later starts, and every way its processes can end."""

import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from agent_store.embedded import EmbeddedPostgres, EmbeddedPostgresError
from agent_store.embedded.processes import find_process, find_processes

DEADLINE = 30.0

CHILD = """
import sys, threading, time
from pathlib import Path
from agent_store.embedded import EmbeddedPostgres
server = EmbeddedPostgres(Path(sys.argv[1]))
starter = threading.Thread(target=server.start)  # a thread that ends must not take the server along
starter.start()
starter.join()
print(server.pid, server.url, flush=True)
time.sleep(600)
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedPostgres]:
    server = EmbeddedPostgres(tmp_path / "data")
    yield server
    server.stop()


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.02)


def execute(url: str, *statements: str) -> list[tuple[object, ...]]:
    with psycopg.connect(url, autocommit=True, connect_timeout=10) as connection:
        for statement in statements:
            cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


def is_gone(pid: int) -> bool:
    return find_process(pid) is None


def of_folder(root: Path) -> list[int]:
    """Return the processes that have the folder in their command line."""
    return [process.pid for process in find_processes(lambda line: any(str(root) in part for part in line))]


def test_data_and_password_stay_between_runs_and_nothing_is_left_running(
    server: EmbeddedPostgres, tmp_path: Path
) -> None:
    server.start()
    execute(server.url, "CREATE TABLE kept AS SELECT 42 AS n")
    pid, password = server.pid, (tmp_path / "data" / "password").read_text()
    server.stop()
    server.stop()
    assert is_gone(pid)
    assert of_folder(tmp_path) == []
    with pytest.raises(EmbeddedPostgresError, match="not running"):
        _ = server.url
    server.start()
    assert password in server.url
    assert execute(server.url, "SELECT n FROM kept") == [(42,)]


def test_it_is_postgres_18_with_vectors_and_durable_commits(postgres_server: EmbeddedPostgres) -> None:
    show = "SELECT current_setting('server_version'), current_setting('fsync'), current_setting('synchronous_commit')"
    ((version, fsync, commit),) = execute(postgres_server.url, show)
    assert str(version).startswith("18.")
    assert (fsync, commit) == ("on", "on")
    found = execute(postgres_server.url, "SELECT name FROM pg_available_extensions WHERE name = 'vector'")
    assert found == [("vector",)]


def test_password_is_needed_and_only_the_owner_can_read_it(server: EmbeddedPostgres, tmp_path: Path) -> None:
    server.start()
    with pytest.raises(psycopg.OperationalError, match="password"):
        execute(server.url.replace(":" + (tmp_path / "data" / "password").read_text(), ":wrong"), "SELECT 1")
    for name in ("password", "postgres.log"):
        assert stat.S_IMODE((tmp_path / "data" / name).stat().st_mode) == 0o600


def test_folders_above_the_data_keep_their_permissions(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    above = (closed, *closed.parents)
    before = [(path.stat().st_mode, path.stat().st_uid) for path in above]
    with EmbeddedPostgres(closed / "deep" / "data") as server:
        assert execute(server.url, "SELECT 1") == [(1,)]
    assert [(path.stat().st_mode, path.stat().st_uid) for path in above] == before


def test_postgres_has_no_more_of_root_than_passing_through_folders(server: EmbeddedPostgres) -> None:
    server.start()
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{server.pid}/status").read_text().splitlines())
    may_read_anything, may_search_anything = 1 << 1, 1 << 2
    assert int(status["CapEff"], 16) in (0, may_read_anything, may_search_anything)
    assert status["Uid"].split()[0] != "0"
    assert os.getsid(server.pid) != os.getsid(0)  # a Ctrl-C in our terminal does not reach it


def test_second_start_on_a_folder_in_use_is_refused_at_once(server: EmbeddedPostgres, tmp_path: Path) -> None:
    server.start()
    started = time.monotonic()
    with pytest.raises(EmbeddedPostgresError, match=rf"in use by another Abide \(process {os.getpid()}\)"):
        EmbeddedPostgres(tmp_path / "data").start()
    assert time.monotonic() - started < 5.0
    assert execute(server.url, "SELECT 1") == [(1,)]
    with pytest.raises(EmbeddedPostgresError, match="already running"):
        server.start()


def test_kill_of_the_parent_ends_the_server_and_loses_nothing(server: EmbeddedPostgres, tmp_path: Path) -> None:
    command = [sys.executable, "-c", CHILD, str(tmp_path / "data")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid, url = parent.stdout.readline().split()
        execute(url, "CREATE TABLE kept AS SELECT 42 AS n")
        parent.kill()
    server.start()  # at once, while the old one is still on its way out
    assert is_gone(int(pid))
    assert execute(server.url, "SELECT n FROM kept") == [(42,)]
    server.stop()
    wait_for(lambda: of_folder(tmp_path) == [])


def test_kill_of_the_supervisor_ends_the_server(server: EmbeddedPostgres) -> None:
    server.start()
    pid = server.pid
    execute(server.url, "CREATE TABLE kept AS SELECT 42 AS n")
    os.kill(os.getsid(pid), signal.SIGKILL)
    wait_for(lambda: is_gone(pid))
    server.stop()
    server.start()
    assert execute(server.url, "SELECT n FROM kept") == [(42,)]


def test_server_that_was_killed_comes_back_under_the_same_url(server: EmbeddedPostgres) -> None:
    server.start()
    pid, url = server.pid, server.url
    execute(url, "CREATE TABLE kept AS SELECT 42 AS n")
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: is_gone(pid))

    def answers() -> bool:
        try:
            return execute(url, "SELECT n FROM kept") == [(42,)]
        except psycopg.OperationalError:
            return False

    wait_for(answers)
    assert server.url == url
    assert server.pid != pid


def test_pid_file_that_names_a_stranger_hurts_nobody(server: EmbeddedPostgres, tmp_path: Path) -> None:
    server.start()
    server.stop()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as stranger:
        pid_file = tmp_path / "data" / "postgres" / "postmaster.pid"
        pid_file.write_text(f"{stranger.pid}\n{pid_file.parent}\n0\n5432\n\n127.0.0.1\n\nready\n")
        noted = {"pid": stranger.pid, "started": 1, "port": 1}
        (tmp_path / "data" / "server.json").write_text(json.dumps(noted))
        server.start()
        assert execute(server.url, "SELECT 1") == [(1,)]
        assert stranger.poll() is None
        stranger.kill()


def test_half_made_data_of_a_killed_first_start_is_made_again(server: EmbeddedPostgres, tmp_path: Path) -> None:
    half = tmp_path / "data" / "postgres.new" / "base"
    half.mkdir(parents=True)
    (tmp_path / "data" / "password").write_text("left over")
    server.start()
    assert execute(server.url, "SELECT 1") == [(1,)]
    assert not half.exists()


def test_lost_password_is_said_clearly(server: EmbeddedPostgres, tmp_path: Path) -> None:
    server.start()
    server.stop()
    (tmp_path / "data" / "password").unlink()
    with pytest.raises(EmbeddedPostgresError, match="password is missing; restore it or choose another folder"):
        server.start()


def test_folder_that_cannot_be_made_is_said_clearly(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EmbeddedPostgresError, match="cannot run on"):
        EmbeddedPostgres(tmp_path / "file" / "data").start()


def test_damaged_data_is_said_with_the_log(server: EmbeddedPostgres, tmp_path: Path) -> None:
    server.start()
    server.stop()
    (tmp_path / "data" / "postgres" / "PG_VERSION").write_text("12\n")
    with pytest.raises(EmbeddedPostgresError, match="incompatible with server"):
        server.start()


def test_server_outlives_the_thread_that_started_it(server: EmbeddedPostgres) -> None:
    starter = threading.Thread(target=server.start)
    starter.start()
    starter.join(DEADLINE)
    assert execute(server.url, "SELECT 1") == [(1,)]
    assert not is_gone(server.pid)
