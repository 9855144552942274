"""Durable turns per second of one runtime process, beside LangGraph's saver and pgbench, all in the same run.

    python -m benchmarks.engine_turns [--quick] [--seconds 10] [--rounds 5] [--langgraph PYTHON]

Contestants, each with 32 busy sessions, 200 bytes in and 400 out, a model without delay, on the same Postgres (fsync
on) and the same cores:

- engine: a runtime process without its HTTP part; everything else as in a pod
- http: a whole runtime process, with a load generator in a process of its own
- langgraph: a graph of one node with its own Postgres saver (needs `python -m benchmarks.langgraph_setup` once)
- pgbench: the writes of one turn (accept, complete) and nothing else, on as many connections as the engine may open,
  and on 32

Sessions have 10 turns, then new ones begin, since LangGraph gets slower with every turn. Contestants are measured in
turn, round after round; ratios are medians of the ratios within a round.
"""

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final
from uuid import UUID, uuid4

import uvloop

from agent_store.embedded import EmbeddedPostgres
from agent_store.ports import SessionKey
from agent_store.postgres.store import PostgresStore
from agent_store.settings import StoreSettings
from benchmarks import common
from benchmarks.common import REPLY_BYTES, REPOSITORY, Report, Sample, Target
from benchmarks.contest import Contestant, Round, run_rounds
from benchmarks.langgraph_setup import find_python
from benchmarks.processes import Runtime
from benchmarks.store_turns import measure_pgbench, run_turns

SESSIONS: Final = 32
TURNS_PER_SESSION: Final = 10


def main() -> None:
    """Measure and print."""
    made = common.parser(__doc__)
    made.add_argument("--seconds", type=float, default=10.0, help="length of one round")
    made.add_argument("--rounds", type=int, default=5)
    made.add_argument("--langgraph", type=Path, metavar="PYTHON", help="interpreter of an environment with LangGraph")
    made.add_argument("--only", nargs="*", help="these contestants only: engine http langgraph pgbench")
    options = made.parse_args()
    if options.quick:
        options.seconds, options.rounds = min(options.seconds, 1.0), min(options.rounds, 2)
    measure(options).publish(options.json)


def measure(options: argparse.Namespace) -> Report:
    """Run the contest."""
    wanted = set(options.only or ("engine", "http", "langgraph", "pgbench"))
    report = Report("engine_turns")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="abide-bench-")))
        server, url = stack.enter_context(common.database())
        contestants: dict[str, Callable[[float], Round]] = {}
        if "engine" in wanted:
            contestants["engine"] = _start_engine(stack, folder, url).run
        if "http" in wanted:
            contestants["http"] = _start_http(stack, folder, url).run
        python = find_python(options.langgraph) if "langgraph" in wanted else None
        if python is not None:
            contestants["langgraph"] = _start_langgraph(stack, folder, server, python).run
        elif "langgraph" in wanted:
            report.notes.append("LangGraph was left out: run `python -m benchmarks.langgraph_setup` once to have it")
        if "pgbench" in wanted:
            contestants |= _pgbench_contestants(server, url)
        for name, run in contestants.items():
            common.progress(f"warming up {name}")
            run(min(1.0, options.seconds))
        common.progress(f"{options.rounds} rounds of {options.seconds:g} s each for {', '.join(contestants)}")
        rounds = run_rounds(contestants, rounds=options.rounds, seconds=options.seconds)
    describe(report, rounds)
    return report


def describe(report: Report, rounds: Mapping[str, Sequence[Round]]) -> None:
    """Add rows and targets."""
    for name, found in rounds.items():
        rates = Sample([one.rate for one in found])
        report.rows.append(
            {
                "contestant": name,
                "turns/s": rates.median,
                "spread": f"{rates.spread:.0%}",
                "CPU µs/turn": Sample([one.cpu_micros for one in found]).median,
                **{f"x {other}": ratio(rounds, name, other) for other in ("langgraph", "pgbench-32")},
            }
        )
    aims = [
        ("engine, times LangGraph", "engine", "langgraph", 30.0),
        ("engine, share of pgbench on 32 connections", "engine", "pgbench-32", 0.30),
        ("over HTTP, times LangGraph in process", "http", "langgraph", 12.0),
    ]
    for what, name, other, least in aims:
        seen = ratio(rounds, name, other)
        if seen is not None:
            report.targets.append(Target(what, seen, at_least=least))


def ratio(rounds: Mapping[str, Sequence[Round]], name: str, other: str) -> float | None:
    """Return how many times as fast `name` is as `other`: the median over the rounds; None if one is not there."""
    if name not in rounds or other not in rounds:
        return None
    pairs = zip(rounds[name], rounds[other], strict=True)
    return statistics.median(mine.rate / theirs.rate for mine, theirs in pairs)


def worker_command(name: str, *arguments: object, python: Path | str = sys.executable) -> list[str]:
    """Return the command of a contestant."""
    return [str(python), "-m", f"benchmarks.workers.{name}", *map(str, arguments)]


def worker_environment() -> dict[str, str]:
    """Return a contestant's environment: no settings of the product, and no tracing of others."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ABIDE_", "LANG"))}
    return {**kept, "PYTHONPATH": str(REPOSITORY), "LANGSMITH_TRACING": "false"}


def _start(stack: ExitStack, name: str, command: list[str], log: Path) -> Contestant:
    contestant = stack.enter_context(Contestant(name, command, worker_environment(), log))
    contestant.wait_ready()
    return contestant


def _start_engine(stack: ExitStack, folder: Path, url: str) -> Contestant:
    command = worker_command("engine", url, SESSIONS, TURNS_PER_SESSION)
    return _start(stack, "engine", command, folder / "engine.log")


def _start_langgraph(stack: ExitStack, folder: Path, server: EmbeddedPostgres, python: Path) -> Contestant:
    url = common.create_database(server, "langgraph_bench")
    command = worker_command("langgraph", url, SESSIONS, TURNS_PER_SESSION, REPLY_BYTES, python=python)
    return _start(stack, "langgraph", command, folder / "langgraph.log")


def _start_http(stack: ExitStack, folder: Path, url: str) -> Contestant:
    runtime = stack.enter_context(Runtime(folder, url, common.agent_manifest("http")))
    runtime.wait_ready()
    command = worker_command("http_load", runtime.port, runtime.pid, SESSIONS, TURNS_PER_SESSION)
    return _start(stack, "http", command, folder / "http.log")


def _pgbench_contestants(server: EmbeddedPostgres, url: str) -> dict[str, Callable[[float], Round]]:
    agent = uuid4()
    uvloop.run(make_sessions(url, agent))

    def contestant(clients: int) -> Callable[[float], Round]:
        def run(seconds: float) -> Round:
            rate = measure_pgbench(server.binaries, url, agent, clients, seconds)
            return Round(round(rate * seconds), seconds, 0.0)

        return run

    return {f"pgbench-{clients}": contestant(clients) for clients in (StoreSettings().max_connections, SESSIONS)}


async def make_sessions(url: str, agent: UUID) -> None:
    """Make the sessions that pgbench's script talks in."""
    store = PostgresStore(url)
    owner = await store.register(agent, common.NAMESPACE, "pgbench", "bench", ttl=3600)
    for number in range(SESSIONS):
        await run_turns(store, owner, SessionKey(agent, "bench", f"s{number}"), float("inf"), 1)
    await store.aclose()


if __name__ == "__main__":
    main()
