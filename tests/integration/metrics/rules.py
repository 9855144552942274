"""The chart's rules and dashboards as tests see them."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tests.tools.prometheus import Server

ROOT = Path(__file__).resolve().parents[3]
CHART = ROOT / "helm" / "abide"
RULES = CHART / "rules" / "abide.yaml"
DASHBOARDS = sorted((CHART / "dashboards").glob("*.json"))
SCRAPE = CHART / "files" / "prometheus" / "scrape.yaml"
METRIC = re.compile(r"(?<![\w:\"])(?:[a-z]+:)?abide[_:][a-z0-9_]+(?::[a-z0-9_]+)?")

Json = dict[str, Any]


def load_groups() -> list[Json]:
    """Return the groups of the rule file."""
    return list(yaml.safe_load(RULES.read_text())["groups"])


def load_rules(kind: str) -> list[Json]:
    """Return the rules of a kind: record or alert."""
    return [rule for group in load_groups() for rule in group["rules"] if kind in rule]


def load_dashboards() -> dict[str, Json]:
    """Return the dashboards by the name of their file."""
    return {path.name: json.loads(path.read_text()) for path in DASHBOARDS}


def panels(dashboard: Json) -> list[Json]:
    """Return the panels that show something."""
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def queries(agent: str, namespace: str, interval: str) -> Iterator[tuple[str, str]]:
    """Yield where each query of the dashboards stands, and the query as Grafana sends it."""
    values = {"$__rate_interval": interval, "$agent_namespace": namespace, "$agent": agent}
    for name, dashboard in load_dashboards().items():
        for panel in panels(dashboard):
            for target in panel["targets"]:
                expression = target["expr"]
                for variable, value in values.items():
                    expression = expression.replace(variable, value)
                yield f"{name}: {panel['title']} {target['refId']}", expression


def without_data(server: Server, agent: str, namespace: str, interval: str) -> list[str]:
    """Return the queries of dashboards and rules that give nothing, and the metrics of alerts that do not exist.

    `interval` is what Grafana would put in for the interval of rates: at least four scrapes.
    """
    missing = [where for where, query in queries(agent, namespace, interval) if not server.query(query)]
    missing += [rule["record"] for rule in load_rules("record") if not server.query(rule["record"])]
    missing += [
        f"{alert['alert']}: {metric}"
        for alert in load_rules("alert")
        for metric in metrics_in(alert["expr"])
        if not server.query(f"count({metric})")
    ]
    return missing


def metrics_in(expression: str) -> set[str]:
    """Return the names of the metrics that an expression reads."""
    return set(METRIC.findall(expression))
