"""Latency that the runtime adds to its model's, with half the messages per second that it can take at most.

    python -m benchmarks.half_load [--quick] [--seconds 20] [--sessions 64]

One runtime process as in a pod, a model without delay, so that all of a reply's time is the runtime's, over HTTP with
the commits of each turn. First as many messages as it takes, then half that rate for a while, counted from the instant
each was due. The load generator shares the machine's cores with the runtime and Postgres.
"""

import argparse
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import uvloop

from benchmarks import common
from benchmarks.common import Report, Target
from benchmarks.load import Talked, as_fast_as_they_go, at_rate
from benchmarks.processes import Runtime

NAME: Final = "half"
AIM: Final = 15.0
TURNS: Final = 10


def main() -> None:
    """Measure and print."""
    made = common.parser(__doc__)
    made.add_argument("--seconds", type=float, default=20.0, help="length of each part")
    made.add_argument("--sessions", type=int, default=64, help="sessions that talk in turn")
    options = made.parse_args()
    if options.quick:
        options.seconds, options.sessions = 1.0, 16
    measure(options).publish(options.json)


def measure(options: argparse.Namespace) -> Report:
    """Find the most, then talk at half of it."""
    report = Report("half_load")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="abide-bench-")))
        _, url = stack.enter_context(common.database())
        runtime = stack.enter_context(Runtime(folder, url, common.agent_manifest(NAME)))
        runtime.wait_ready()

        def full(seconds: float) -> Talked:
            ports, sessions = [runtime.port], options.sessions
            return uvloop.run(as_fast_as_they_go(ports, NAME, sessions=sessions, turns=TURNS, seconds=seconds))

        full(min(2.0, options.seconds))
        common.progress(f"as fast as it goes, {options.seconds:g} s")
        most = full(options.seconds)
        rate = most.rate / 2
        common.progress(f"{rate:.0f} messages a second, {options.seconds:g} s")
        half = uvloop.run(at_rate(runtime.port, NAME, rate=rate, seconds=options.seconds, sessions=options.sessions))
    report.rows += [_row("full", most), _row("half", half)]
    report.targets.append(Target("p99 at half load, ms", half.percentile(0.99) * 1000, at_most=AIM))
    failed = len(most.failures) + len(half.failures)
    report.targets.append(Target("messages that failed", failed, at_most=0))
    return report


def _row(what: str, talked: Talked) -> dict[str, Any]:
    shares = {"p50 ms": 0.5, "p95 ms": 0.95, "p99 ms": 0.99, "max ms": 1.0}
    latencies = {name: round(talked.percentile(share) * 1000, 2) for name, share in shares.items()}
    return {"load": what, "turns/s": round(talked.rate, 1), **latencies, "failed": len(talked.failures)}


if __name__ == "__main__":
    main()
