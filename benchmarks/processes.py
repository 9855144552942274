"""Runtime processes as a pod would run them, on loopback, and what the kernel says of their memory."""

import http.client
import json
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from benchmarks.common import REPOSITORY, runtime_environment

READY_TIMEOUT: Final = 60.0
POLL_SECONDS: Final = 0.002


class ProcessError(Exception):
    """A process ended or did not get ready; the message holds the end of its log."""


@dataclass(frozen=True, slots=True)
class Memory:
    """What a process has in memory, in bytes. `pss` counts pages shared with other processes by their share."""

    rss: int
    pss: int


def read_memory(pid: int) -> Memory:
    """Return the memory of a process of ours."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.endswith("kB")}
    return Memory(kilobytes["Rss"] * 1024, kilobytes["Pss"] * 1024)


def free_port() -> int:
    """Return a loopback port nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class ServerProcess:
    """A process that answers HTTP on a loopback port; ended with the block."""

    def __init__(self, command: list[str], environ: Mapping[str, str], port: int, log: Path) -> None:
        self.port = port
        self._log = log
        self.started_at = time.perf_counter()
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                command,
                env=dict(environ),
                cwd=REPOSITORY,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def wait_ready(self, path: str = "/readyz") -> float:
        """Return the seconds from the start of the process to the first 200 at `path`. Raises ProcessError."""
        deadline = self.started_at + READY_TIMEOUT
        while time.perf_counter() < deadline:
            if self._process.poll() is not None:
                raise self._failed("ended")
            with suppress(OSError, http.client.HTTPException):
                if get(self.port, path)[0] == 200:
                    return time.perf_counter() - self.started_at
            time.sleep(POLL_SECONDS)
        raise self._failed(f"was not ready within {READY_TIMEOUT:g} s")

    def stop(self) -> None:
        """End the process: asked first, killed after 15 s."""
        self._process.terminate()
        try:
            self._process.wait(15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(15)

    def _failed(self, what: str) -> ProcessError:
        return ProcessError(f"the process {what}. The end of its log:\n{self._log.read_text(errors='replace')[-3000:]}")


class Runtime(ServerProcess):
    """`python -m agent_runtime` with one agent."""

    def __init__(self, folder: Path, url: str, agent: Mapping[str, Any], **environ: str) -> None:
        name = agent["metadata"]["name"]
        manifest = folder / f"{name}.json"
        manifest.write_text(json.dumps(agent))
        port = free_port()
        environment = runtime_environment(url, manifest, port, ABIDE_INSTANCE=f"{name}-{port}", **environ)
        super().__init__([sys.executable, "-m", "agent_runtime"], environment, port, folder / f"{name}.log")


def get(port: int, path: str, timeout: float = 5.0) -> tuple[int, bytes]:
    """Return status and body of a GET."""
    return _exchange(port, "GET", path, None, timeout)


def post_json(port: int, path: str, body: Mapping[str, Any], timeout: float = 60.0) -> tuple[int, bytes]:
    """Return status and body of a POST."""
    return _exchange(port, "POST", path, json.dumps(body).encode(), timeout)


def _exchange(port: int, method: str, path: str, body: bytes | None, timeout: float) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request(method, path, body, {"Content-Type": "application/json"} if body else {})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()
