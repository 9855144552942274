"""Dashboards and rules are well made: what Grafana and people need of them is there."""

import re

import pytest

from tests.integration.metrics.rules import CHART, ROOT, load_dashboards, load_groups, load_rules, metrics_in, panels
from tests.integration.metrics.rules import RULES as RULE_FILE
from tests.tools.prometheus import Tools

UNITS = {"short", "none", "s", "ops", "reqps", "bytes", "percentunit", "bool_yes_no"}
SEVERITIES = {"critical", "warning", "info"}


def known_metrics() -> set[str]:
    """Return the names of all series that operator, runtime and recording rules make."""
    from agent_operator.telemetry.metrics import Metrics
    from agent_runtime.telemetry.metrics import RuntimeMetrics

    names = {rule["record"] for rule in load_rules("record")}
    described = [(info.name, info.kind) for info in RuntimeMetrics("").described]
    described += [(info.name, info.kind) for info in Metrics().described]
    for name, kind in described:
        names |= {f"{name}_{part}" for part in ("bucket", "sum", "count")} if kind == "histogram" else {name}
    return names


@pytest.mark.parametrize("name", load_dashboards())
def test_a_dashboard_is_well_made(name: str) -> None:
    dashboard = load_dashboards()[name]
    numbers = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(numbers)) == len(numbers)
    assert dashboard["templating"]["list"][0]["type"] == "datasource"
    variables = {variable["name"] for variable in dashboard["templating"]["list"]}
    for panel in panels(dashboard):
        assert panel["title"]
        assert panel["description"].endswith(".")
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS
        assert [target["refId"] for target in panel["targets"]] == list("ABCDEFGH")[: len(panel["targets"])]
        for target in panel["targets"]:
            assert metrics_in(target["expr"]) <= known_metrics() or "ALERTS" in target["expr"]
            assert set(re.findall(r"\$(\w+)", target["expr"])) <= variables | {"__rate_interval"}


@pytest.mark.parametrize("name", load_dashboards())
def test_panels_do_not_overlap(name: str) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in load_dashboards()[name]["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells


def test_dashboards_have_names_of_their_own() -> None:
    dashboards = load_dashboards()
    assert set(dashboards) == {"fleet.json", "agent.json"}
    assert len({dashboard["uid"] for dashboard in dashboards.values()}) == 2


def test_rules_pass_the_linter(promtool: Tools) -> None:
    done = promtool.check("check", "rules", "--lint=all", "--lint-fatal", str(RULE_FILE))
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_says_what_is_wrong_what_to_do_and_where_to_read_on() -> None:
    text = (ROOT / "docs" / "monitoring.md").read_text()
    alerts = load_rules("alert")
    names = [alert["alert"] for alert in alerts]
    assert len(set(names)) == len(names)
    for alert in alerts:
        assert re.fullmatch(r"[1-9]\d*m", alert["for"]), alert["alert"]
        assert alert["labels"] == {"severity": alert["labels"]["severity"]}
        assert alert["labels"]["severity"] in SEVERITIES
        notes = alert["annotations"]
        assert set(notes) == {"summary", "description", "runbook_url"}
        assert notes["summary"].endswith(".")
        assert notes["runbook_url"] == f"docs/monitoring.md#{alert['alert'].lower()}"
        assert f"\n### {alert['alert']}\n" in text
        assert metrics_in(alert["expr"]) <= known_metrics()
    assert re.findall(r"^### (Abide\w+)$", text, re.MULTILINE) == names


def test_rules_read_only_metrics_that_exist() -> None:
    for group in load_groups():
        for rule in group["rules"]:
            assert metrics_in(rule["expr"])
            assert metrics_in(rule["expr"]) <= known_metrics()


def test_the_guide_shows_the_scrape_configuration_as_it_is_shipped() -> None:
    shipped = (CHART / "files" / "prometheus" / "scrape.yaml").read_text()
    assert shipped[shipped.index("scrape_configs:") :] in (ROOT / "docs" / "monitoring.md").read_text()
