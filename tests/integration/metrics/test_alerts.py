"""Every alert fires when it should and stays quiet when it nearly should, in promtool's own evaluation."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.integration.metrics.rules import RULES, load_rules
from tests.tools.prometheus import Tools

DESK = 'agent="desk",agent_namespace="shop"'
AGENT = {"agent": "desk", "agent_namespace": "shop"}
UP = {"abide_operator_store_reachable": "1x5000"}
DOWN = {"abide_operator_store_reachable": "0x5000"}
MODEL = "openai/gpt-5-mini"

Series = dict[str, str]


@dataclass(frozen=True)
class Firing:
    """Series under which an alert fires: when, with which labels, `$value` and, where it is computed, description."""

    series: Series
    at: str
    labels: dict[str, str] = field(default_factory=dict)
    value: str = ""
    description: str = ""


@dataclass(frozen=True)
class Case:
    """When an alert fires, and what must not make it fire by `until`."""

    firing: tuple[Firing, ...]
    quiet: tuple[Series, ...]
    until: str = "1h"


def ready(reason: str) -> str:
    return f'abide_agent_ready{{{DESK},reason="{reason}"}}'


def condition(kind: str, reason: str) -> str:
    return f'abide_agent_condition{{{DESK},type="{kind}",reason="{reason}"}}'


def of(metric: str, labels: str = "") -> str:
    return f"{metric}{{{DESK}{',' if labels else ''}{labels}}}"


def sli(good: str, bad: str) -> Series:
    return {of("abide_sli_messages_total", 'result="good"'): good, of("abide_sli_messages_total", 'result="bad"'): bad}


def buckets(metric: str, labels: str, fast: str, slow: str, every: str) -> Series:
    """A histogram with what is done within 0.1 s, within 2.5 s, and at all."""
    return {
        f'{metric}_bucket{{{labels},le="0.1"}}': fast,
        f'{metric}_bucket{{{labels},le="2.5"}}': slow,
        f'{metric}_bucket{{{labels},le="+Inf"}}': every,
    }


STORE = f'{DESK},operation="accept"'

CASES: dict[str, Case] = {
    "AbideErrorBudgetBurnsFast": Case(
        (
            Firing(sli("0+54x200", "0+6x200") | UP, "15m", AGENT),
            # 0.8 %: too slow for the hour, enough for six hours.
            Firing(sli("0+992x800", "0+8x800") | UP, "7h", AGENT),
        ),
        (
            sli("0+2000x200", "0+1x200") | UP,
            sli("0+1x200", "0x10 2x190") | UP,
            sli("0+54x200", "0+6x200") | DOWN,
            sli("0x200", "0x200") | UP,
        ),
    ),
    "AbideErrorBudgetBurnsSlowly": Case(
        (
            Firing(sli("0+996x400", "0+4x400") | UP, "3h", AGENT),
            Firing(sli("0+998x900", "0+2x900") | UP, "12h", AGENT),
        ),
        (sli("0+9995x400", "0+5x400") | UP, sli("0+996x400", "0+4x400") | DOWN),
        until="6h",
    ),
    "AbideAgentNotReady": Case(
        (
            Firing(
                {ready("ImagePullFailed"): "0x20"} | UP, "6m", AGENT,
                description="The reason is ImagePullFailed. What to do: abide status desk -n shop",
            ),
            Firing(
                {ready("Unknown"): "-1x20"}, "6m", AGENT,
                description="The reason is Unknown. What to do: abide status desk -n shop",
            ),
            Firing(
                {
                    ready("CrashLoop"): "0 stale 0 stale 0 stale 0 stale",
                    ready("ProbeFailing"): "_ 0 stale 0 stale 0 stale 0",
                }
                | UP,
                "6m", AGENT,
                description="The reason is CrashLoop. What to do: abide status desk -n shop",
            ),
            # Postgres is there for everybody else.
            Firing(
                {ready("StateStoreUnreachable"): "0x20"} | UP, "6m", AGENT,
                description="The reason is StateStoreUnreachable. What to do: abide status desk -n shop",
            ),
        ),
        (
            {ready("Suspended"): "0x60"},
            {ready("ScaledToZero"): "0x60"},
            {ready("StateStoreUnreachable"): "0x60"} | DOWN,
            {ready("BudgetExhausted"): "0x60"} | UP,
            {ready("Starting"): "0x3 stale", ready("Serving"): "_x4 1x50"},
        ),
    ),
    "AbideBudgetExhausted": Case(
        (Firing({ready("BudgetExhausted"): "0x20"}, "2m", AGENT),),
        (
            {ready("Serving"): "1x60", of("abide_budget_used_ratio", 'scope="agent"'): "0.99x60"},
            # A user's own budget leaves the agent ready.
            {ready("Serving"): "1x60", of("abide_turns_over_budget_total", 'scope="user"'): "0+6x60"},
            {ready("ModelAuthFailed"): "0x60"},
            {ready("Suspended"): "0x60"},
        ),
    ),
    "AbideAgentServesOnFallback": Case(
        (Firing({ready("ServingOnFallback"): "1x20"}, "11m", AGENT),),
        ({ready("ServingOnFallback"): "1x8 stale"}, {ready("Serving"): "1x60"}),
    ),
    "AbideAgentDegraded": Case(
        (Firing({condition("Degraded", "SecretMissing"): "1x30"}, "16m", AGENT | {"reason": "SecretMissing"}),),
        (
            {condition("Degraded", "AllWell"): "0x60"},
            {condition("Degraded", "ModelAuthFailed"): "1x60"},
            {condition("Degraded", "CrashLoop"): "1x60"},
        ),
    ),
    "AbideAgentCrashes": Case(
        (
            Firing({condition("Degraded", "OOMKilled"): "1x20"}, "2m", AGENT | {"reason": "OOMKilled"}),
            Firing({ready("CrashLoop"): "0x20"}, "2m", AGENT | {"reason": "CrashLoop"}),
        ),
        ({condition("Degraded", "SecretMissing"): "1x60"}, {ready("ImagePullFailed"): "0x60"}),
    ),
    "AbideAgentRestarts": Case(
        (
            Firing(
                {f'abide_process_start_time_seconds{{{DESK},pod="p"}}': "1x5 2x5 3x5 4x5 5x40"}, "30m", AGENT
            ),
        ),
        (
            {f'abide_process_start_time_seconds{{{DESK},pod="p"}}': "1x5 2x5 3x5 4x50"},
            {'abide_process_start_time_seconds{pod="operator"}': "1x5 2x5 3x5 4x5 5x40"},
            # Other pods are no restarts.
            {f'abide_process_start_time_seconds{{{DESK},pod="p{n}"}}': f"{n}x60" for n in range(6)},
        ),
    ),
    "AbideRolloutFailed": Case(
        (Firing({condition("Progressing", "RolloutFailed"): "0x20"}, "2m", AGENT),),
        ({condition("Progressing", "UpToDate"): "0x60"}, {condition("Progressing", "RollingOut"): "1x60"}),
    ),
    "AbideInternalErrors": Case(
        (Firing({of("abide_errors_total", 'type="InternalError"'): "0x5 1x20"}, "8m", AGENT),),
        (
            {of("abide_errors_total", 'type="InternalError"'): "7x60"},
            {of("abide_errors_total", 'type="ModelTimeout"'): "0+1x60"},
        ),
    ),
    "AbideAgentErrors": Case(
        (
            Firing(
                {of("abide_errors_total", 'type="ModelTimeout"'): "0+12x40"}, "22m", AGENT | {"type": "ModelTimeout"}
            ),
        ),
        (
            {of("abide_errors_total", 'type="ModelTimeout"'): "0+5x60"},
            {of("abide_errors_total", 'type="StoreUnavailable"'): "0+60x60"},
        ),
    ),
    "AbideMessagesRefused": Case(
        (
            Firing(
                {of("abide_messages_refused_total", 'reason="QueueFull"'): "0+6x40"}, "12m",
                AGENT | {"reason": "QueueFull"},
            ),
        ),
        (
            {of("abide_messages_refused_total", 'reason="QueueFull"'): "0+2x60"},
            {of("abide_messages_refused_total", 'reason="IdempotencyMismatch"'): "0+60x60"},
        ),
    ),
    "AbideBacklogGrows": Case(
        (
            Firing(
                {
                    of("abide_messages_received_total"): "0+10x60",
                    of("abide_turns_total", 'status="completed"'): "0+5x60",
                },
                "35m", AGENT,
            ),
        ),
        (
            {
                of("abide_messages_received_total"): "0+10x60",
                of("abide_turns_total", 'status="completed"'): "0+9x60",
                of("abide_turns_total", 'status="fallback"'): "0+1x60",
            },
        ),
    ),
    "AbideMetricsMissing": Case(
        (Firing({of("abide_agent_replicas_ready"): "2x30"}, "11m", AGENT),),
        (
            {of("abide_agent_replicas_ready"): "2x60", of("abide_ready", 'pod="p"'): "1x60"},
            {of("abide_agent_replicas_ready"): "0x60"},
        ),
    ),
    "AbideEventLoopLags": Case(
        (Firing(buckets("abide_event_loop_lag_seconds", DESK, "0+90x40", "0+120x40", "0+120x40"), "20m", AGENT),),
        (buckets("abide_event_loop_lag_seconds", DESK, "0+120x60", "0+120x60", "0+120x60"),),
    ),
    "AbideErrorRowsDropped": Case(
        (Firing({of("abide_error_rows_dropped_total"): "0x5 3x20"}, "8m", AGENT),),
        ({of("abide_error_rows_dropped_total"): "3x60"},),
    ),
    "AbideModelUnavailable": Case(
        (
            Firing(
                {
                    f'abide_model_up{{agent="{name}",agent_namespace="shop",model="{MODEL}"}}': f"{up}x20"
                    for name, up in (("a", 0), ("b", 0), ("c", 1))
                },
                "6m", {"model": MODEL}, value="2",
            ),
        ),
        (
            {of("abide_model_up", f'model="{MODEL}"'): "1x60"},
            {of("abide_model_up", f'model="{MODEL}"'): "0x3 1x60"},
        ),
    ),
    "AbideModelCallsFail": Case(
        (
            Firing(
                {
                    of("abide_model_calls_total", f'model="{MODEL}",outcome="ok"'): "0+7x60",
                    of("abide_model_calls_total", f'model="{MODEL}",outcome="ModelTimeout"'): "0+3x60",
                },
                "22m", {"model": MODEL},
            ),
        ),
        (
            {
                of("abide_model_calls_total", f'model="{MODEL}",outcome="ok"'): "0+9x60",
                of("abide_model_calls_total", f'model="{MODEL}",outcome="ModelTimeout"'): "0+1x60",
            },
            {of("abide_model_calls_total", f'model="{MODEL}",outcome="ModelTimeout"'): "0x60"},
        ),
    ),
    "AbidePostgresUnreachable": Case(
        (Firing(DOWN, "2m"),), (UP, {"abide_operator_store_reachable": "1x5 0 1x50"}, {"abide_operator_synced": "1x60"})
    ),
    "AbideStoreSlow": Case(
        (Firing(buckets("abide_store_call_duration_seconds", STORE, "0+50x40", "0+60x40", "0+60x40") | UP, "20m"),),
        (
            buckets("abide_store_call_duration_seconds", STORE, "0+60x60", "0+60x60", "0+60x60") | UP,
            buckets("abide_store_call_duration_seconds", STORE, "0+50x60", "0+60x60", "0+60x60") | DOWN,
            buckets(
                "abide_store_call_duration_seconds", f'{DESK},operation="other"', "0+1x60", "0+60x60", "0+60x60"
            ),
        ),
    ),
    "AbideStoreConnectionsExhausted": Case(
        (
            Firing(
                {
                    of("abide_store_connections_open", 'pod="p"'): "5x20",
                    of("abide_store_connections_idle", 'pod="p"'): "0x20",
                    of("abide_store_connections_limit", 'pod="p"'): "5x20",
                },
                "6m", AGENT, value="5",
            ),
        ),
        (
            {
                of("abide_store_connections_open", 'pod="p"'): "5x60",
                of("abide_store_connections_idle", 'pod="p"'): "1x60",
                of("abide_store_connections_limit", 'pod="p"'): "5x60",
            },
        ),
    ),
    "AbideLeaseLost": Case(
        (Firing({of("abide_lease_losses_total"): "0 1 2 3 4x20"} | UP, "7m", AGENT),),
        ({of("abide_lease_losses_total"): "0 1x60"} | UP, {of("abide_lease_losses_total"): "0 1 2 3 4x60"} | DOWN),
    ),
    "AbideOperatorAbsent": Case(
        (Firing({of("abide_ready"): "1x20"}, "6m"),), ({'abide_operator_info{version="1"}': "1x60"},)
    ),
    "AbideOperatorNotSynced": Case(
        (Firing({"abide_operator_synced": "0x20"}, "11m"),), ({"abide_operator_synced": "0x5 1x60"},)
    ),
    "AbideOperatorStuck": Case(
        (
            Firing({"abide_operator_queue_oldest_seconds": "0+60x20"}, "8m"),
            Firing(
                {"abide_operator_queue_oldest_seconds": "0x20", "abide_operator_unfinished_seconds": "0+60x20"}, "8m"
            ),
        ),
        ({"abide_operator_queue_oldest_seconds": "0 70 0x60", "abide_operator_unfinished_seconds": "60x60"},),
    ),
    "AbideOperatorWatchStale": Case(
        (Firing({"abide_operator_watch_age_seconds": "0+60x20"}, "6m"),),
        ({"abide_operator_watch_age_seconds": "110x60"},),
    ),
    "AbideReconcilesFail": Case(
        (
            Firing(
                {
                    'abide_operator_reconcile_errors_total{reason="Forbidden"}': "0+3x60",
                    'abide_operator_reconciles_total{result="unchanged"}': "0+7x60",
                },
                "30m",
            ),
        ),
        (
            {
                'abide_operator_reconcile_errors_total{reason="Conflict"}': "0+1x60",
                'abide_operator_reconciles_total{result="changed"}': "0+19x60",
            },
        ),
    ),
    "AbideKubernetesRequestsFail": Case(
        (
            Firing(
                {
                    'abide_operator_kube_requests_total{verb="apply",kind="secrets",outcome="http_403"}': "0+1x60",
                    'abide_operator_kube_requests_total{verb="get",kind="secrets",outcome="ok"}': "0+9x60",
                },
                "25m",
            ),
        ),
        (
            {
                'abide_operator_kube_requests_total{verb="get",kind="secrets",outcome="http_404"}': "0+9x60",
                'abide_operator_kube_requests_total{verb="get",kind="secrets",outcome="ok"}': "0+9x60",
            },
        ),
    ),
    "AbideMigrationsFail": Case(
        (Firing({"abide_operator_migrations_done": "0x20"} | UP, "11m"),),
        ({"abide_operator_migrations_done": "0x60"} | DOWN, {"abide_operator_migrations_done": "0x5 1x60"} | UP),
    ),
    "AbideOperatorLoopLags": Case(
        (Firing({"abide_operator_loop_lag_seconds": "2x20"}, "5m"),),
        ({"abide_operator_loop_lag_seconds": "0 5 0 5 0 5 0x50"},),
    ),
    "AbideEventsDropped": Case(
        (Firing({"abide_operator_events_dropped_total": "0 0 4x20"}, "10m"),),
        ({"abide_operator_events_dropped_total": "4x60"},),
    ),
}  # fmt: skip

ALERTS = {rule["alert"]: rule for rule in load_rules("alert")}
LABEL = re.compile(r"\{\{ \$labels\.(\w+) \}\}")


def annotations(rule: dict[str, Any], firing: Firing) -> dict[str, str]:
    """Return the annotations as the alert must carry them."""
    texts = dict(rule["annotations"])
    if firing.description:
        texts["description"] = firing.description
    filled = {name: LABEL.sub(lambda found: firing.labels[found[1]], text) for name, text in texts.items()}
    return {name: text.replace("{{ $value }}", firing.value) for name, text in filled.items()}


def scenario(series: Series, alert: str, at: str, expected: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "alert_rule_test": [{"eval_time": at, "alertname": alert, "exp_alerts": expected}],
    }


def judge(tools: Tools, folder: Path, tests: list[dict[str, Any]]) -> None:
    path = folder / "tests.yaml"
    path.write_text(yaml.safe_dump({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": tests}))
    done = tools.check("test", "rules", str(path))
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_tried() -> None:
    assert CASES.keys() == ALERTS.keys()


@pytest.mark.parametrize("alert", CASES)
def test_an_alert_fires_with_its_words(alert: str, promtool: Tools, tmp_path: Path) -> None:
    rule = ALERTS[alert]
    expected = [
        {
            "exp_labels": {**firing.labels, "severity": rule["labels"]["severity"]},
            "exp_annotations": annotations(rule, firing),
        }
        for firing in CASES[alert].firing
    ]
    tests = [
        scenario(firing.series, alert, firing.at, [wanted])
        for firing, wanted in zip(CASES[alert].firing, expected, strict=True)
    ]
    judge(promtool, tmp_path, tests)


@pytest.mark.parametrize("alert", CASES)
def test_an_alert_stays_quiet(alert: str, promtool: Tools, tmp_path: Path) -> None:
    case = CASES[alert]
    moments = [f"{minute}m" for minute in range(1, minutes(case.until) + 1, 2)]
    tests = []
    for series in case.quiet:
        test = scenario(series, alert, moments[0], [])
        test["alert_rule_test"] = [{"eval_time": at, "alertname": alert, "exp_alerts": []} for at in moments]
        tests.append(test)
    judge(promtool, tmp_path, tests)


def minutes(text: str) -> int:
    return int(text[:-1]) * (60 if text.endswith("h") else 1)


def test_a_postgres_outage_is_one_alert_and_not_one_for_each_agent(promtool: Tools, tmp_path: Path) -> None:
    series = dict(DOWN)
    for number in range(20):
        agent = f'agent="a{number}",agent_namespace="shop"'
        series[f'abide_agent_ready{{{agent},reason="StateStoreUnreachable"}}'] = "0x60"
        series[f'abide_sli_messages_total{{{agent},result="bad"}}'] = "0+10x60"
        series[f'abide_sli_messages_total{{{agent},result="good"}}'] = "0+1x60"
        series[f"abide_lease_losses_total{{{agent}}}"] = "0+1x60"
    rule = ALERTS["AbidePostgresUnreachable"]
    firing = [{"exp_labels": {"severity": "critical"}, "exp_annotations": rule["annotations"]}]
    at = "20m"
    test = scenario(series, "AbidePostgresUnreachable", at, firing)
    test["alert_rule_test"] += [
        {"eval_time": at, "alertname": alert, "exp_alerts": []}
        for alert in ALERTS
        if alert not in ("AbidePostgresUnreachable", "AbideOperatorAbsent")
    ]
    judge(promtool, tmp_path, [test])


def test_the_objective_is_zero_where_nobody_writes_and_counts_a_working_fallback_as_good(
    promtool: Tools, tmp_path: Path
) -> None:
    tests = []
    for good, bad, expected in (("0x60", "0x60", 0.0), ("0+9x60", "0+1x60", 0.1), ("0x60", "0+5x60", 1.0)):
        test = scenario(sli(good, bad), "", "30m", [])
        del test["alert_rule_test"]
        test["promql_expr_test"] = [
            {
                "expr": f"round(agent:abide_sli_bad:ratio_rate{window}, 0.001)",
                "eval_time": "30m",
                "exp_samples": [
                    {
                        "labels": f"{{{DESK}}}",
                        "value": expected,
                    }
                ],
            }
            for window in ("5m", "30m", "1h", "2h", "6h", "1d", "3d")
        ]
        tests.append(test)
    judge(promtool, tmp_path, tests)
