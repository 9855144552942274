"""Prometheus and promtool for tests: where they are, a server to scrape and ask, and promtool's verdicts.

The Debian package is only unpacked into the cache, not installed: no service is started and no root is needed.
"""

import contextlib
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
import yaml

from tests.cluster.settings import paths_from_environment

T = TypeVar("T")

PACKAGE = "prometheus"
APT = ("apt-get", "--quiet", "-o", "DPkg::Lock::Timeout=300")
DOWNLOAD_SECONDS = 300.0
START_SECONDS = 30.0
STOP_SECONDS = 20.0


class NoPrometheus(Exception):  # noqa: N818 - says what to do, in the words of a requirement
    """Prometheus is not on this machine and could not be fetched."""


@dataclass(frozen=True)
class Tools:
    """The two programs of the package."""

    prometheus: Path
    promtool: Path

    def check(self, *arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run promtool and return what it said, whatever its exit code."""
        return subprocess.run(
            [self.promtool, *arguments], input=stdin, capture_output=True, text=True, timeout=300, check=False
        )


def ensure() -> Tools:
    """Return the programs: of the PATH, of the cache, else unpacked there. Raises NoPrometheus."""
    on_path = [shutil.which(name) for name in ("prometheus", "promtool")]
    if all(on_path):
        return Tools(*(Path(path) for path in on_path if path))
    folder = paths_from_environment().cache / "prometheus"
    tools = Tools(folder / "usr" / "bin" / "prometheus", folder / "usr" / "bin" / "promtool")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / "prometheus.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not tools.promtool.is_file():
            _unpack(folder)
    return tools


def _unpack(folder: Path) -> None:
    if shutil.which("apt-get") is None:
        raise NoPrometheus("prometheus and promtool are not on the PATH and there is no apt-get: install Prometheus")
    with tempfile.TemporaryDirectory(prefix="abide-prometheus-") as place:
        fetched = _run(place, *APT, "download", PACKAGE)
        if fetched.returncode != 0:
            _run(place, *APT, "update")
            fetched = _run(place, *APT, "download", PACKAGE)
        archives = list(Path(place).glob("*.deb"))
        if fetched.returncode != 0 or len(archives) != 1:
            said = fetched.stderr.strip()[-300:]
            raise NoPrometheus(f"apt-get could not fetch {PACKAGE}: install it by hand ({said})")
        unpacked = folder.with_name(f"{folder.name}.new")
        shutil.rmtree(unpacked, ignore_errors=True)
        done = _run(place, "dpkg-deb", "--extract", str(archives[0]), str(unpacked))
        if done.returncode != 0:
            raise NoPrometheus(f"{archives[0].name} could not be unpacked: {done.stderr.strip()}")
        shutil.rmtree(folder, ignore_errors=True)
        unpacked.rename(folder)


def _run(place: str, *command: str) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    return subprocess.run(
        command, cwd=place, env=environ, capture_output=True, text=True, timeout=DOWNLOAD_SECONDS, check=False
    )


def wait_for(check: Callable[[], T | None], *, seconds: float, what: Callable[[], str]) -> T:
    """Return the first truthy result of `check`, or fail after `seconds` with what `what` says then."""
    deadline = time.monotonic() + seconds
    while True:
        result = check()
        if result:
            return result
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:g} s: {what()}")
        time.sleep(0.2)


@dataclass(frozen=True)
class Server:
    """A running Prometheus."""

    url: str
    log: Path

    def get(self, path: str, **params: str) -> Any:
        """Return the data of an API call, which must succeed."""
        answer = httpx.get(f"{self.url}/api/v1/{path}", params=params, timeout=30)
        body = answer.json()
        assert body["status"] == "success", f"{path} {params}: {body}"
        return body["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return the samples of an instant query: {metric, value}."""
        data = self.get("query", query=expression)
        if data["resultType"] == "scalar":
            return [{"metric": {}, "value": data["result"]}]
        return list(data["result"])

    def value(self, expression: str) -> float:
        """Return the one value of a query."""
        (sample,) = self.query(expression)
        return float(sample["value"][1])

    def alerts(self, name: str) -> list[dict[str, Any]]:
        """Return the pending and firing alerts of a name."""
        return [found for found in self.get("alerts")["alerts"] if found["labels"]["alertname"] == name]

    def targets_down(self) -> list[str]:
        """Return the targets that are not scraped, with the reason."""
        return [
            f"{target['scrapeUrl']}: {target['lastError'] or target['health']}"
            for target in self.get("targets")["activeTargets"]
            if target["health"] != "up"
        ]

    def rules_failing(self) -> list[str]:
        """Return the rules that cannot be evaluated, with the reason."""
        return [
            f"{rule['name']}: {rule['lastError']}"
            for group in self.get("rules")["groups"]
            for rule in group["rules"]
            if rule["health"] == "err"
        ]


@contextmanager
def running(folder: Path, config: dict[str, Any], tools: Tools) -> Iterator[Server]:
    """Run Prometheus on a loopback port with this configuration until the block ends; it leaves nothing running."""
    folder.mkdir(parents=True, exist_ok=True)
    path, log = folder / "prometheus.yaml", folder / "prometheus.log"
    path.write_text(yaml.safe_dump(config))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = Server(f"http://127.0.0.1:{port}", log)
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                tools.prometheus,
                f"--config.file={path}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
                "--query.lookback-delta=5m",
            ],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_for(lambda: _is_ready(server, process), seconds=START_SECONDS, what=lambda: log.read_text()[-2000:])
        yield server
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(STOP_SECONDS)


def _is_ready(server: Server, process: "subprocess.Popen[bytes]") -> bool:
    assert process.poll() is None, f"Prometheus ended: {server.log.read_text()[-2000:]}"
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"{server.url}/-/ready", timeout=5).status_code == 200
    return False
