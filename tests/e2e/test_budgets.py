"""Budgets on a real node: shared by two pods, told in status, raised without losing anything."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.kube import Client, Kube, agent, wait_for
from tests.e2e.surroundings import brief, expose, status_of
from tests.fakes.provider import KEY, MODEL, ModelProvider

BUDGET_TEXT = "That is all for today."
PRICE = {"inputPerMillion": "1000", "outputPerMillion": "2000", "currency": "USD"}


@pytest.fixture
def provider() -> Iterator[ModelProvider]:
    """A provider on this machine, which pods reach by a Service."""
    with ModelProvider() as _:
        pass  # installs what is missing outside of the test's time
    made = ModelProvider()
    made.start("0.0.0.0")
    try:
        yield made
    finally:
        made.stop()


def budgeted(base_url: str, budget: dict[str, Any], **model: Any) -> dict[str, Any]:
    """Return an agent of two pods whose requests do not grow with the conversation."""
    entry = {
        "provider": "openai-compatible",
        "model": MODEL,
        "baseURL": base_url,
        "apiKeySecretRef": {"name": "llm", "key": "openai"},
        **model,
    }
    return agent(
        "desk", models=[entry], budget=budget, replicas=2, messages={"budget": BUDGET_TEXT}, history={"limit": 1}
    )


def events_of(kube: Kube, namespace: str) -> list[dict[str, Any]]:
    return kube.items("events.events.k8s.io", namespace)


def test_a_budget_that_is_used_up_refuses_turns_until_it_is_raised(
    kube: Kube, namespace: str, provider: ModelProvider
) -> None:
    provider.set_reply("word " * 40)
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "llm"}, "stringData": {"openai": KEY}}
    kube.apply(secret, namespace)
    base_url = expose(kube, namespace, provider.port)
    kube.apply(budgeted(base_url, {"perDay": {"tokens": 1500}}), namespace)
    kube.wait_condition("desk", namespace, "Ready", "True", "Serving", seconds=90)
    client = Client(kube, "desk", namespace)

    answered = 0
    while (sent := client.send(f"s{answered}", "hello"))["turn"]["status"] == "completed":
        answered += 1
        assert answered < 100
    assert sent["turn"]["error"]["type"] == "BudgetExhausted"
    assert sent["reply"] == {"content": BUDGET_TEXT}
    message = kube.wait_condition("desk", namespace, "Ready", "False", "BudgetExhausted", seconds=20)["message"]
    assert message.startswith("The agent's budget of the day (1500 tokens) is used up since ")
    assert brief(kube, "desk", namespace)["Degraded"] == "False/NotServing"
    assert status_of(kube, "desk", namespace)["readyReplicas"] == 2
    calls = len(provider.asked())

    def usage() -> dict[str, Any] | None:
        (budget,) = status_of(kube, "desk", namespace)["usage"]["budgets"]
        return budget if budget["usedPercent"] >= 100 else None

    budget = wait_for(usage, seconds=90, what="status shows what is used")
    assert (budget["scope"], budget["limit"], budget["warning"]) == ("Agent", "1500 tokens", True)

    def warned() -> bool:
        return any(event["reason"] == "BudgetWarning" for event in events_of(kube, namespace))

    wait_for(warned, seconds=90, what="an Event warns")

    kube.apply(budgeted(base_url, {"perDay": {"tokens": 1_000_000}}), namespace)
    kube.wait_condition("desk", namespace, "Ready", "True", "Serving", seconds=90)

    def goes_on() -> bool:
        return bool(client.send("after", "hello")["turn"]["status"] == "completed")

    wait_for(goes_on, seconds=60, what="turns run again")
    assert len(provider.asked()) > calls


def test_money_without_a_price_is_said_and_a_price_ends_it(kube: Kube, namespace: str, provider: ModelProvider) -> None:
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "llm"}, "stringData": {"openai": KEY}}
    kube.apply(secret, namespace)
    base_url = expose(kube, namespace, provider.port)
    money = {"perDay": {"amount": "5.00"}}
    kube.apply(budgeted(base_url, money), namespace)
    message = kube.wait_condition("desk", namespace, "Degraded", "True", "PriceUnknown", seconds=90)["message"]
    assert f"openai-compatible/{MODEL} has no price in USD" in message
    assert brief(kube, "desk", namespace)["Ready"] == "True/PriceUnknown"
    kube.apply(budgeted(base_url, money, price=PRICE), namespace)
    kube.wait_condition("desk", namespace, "Degraded", "False", "AllWell", seconds=90)
