"""`abide dev` as a user starts it: a process, what it prints, and everything it starts."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import httpx

from agent_store.embedded.processes import Process, find_process

REPOSITORY = Path(__file__).resolve().parents[3]
EXAMPLE = REPOSITORY / "examples" / "assistant.yaml"
COMMAND = [sys.executable, "-m", "agent_cli.main"]
READY_SECONDS = 60.0
STOP_SECONDS = 60.0


def until(condition: Callable[[], Any], timeout: float, what: str) -> Any:
    """Return the first true value of the condition. Raises AssertionError naming `what` after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {timeout:g} s: {what}"
        time.sleep(0.02)
    return value


def descendants(pid: int) -> set[Process]:
    """Return the running processes that were started below this one, at any depth."""
    parents: dict[int, int] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                fields = Path(f"/proc/{name}/stat").read_text(errors="replace").rpartition(")")[2].split()
            except OSError:
                continue
            parents[int(name)] = int(fields[1])
    below, level = set[int](), {pid}
    while level:
        level = {child for child, parent in parents.items() if parent in level}
        below |= level
    return {process for process in map(find_process, below) if process is not None}


def environment(home: Path, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return what a fresh shell would have, with temporary files kept apart."""
    folder = home / "tmp"
    folder.mkdir(mode=0o711, exist_ok=True)
    return {"PATH": os.environ["PATH"], "HOME": str(home), "TMPDIR": str(folder), "LANG": "C.UTF-8", **(extra or {})}


@dataclass
class Dev:
    """One run. `home` is the working directory and holds TMPDIR; its output goes to files there."""

    home: Path
    arguments: Sequence[str | Path]
    environ: Mapping[str, str] = field(default_factory=dict)
    started: set[Process] = field(default_factory=set)

    def start(self) -> Self:
        """Start it without waiting."""
        self.home.mkdir(exist_ok=True)
        with open(self.home / "stdout", "wb") as out, open(self.home / "stderr", "wb") as err:
            self.process = subprocess.Popen(
                [*COMMAND, "dev", *map(str, self.arguments)],
                cwd=self.home,
                env=environment(self.home, self.environ),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
            )
        return self

    def wait_ready(self) -> Self:
        """Return once it says that it listens."""
        until(
            lambda: "postgres: " in self.stdout or self.process.poll() is not None, READY_SECONDS, "abide dev is ready"
        )
        assert self.process.poll() is None, f"ended with {self.process.returncode}: {self.stderr}"
        self.note_descendants()
        return self

    def note_descendants(self) -> set[Process]:
        """Remember what runs below it now, for `left_over`."""
        self.started |= descendants(self.process.pid)
        return self.started

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal, wait for the end, return the exit code."""
        self.note_descendants()
        self.process.send_signal(number)
        return self.process.wait(STOP_SECONDS)

    @property
    def left_over(self) -> set[Process]:
        """What it started and still runs."""
        return {process for process in self.started if process.is_alive}

    @property
    def stdout(self) -> str:
        return (self.home / "stdout").read_text()

    @property
    def stderr(self) -> str:
        return (self.home / "stderr").read_text()

    @property
    def url(self) -> str:
        return next(line for line in self.stdout.splitlines() if line.startswith("listening on ")).split()[2]

    @property
    def postgres(self) -> str:
        return next(line for line in self.stdout.splitlines() if line.startswith("postgres: ")).split()[1]

    def post(
        self, content: str, *, session: str = "s1", agent: str = "default/assistant", **headers: str
    ) -> httpx.Response:
        """Send one message without any key."""
        return httpx.post(
            f"{self.url}/v1/agents/{agent}/sessions/{session}/messages",
            json={"content": content},
            headers={name.replace("_", "-"): value for name, value in headers.items()},
            timeout=30,
            trust_env=False,
        )

    def reply(self, content: str, **options: str) -> str:
        """Send one message and return its reply."""
        response = self.post(content, **options)
        assert response.status_code == 200, response.text
        return str(response.json()["reply"]["content"])

    def history(self, session: str = "s1", agent: str = "default/assistant") -> list[str]:
        """Return `role: content` of a session's messages."""
        response = httpx.get(f"{self.url}/v1/agents/{agent}/sessions/{session}/messages", timeout=30, trust_env=False)
        assert response.status_code == 200, response.text
        return [f"{item['role']}: {item['content']}" for item in response.json()["items"]]


@contextmanager
def running(home: Path, *arguments: str | Path, **environ: str) -> Iterator[Dev]:
    """Run `abide dev` until the block ends, then make sure that nothing of it is left."""
    dev = Dev(home, arguments, environ).start()
    try:
        yield dev.wait_ready()
    finally:
        if dev.process.poll() is None:
            dev.end()
        until(lambda: not dev.left_over, STOP_SECONDS, "every process of abide dev has ended")


@contextmanager
def private_folder() -> Iterator[Path]:
    """Yield a folder that the user Postgres runs as may pass through, unlike pytest's own."""
    with tempfile.TemporaryDirectory(prefix="abide-cli-test-") as name:
        Path(name).chmod(0o711)
        yield Path(name)


def echo_agent(folder: Path, *, name: str = "assistant", delay: float = 0, suffix: str = "") -> Path:
    """Write an echo agent and return its file."""
    path = folder / f"{name}.yaml"
    path.write_text(
        "apiVersion: abide.dev/v1alpha1\nkind: Agent\n"
        f"metadata: {{name: {name}}}\n"
        f"spec: {{systemPrompt: Echo., models: [{{provider: echo, parameters: {{delaySeconds: {delay}}}}}]}}\n{suffix}"
    )
    return path
