"""Telemetry of one agent: one call per thing that happened, spread to Prometheus, Postgres rows and the log."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from prometheus_client import Counter, Histogram

from agent_api.wire import BudgetCheck, ModelCheck, ToolCheck, TurnStatus
from agent_runtime.clock import Clock
from agent_runtime.loop.driver import ModelCall
from agent_runtime.telemetry.logs import get_logger
from agent_runtime.telemetry.metrics import (
    ERROR_TYPES,
    OUTCOMES,
    REFUSALS,
    REFUSED_BY_US,
    RESULTS,
    TOOL_OUTCOMES,
    TRIGGERS,
    RuntimeMetrics,
    known,
)
from agent_runtime.telemetry.recorder import Recorder
from agent_store.ports import Claim, TurnRecord

_LOG = get_logger("engine")
REPEAT_SECONDS = 5.0
"""A model that fails every call writes a row of the same kind at most this often while another model answers."""


@dataclass(frozen=True, slots=True)
class _ModelSeries:
    """The series of one model: finding them by their labels costs as much as counting."""

    calls: dict[str, Counter]
    seconds: Histogram
    first_token: Histogram
    tokens_in: Counter
    tokens_out: Counter
    answered: Counter


def _model_series(metrics: RuntimeMetrics, labels: tuple[str, str, str]) -> _ModelSeries:
    return _ModelSeries(
        calls={outcome: metrics.model_calls.labels(*labels, outcome) for outcome in OUTCOMES},
        seconds=metrics.model_seconds.labels(*labels),
        first_token=metrics.first_token.labels(*labels),
        tokens_in=metrics.tokens_in.labels(*labels),
        tokens_out=metrics.tokens_out.labels(*labels),
        answered=metrics.answered.labels(*labels),
    )


@dataclass(frozen=True, slots=True)
class AgentName:
    """Which agent something is about."""

    id: UUID
    namespace: str
    name: str


class AgentTelemetry:
    """Told by the engine what happened."""

    def __init__(
        self,
        agent: AgentName,
        metrics: RuntimeMetrics,
        recorder: Recorder,
        clock: Clock,
        models: Sequence[str] = (),
        tools: Sequence[str] = (),
    ) -> None:
        self._agent = agent
        self._metrics = metrics
        self._recorder = recorder
        self._clock = clock
        self._labels = (agent.name, agent.namespace)
        self._messages = metrics.messages.labels(*self._labels)
        self._seconds = metrics.turn_seconds.labels(*self._labels)
        self._running = metrics.running.labels(*self._labels)
        self._sessions = metrics.sessions.labels(*self._labels)
        self._failed_at: dict[tuple[str, str], float] = {}
        self.answering = ""
        # Finding a series by its labels costs as much as counting in it.
        self._turns = {
            status: metrics.turns.labels(*self._labels, status.value) for status in TurnStatus if status.is_final
        }
        self._sli = {result: metrics.sli.labels(*self._labels, result) for result in RESULTS}
        self._models: dict[str, _ModelSeries] = {}
        self._begin_at_zero()
        for model in models:
            self._model(model)
        for tool in tools:
            metrics.tool_seconds.labels(*self._labels, tool)
            for outcome in TOOL_OUTCOMES:
                metrics.tool_calls.labels(*self._labels, tool, outcome)

    def _begin_at_zero(self) -> None:
        """Make the series that alerts ask for before anything happened."""
        metrics = self._metrics
        for counter in (metrics.takeovers, metrics.lease_losses, metrics.queued):
            counter.labels(*self._labels)
        for counter, values in ((metrics.errors, ERROR_TYPES), (metrics.refused, REFUSALS), (metrics.saves, TRIGGERS)):
            for value in values:
                counter.labels(*self._labels, value)
        metrics.save_seconds.labels(*self._labels)

    def message_received(self) -> None:
        """Count an accepted message."""
        self._messages.inc()
        self._recorder.sample(self._agent.id, "message_received")

    def message_queued(self) -> None:
        """Count a message that waits for an earlier one of its session."""
        self._metrics.queued.labels(*self._labels).inc()

    def message_refused(self, reason: str) -> None:
        """Count a refused message; `reason` is one of few words."""
        self._metrics.refused.labels(*self._labels, reason).inc()
        if reason in REFUSED_BY_US:
            self._sli["bad"].inc()

    def history_compacted(self, result: str) -> None:
        """Count a summary: `result` is ok or failed."""
        self._metrics.compactions.labels(*self._labels, result).inc()

    def turn_over_budget(self, scope: str) -> None:
        """Count a turn that was refused because a budget is used up."""
        self._metrics.over_budget.labels(*self._labels, scope).inc()

    def budgets(self, checks: Sequence[BudgetCheck]) -> None:
        """Show how much of each budget is used."""
        for check in checks:
            self._metrics.budget_used.labels(*self._labels, check.scope).set(check.used_percent / 100)

    def running(self, turns: int) -> None:
        """Show how many turns run."""
        self._running.set(turns)

    def sessions(self, in_memory: int) -> None:
        """Show how many sessions are in memory."""
        self._sessions.set(in_memory)

    def ready(self, ready: bool, *, lease_held: bool) -> None:
        """Show whether turns can be accepted, and whether they may be committed."""
        self._metrics.ready.labels(*self._labels).set(ready)
        self._metrics.lease_held.labels(*self._labels).set(lease_held)

    def models(self, checks: Sequence[ModelCheck]) -> None:
        """Show which models can be used, as far as it is known; of entries for the same model the best counts."""
        best: dict[str, bool] = {}
        for check in checks:
            if check.ok is not None:
                best[check.model] = best.get(check.model, False) or check.ok
        for model, ok in best.items():
            self._metrics.model_up.labels(*self._labels, model).set(ok)

    def tools(self, checks: Sequence[ToolCheck]) -> None:
        """Show which entries of spec.tools can be used, as far as it is known."""
        for check in checks:
            if check.ok is not None:
                self._metrics.tool_up.labels(*self._labels, check.name).set(check.ok)

    def tool_called(self, entry: str, outcome: str, seconds: float) -> None:
        """Count a call of a tool; `entry` is the one of spec.tools it belongs to."""
        self._metrics.tool_calls.labels(*self._labels, entry, outcome).inc()
        self._metrics.tool_seconds.labels(*self._labels, entry).observe(seconds)

    def tool_broken(self, entry: str, reason: str, phrase: str) -> None:
        """Note that an entry of spec.tools cannot be used."""
        self.error(reason, f"Tool {entry} {phrase}.")

    def turn_taken_over(self, claim: Claim) -> None:
        """Note a turn that another process had begun."""
        self._metrics.takeovers.labels(*self._labels).inc()
        _LOG.info("turn_taken_over", agent=self._agent.name, turn=str(claim.turn_id), attempts=claim.attempts)

    def turn_finished(self, turn: TurnRecord, seconds: float) -> None:
        """Note a committed outcome: one log line, metrics, and an error row unless it went well."""
        self._turns[turn.status].inc()
        self._seconds.observe(seconds)
        self._recorder.sample(self._agent.id, "turn_completed", label=turn.status.value)
        self._recorder.sample(self._agent.id, "turn_duration_ms", seconds * 1000)
        if turn.status is not TurnStatus.CANCELLED:
            self._sli["good" if turn.status is TurnStatus.COMPLETED else "bad"].inc()
        if turn.status is TurnStatus.COMPLETED and turn.model is not None:
            self.answering = turn.model
            self._model(turn.model).answered.inc()
        _LOG.info(
            "turn_finished",
            agent=self._agent.name,
            namespace=self._agent.namespace,
            turn=str(turn.id),
            session=str(turn.session_id),
            status=turn.status.value,
            model=turn.model,
            attempts=turn.attempts,
            error=turn.error_type,
            ms=round(seconds * 1000, 1),
        )
        if turn.status in (TurnStatus.FALLBACK, TurnStatus.FAILED):
            self.error(turn.error_type or "Failed", turn.error_message or "", turn=turn.id, session=turn.session_id)

    def model_called(self, call: ModelCall) -> None:
        """Count a model call; a failing one leaves a row now and then, so that a working fallback hides nothing."""
        self._count_call(call)
        if call.failure is None:
            return
        self._recorder.sample(self._agent.id, "model_call_failed", label=call.failure.value)
        self._model_error(call.model, call.failure.value, call.message)

    def model_broken(self, model: str, reason: str, phrase: str) -> None:
        """Note that a model cannot be used, also where no user has found it out yet."""
        self._model_error(model, reason, phrase)

    def _model_error(self, model: str, error_type: str, phrase: str) -> None:
        now = self._clock.monotonic()
        if now - self._failed_at.get((model, error_type), -REPEAT_SECONDS) >= REPEAT_SECONDS:
            self._failed_at[model, error_type] = now
            self._recorder.error(self._agent.id, error_type, f"{model} {phrase}", context={"model": model})

    def _count_call(self, call: ModelCall) -> None:
        series = self._model(call.model)
        outcome = call.failure.value if call.failure else "ok"
        series.calls[outcome].inc()
        series.seconds.observe(call.seconds)
        if call.first_token is not None:
            series.first_token.observe(call.first_token)
        series.tokens_in.inc(call.input_tokens)
        series.tokens_out.inc(call.output_tokens)
        if call.cost is not None and call.cost.currency:
            cost = self._metrics.cost.labels(*self._labels, call.model, call.cost.currency)
            cost.inc(float(call.cost.amount) / 1_000_000)

    def priced(self, model: str, currency: str) -> None:
        """Begin to count what a model costs."""
        self._metrics.cost.labels(*self._labels, model, currency)

    def models_left_alone(self, models: Mapping[str, bool]) -> None:
        """Show which models are not called now."""
        for model, is_so in models.items():
            self._metrics.left_alone.labels(*self._labels, model).set(is_so)

    def _model(self, model: str) -> "_ModelSeries":
        series = self._models.get(model)
        if series is None:
            series = self._models[model] = _model_series(self._metrics, (*self._labels, model))
        return series

    def state_saved(self, seconds: float, *, trigger: str) -> None:
        """Note a snapshot that was saved by itself: `trigger` is messages, eviction or shutdown."""
        self._metrics.saves.labels(*self._labels, trigger).inc()
        self._metrics.save_seconds.labels(*self._labels).observe(seconds)
        self._recorder.sample(self._agent.id, "auto_save", label=trigger)
        self._recorder.sample(self._agent.id, "auto_save_ms", seconds * 1000)

    def lease_lost(self, why: str, *, told: bool = True) -> None:
        """Note that the process may not commit any more; `told`: as an error row too."""
        self._metrics.lease_losses.labels(*self._labels).inc()
        if told:
            self.error("LeaseLost", f"This process lost its lease: {why}.")
        _LOG.warning("lease_lost", agent=self._agent.name, namespace=self._agent.namespace, why=why)

    def broke(self, error: BaseException, trace: str) -> None:
        """Note a defect, with its traceback."""
        self.error("InternalError", f"{type(error).__name__}: {error}", trace=trace)
        _LOG.error("defect", agent=self._agent.name, error=type(error).__name__, exception=trace)

    def error(
        self,
        error_type: str,
        message: str,
        *,
        trace: str = "",
        turn: UUID | None = None,
        session: UUID | None = None,
    ) -> None:
        """Queue a row of `agent_errors`."""
        self._metrics.errors.labels(*self._labels, known(error_type, ERROR_TYPES)).inc()
        context = {name: str(value) for name, value in (("turnId", turn), ("sessionId", session)) if value is not None}
        self._recorder.error(self._agent.id, error_type, message, trace=trace, context=context)
