"""Prometheus finds operator and agents by the shipped configuration; dashboards show data; an alert comes and goes."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e.kube import Client, Kube, agent
from tests.integration.metrics.rules import RULES, SCRAPE, without_data
from tests.tools.discovery import Discovery
from tests.tools.prometheus import Server, Tools, ensure, running, wait_for

SCRIPTED = [
    {"name": "first", "provider": "scripted", "model": "large", "parameters": {"replies": ["one", {"error": 500}]}},
    {"name": "second", "provider": "scripted", "model": "small", "parameters": {"replies": ["two", {"error": 503}]}},
]
"""A session's first turn gets the first model, its second the fallback message."""
SCRAPE_SECONDS = 2
PENDING_SECONDS = 10


@pytest.fixture(scope="session")
def prometheus() -> Tools:
    """Prometheus, fetched first if need be."""
    return ensure()


def pods(kube: Kube, selector: str) -> list[dict[str, Any]]:
    """Return the pods of all namespaces that a selector chooses."""
    return list(json.loads(kube.run("get", "pods", "--all-namespaces", "-l", selector, "-o", "json"))["items"])


def configuration(discovery: Discovery, rules: Path) -> dict[str, Any]:
    """Return the shipped configuration, scraping often."""
    seconds = f"{SCRAPE_SECONDS}s"
    return {
        "global": {"scrape_interval": seconds, "scrape_timeout": seconds, "evaluation_interval": "1s"},
        "rule_files": [str(rules)],
        "scrape_configs": discovery.jobs(),
    }


def impatient_rules(folder: Path) -> Path:
    """Return a copy of the rules in which AbideAgentNotReady fires after seconds."""
    groups = yaml.safe_load(RULES.read_text())
    for group in groups["groups"]:
        for rule in group["rules"]:
            if rule.get("alert") == "AbideAgentNotReady":
                rule["for"] = f"{PENDING_SECONDS}s"
    path = folder / "rules.yaml"
    path.write_text(yaml.safe_dump(groups))
    return path


def chat(client: Client, sessions: int) -> None:
    """Have sessions of two turns, one with a reply and one with the fallback message; the last word is a reply."""
    for number in range(sessions):
        for expected in ("completed", "fallback"):
            answer = client.send(f"s{number}", "hello")
            assert answer["turn"]["status"] == expected
    assert client.send("last", "hello")["turn"]["status"] == "completed"


def state(server: Server, name: str, namespace: str) -> str:
    """Return the state of AbideAgentNotReady about an agent, "" while there is none."""
    about = {"agent": name, "agent_namespace": namespace}
    found = [one["state"] for one in server.alerts("AbideAgentNotReady") if one["labels"].items() >= about.items()]
    return str(found[0]) if found else ""


def wait_state(server: Server, name: str, namespace: str, wanted: str, seconds: float) -> None:
    wait_for(
        lambda: state(server, name, namespace) == wanted,
        seconds=seconds,
        what=lambda: f"{wanted or 'no'} alert about {name}, but {state(server, name, namespace) or 'none'}",
    )


def test_prometheus_sees_everything_and_an_alert_comes_and_goes(
    kube: Kube, namespace: str, prometheus: Tools, tmp_path: Path
) -> None:
    kube.apply(agent("desk", models=SCRIPTED), namespace)
    kube.wait_ready("desk", namespace)
    here = f'namespace="{namespace}"'
    jobs = yaml.safe_load(SCRAPE.read_text())["scrape_configs"]
    discovery = Discovery(tmp_path / "targets", jobs, lambda selector: pods(kube, selector))
    discovery.refresh()
    config = configuration(discovery, impatient_rules(tmp_path))
    with running(tmp_path / "prometheus", config, prometheus) as server:
        wait_for(
            lambda: all(map(server.query, (f'up{{job="abide-agents",{here}}} == 1', 'up{job="abide-operator"} == 1'))),
            seconds=40,
            what=lambda: str(server.targets_down() or server.get("targets")),
        )
        chat(Client(kube, "desk", namespace), sessions=3)
        wait_for(
            lambda: not (server.rules_failing() or without_data(server, "desk", namespace, "20s")),
            seconds=60,
            what=lambda: str(server.rules_failing() + without_data(server, "desk", namespace, "20s")),
        )
        counted = f'sum by (result) (abide_sli_messages_total{{agent_namespace="{namespace}"}})'
        wait_for(
            lambda: (
                {one["metric"]["result"]: float(one["value"][1]) for one in server.query(counted)}
                == {"good": 4.0, "bad": 3.0}
            ),
            seconds=20,
            what=lambda: str(server.query(counted)),
        )
        (target,) = server.query(f'abide_ready{{agent="desk",agent_namespace="{namespace}"}}')
        assert target["metric"]["pod"] == kube.pod("desk", namespace)["metadata"]["name"]
        assert target["metric"]["namespace"] == namespace

        # One alert from its cause to its end.
        models = [{"provider": "echo", "apiKeySecretRef": {"name": "llm", "key": "openai"}}]
        kube.apply(agent("broken", models=models), namespace)
        wait_state(server, "broken", namespace, "pending", 30)
        wait_state(server, "broken", namespace, "firing", PENDING_SECONDS + 20)
        (alert,) = [one for one in server.alerts("AbideAgentNotReady") if one["labels"]["agent"] == "broken"]
        assert alert["annotations"]["summary"] == f"Agent {namespace}/broken does not serve."
        assert alert["annotations"]["description"].startswith("The reason is SecretMissing.")
        assert alert["labels"]["severity"] == "critical"
        kube.run("create", "secret", "generic", "llm", "-n", namespace, "--from-literal=openai=sk-test")
        kube.wait_ready("broken", namespace)
        wait_state(server, "broken", namespace, "", 30)
        wait_state(server, "desk", namespace, "", 30)
