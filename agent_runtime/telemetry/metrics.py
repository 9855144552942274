"""Prometheus metrics of the runtime. Every name starts with `abide_`; every agent series carries the agent's labels.

Series of a pod are bounded: labels come from the spec (models) or from enums, never from users.
"""

from typing import Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)

AGENT_LABELS: Final = ("agent", "agent_namespace")
TURN_BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
CALL_BUCKETS: Final = (0.05, 0.25, 1, 2.5, 5, 10, 30, 60)


class RuntimeMetrics:
    """All metrics of one process, in a registry of its own."""

    def __init__(self, version: str) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # one more series for each, which no query here uses
        self.registry = CollectorRegistry(auto_describe=False)
        ProcessCollector(namespace="abide", registry=self.registry)
        self.build = self._gauge("abide_build_info", "Version of the runtime, as a label.", ("version",))
        self.build.labels(version).set(1)
        self.messages = self._counter("abide_messages_received_total", "Messages accepted.", AGENT_LABELS)
        self.refused = self._counter(
            "abide_messages_refused_total", "Messages refused, by reason.", (*AGENT_LABELS, "reason")
        )
        self.turns = self._counter("abide_turns_total", "Turns with an outcome.", (*AGENT_LABELS, "status"))
        self.turn_seconds = self._histogram(
            "abide_turn_duration_seconds", "Time from claim to committed outcome.", AGENT_LABELS, TURN_BUCKETS
        )
        self.running = self._gauge("abide_running_turns", "Turns running now.", AGENT_LABELS)
        self.takeovers = self._counter("abide_turns_taken_over_total", "Turns taken over from a process.", AGENT_LABELS)
        self.model_calls = self._counter(
            "abide_model_calls_total", "Model calls, by outcome.", (*AGENT_LABELS, "model", "outcome")
        )
        self.model_seconds = self._histogram(
            "abide_model_call_duration_seconds", "Time of one model call.", (*AGENT_LABELS, "model"), CALL_BUCKETS
        )
        self.sessions = self._gauge("abide_sessions_in_memory", "Sessions in memory.", AGENT_LABELS)
        self.saves = self._counter("abide_state_saves_total", "Snapshots saved.", (*AGENT_LABELS, "trigger"))
        self.errors = self._counter("abide_errors_total", "Errors recorded, by type.", (*AGENT_LABELS, "type"))
        self.ready = self._gauge("abide_ready", "1 if a turn can be accepted and committed now.", AGENT_LABELS)
        self.lease_losses = self._counter("abide_lease_losses_total", "Times the lease was lost.", AGENT_LABELS)
        self.http = self._counter("abide_http_requests_total", "HTTP requests, by status code.", ("code",))

    def _counter(self, name: str, text: str, labels: tuple[str, ...]) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, labels: tuple[str, ...]) -> Gauge:
        return Gauge(name, text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, labels: tuple[str, ...], buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, text, labels, buckets=buckets, registry=self.registry)
