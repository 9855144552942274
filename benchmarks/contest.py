"""Contestants: processes that are all started first, and then measured in turn, round after round.

Needs the standard library only, so that a contestant may live in a Python environment of its own. Both sides speak
lines: `run SECONDS` on the worker's standard input, one JSON object per answer on a pipe of its own. Between its
rounds a contestant is idle, but it stays connected and keeps what it has warmed up.
"""

import asyncio
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

ANSWER_FD: Final = "ABIDE_BENCH_ANSWER_FD"
READY_TIMEOUT: Final = 60.0
GRACE: Final = 60.0
"""What a round may take beyond its time: the turns under way, on a machine that is busy with other things."""
TICKS: Final = os.sysconf("SC_CLK_TCK")


class ContestError(Exception):
    """A contestant did not start or did not answer; the message holds the end of what it wrote."""


@dataclass(frozen=True, slots=True)
class Round:
    """One measured round: `turns` in `seconds`, for `cpu_seconds` of the contestant's process."""

    turns: int
    seconds: float
    cpu_seconds: float

    @property
    def rate(self) -> float:
        """Turns per second."""
        return self.turns / self.seconds

    @property
    def cpu_micros(self) -> float:
        """CPU microseconds per turn."""
        return self.cpu_seconds / self.turns * 1e6 if self.turns else 0.0


class Contestant:
    """One worker process. It is ended with the block, whatever happened."""

    def __init__(self, name: str, command: Sequence[str], environ: Mapping[str, str], log: Path) -> None:
        self.name = name
        self._log = log
        reader, writer = os.pipe()
        self._reader = reader
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                command,
                env={**environ, ANSWER_FD: str(writer)},
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                pass_fds=[writer],
                start_new_session=True,
            )
        os.close(writer)
        self._buffer = b""

    @property
    def pid(self) -> int:
        """The worker's process id."""
        return self._process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def wait_ready(self) -> dict[str, Any]:
        """Return what the worker says once it can run. Raises ContestError."""
        return self._answer(READY_TIMEOUT)

    def run(self, seconds: float) -> Round:
        """Return one round of about `seconds`. Raises ContestError."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"run {seconds}\n".encode())
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise self._failed("ended") from error
        answer = self._answer(seconds + GRACE)
        return Round(answer["turns"], answer["seconds"], answer["cpu_seconds"])

    def close(self) -> None:
        """End the worker: it leaves by itself when its input ends."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)
        if self._reader >= 0:
            os.close(self._reader)
            self._reader = -1

    def _answer(self, timeout: float) -> dict[str, Any]:
        deadline = time.monotonic() + timeout
        while b"\n" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0:
                raise self._failed(f"said nothing for {timeout:g} s")
            if select.select([self._reader], [], [], left)[0]:
                chunk = os.read(self._reader, 65536)
                if not chunk:
                    raise self._failed("ended")
                self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _failed(self, what: str) -> ContestError:
        tail = self._log.read_text(errors="replace")[-3000:]
        return ContestError(f"{self.name} {what}. The end of its output:\n{tail}")


def run_rounds(
    contestants: Mapping[str, Callable[[float], Round]], *, rounds: int, seconds: float
) -> dict[str, list[Round]]:
    """Measure all contestants `rounds` times, alternating; the order turns round each time: none is always first."""
    found: dict[str, list[Round]] = {name: [] for name in contestants}
    for number in range(rounds):
        order = list(contestants)
        for name in order if number % 2 == 0 else order[::-1]:
            found[name].append(contestants[name](seconds))
    return found


def cpu_seconds(pid: int) -> float:
    """Return the CPU time, user and system, that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


# ---- the worker's side


def answer(values: Mapping[str, Any]) -> None:
    """Send one answer to the benchmark."""
    os.write(int(os.environ[ANSWER_FD]), json.dumps(values).encode() + b"\n")


async def serve_rounds(run: Callable[[float], Awaitable[int]], *, cpu: Callable[[], float] = time.process_time) -> None:
    """Answer `run SECONDS` lines with what `run(seconds)` did, until the input ends; `run` returns its turns."""
    answer({"ready": True})
    while line := await asyncio.to_thread(sys.stdin.readline):
        seconds = float(line.split()[1])
        started, used = time.perf_counter(), cpu()
        turns = await run(seconds)
        answer({"turns": turns, "seconds": time.perf_counter() - started, "cpu_seconds": cpu() - used})
