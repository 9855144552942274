"""Time of an automatic save: the snapshot of a session, every five messages, beside the turns of a busy process.

    python -m benchmarks.auto_save [--quick] [--seconds 20]

One runtime process as in a pod, at half the rate it can take at most, as users would load it. The times are those that
the process measures itself (`auto_save_ms` in `agent_metrics`), every single one: it writes each interval's sum, count
and highest, and the benchmark reads the histogram of its metrics for the share below 10 ms.
"""

import argparse
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import uvloop

from benchmarks import common
from benchmarks.common import Report, Target
from benchmarks.load import as_fast_as_they_go, at_rate
from benchmarks.processes import Runtime, get

NAME: Final = "saving"
LIMIT: Final = 0.01
SHARE: Final = 0.99
METRIC: Final = "abide_state_save_duration_seconds"


def main() -> None:
    """Measure and print."""
    made = common.parser(__doc__)
    made.add_argument("--seconds", type=float, default=20.0)
    made.add_argument("--sessions", type=int, default=64)
    options = made.parse_args()
    if options.quick:
        options.seconds, options.sessions = 1.0, 8
    measure(options).publish(options.json)


def measure(options: argparse.Namespace) -> Report:
    """Talk at half load and read how long saves took."""
    report = Report("auto_save")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="abide-bench-")))
        _, url = stack.enter_context(common.database())
        runtime = stack.enter_context(Runtime(folder, url, common.agent_manifest(NAME)))
        runtime.wait_ready()
        common.progress("as fast as it goes")
        full = as_fast_as_they_go(
            [runtime.port], NAME, sessions=options.sessions, turns=10, seconds=min(5.0, options.seconds)
        )
        rate = uvloop.run(full).rate / 2
        before = histogram(runtime)
        common.progress(f"{rate:.0f} messages a second, {options.seconds:g} s")
        load = at_rate(runtime.port, NAME, rate=rate, seconds=options.seconds, sessions=options.sessions)
        talked = uvloop.run(load)
        after = histogram(runtime)
    found = {bound: after[bound] - before.get(bound, 0.0) for bound in after}
    saves = found[float("inf")]
    report.rows.append(
        {
            "load": "half",
            "turns/s": round(talked.rate, 1),
            "saves": int(saves),
            **{f"≤ {bound * 1000:g} ms": share(found, bound) for bound in sorted(found) if bound != float("inf")},
        }
    )
    report.targets.append(Target("share of saves within 10 ms", share(found, LIMIT), at_least=SHARE))
    return report


def share(found: dict[float, float], bound: float) -> float:
    """Return which share of the saves took at most so many seconds."""
    saves = found[float("inf")]
    return round(found[bound] / saves, 4) if saves else 0.0


def histogram(runtime: Runtime) -> dict[float, float]:
    """Return how many saves took at most so many seconds, by bound."""
    _, body = get(runtime.port, "/metrics", timeout=30)
    buckets: dict[float, float] = {}
    for line in body.decode().splitlines():
        if line.startswith(f"{METRIC}_bucket"):
            labels, _, value = line.rpartition(" ")
            bound = labels.partition('le="')[2].partition('"')[0]
            buckets[float(bound)] = buckets.get(float(bound), 0.0) + float(value)
    if not buckets:
        raise RuntimeError(f"/metrics has no {METRIC}")
    return buckets


if __name__ == "__main__":
    main()
