"""Metrics of the operator. Only what is about an Agent names one (agents.py); nothing else grows with the fleet."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from agent_operator.telemetry.agents import FAMILIES, AgentState, AgentStates

_DURATIONS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_WRITES: Final = frozenset(("create", "apply", "apply_status", "patch", "delete"))
BUG: Final = "Bug"
RESULTS: Final = ("changed", "unchanged", "refused", "gone")

Sample = Callable[[], dict[str, float]]
"""Returns gauges by name, read at each scrape."""


@dataclass(frozen=True, slots=True)
class MetricInfo:
    """One metric, for the reference."""

    name: str
    kind: str
    labels: tuple[str, ...]
    text: str


class _Sampled(Collector):
    """What is read when it is scraped."""

    def __init__(self, sample: Sample, help_texts: dict[str, str]) -> None:
        self._sample = sample
        self._help_texts = help_texts

    def collect(self) -> Iterator[Metric]:
        values = self._sample()
        for name, text in self._help_texts.items():
            make = CounterMetricFamily if _kind(name) == "counter" else GaugeMetricFamily
            yield make(name, text, value=values[name])


SAMPLED: Final = {
    "abide_operator_queue_depth": "Agents that wait to be reconciled now.",
    "abide_operator_queue_delayed": "Agents that are to be looked at later.",
    "abide_operator_queue_processing": "Agents being reconciled.",
    "abide_operator_queue_oldest_seconds": "How long the oldest waiting agent has waited.",
    "abide_operator_unfinished_seconds": "How long the oldest running reconcile has run.",
    "abide_operator_agents": "Agents known.",
    "abide_operator_children": "Objects of agents known.",
    "abide_operator_pods": "Pods of agents known.",
    "abide_operator_references_missing": "Secrets and ConfigMaps that agents refer to and that are missing.",
    "abide_operator_watch_age_seconds": "Age of the oldest sign of life among the watches.",
    "abide_operator_loop_lag_seconds": "How late the event loop ran its last timer.",
    "abide_operator_synced": "1 once everything was listed.",
    "abide_operator_migrations_done": "1 once the database schema is up to date.",
    "abide_operator_migration_failures_total": "Times the database schema could not be brought up to date.",
    "abide_operator_store_reachable": "1 while heartbeats can be read from Postgres.",
}

PROCESS: Final = (
    MetricInfo("abide_process_virtual_memory_bytes", "gauge", (), "Virtual memory of the process."),
    MetricInfo("abide_process_resident_memory_bytes", "gauge", (), "Resident memory of the process."),
    MetricInfo("abide_process_start_time_seconds", "gauge", (), "When the process started, in seconds since 1970."),
    MetricInfo("abide_process_cpu_seconds_total", "counter", (), "CPU time the process used."),
    MetricInfo("abide_process_open_fds", "gauge", (), "Open file descriptors."),
    MetricInfo("abide_process_max_fds", "gauge", (), "How many file descriptors it may open."),
)


def _kind(name: str) -> str:
    return "counter" if name.endswith("_total") else "gauge"


class Metrics:
    """All metrics of one operator process, in a registry of its own."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # one more series for each, which no query here uses
        self.registry = CollectorRegistry(auto_describe=False)
        self.agents = AgentStates()
        self._described = list(PROCESS)
        self.reconciles = self._counter("abide_operator_reconciles_total", "Finished reconciles, by result.", "result")
        for result in RESULTS:
            self.reconciles.labels(result)
        self.errors = self._counter("abide_operator_reconcile_errors_total", "Failed reconciles, by reason.", "reason")
        self.errors.labels(BUG)
        self.durations = self._histogram(
            "abide_operator_reconcile_duration_seconds", "Time one reconcile took, whatever its result."
        )
        self.latencies = self._histogram("abide_operator_queue_latency_seconds", "Time an agent waited in the queue.")
        self.retries = self._counter("abide_operator_retries_total", "Reconciles that will be tried again.")
        self.requests = self._counter(
            "abide_operator_kube_requests_total", "Requests to the API server, by outcome.", "verb", "kind", "outcome"
        )
        self.writes = self._counter(
            "abide_operator_kube_writes_total", "Successful writes to the API server.", "verb", "kind"
        )
        self.watch_events = self._counter("abide_operator_watch_events_total", "Watch events received.", "kind")
        self.sweeps = self._counter("abide_operator_sweeps_total", "Full comparisons, by result.", "result")
        for result in ("ok", "failed"):
            self.sweeps.labels(result)
        self.events_dropped = self._counter(
            "abide_operator_events_dropped_total", "Kubernetes Events that could not be written."
        )
        self.info = self._gauge("abide_operator_info", "The running build.", "version")
        ProcessCollector(namespace="abide", registry=self.registry)

    @property
    def described(self) -> list[MetricInfo]:
        """Every metric, for the reference."""
        sampled = [MetricInfo(name, _kind(name), (), text) for name, text in SAMPLED.items()]
        agents = [MetricInfo(family.name, "gauge", family.labels, family.text) for family in FAMILIES]
        return [*self._described, *sampled, *agents]

    def sample(self, sample: Sample) -> None:
        """Read the gauges of SAMPLED from `sample` at each scrape."""
        self.registry.register(_Sampled(sample, SAMPLED))

    def read_agents(self, agents: Callable[[], Iterable[AgentState]]) -> None:
        """Show the state of these Agents at each scrape."""
        self.agents.read_from(agents)

    def on_request(self, verb: str, kind: str, outcome: str) -> None:
        """Count one request to the API server."""
        self.requests.labels(verb, kind, outcome).inc()
        if outcome == "ok" and verb in _WRITES:
            self.writes.labels(verb, kind).inc()

    def render(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return generate_latest(self.registry) + self.agents.render().encode()

    def _note(self, name: str, kind: str, labels: tuple[str, ...], text: str) -> None:
        self._described.append(MetricInfo(name, kind, labels, text))

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        self._note(name, "counter", labels, text)
        return Counter(name, text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        self._note(name, "gauge", labels, text)
        return Gauge(name, text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str) -> Histogram:
        self._note(name, "histogram", (), text)
        return Histogram(name, text, buckets=_DURATIONS, registry=self.registry)
