"""Many real runtime processes on one Postgres: connections of each when idle, and what one more says without room.

    python -m benchmarks.density [--quick] [--processes 200]

Every process serves an agent of its own, answers a message, and is then left alone until its surplus connections are
closed. Counted by Postgres itself. Then Postgres' last connections are taken, and one more process is started: it has
to say `ConnectionLimit` on /readyz, and nothing else may break.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

import psycopg

from benchmarks import common
from benchmarks.common import NAMESPACE, Report, Target
from benchmarks.processes import Runtime, get, post_json, read_memory

SPARE: Final = 20
"""Connections of Postgres beyond one for each process."""
STARTED_AT_ONCE: Final = 4
SETTLE_SECONDS: Final = 150.0
SAYS_SECONDS: Final = 60.0


def main() -> None:
    """Measure and print."""
    made = common.parser(__doc__)
    made.add_argument("--processes", type=int, default=200)
    options = made.parse_args()
    if options.quick:
        options.processes = 4
    measure(options).publish(options.json)


def measure(options: argparse.Namespace) -> Report:
    """Start them, leave them alone, count; then fill Postgres up."""
    report = Report("density")
    number = options.processes
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="abide-bench-")))
        server, url = stack.enter_context(common.database(max_connections=number + SPARE))
        started = time.perf_counter()
        runtimes = list(start_all(stack, folder, url, number))
        seconds = time.perf_counter() - started
        common.progress("leaving them alone")
        counts = settle(server.url)
        memory = [read_memory(runtime.pid) for runtime in runtimes]
        ready = sum(get(runtime.port, "/readyz", timeout=30)[0] == 200 for runtime in runtimes)
        common.progress("taking Postgres' last connections")
        reason = without_room(stack, folder, url)
        served = sum(post_json(one.port, path_of(index), {"content": "x"})[0] == 200 for index, one in some(runtimes))
    report.rows.append(
        {
            "processes": number,
            "ready": ready,
            "connections": sum(counts.values()),
            "most of one": max(counts.values(), default=0),
            "PSS MB, median": round(statistics.median(one.pss for one in memory) / 1e6, 1),
            "RSS MB, median": round(statistics.median(one.rss for one in memory) / 1e6, 1),
            "seconds to start all": round(seconds, 1),
            "one more says": reason,
        }
    )
    report.targets += [
        Target("processes ready", ready / number, at_least=1.0),
        Target("connections of one idle process", max(counts.values(), default=0), at_most=1),
        Target("one more says ConnectionLimit", float(reason == "ConnectionLimit"), at_least=1.0),
        Target("others still answer", served / len(some(runtimes)), at_least=1.0),
    ]
    return report


def start_all(stack: ExitStack, folder: Path, url: str, number: int) -> Iterator[Runtime]:
    """Start the processes, a few at a time, and have each answer a message."""
    waiting: list[tuple[int, Runtime]] = []
    for index in range(number):
        waiting.append((index, stack.enter_context(runtime_of(folder, url, index))))
        if len(waiting) == STARTED_AT_ONCE or index == number - 1:
            for place, runtime in waiting:
                runtime.wait_ready()
                status, body = post_json(runtime.port, path_of(place), {"content": "hello"})
                if status != 200:
                    raise RuntimeError(f"process {place} answers {status} {body[:200]!r}")
                yield runtime
            waiting.clear()
            common.progress(f"{index + 1} of {number} run")


def runtime_of(folder: Path, url: str, index: int) -> Runtime:
    """Return a process with an agent of its own."""
    return Runtime(folder, url, common.agent_manifest(name_of(index)))


def name_of(index: int) -> str:
    """Return the name of an agent."""
    return f"density-{index}"


def path_of(index: int) -> str:
    """Return where an agent takes messages."""
    return f"/v1/agents/{NAMESPACE}/{name_of(index)}/sessions/s/messages"


def some(runtimes: Sequence[Runtime]) -> Sequence[tuple[int, Runtime]]:
    """Return a few of them, with their numbers."""
    return list(enumerate(runtimes))[:: max(1, len(runtimes) // 10)]


def settle(url: str) -> Counter[str]:
    """Return the connections by process, once no process has more than one, or after SETTLE_SECONDS."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while True:
        counts = connections(url)
        if max(counts.values(), default=0) <= 1 or time.monotonic() > deadline:
            return counts
        time.sleep(1.0)


def connections(url: str) -> Counter[str]:
    """Return how many connections of runtimes Postgres has, by process: found through their local ports."""
    with psycopg.connect(url, connect_timeout=10) as connection:
        rows = connection.execute(
            "SELECT client_port FROM pg_stat_activity WHERE application_name = 'abide-runtime'"
        ).fetchall()
    owners = owners_of_ports()
    return Counter(str(owners.get(port, f"unknown-{port}")) for (port,) in rows)


def owners_of_ports() -> dict[int, int]:
    """Return the process that holds each local TCP port, of those that may be looked at."""
    inodes: dict[str, int] = {}
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        inodes[fields[9]] = int(fields[1].rpartition(":")[2], 16)
    found: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with suppress(OSError):
            for link in (entry / "fd").iterdir():
                with suppress(OSError):
                    target = os.readlink(link)
                    if target.startswith("socket:[") and (port := inodes.get(target[8:-1])) is not None:
                        found[port] = int(entry.name)
    return found


def without_room(stack: ExitStack, folder: Path, url: str) -> str:
    """Take all connections that are left, start one more process, and return why it is not ready, as it says."""
    with all_connections(url):
        runtime = stack.enter_context(Runtime(folder, url, common.agent_manifest("one-more")))
        deadline = time.monotonic() + SAYS_SECONDS
        said = ""
        while said in ("", "Starting") and time.monotonic() < deadline:
            with suppress(OSError, ValueError):
                _, body = get(runtime.port, "/readyz")
                said = next((one["reason"] for one in json.loads(body)["checks"] if not one["ok"]), "")
            time.sleep(0.1)
    runtime.wait_ready()
    return said


@contextmanager
def all_connections(url: str) -> Iterator[None]:
    """Hold every connection that is left, those for administrators too."""
    held: list[psycopg.Connection[tuple[object, ...]]] = []
    try:
        while True:
            try:
                held.append(psycopg.connect(url, connect_timeout=10))
            except psycopg.OperationalError:
                break
        yield
    finally:
        for one in held:
            one.close()


if __name__ == "__main__":
    main()
