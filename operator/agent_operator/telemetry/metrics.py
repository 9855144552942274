"""Metrics of the operator. No label names an agent: the number of series does not grow with the fleet."""

from collections.abc import Callable, Iterator
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

_DURATIONS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_WRITES: Final = frozenset(("create", "apply", "apply_status", "patch", "delete"))

Sample = Callable[[], dict[str, float]]
"""Returns gauges by name, read at each scrape."""


class _Sampled(Collector):
    """Gauges that are read when scraped."""

    def __init__(self, sample: Sample, help_texts: dict[str, str]) -> None:
        self._sample = sample
        self._help_texts = help_texts

    def collect(self) -> Iterator[Metric]:
        values = self._sample()
        for name, text in self._help_texts.items():
            yield GaugeMetricFamily(name, text, value=values[name])


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
    "abide_operator_store_reachable": "1 while heartbeats can be read from Postgres.",
}


class Metrics:
    """All metrics of one operator process, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        self.reconciles = Counter(
            "abide_operator_reconciles", "Finished reconciles, by result.", ("result",), registry=self.registry
        )
        self.errors = Counter(
            "abide_operator_reconcile_errors", "Failed reconciles, by reason.", ("reason",), registry=self.registry
        )
        self.durations = Histogram(
            "abide_operator_reconcile_duration_seconds", "Time one reconcile took.",
            buckets=_DURATIONS, registry=self.registry,
        )  # fmt: skip
        self.latencies = Histogram(
            "abide_operator_queue_latency_seconds", "Time an agent waited in the queue.",
            buckets=_DURATIONS, registry=self.registry,
        )  # fmt: skip
        self.retries = Counter("abide_operator_retries", "Reconciles that will be tried again.", registry=self.registry)
        self.requests = Counter(
            "abide_operator_kube_requests", "Requests to the API server.",
            ("verb", "kind", "outcome"), registry=self.registry,
        )  # fmt: skip
        self.writes = Counter(
            "abide_operator_kube_writes", "Successful writes to the API server.", ("verb", "kind"),
            registry=self.registry,
        )  # fmt: skip
        self.watch_events = Counter(
            "abide_operator_watch_events", "Watch events received.", ("kind",), registry=self.registry
        )
        self.sweeps = Counter("abide_operator_sweeps", "Full comparisons.", ("result",), registry=self.registry)
        self.events_dropped = Counter(
            "abide_operator_events_dropped", "Kubernetes Events that could not be written.", registry=self.registry
        )
        self.info = Gauge("abide_operator_info", "The running build.", ("version",), registry=self.registry)
        ProcessCollector(registry=self.registry)

    def sample(self, sample: Sample) -> None:
        """Read the gauges of SAMPLED from `sample` at each scrape."""
        self.registry.register(_Sampled(sample, SAMPLED))

    def on_request(self, verb: str, kind: str, outcome: str) -> None:
        """Count one request to the API server."""
        self.requests.labels(verb, kind, outcome).inc()
        if outcome == "ok" and verb in _WRITES:
            self.writes.labels(verb, kind).inc()

    def render(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return generate_latest(self.registry)
