"""Writes Grafana's dashboards of the chart: `python -m tools.dashboards --output helm/abide/dashboards`.

The panels stand here as short Python, since their JSON is long and repeats itself. Every query must give data on a
healthy system: what is rare ends in `or vector(0)`.
"""

import argparse
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

DATASOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}
WIDTH: Final = 24
RATE: Final = "$__rate_interval"
AGENT: Final = 'agent="$agent",agent_namespace="$agent_namespace"'
BY_AGENT: Final = "agent, agent_namespace"

Json = dict[str, Any]


@dataclass(frozen=True)
class Query:
    """One PromQL expression and how its series are named."""

    expression: str
    legend: str = ""


@dataclass(frozen=True)
class Panel:
    """One panel; `width` of 24 columns. `kind` is stat, timeseries or table."""

    title: str
    description: str
    unit: str
    queries: Sequence[Query]
    kind: str = "timeseries"
    width: int = 8
    stacked: bool = False
    red_below: float | None = None
    red_from: float | None = None


@dataclass(frozen=True)
class Row:
    """A heading and the panels below it."""

    title: str
    panels: Sequence[Panel]


def rate(metric: str, *, by: str, labels: str = "") -> str:
    """Return the rate of a counter, summed by labels."""
    return f"sum by ({by}) (rate({metric}{{{labels}}}[{RATE}]))"


def quantile(q: float, metric: str, *, by: str = "", labels: str = "") -> str:
    """Return a quantile of a histogram, by labels."""
    groups = ", ".join(part for part in (by, "le") if part)
    return f"histogram_quantile({q}, sum by ({groups}) (rate({metric}_bucket{{{labels}}}[{RATE}])))"


def quantiles(metric: str, labels: str = "") -> tuple[Query, ...]:
    """Return the median and the slowest one in twenty and in a hundred."""
    return tuple(Query(quantile(q, metric, labels=labels), f"p{q * 100:g}") for q in (0.5, 0.95, 0.99))


def per_turn(metric: str) -> str:
    """Return how often a counter of the dashboard's agent counts for each turn with an outcome."""
    turns = f"sum(rate(abide_turns_total{{{AGENT}}}[{RATE}]))"
    return f"sum(rate({metric}{{{AGENT}}}[{RATE}])) / ({turns} > 0)"


