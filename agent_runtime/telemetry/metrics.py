"""Prometheus metrics of the runtime. Every name starts with `abide_`; whatever is about an agent carries its labels.

Series of a pod are bounded: label values come from the spec (models) or from the closed sets below, never from users.
A series that alerts and dashboards ask for exists from the start, at 0: a counter whose first value is 1 never
"increased".
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from agent_api.conditions import Reason
from agent_api.wire import TurnStatus
from agent_runtime.llm.port import FailureKind

AGENT_LABELS: Final = ("agent", "agent_namespace")
TURN_BUCKETS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
CALL_BUCKETS: Final = (0.05, 0.25, 1, 2.5, 5, 10, 30, 60)
STORE_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 2.5)
TOOL_BUCKETS: Final = (0.05, 0.5, 2.5, 10, 60)
SAVE_BUCKETS: Final = (0.005, 0.01, 0.05, 0.25, 1)
LAG_BUCKETS: Final = (0.005, 0.02, 0.1, 0.5, 2.5)

OTHER: Final = "other"
TURN_STATUSES: Final = tuple(status.value for status in TurnStatus if status.is_final)
REFUSALS: Final = ("Draining", "NotReady", "Overloaded", "QueueFull", "IdempotencyMismatch", "StoreUnavailable")
REFUSED_BY_US: Final = frozenset(("Draining", "NotReady", "Overloaded", "StoreUnavailable"))
"""Refusals that are no doing of the caller."""
RESULTS: Final = ("good", "bad")
ERROR_TYPES: Final = (
    *(kind.value for kind in FailureKind),
    *("OutputInvalid", "BudgetExhausted"),
    *("TurnTimeout", "StepLimit", "TooManyAttempts", "InternalError", "InvalidState"),
    *("StoreUnavailable", "LeaseLost", OTHER),
)
COMPACTIONS: Final = ("ok", "failed")
BUDGET_SCOPES: Final = ("agent", "user")
OUTCOMES: Final = ("ok", *(kind.value for kind in FailureKind))
TOOL_OUTCOMES: Final = ("ok", "error", "timeout", "refused")
TRIGGERS: Final = ("messages", "eviction", "shutdown")
OPERATIONS: Final = ("accept", "complete", OTHER)
"""Calls of the store that a user waits for have series of their own."""
STORE_REASONS: Final = tuple(
    reason.value
    for reason in (
        Reason.CONNECTION_REFUSED, Reason.TIMEOUT, Reason.AUTH_FAILED, Reason.TLS_FAILED, Reason.CONNECTION_LIMIT,
        Reason.READ_ONLY, Reason.SCHEMA_TOO_OLD, Reason.UNKNOWN,
    )
)  # fmt: skip
CODES: Final = (
    *("200", "201", "202", "204", "400", "401", "404", "405", "408", "409"),
    *("413", "422", "429", "500", "502", "503", "none", OTHER),
)


def known(value: str, values: Iterable[str]) -> str:
    """Return the value if it is one of `values`, else "other": no label may grow without bound."""
    return value if value in values else OTHER


@dataclass(frozen=True, slots=True)
class MetricInfo:
    """One metric, for the reference: `most` is how many series it has at most for one agent and one model."""

    name: str
    kind: str
    labels: tuple[str, ...]
    text: str
    most: int


@dataclass(frozen=True, slots=True)
class ProcessGauges:
    """What is read of the process when it is scraped."""

    pool_open: int
    pool_idle: int
    pool_limit: int
    waiting_requests: int
    dropped_errors: int


class RuntimeMetrics:
    """All metrics of one process, in a registry of its own.

    What belongs to the process and not to an agent carries the labels of `agent` (name, namespace): the one agent of a
    pod. Where a process serves several, these labels are empty.
    """

    def __init__(self, version: str, agent: tuple[str, str] = ("", "")) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # one more series for each, which no query here uses
        self.registry = CollectorRegistry(auto_describe=False)
        self.described: list[MetricInfo] = []
        self._agent = agent
        self._sample: Callable[[], ProcessGauges] | None = None
        self._describe_process()
        self.registry.register(_Labelled(ProcessCollector(namespace="abide", registry=None), agent))
        self._make_process_metrics(version)
        self._make_turn_metrics()
        self._make_model_metrics()
        self._make_tool_metrics()
        self._make_budget_metrics()
        self._make_state_metrics()

    def _make_process_metrics(self, version: str) -> None:
        build = self._gauge("abide_build_info", "Version of the runtime, as a label.", (*AGENT_LABELS, "version"))
        build.labels(*self._agent, version).set(1)
        http = self._counter(
            "abide_http_requests_total", "HTTP requests, by status code; none: the caller left.",
            (*AGENT_LABELS, "code"), CODES,
        )  # fmt: skip
        self._http = {code: http.labels(*self._agent, code) for code in ("200", "503")}
        self._http_all = http
        lag = self._histogram(
            "abide_event_loop_lag_seconds", "How late the event loop ran a timer, looked at twice a second.",
            AGENT_LABELS, LAG_BUCKETS,
        )  # fmt: skip
        self.lag = lag.labels(*self._agent)
        calls = self._histogram(
            "abide_store_call_duration_seconds",
            "Time of one statement in Postgres with the wait for a connection, by what it was for.",
            (*AGENT_LABELS, "operation"), STORE_BUCKETS, OPERATIONS,
        )  # fmt: skip
        self._store_calls = {operation: calls.labels(*self._agent, operation) for operation in OPERATIONS}
        errors = self._counter(
            "abide_store_errors_total", "Statements that Postgres did not carry out, by reason.",
            (*AGENT_LABELS, "reason"), STORE_REASONS,
        )  # fmt: skip
        self._store_errors = {reason: errors.labels(*self._agent, reason) for reason in STORE_REASONS}
        self._describe_sampled()

    def _make_turn_metrics(self) -> None:
        self.messages = self._counter("abide_messages_received_total", "Messages accepted.", AGENT_LABELS)
        self.refused = self._counter(
            "abide_messages_refused_total", "Messages refused, by reason.", (*AGENT_LABELS, "reason"), REFUSALS
        )
        self.sli = self._counter(
            "abide_sli_messages_total",
            "The service level indicator: good got a model's reply (a fallback model's too), bad the fallback message, "
            "a failure, or a refusal that was no doing of the caller.",
            (*AGENT_LABELS, "result"), RESULTS,
        )  # fmt: skip
        self.turns = self._counter(
            "abide_turns_total", "Turns with an outcome, by status.", (*AGENT_LABELS, "status"), TURN_STATUSES
        )
        self.turn_seconds = self._histogram(
            "abide_turn_duration_seconds", "Time from claim to committed outcome.", AGENT_LABELS, TURN_BUCKETS
        )
        self.running = self._gauge("abide_running_turns", "Turns running now.", AGENT_LABELS)
        self.queued = self._counter(
            "abide_turns_queued_total", "Messages that had to wait for an earlier one of their session.", AGENT_LABELS
        )
        self.takeovers = self._counter("abide_turns_taken_over_total", "Turns taken over from a process.", AGENT_LABELS)
        self.ready = self._gauge("abide_ready", "1 if a turn can be accepted and committed now.", AGENT_LABELS)
        self.lease_held = self._gauge("abide_lease_held", "1 while this process may commit turns.", AGENT_LABELS)
        self.lease_losses = self._counter("abide_lease_losses_total", "Times the lease was lost.", AGENT_LABELS)
        self.errors = self._counter(
            "abide_errors_total", "Errors recorded, by type.", (*AGENT_LABELS, "type"), ERROR_TYPES
        )

    def _make_model_metrics(self) -> None:
        labels = (*AGENT_LABELS, "model")
        self.model_up = self._gauge(
            "abide_model_up",
            "1 if the model answered when last checked or called, 0 if not; absent: not known.",
            labels,
        )
        self.model_calls = self._counter(
            "abide_model_calls_total", "Model calls, by outcome.", (*labels, "outcome"), OUTCOMES
        )
        self.model_seconds = self._histogram(
            "abide_model_call_duration_seconds", "Time of one model call.", labels, CALL_BUCKETS
        )
        self.first_token = self._histogram(
            "abide_model_first_token_seconds", "Time to the first token of a model call.", labels, CALL_BUCKETS
        )
        self.tokens_in = self._counter("abide_model_input_tokens_total", "Tokens sent to the model.", labels)
        self.tokens_out = self._counter("abide_model_output_tokens_total", "Tokens the model gave.", labels)
        self.cost = self._counter(
            "abide_model_cost_total",
            "What the tokens cost by models[].price, in units of the currency.",
            (*labels, "currency"),
        )
        self.left_alone = self._gauge(
            "abide_model_left_alone", "1 while it is not called: calls failed, or the provider wants none.", labels
        )
        self.answered = self._counter("abide_turns_answered_total", "Turns answered, by model.", labels)

    def _make_budget_metrics(self) -> None:
        self.compactions = self._counter(
            "abide_history_summaries_total",
            "Summaries of long conversations, by what became of them.",
            (*AGENT_LABELS, "result"),
            COMPACTIONS,
        )
        self.budget_used = self._gauge(
            "abide_budget_used_ratio",
            "Share of the day's budget that is used, by scope: the agent, or the user nearest to the limit.",
            (*AGENT_LABELS, "scope"),
            len(BUDGET_SCOPES),
        )
        self.over_budget = self._counter(
            "abide_turns_over_budget_total", "Turns refused because a budget is used up, by its scope.",
            (*AGENT_LABELS, "scope"), BUDGET_SCOPES,
        )  # fmt: skip

    def _make_tool_metrics(self) -> None:
        labels = (*AGENT_LABELS, "tool")
        self.tool_up = self._gauge(
            "abide_tool_up",
            "1 if the entry of spec.tools answered when last checked or called, 0 if not; absent: not known.",
            labels,
        )
        self.tool_calls = self._counter(
            "abide_tool_calls_total",
            "Tool calls, by outcome; refused: the arguments did not fit and nothing was called.",
            (*labels, "outcome"),
            TOOL_OUTCOMES,
        )
        self.tool_seconds = self._histogram(
            "abide_tool_call_duration_seconds", "Time of one tool call.", labels, TOOL_BUCKETS
        )

    def _make_state_metrics(self) -> None:
        self.sessions = self._gauge("abide_sessions_in_memory", "Sessions in memory.", AGENT_LABELS)
        self.saves = self._counter(
            "abide_state_saves_total", "Snapshots saved, by what caused it.", (*AGENT_LABELS, "trigger"), TRIGGERS
        )
        self.save_seconds = self._histogram(
            "abide_state_save_duration_seconds", "Time one snapshot took.", AGENT_LABELS, SAVE_BUCKETS
        )

    # ---- what belongs to the process

    def sample(self, sample: Callable[[], ProcessGauges]) -> None:
        """Read the process's gauges from `sample` at each scrape; called once."""
        self.registry.register(_Sampled(sample, self._agent))

    def on_request(self, status: int | None) -> None:
        """Count one HTTP request by the status of its answer; None: there was no answer."""
        code = known("none" if status is None else str(status), CODES)
        counter = self._http.get(code)
        if counter is None:
            counter = self._http[code] = self._http_all.labels(*self._agent, code)
        counter.inc()

    def on_store_call(self, point: str, seconds: float, failure: str | None) -> None:
        """Observe one statement. `point` is `<method>.<n>`, `failure` the reason why it was not carried out."""
        operation = known(point.partition(".")[0], OPERATIONS)
        self._store_calls[operation].observe(seconds)
        if failure is not None:
            self._store_errors[failure if failure in self._store_errors else Reason.UNKNOWN.value].inc()

    # ---- making and describing

    def _note(self, name: str, kind: str, labels: tuple[str, ...], text: str, most: int) -> None:
        self.described.append(MetricInfo(name, kind, labels, text, most))

    def _counter(self, name: str, text: str, labels: tuple[str, ...], values: tuple[str, ...] = ("",)) -> Counter:
        self._note(name, "counter", labels, text, len(values))
        return Counter(name, text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, labels: tuple[str, ...], most: int = 1) -> Gauge:
        self._note(name, "gauge", labels, text, most)
        return Gauge(name, text, labels, registry=self.registry)

    def _histogram(
        self,
        name: str,
        text: str,
        labels: tuple[str, ...],
        buckets: tuple[float, ...],
        values: tuple[str, ...] = ("",),
    ) -> Histogram:
        self._note(name, "histogram", labels, text, len(values) * (len(buckets) + 3))
        return Histogram(name, text, labels, buckets=buckets, registry=self.registry)

    def _describe_process(self) -> None:
        for name, kind, text in PROCESS:
            self._note(name, kind, AGENT_LABELS, text, 1)

    def _describe_sampled(self) -> None:
        for name, (kind, text) in SAMPLED.items():
            self._note(name, kind, AGENT_LABELS, text, 1)


