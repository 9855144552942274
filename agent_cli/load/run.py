"""One load run: rows one after the other at one place, then the answer."""

import asyncio
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Final
from uuid import uuid4

from agent_cli.cluster.kubectl import Cluster, find_kubectl
from agent_cli.errors import CliError, UsageError
from agent_cli.load.places import ExistingPlace, Place, cluster_place, local_place
from agent_cli.load.plan import Plan, Row, Spread, growth_of, is_loopback, make_plan, parse_counts
from agent_cli.load.talk import Endpoint, run_load
from agent_cli.local.stopping import StopRequest
from agent_cli.output import OutputFormat, emit, note, print_table

INTERRUPTED: Final = 130
COLUMNS: Final = ("AGENTS", "START s", "REPLIES/s", "REPLY p50 ms", "p99", "SAVE p50 ms", "p99", "CLOSE p50 ms", "p99")


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """The command line."""

    agents: str
    sessions: int
    rate: float
    messages: int
    dev: bool
    namespace: str | None
    url: str | None
    names: tuple[str, ...]
    yes: bool
    timeout: float
    output: OutputFormat
    context: str | None
    kubeconfig: str | None
    key: str | None


def run_command(options: LoadOptions) -> None:
    """Run and print. Raises UsageError before anything is made, CliError after everything made is removed."""
    counts = parse_counts(options.agents)
    plan = make_plan(
        counts,
        sessions=options.sessions,
        rate=options.rate,
        messages=options.messages,
        timeout=options.timeout,
    )
    run_id = uuid4().hex[:8]
    place = choose_place(options, run_id)
    stop = StopRequest()
    rows: list[Row] = []
    try:
        with place as chosen:
            try:
                with stop.interrupting():
                    for count in plan.agents:
                        note(f"{count} agents, {plan.total(count)} messages in {plan.seconds(count):.0f} s")
                        rows.append(measure_row(plan, chosen, count, run_id, options.timeout))
            except KeyboardInterrupt:
                note("stopping; everything that was made is removed …")
    finally:
        stop.finish()
    if stop.requested:
        raise CliError("Interrupted before all rows were measured.", exit_code=INTERRUPTED)
    report(plan, chosen, rows, options.output)
    if any(row.failed for row in rows):
        raise CliError(f"{sum(row.failed for row in rows)} requests failed; see FAILED.")


@contextmanager
def choose_place(options: LoadOptions, run_id: str) -> Iterator[Place]:
    """Yield the place the options mean. Raises UsageError."""
    if options.dev and (options.url or options.namespace):
        raise UsageError("--dev needs neither --url nor --namespace; leave them out.")
    if options.url is not None:
        yield ExistingPlace(existing_endpoints(options.url, options.names, options.key, yes=options.yes))
    elif options.names:
        raise UsageError("--name is for agents at an address; give --url too.")
    elif options.dev:
        with local_place() as local:
            yield local
    else:
        cluster = Cluster(find_kubectl(os.environ), options.namespace, options.context, options.kubeconfig)
        with cluster_place(cluster, run_id) as made:
            yield made


def existing_endpoints(url: str, names: Sequence[str], key: str | None, *, yes: bool) -> list[Endpoint]:
    """Return the agents at an address. Raises UsageError, also for an address elsewhere without `yes`."""
    if not is_loopback(url) and not yes:
        raise UsageError(f"{url} is not this machine: a load may hurt who uses it. Add --yes if you may do that.")
    if not names:
        raise UsageError("--url needs the agents to talk to: --name NAMESPACE/NAME, once for each.")
    endpoints = []
    for name in names:
        namespace, slash, agent = name.partition("/")
        if not slash or not namespace or not agent:
            raise UsageError(f"--name {name!r}: write NAMESPACE/NAME.")
        endpoints.append(Endpoint(namespace, agent, url.rstrip("/"), key))
    return endpoints


def measure_row(plan: Plan, place: Place, count: int, run_id: str, timeout: float) -> Row:
    """Start, load and stop `count` agents within `timeout` seconds. Raises CliError."""
    deadline = time.monotonic() + timeout
    row = Row(count)
    started = _timed(lambda: place.start(count, deadline))
    with ExitStack() as stack:
        endpoints = place.reach(stack)
        try:
            asyncio.run(_bounded(plan, endpoints, row, run_id, deadline))
        except TimeoutError as error:
            raise CliError(f"{count} agents: not done within --timeout {timeout:g} s.") from error
    stopped = _timed(lambda: place.stop(deadline))
    if place.makes_agents:
        row.start_seconds, row.stop_seconds = started, stopped
    return row


async def _bounded(plan: Plan, endpoints: Sequence[Endpoint], row: Row, run_id: str, deadline: float) -> None:
    async with asyncio.timeout(max(1.0, deadline - time.monotonic())):
        await run_load(plan, endpoints, row, run_id=run_id)


def _timed(action: Callable[[], None]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def report(plan: Plan, place: Place, rows: Sequence[Row], output: OutputFormat) -> None:
    """Print what was measured: {target, sessions, messages, rate, rows, growth} for programs."""
    growth = growth_of(rows)
    answer: dict[str, Any] = {
        "target": place.name,
        "sessions": plan.sessions,
        "messages": plan.messages,
        "rate": plan.rate,
        "rows": [row.as_json() for row in rows],
        "growth": [{"what": one.what, "exponent": round(one.exponent, 3), "linear": one.is_linear} for one in growth],
    }

    def table() -> None:
        print_table([*COLUMNS, "STOP s", "FAILED"], [_cells(row) for row in rows])
        for one in growth:
            print(one.text())

    emit(output, answer, table)


def _cells(row: Row) -> list[str]:
    shown = row.as_json()
    failures = ", ".join(f"{count} {what}" for what, count in row.failures.most_common(3))
    return [
        str(row.agents),
        _number(row.start_seconds, 2),
        _number(shown["repliesPerSecond"], 1),
        *_percentiles(row.reply),
        *_percentiles(row.save),
        *_percentiles(row.close),
        _number(row.stop_seconds, 2),
        failures or "0",
    ]


def _percentiles(spread: Spread) -> list[str]:
    return [_number(spread.percentile(share), 1) for share in (0.5, 0.99)]


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