FLEET: Final = (
    Row(
        "Now",
        (
            Panel("Agents", "Agents the operator knows.", "short", [Query("max(abide_operator_agents)")], "stat", 4),
            Panel(
                "Serving", "Agents whose condition Ready is True.", "short",
                [Query("count(abide_agent_ready == 1) or vector(0)")], "stat", 4,
            ),
            Panel(
                "Not serving", "Agents that should serve and do not.", "short",
                [Query('count(abide_agent_ready{reason!~"Suspended|ScaledToZero"} < 1) or vector(0)')], "stat", 4,
                red_from=1,
            ),
            Panel(
                "On a fallback model", "Agents that give real replies, but not from their first model.", "short",
                [Query('count(abide_agent_ready{reason="ServingOnFallback"} == 1) or vector(0)')], "stat", 4,
            ),
            Panel(
                "Postgres", "1 while the operator can read from Postgres.", "bool_yes_no",
                [Query("min(abide_operator_store_reachable)")], "stat", 4, red_below=1,
            ),
            Panel(
                "Good messages, last hour", "Share of messages that got a model's reply.", "percentunit",
                [
                    Query(
                        '1 - sum(rate(abide_sli_messages_total{result="bad"}[1h]))'
                        " / (sum(rate(abide_sli_messages_total[1h])) > 0) or vector(1)"
                    )
                ],
                "stat", 4, red_below=0.999,
            ),
        ),
    ),
    Row(
        "Agents",
        (
            Panel(
                "Agents by reason", "Reasons of the condition Ready: the root cause where an agent does not serve.",
                "short", [Query("count by (reason) (abide_agent_ready)", "{{reason}}")], stacked=True,
            ),
            Panel(
                "Bad messages, worst agents", "Share of messages without a real reply over the last hour.",
                "percentunit",
                [Query("topk(10, agent:abide_sli_bad:ratio_rate1h)", "{{agent_namespace}}/{{agent}}")],
            ),
            Panel(
                "Alerts", "Pending and firing alerts of Abide.", "short",
                [
                    Query(
                        'count by (alertname, alertstate) (ALERTS{alertname=~"Abide.*"}) or vector(0)',
                        "{{alertname}} {{alertstate}}",
                    )
                ],
            ),
            Panel(
                "State of each agent", "1 serves, 0 does not, -1 not known; those that do not serve first.", "none",
                [Query("sort(bottomk(50, abide_agent_ready))")], "table", 16,
            ),
            Panel(
                "Pods", "Pods that should run and pods that serve.", "short",
                [
                    Query("sum(abide_agent_replicas_desired) or vector(0)", "desired"),
                    Query("sum(abide_agent_replicas_ready) or vector(0)", "ready"),
                ],
            ),
        ),
    ),
    Row(
        "Traffic",
        (
            Panel("Turns", "Turns with an outcome, by status.", "ops",
                  [Query(rate("abide_turns_total", by="status"), "{{status}}")], stacked=True),
            Panel("Turn latency", "From claim to committed outcome.", "s", quantiles("abide_turn_duration_seconds")),
            Panel("Turns running", "Turns that run now.", "short", [Query("sum(abide_running_turns)", "running")]),
            Panel("Messages refused", "By reason; NotReady and StoreUnavailable are 503, QueueFull is 429.", "ops",
                  [Query(rate("abide_messages_refused_total", by="reason"), "{{reason}}")]),
            Panel("Errors", "Errors recorded, by type.", "ops",
                  [Query(rate("abide_errors_total", by="type"), "{{type}}")]),
            Panel("Busiest agents", "Turns per second.", "ops",
                  [Query(f"topk(10, {rate('abide_turns_total', by=BY_AGENT)})", "{{agent_namespace}}/{{agent}}")]),
        ),
    ),
    Row(
        "Models",
        (
            Panel("Pods that can call a model", "By model; fewer than the pods that use it is worth a look.", "short",
                  [Query("sum by (model) (abide_model_up) or vector(0)", "{{model}}")]),
            Panel("Model calls that failed", "Share of calls, by model.", "percentunit",
                  [Query('sum by (model) (rate(abide_model_calls_total{outcome!="ok"}[$__rate_interval]))'
                         " / sum by (model) (rate(abide_model_calls_total[$__rate_interval]))", "{{model}}")]),
            Panel("First token", "95 % of calls have their first token within this time.", "s",
                  [Query(quantile(0.95, "abide_model_first_token_seconds", by="model"), "{{model}}")]),
            Panel("Tokens", "Sent to and given by models.", "short",
                  [Query(rate("abide_model_input_tokens_total", by="model"), "{{model}} in"),
                   Query(rate("abide_model_output_tokens_total", by="model"), "{{model}} out")]),
            Panel("Turns answered", "By the model that gave the reply.", "ops",
                  [Query(rate("abide_turns_answered_total", by="model"), "{{model}}")], stacked=True),
            Panel("Model calls", "By outcome.", "ops",
                  [Query(rate("abide_model_calls_total", by="outcome"), "{{outcome}}")], stacked=True),
        ),
    ),
    Row(
        "Tools and budgets",
        (
            Panel("Tools that are down", "Entries of spec.tools that did not answer, in how many pods.", "short",
                  [Query(f"sum by ({BY_AGENT}, tool) (abide_tool_up == bool 0) or vector(0)",
                         "{{agent_namespace}}/{{agent}} {{tool}}")]),
            Panel("Tool calls", "By outcome.", "ops",
                  [Query(f"{rate('abide_tool_calls_total', by='outcome')} or vector(0)", "{{outcome}}")],
                  stacked=True),
            Panel("Nearest to the budget", "Share of the day's budget that is used, the ten highest.", "percentunit",
                  [Query(f"topk(10, max by ({BY_AGENT}, scope) (abide_budget_used_ratio)) or vector(0)",
                         "{{agent_namespace}}/{{agent}} {{scope}}")]),
        ),
    ),
    Row(
        "Postgres",
        (
            Panel("Statement latency", "99 % of statements are done within this time, by what they are for.", "s",
                  [Query(quantile(0.99, "abide_store_call_duration_seconds", by="operation"), "{{operation}}")]),
            Panel("Statements that failed", "By reason.", "ops",
                  [Query(rate("abide_store_errors_total", by="reason"), "{{reason}}")]),
            Panel("Connections", "Open connections of all runtimes, and how many of them are in use.", "short",
                  [Query("sum(abide_store_connections_open)", "open"),
                   Query("sum(abide_store_connections_open) - sum(abide_store_connections_idle)", "in use")]),
        ),
    ),
    Row(
        "Operator",
        (
            Panel("Queue", "Agents that wait now, are due later, or are being reconciled.", "short",
                  [Query("sum(abide_operator_queue_depth)", "waiting"),
                   Query("sum(abide_operator_queue_delayed)", "later"),
                   Query("sum(abide_operator_queue_processing)", "processing")]),
            Panel("Waiting time", "Time agents waited in the queue, and how long the oldest has waited.", "s",
                  [*quantiles("abide_operator_queue_latency_seconds"),
                   Query("max(abide_operator_queue_oldest_seconds)", "oldest now")]),
            Panel("Reconcile duration", "Time one reconcile took.", "s",
                  quantiles("abide_operator_reconcile_duration_seconds")),
            Panel("Reconciles", "By result.", "ops",
                  [Query(rate("abide_operator_reconciles_total", by="result"), "{{result}}")], stacked=True),
            Panel("Failed reconciles", "By reason; each is tried again.", "ops",
                  [Query(f"{rate('abide_operator_reconcile_errors_total', by='reason')} or vector(0)", "{{reason}}")]),
            Panel("Writes to the API server", "By verb and kind; an idle fleet has none.", "ops",
                  [Query(f"{rate('abide_operator_kube_writes_total', by='verb, kind')} or vector(0)",
                         "{{verb}} {{kind}}")]),
            Panel("Requests to the API server", "By outcome.", "ops",
                  [Query(rate("abide_operator_kube_requests_total", by="outcome"), "{{outcome}}")]),
            Panel("Watches", "Age of the oldest sign of life, and events received.", "s",
                  [Query("max(abide_operator_watch_age_seconds)", "age")], width=4),
            Panel("Watch events", "Events received, by kind.", "ops",
                  [Query(rate("abide_operator_watch_events_total", by="kind"), "{{kind}}")], width=4),
            Panel("Loop lag", "How late the operator's event loop is.", "s",
                  [Query("max(abide_operator_loop_lag_seconds)", "lag")], width=4),
            Panel("Events dropped", "Kubernetes Events that could not be written.", "ops",
                  [Query(f"sum(rate(abide_operator_events_dropped_total[{RATE}]))", "dropped")], width=4),
            Panel("Memory", "Resident memory of the operator.", "bytes",
                  [Query('max(abide_process_resident_memory_bytes{agent=""})', "resident")]),
            Panel("CPU", "CPU of the operator, in cores.", "short",
                  [Query(f'sum(rate(abide_process_cpu_seconds_total{{agent=""}}[{RATE}]))', "cores")]),
            Panel("Known objects", "What the operator's cache holds.", "short",
                  [Query("max(abide_operator_agents)", "agents"), Query("max(abide_operator_children)", "children"),
                   Query("max(abide_operator_pods)", "pods"),
                   Query("max(abide_operator_references_missing)", "missing Secrets and ConfigMaps")]),
        ),
    ),
)  # fmt: skip