PROCESS: Final = (
    ("abide_process_virtual_memory_bytes", "gauge", "Virtual memory of the process."),
    ("abide_process_resident_memory_bytes", "gauge", "Resident memory of the process."),
    ("abide_process_start_time_seconds", "gauge", "When the process started, in seconds since 1970."),
    ("abide_process_cpu_seconds_total", "counter", "CPU time the process used."),
    ("abide_process_open_fds", "gauge", "Open file descriptors."),
    ("abide_process_max_fds", "gauge", "How many file descriptors it may open."),
)
SAMPLED: Final = {
    "abide_store_connections_open": ("gauge", "Connections to Postgres."),
    "abide_store_connections_idle": ("gauge", "Connections to Postgres that nobody uses."),
    "abide_store_connections_limit": ("gauge", "Most connections to Postgres this process opens."),
    "abide_waiting_requests": ("gauge", "HTTP requests that wait for a reply."),
    "abide_error_rows_dropped_total": ("counter", "Error rows dropped because Postgres did not take them in time."),
}


class _Labelled(Collector):
    """Puts the agent's labels on what another collector gives."""

    def __init__(self, inner: Collector, agent: tuple[str, str]) -> None:
        self._inner = inner
        self._labels = dict(zip(AGENT_LABELS, agent, strict=True))

    def collect(self) -> Iterator[Metric]:
        for family in self._inner.collect():
            family.samples = [
                Sample(sample.name, {**self._labels, **sample.labels}, sample.value) for sample in family.samples
            ]
            yield family


class _Sampled(Collector):
    """What is read when it is scraped."""

    def __init__(self, sample: Callable[[], ProcessGauges], agent: tuple[str, str]) -> None:
        self._sample = sample
        self._agent = agent

    def collect(self) -> Iterator[Metric]:
        now = self._sample()
        values = (now.pool_open, now.pool_idle, now.pool_limit, now.waiting_requests, now.dropped_errors)
        for (name, (kind, text)), value in zip(SAMPLED.items(), values, strict=True):
            make = CounterMetricFamily if kind == "counter" else GaugeMetricFamily
            family = make(name, text, labels=AGENT_LABELS)
            family.add_metric(self._agent, value)
            yield family
