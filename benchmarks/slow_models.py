"""A thousand sessions that wait for a slow model at once: all are served, in about the model's time, without threads.

    python -m benchmarks.slow_models [--quick] [--sessions 1000] [--delay 10]

One runtime process as in a pod, allowed to run as many turns (ABIDE_MAX_RUNNING_TURNS), with a model that takes `delay`
seconds. All messages are sent at once, each in a session of its own.
"""

import argparse
import asyncio
import tempfile
from pathlib import Path
from typing import Final

import uvloop

from benchmarks import common
from benchmarks.common import Report, Target
from benchmarks.load import Talked, once_each
from benchmarks.processes import Runtime, read_memory

NAME: Final = "slow"
SAMPLE_SECONDS: Final = 0.2


def main() -> None:
    """Measure and print."""
    made = common.parser(__doc__)
    made.add_argument("--sessions", type=int, default=1000)
    made.add_argument("--delay", type=float, default=10.0, help="seconds of the model")
    options = made.parse_args()
    if options.quick:
        options.sessions, options.delay = 50, 1.0
    measure(options).publish(options.json)


def measure(options: argparse.Namespace) -> Report:
    """Send all at once and watch the process."""
    report = Report("slow_models")
    model = {"provider": "echo", "parameters": {"delaySeconds": options.delay}, "timeoutSeconds": 600}
    with tempfile.TemporaryDirectory(prefix="abide-bench-") as folder, common.database() as (_, url):
        agent = common.agent_manifest(NAME, model)
        limit = str(options.sessions + 10)
        with Runtime(Path(folder), url, agent, ABIDE_MAX_RUNNING_TURNS=limit) as runtime:
            runtime.wait_ready()
            idle = threads(runtime.pid)
            before = read_memory(runtime.pid).rss
            talked, most_threads, most_memory = uvloop.run(_all_at_once(runtime, options))
    report.rows.append(
        {
            "sessions": options.sessions,
            "served": len(talked.seconds),
            "failed": len(talked.failures),
            "seconds": round(talked.lasted, 2),
            "p50 s": round(talked.percentile(0.5), 2),
            "p99 s": round(talked.percentile(0.99), 2),
            "threads idle": idle,
            "threads": most_threads,
            "KB/turn": round((most_memory - before) / options.sessions / 1000, 1),
        }
    )
    report.targets += [
        Target("sessions served", len(talked.seconds) / options.sessions, at_least=1.0),
        Target("time for all, over the model's", talked.lasted / options.delay, at_most=1.5),
        Target("threads more than idle", most_threads - idle, at_most=4),
    ]
    report.notes += talked.failures[:1]
    return report


async def _all_at_once(runtime: Runtime, options: argparse.Namespace) -> tuple[Talked, int, int]:
    names = [f"s{number}" for number in range(options.sessions)]
    wait = options.delay * 10 + 60
    talking = asyncio.create_task(
        once_each(runtime.port, NAME, names, at_once=options.sessions, wait_seconds=wait), name="talk"
    )
    most_threads = most_memory = 0
    while not talking.done():
        most_threads = max(most_threads, threads(runtime.pid))
        most_memory = max(most_memory, read_memory(runtime.pid).rss)
        await asyncio.wait([talking], timeout=SAMPLE_SECONDS)
    return talking.result(), most_threads, most_memory


def threads(pid: int) -> int:
    """Return how many threads a process has."""
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


if __name__ == "__main__":
    main()