ONE: Final = (
    Row(
        "Now",
        (
            Panel("Serving", "1 if the agent serves; the reason is the root cause.", "none",
                  [Query(f"abide_agent_ready{{{AGENT}}}", "{{reason}}")], "stat", 4, red_below=1),
            Panel("Model and revision", "The primary model, the revision and the runtime's version.", "none",
                  [Query(f"abide_agent_info{{{AGENT}}}", "{{model}} · {{revision}} · {{version}}")], "stat", 8),
            Panel("Pods", "Pods that serve, of those that should.", "short",
                  [Query(f"abide_agent_replicas_ready{{{AGENT}}}", "ready"),
                   Query(f"abide_agent_replicas_desired{{{AGENT}}}", "desired")], "stat", 4),
            Panel("Good messages, last hour", "Share of messages that got a model's reply.", "percentunit",
                  [Query(f"1 - agent:abide_sli_bad:ratio_rate1h{{{AGENT}}}")], "stat", 4, red_below=0.999),
            Panel("Good messages, 3 days", "Share of messages that got a model's reply.", "percentunit",
                  [Query(f"1 - agent:abide_sli_bad:ratio_rate3d{{{AGENT}}}")], "stat", 4, red_below=0.999),
        ),
    ),
    Row(
        "Conditions",
        (
            Panel("Conditions", "1 True, 0 False, -1 Unknown, with the reason.", "none",
                  [Query(f"abide_agent_condition{{{AGENT}}}")], "table", 12),
            Panel("Alerts", "Pending and firing alerts about this agent.", "short",
                  [Query(f"count by (alertname, alertstate) (ALERTS{{{AGENT}}}) or vector(0)",
                         "{{alertname}} {{alertstate}}")], width=12),
        ),
    ),
    Row(
        "Traffic",
        (
            Panel("Turns", "Turns with an outcome, by status.", "ops",
                  [Query(rate("abide_turns_total", by="status", labels=AGENT), "{{status}}")], stacked=True),
            Panel("Turn latency", "From claim to committed outcome.", "s",
                  quantiles("abide_turn_duration_seconds", AGENT)),
            Panel("Turns running", "Turns that run now, by pod.", "short",
                  [Query(f"sum by (pod) (abide_running_turns{{{AGENT}}})", "{{pod}}")]),
            Panel("Messages", "Accepted, and of these those that wait for an earlier one of their session.", "ops",
                  [Query(f"sum(rate(abide_messages_received_total{{{AGENT}}}[{RATE}]))", "accepted"),
                   Query(f"sum(rate(abide_turns_queued_total{{{AGENT}}}[{RATE}]))", "queued")]),
            Panel("Messages refused", "By reason.", "ops",
                  [Query(rate("abide_messages_refused_total", by="reason", labels=AGENT), "{{reason}}")]),
            Panel("Messages ahead of replies", "Accepted messages minus outcomes over 15 minutes: a growing backlog.",
                  "short",
                  [Query(f"sum(increase(abide_messages_received_total{{{AGENT}}}[15m]))"
                         f" - sum(increase(abide_turns_total{{{AGENT}}}[15m]))", "ahead")]),
            Panel("HTTP", "Requests by status code.", "reqps",
                  [Query(rate("abide_http_requests_total", by="code", labels=AGENT), "{{code}}")], stacked=True),
            Panel("Requests waiting", "HTTP requests that wait for a reply.", "short",
                  [Query(f"sum by (pod) (abide_waiting_requests{{{AGENT}}})", "{{pod}}")]),
            Panel("Errors", "Errors recorded, by type.", "ops",
                  [Query(rate("abide_errors_total", by="type", labels=AGENT), "{{type}}")]),
        ),
    ),
    Row(
        "Models",
        (
            Panel("Models", "1 if the model answered when last checked or called; the least of all pods.", "none",
                  [Query(f"min by (model) (abide_model_up{{{AGENT}}}) or vector(0)", "{{model}}")]),
            Panel("Model calls", "By model and outcome.", "ops",
                  [Query(rate("abide_model_calls_total", by="model, outcome", labels=AGENT), "{{model}} {{outcome}}")]),
            Panel("Turns answered", "By the model that gave the reply.", "ops",
                  [Query(rate("abide_turns_answered_total", by="model", labels=AGENT), "{{model}}")], stacked=True),
            Panel("Call duration", "95 % of calls end within this time.", "s",
                  [Query(quantile(0.95, "abide_model_call_duration_seconds", by="model", labels=AGENT), "{{model}}")]),
            Panel("First token", "95 % of calls have their first token within this time.", "s",
                  [Query(quantile(0.95, "abide_model_first_token_seconds", by="model", labels=AGENT), "{{model}}")]),
            Panel("Tokens", "Sent to and given by models, per second.", "short",
                  [Query(rate("abide_model_input_tokens_total", by="model", labels=AGENT), "{{model}} in"),
                   Query(rate("abide_model_output_tokens_total", by="model", labels=AGENT), "{{model}} out")]),
        ),
    ),
    Row(
        "Tools, steps and budgets",
        (
            Panel("Tools", "1 if the entry of spec.tools answered when last checked or called; the least of all pods.",
                  "none", [Query(f"min by (tool) (abide_tool_up{{{AGENT}}}) or vector(0)", "{{tool}}")]),
            Panel("Tool calls", "By tool and outcome.", "ops",
                  [Query(f"{rate('abide_tool_calls_total', by='tool, outcome', labels=AGENT)} or vector(0)",
                         "{{tool}} {{outcome}}")]),
            Panel("Tool call duration", "95 % of calls end within this time.", "s",
                  [Query(f"{quantile(0.95, 'abide_tool_call_duration_seconds', by='tool', labels=AGENT)} or vector(0)",
                         "{{tool}}")]),
            Panel("Steps of a turn", "Calls of models and of tools for each turn with an outcome, on average.", "short",
                  [Query(f"{per_turn('abide_model_calls_total')} or vector(0)", "models"),
                   Query(f"{per_turn('abide_tool_calls_total')} or vector(0)", "tools")]),
            Panel("Budget used", "Share of the day's budget: of the agent, and of the user nearest to the limit.",
                  "percentunit",
                  [Query(f"max by (scope) (abide_budget_used_ratio{{{AGENT}}}) or vector(0)", "{{scope}}")]),
            Panel("Turns over budget", "Refused because a budget of the day is used up, by whose it is.", "ops",
                  [Query(f"{rate('abide_turns_over_budget_total', by='scope', labels=AGENT)} or vector(0)",
                         "{{scope}}")]),
            Panel("Cost", "What the tokens of an hour cost by models[].price.", "short",
                  [Query(f"sum by (model, currency) (increase(abide_model_cost_total{{{AGENT}}}[1h])) or vector(0)",
                         "{{model}} {{currency}}")]),
            Panel("Summaries", "Summaries of long conversations written in an hour, by what became of them.", "short",
                  [Query(f"sum by (result) (increase(abide_history_summaries_total{{{AGENT}}}[1h])) or vector(0)",
                         "{{result}}")]),
        ),
    ),
    Row(
        "State",
        (
            Panel("Statement latency", "99 % of statements are done within this time, by what they are for.", "s",
                  [Query(quantile(0.99, "abide_store_call_duration_seconds", by="operation", labels=AGENT),
                         "{{operation}}")]),
            Panel("Statements that failed", "By reason.", "ops",
                  [Query(rate("abide_store_errors_total", by="reason", labels=AGENT), "{{reason}}")]),
            Panel("Connections to Postgres", "In use, by pod, and how many there may be.", "short",
                  [Query(f"sum by (pod) (abide_store_connections_open{{{AGENT}}} - abide_store_connections_idle"
                         f"{{{AGENT}}})", "{{pod}} in use"),
                   Query(f"max(abide_store_connections_limit{{{AGENT}}})", "limit of a pod")]),
            Panel("Lease", "Pods that may commit turns.", "short",
                  [Query(f"sum(abide_lease_held{{{AGENT}}})", "held"), Query(f"sum(abide_ready{{{AGENT}}})", "ready")]),
            Panel("Takeovers and lost leases", "Turns taken over from a process that went away, and leases lost.",
                  "short",
                  [Query(f"sum(increase(abide_turns_taken_over_total{{{AGENT}}}[5m]))", "takeovers"),
                   Query(f"sum(increase(abide_lease_losses_total{{{AGENT}}}[5m]))", "leases lost")]),
            Panel("Sessions in memory", "By pod.", "short",
                  [Query(f"sum by (pod) (abide_sessions_in_memory{{{AGENT}}})", "{{pod}}")]),
            Panel("Snapshots", "Saved, by what caused it.", "ops",
                  [Query(rate("abide_state_saves_total", by="trigger", labels=AGENT), "{{trigger}}")]),
            Panel("Snapshot duration", "Time one snapshot took.", "s",
                  quantiles("abide_state_save_duration_seconds", AGENT)),
            Panel("Error rows dropped", "Errors that Postgres did not take in time.", "short",
                  [Query(f"sum(increase(abide_error_rows_dropped_total{{{AGENT}}}[15m]))", "dropped")]),
        ),
    ),
    Row(
        "Pods",
        (
            Panel("CPU", "In cores, by pod.", "short",
                  [Query(rate("abide_process_cpu_seconds_total", by="pod", labels=AGENT), "{{pod}}")]),
            Panel("Memory", "Resident, by pod.", "bytes",
                  [Query(f"sum by (pod) (abide_process_resident_memory_bytes{{{AGENT}}})", "{{pod}}")]),
            Panel("Event loop lag", "99 % of timers are no later than this.", "s",
                  [Query(quantile(0.99, "abide_event_loop_lag_seconds", by="pod", labels=AGENT), "{{pod}}")]),
            Panel("Open files", "By pod.", "short",
                  [Query(f"sum by (pod) (abide_process_open_fds{{{AGENT}}})", "{{pod}}")]),
            Panel("Starts in the last hour", "How often the container of a pod started again.", "short",
                  [Query(f"sum by (pod) (changes(abide_process_start_time_seconds{{{AGENT}}}[1h]))", "{{pod}}")]),
            Panel("Running since", "Age of each runtime process.", "s",
                  [Query(f"time() - max by (pod) (abide_process_start_time_seconds{{{AGENT}}})", "{{pod}}")]),
        ),
    ),
)  # fmt: skip


