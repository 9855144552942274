"""Telemetry of one agent: one call per thing that happened, spread to Prometheus, Postgres rows and the log."""

from dataclasses import dataclass
from uuid import UUID

from prometheus_client import Counter, Histogram

from agent_api.wire import TurnStatus
from agent_runtime.clock import Clock
from agent_runtime.loop.driver import ModelCall
from agent_runtime.telemetry.logs import get_logger
from agent_runtime.telemetry.metrics import RuntimeMetrics
from agent_runtime.telemetry.recorder import Recorder
from agent_store.ports import Claim, TurnRecord

_LOG = get_logger("engine")
REPEAT_SECONDS = 5.0
"""A model that fails every call writes a row of the same kind at most this often while another model answers."""


@dataclass(frozen=True, slots=True)
class AgentName:
    """Which agent something is about."""

    id: UUID
    namespace: str
    name: str


class AgentTelemetry:
    """Told by the engine what happened."""

    def __init__(self, agent: AgentName, metrics: RuntimeMetrics, recorder: Recorder, clock: Clock) -> None:
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
        self._calls: dict[tuple[str, str], Counter] = {}
        self._call_seconds: dict[str, Histogram] = {}
        metrics.takeovers.labels(*self._labels)
        metrics.lease_losses.labels(*self._labels)

    def message_received(self) -> None:
        """Count an accepted message."""
        self._messages.inc()
        self._recorder.sample(self._agent.id, "message_received")

    def message_refused(self, reason: str) -> None:
        """Count a refused message; `reason` is one of few words."""
        self._metrics.refused.labels(*self._labels, reason).inc()

    def running(self, turns: int) -> None:
        """Show how many turns run."""
        self._running.set(turns)

    def sessions(self, in_memory: int) -> None:
        """Show how many sessions are in memory."""
        self._sessions.set(in_memory)

    def ready(self, ready: bool) -> None:
        """Show whether turns can be accepted."""
        self._metrics.ready.labels(*self._labels).set(ready)

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
        if turn.status is TurnStatus.COMPLETED and turn.model is not None:
            self.answering = turn.model
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
        outcome = call.failure.value if call.failure else "ok"
        self._count_call(call.model, outcome, call.seconds)
        if call.failure is None:
            return
        self._recorder.sample(self._agent.id, "model_call_failed", label=call.failure.value)
        key = (call.model, call.failure.value)
        now = self._clock.monotonic()
        if now - self._failed_at.get(key, -REPEAT_SECONDS) >= REPEAT_SECONDS:
            self._failed_at[key] = now
            self._recorder.error(
                self._agent.id, call.failure.value, f"{call.model} {call.message}", context={"model": call.model}
            )

    def _count_call(self, model: str, outcome: str, seconds: float) -> None:
        counter = self._calls.get((model, outcome))
        if counter is None:
            counter = self._calls[model, outcome] = self._metrics.model_calls.labels(*self._labels, model, outcome)
            self._call_seconds[model] = self._metrics.model_seconds.labels(*self._labels, model)
        counter.inc()
        self._call_seconds[model].observe(seconds)

    def state_saved(self, seconds: float, *, trigger: str) -> None:
        """Note a snapshot that was saved by itself: `trigger` is messages, eviction or shutdown."""
        self._metrics.saves.labels(*self._labels, trigger).inc()
        self._recorder.sample(self._agent.id, "auto_save", label=trigger)
        self._recorder.sample(self._agent.id, "auto_save_ms", seconds * 1000)

    def lease_lost(self, why: str) -> None:
        """Note that the process may not commit any more."""
        self._metrics.lease_losses.labels(*self._labels).inc()
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
        self._metrics.errors.labels(*self._labels, error_type).inc()
        context = {name: str(value) for name, value in (("turnId", turn), ("sessionId", session)) if value is not None}
        self._recorder.error(self._agent.id, error_type, message, trace=trace, context=context)
