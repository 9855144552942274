"""Memory of a session that waits for its next message, in a process that holds ten thousand of them.

    python -m benchmarks.idle_sessions [--quick] [--sessions 10000] [--turns 1]

One runtime process as in a pod. Memory (RSS) is read after a first part of the sessions, which loads and warms up what
a process needs anyway, and again after all of them; the difference is theirs. Then they are left alone until the
process has evicted them, and memory and counts are read once more: what was evicted is in Postgres alone. Freed memory
need not go back to the system, so the process is filled again with as many new sessions: memory that stays where it
was means that an evicted session costs nothing.
"""

import argparse
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import uvloop

from benchmarks import common
from benchmarks.common import NAMESPACE, Report, Target
from benchmarks.load import once_each
from benchmarks.processes import Runtime, get, read_memory

NAME: Final = "idle"
AIM: Final = 4096
AT_ONCE: Final = 32
EVICTED_SECONDS: Final = 120.0


def main() -> None:
    """Measure and print."""
    made = common.parser(__doc__)
    made.add_argument("--sessions", type=int, default=10_000)
    made.add_argument("--warm-up", type=int, default=1000, help="sessions before memory is first read")
    made.add_argument("--idle-seconds", type=int, default=60, help="session.evictAfterSeconds of the agent")
    options = made.parse_args()
    if options.quick:
        options.sessions, options.warm_up, options.idle_seconds = 200, 50, 2
    measure(options).publish(options.json)


def measure(options: argparse.Namespace) -> Report:
    """Fill a process, let it forget, fill it again."""
    report = Report("idle_sessions")
    agent = common.agent_manifest(NAME)
    agent["spec"]["session"] = {"evictAfterSeconds": options.idle_seconds}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="abide-bench-")))
        _, url = stack.enter_context(common.database())
        runtime = stack.enter_context(Runtime(folder, url, agent))
        runtime.wait_ready()
        before = _fill(runtime, "warm", options.warm_up)
        report.rows.append(_row("warmed up", runtime, before))
        full = _fill(runtime, "first", options.sessions)
        report.rows.append(_row("filled", runtime, full))
        report.rows.append(_row("evicted", runtime, _wait_evicted(runtime, options.idle_seconds)))
        again = _fill(runtime, "second", options.sessions)
        report.rows.append(_row("filled again", runtime, again))
    each = (full - before) / options.sessions
    report.targets += [
        Target("bytes per idle session", each, at_most=AIM),
        Target("memory once filled again, over the first time", again / full, at_most=1.05),
    ]
    return report


def _fill(runtime: Runtime, prefix: str, number: int) -> int:
    """Have one turn in each of so many sessions; return the memory of the process afterwards, in bytes."""
    common.progress(f"{number} sessions")
    names = [f"{prefix}-{count}" for count in range(number)]
    talked = uvloop.run(once_each(runtime.port, NAME, names, at_once=AT_ONCE))
    if talked.failures:
        raise RuntimeError(f"{len(talked.failures)} messages failed; the first: {talked.failures[0]}")
    return read_memory(runtime.pid).rss


def _wait_evicted(runtime: Runtime, idle_seconds: int) -> int:
    common.progress("waiting until they are evicted")
    deadline = time.monotonic() + idle_seconds + EVICTED_SECONDS
    while in_memory(runtime) > 0:
        if time.monotonic() > deadline:
            raise RuntimeError(f"{in_memory(runtime)} sessions are still in memory")
        time.sleep(0.5)
    return read_memory(runtime.pid).rss


def in_memory(runtime: Runtime) -> int:
    """Return how many sessions the process holds, as it says itself."""
    status, body = get(runtime.port, "/metrics", timeout=30)
    lines = [line for line in body.decode().splitlines() if line.startswith("abide_sessions_in_memory{")]
    if status != 200 or not lines:
        raise RuntimeError(f"/metrics of {NAMESPACE}/{NAME} does not tell the sessions in memory ({status})")
    return int(float(lines[0].rpartition(" ")[2]))


def _row(what: str, runtime: Runtime, rss: int) -> dict[str, Any]:
    return {"process": what, "sessions in memory": in_memory(runtime), "RSS MB": round(rss / 1e6, 2)}


if __name__ == "__main__":
    main()