def variable(name: str, label: str, query: str) -> Json:
    """Return a variable that lists the values of a label."""
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": DATASOURCE,
        "definition": query,
        "query": {"query": query, "refId": name},
        "refresh": 2,
        "sort": 1,
        "includeAll": False,
        "multi": False,
    }


SOURCE: Final[Json] = {
    "name": "datasource",
    "label": "Prometheus",
    "type": "datasource",
    "query": "prometheus",
    "refresh": 1,
    "includeAll": False,
    "multi": False,
}


def build_dashboard(uid: str, title: str, description: str, rows: Sequence[Row], variables: Sequence[Json]) -> Json:
    """Return a dashboard as Grafana imports it."""
    return {
        "uid": uid,
        "title": title,
        "description": description,
        "tags": ["abide"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "timezone": "",
        "templating": {"list": [SOURCE, *variables]},
        "links": [
            {"title": "Dashboards", "type": "dashboards", "tags": ["abide"], "asDropdown": True, "keepTime": True},
        ],
        "annotations": {"list": []},
        "panels": list(_number(_lay_out(rows))),
    }


def _number(panels: Iterable[Json]) -> Iterable[Json]:
    return ({"id": number, **panel} for number, panel in enumerate(panels, 1))


def _lay_out(rows: Sequence[Row]) -> Iterable[Json]:
    y = 0
    for row in rows:
        yield {"type": "row", "title": row.title, "collapsed": False, "panels": [], "gridPos": _grid(0, y, WIDTH, 1)}
        y += 1
        x = height = 0
        for panel in row.panels:
            if x + panel.width > WIDTH:
                x, y = 0, y + height
            height = 4 if panel.kind == "stat" else 8
            yield {**build_panel(panel), "gridPos": _grid(x, y, panel.width, height)}
            x += panel.width
        y += height


def _grid(x: int, y: int, width: int, height: int) -> Json:
    return {"x": x, "y": y, "w": width, "h": height}


def build_panel(panel: Panel) -> Json:
    """Return a panel without number and place."""
    instant = panel.kind != "timeseries"
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": DATASOURCE,
        "fieldConfig": {"defaults": _defaults(panel), "overrides": []},
        "options": _options(panel),
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "datasource": DATASOURCE,
                "expr": query.expression,
                "legendFormat": query.legend or "__auto",
                "instant": instant,
                "range": not instant,
                "format": "table" if panel.kind == "table" else "time_series",
            }
            for index, query in enumerate(panel.queries)
        ],
    }


