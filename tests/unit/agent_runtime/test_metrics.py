"""The runtime's metrics stay within their bound, whatever callers and models do."""

from decimal import Decimal
from uuid import uuid4

from agent_api.conditions import Reason
from agent_api.wire import BudgetCheck, ModelCheck, ToolCheck
from agent_runtime.clock import SystemClock
from agent_runtime.llm.port import Cost, FailureKind
from agent_runtime.loop.driver import ModelCall
from agent_runtime.telemetry.agent import AgentName, AgentTelemetry
from agent_runtime.telemetry.metrics import ProcessGauges, RuntimeMetrics
from agent_runtime.telemetry.recorder import Recorder
from agent_runtime.telemetry.scrub import Scrubber
from agent_runtime.tools.catalog import CallOutcome
from agent_store.errors import StoreUnavailable
from agent_store.postgres.store import PostgresStore

MODELS = ("openai/large", "echo/echo", "openai/small")
TOOLS = ("github", "order_status")
MOST, MOST_BY_MODEL, MOST_BY_TOOL = 150, 38, 13
Values = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def use_up() -> RuntimeMetrics:
    """Return metrics after everything that can be counted was, with values nobody foresaw too."""
    clock = SystemClock()
    metrics = RuntimeMetrics("1", ("desk", "shop"))
    recorder = Recorder(PostgresStore("postgresql://u:p@127.0.0.1:9/none"), Scrubber(clock, ()), clock)
    telemetry = AgentTelemetry(AgentName(uuid4(), "shop", "desk"), metrics, recorder, clock, MODELS, TOOLS)
    metrics.sample(lambda: ProcessGauges(3, 1, 5, 2, 0))
    for status in (*range(100, 600), None):
        metrics.on_request(status)
    for reason in (None, *(reason.value for reason in Reason), "new"):
        for point in ("accept.1", "complete.1", "complete.2", "heartbeats.1", "unheard_of"):
            metrics.on_store_call(point, 0.01, reason)
    telemetry.message_received()
    telemetry.message_queued()
    telemetry.running(1)
    telemetry.sessions(1)
    telemetry.ready(True, lease_held=True)
    telemetry.lease_lost("a test")
    telemetry.state_saved(0.1, trigger="messages")
    for error in ("TurnTimeout", "Surprise", "Another"):
        telemetry.error(error, "words")
    for model in MODELS:
        telemetry.model_called(ModelCall(model, 0.5, None, "", 0.1, 10, 20, Cost(Decimal(5), "USD")))
        telemetry.models_left_alone({model: True})
        for kind in FailureKind:
            telemetry.model_called(ModelCall(model, 0.5, kind, "failed"))
    telemetry.models([ModelCheck(name=str(n), model=model, ok=bool(n)) for n, model in enumerate(MODELS)])
    for tool in TOOLS:
        for outcome in CallOutcome:
            telemetry.tool_called(tool, outcome, 0.5)
        telemetry.tool_broken(tool, "ToolDown", "refuses connections")
    telemetry.tools([ToolCheck(name=tool, type="MCP", ok=True) for tool in TOOLS])
    telemetry.budgets([BudgetCheck(scope="agent", used_percent=10), BudgetCheck(scope="user")])
    for scope in ("agent", "user"):
        telemetry.turn_over_budget(scope)
    for result in ("ok", "failed"):
        telemetry.history_compacted(result)
    return metrics


def values_of(metrics: RuntimeMetrics) -> Values:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in metrics.registry.collect()
        for sample in family.samples
    }


def test_series_are_bounded_and_the_reference_tells_the_truth() -> None:
    metrics = use_up()
    made = values_of(metrics)
    by_model = sum(info.most for info in metrics.described if "model" in info.labels)
    by_tool = sum(info.most for info in metrics.described if "tool" in info.labels)
    rest = sum(info.most for info in metrics.described) - by_model - by_tool
    assert rest <= MOST
    assert by_model <= MOST_BY_MODEL
    assert by_tool <= MOST_BY_TOOL
    assert len(made) == rest + by_model * len(MODELS) + by_tool * len(TOOLS)


def test_everything_about_an_agent_is_labelled_and_begins_with_the_product() -> None:
    for name, labels in values_of(use_up()):
        assert name.startswith("abide_")
        assert dict(labels).items() >= {"agent": "desk", "agent_namespace": "shop"}.items(), name
        assert "namespace" not in dict(labels)


def test_refusals_count_against_the_objective_only_if_they_are_ours() -> None:
    clock = SystemClock()
    metrics = RuntimeMetrics("1", ("desk", "shop"))
    recorder = Recorder(PostgresStore("postgresql://u:p@127.0.0.1:9/none"), Scrubber(clock, ()), clock)
    telemetry = AgentTelemetry(AgentName(uuid4(), "shop", "desk"), metrics, recorder, clock)
    bad = ("abide_sli_messages_total", (("agent", "desk"), ("agent_namespace", "shop"), ("result", "bad")))
    for reason, expected in (("QueueFull", 0), ("IdempotencyMismatch", 0), (StoreUnavailable.__name__, 1)):
        telemetry.message_refused(reason)
        assert values_of(metrics)[bad] == expected


def test_a_model_is_up_if_one_of_its_entries_is_and_absent_while_nobody_knows() -> None:
    clock = SystemClock()
    metrics = RuntimeMetrics("1", ("desk", "shop"))
    recorder = Recorder(PostgresStore("postgresql://u:p@127.0.0.1:9/none"), Scrubber(clock, ()), clock)
    telemetry = AgentTelemetry(AgentName(uuid4(), "shop", "desk"), metrics, recorder, clock)
    telemetry.models(
        [
            ModelCheck(name="a", model="openai/large", ok=False),
            ModelCheck(name="b", model="openai/large", ok=True),
            ModelCheck(name="c", model="openai/small", ok=False),
            ModelCheck(name="d", model="openai/new", ok=None),
        ]
    )
    up = {
        dict(labels)["model"]: value for (name, labels), value in values_of(metrics).items() if name == "abide_model_up"
    }
    assert up == {"openai/large": 1.0, "openai/small": 0.0}


def test_costs_are_counted_in_units_of_their_currency() -> None:
    clock = SystemClock()
    metrics = RuntimeMetrics("1", ("desk", "shop"))
    recorder = Recorder(PostgresStore("postgresql://u:p@127.0.0.1:9/none"), Scrubber(clock, ()), clock)
    telemetry = AgentTelemetry(AgentName(uuid4(), "shop", "desk"), metrics, recorder, clock)
    telemetry.priced("openai/large", "USD")

    def costs() -> dict[str, float]:
        made = values_of(metrics).items()
        return {dict(labels)["currency"]: value for (name, labels), value in made if name == "abide_model_cost_total"}

    assert costs() == {"USD": 0}
    for cost in (Cost(Decimal("2500.5"), "USD"), Cost(), None):
        telemetry.model_called(ModelCall("openai/large", 0.5, None, cost=cost))
    assert costs() == {"USD": 0.0025005}
