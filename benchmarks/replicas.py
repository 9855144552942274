"""Turns per second of one agent with 1, 2 and 4 processes on the same Postgres.

    python -m benchmarks.replicas [--quick] [--seconds 10] [--rounds 3] [--replicas 1 2 4]

Whole runtime processes over HTTP, 32 busy sessions in all, spread over the processes, a model without delay. On a
machine with few cores the processes, Postgres and the load generator share them, so the gain ends where they do; the
row of Postgres shows how near it was to its own limit (pgbench with the same writes).
"""

import argparse
import statistics
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Final
from uuid import uuid4

import uvloop

from benchmarks import common
from benchmarks.common import Report, Sample, Target
from benchmarks.engine_turns import make_sessions
from benchmarks.load import as_fast_as_they_go
from benchmarks.processes import Runtime
from benchmarks.store_turns import measure_pgbench

NAME: Final = "replicated"
SESSIONS: Final = 32
TURNS: Final = 10


def main() -> None:
    """Measure and print."""
    made = common.parser(__doc__)
    made.add_argument("--seconds", type=float, default=10.0, help="length of one round")
    made.add_argument("--rounds", type=int, default=3)
    made.add_argument("--replicas", type=int, nargs="+", default=[1, 2, 4])
    options = made.parse_args()
    if options.quick:
        options.seconds, options.rounds, options.replicas = 1.0, 1, [1, 2]
    measure(options).publish(options.json)


def measure(options: argparse.Namespace) -> Report:
    """Start as many processes as are needed at most, and talk to some of them in turn."""
    report = Report("replicas")
    rates: dict[int, list[float]] = {number: [] for number in options.replicas}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="abide-bench-")))
        server, url = stack.enter_context(common.database())
        runtimes = []
        for index in range(max(options.replicas)):
            (folder / str(index)).mkdir()
            runtimes.append(stack.enter_context(Runtime(folder / str(index), url, common.agent_manifest(NAME))))
        ports = [runtime.port for runtime in runtimes if runtime.wait_ready()]
        failures: list[str] = []
        for round_ in range(-1, options.rounds):  # the first one warms up
            order = list(options.replicas)
            for number in order if round_ % 2 == 0 else order[::-1]:
                load = as_fast_as_they_go(ports[:number], NAME, sessions=SESSIONS, turns=TURNS, seconds=options.seconds)
                talked = uvloop.run(load)
                failures += talked.failures
                if round_ >= 0:
                    rates[number].append(talked.rate)
            common.progress(f"round {round_ + 1} of {options.rounds}")
        agent = uuid4()
        uvloop.run(make_sessions(url, agent))
        most = measure_pgbench(server.binaries, url, agent, SESSIONS, options.seconds)
    first = options.replicas[0]
    for number, found in rates.items():
        gain = statistics.median(one / other for one, other in zip(found, rates[first], strict=True))
        report.rows.append(
            {
                "processes": str(number),
                "turns/s": round(Sample(found).median, 1),
                "spread": f"{Sample(found).spread:.0%}",
                f"x {first}": round(gain, 2),
                "share of pgbench": round(Sample(found).median / most, 3),
            }
        )
    report.notes.append(f"pgbench with the same writes on {SESSIONS} connections: {most:,.0f} turns/s")
    report.targets.append(Target("messages that failed", len(failures), at_most=0))
    report.notes += failures[:1]
    return report


if __name__ == "__main__":
    main()