def _defaults(panel: Panel) -> Json:
    defaults: Json = {"unit": panel.unit, "color": {"mode": "palette-classic"}}
    if panel.kind == "timeseries":
        defaults["min"] = 0
        defaults["custom"] = {
            "fillOpacity": 20 if panel.stacked else 0,
            "stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"},
            "showPoints": "never",
        }
    if panel.red_below is not None:
        steps = [{"color": "red", "value": None}, {"color": "green", "value": panel.red_below}]
        defaults |= {"color": {"mode": "thresholds"}, "thresholds": {"mode": "absolute", "steps": steps}}
    if panel.red_from is not None:
        steps = [{"color": "green", "value": None}, {"color": "red", "value": panel.red_from}]
        defaults |= {"color": {"mode": "thresholds"}, "thresholds": {"mode": "absolute", "steps": steps}}
    return defaults


def _options(panel: Panel) -> Json:
    if panel.kind == "stat":
        named = any(query.legend for query in panel.queries)
        return {
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
            "textMode": "value_and_name" if named else "value",
            "colorMode": "value",
        }
    if panel.kind == "table":
        return {"showHeader": True, "sortBy": [{"displayName": "Value", "desc": False}]}
    return {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi", "sort": "desc"}}


def build_all() -> dict[str, Json]:
    """Return every dashboard by its file's name."""
    namespace = variable("agent_namespace", "Namespace", "label_values(abide_agent_info, agent_namespace)")
    agent = variable("agent", "Agent", 'label_values(abide_agent_info{agent_namespace="$agent_namespace"}, agent)')
    return {
        "fleet.json": build_dashboard(
            "abide-fleet", "Abide: fleet", "All agents, their models, Postgres and the operator.", FLEET, []
        ),
        "agent.json": build_dashboard(
            "abide-agent", "Abide: agent", "One agent: what users get, and why.", ONE, [namespace, agent]
        ),
    }


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder of the dashboards")
    folder: Path = parser.parse_args().output
    folder.mkdir(parents=True, exist_ok=True)
    for name, dashboard in build_all().items():
        (folder / name).write_text(json.dumps(dashboard, indent=2) + "\n")


if __name__ == "__main__":
    main()
