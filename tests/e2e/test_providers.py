"""Models of other providers, in their own protocols, on a real node: keys, status, replies, and who answers instead."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.kube import Client, Kube, agent
from tests.e2e.surroundings import brief, expose, pods_of, restarts_of, status_of, watching
from tests.fakes.provider import GREETING, KEY, MODEL, ModelProvider

WRONG_KEY = "test-wrong-key-000002"
PRICE = {"inputPerMillion": "3.00", "outputPerMillion": "15.00", "currency": "USD"}


@pytest.fixture(scope="module")
def provider_process() -> Iterator[ModelProvider]:
    """A provider on this machine, which pods reach by a Service."""
    with ModelProvider() as _:
        pass  # installs what is missing outside of any test's time
    provider = ModelProvider()
    try:
        provider.start("0.0.0.0")
        yield provider
    finally:
        provider.stop()


@pytest.fixture
def provider(provider_process: ModelProvider) -> ModelProvider:
    """The provider as new."""
    provider_process.reset()
    return provider_process


def put_key(kube: Kube, namespace: str, key: str) -> None:
    content = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "llm"}, "stringData": {"key": key}}
    kube.apply(content, namespace)


def model(base_url: str, provider: str) -> dict[str, Any]:
    url = f"{base_url}beta" if provider == "google" else base_url
    ref = {"name": "llm", "key": "key"}
    return {
        "name": provider,
        "provider": provider,
        "model": MODEL,
        "baseURL": url,
        "apiKeySecretRef": ref,
        "price": PRICE,
    }


@pytest.mark.parametrize("name", ["anthropic", "google"])
def test_a_refused_key_is_told_and_a_good_one_serves_without_a_restart(
    kube: Kube, namespace: str, provider: ModelProvider, name: str
) -> None:
    base_url = expose(kube, namespace, provider.port)
    put_key(kube, namespace, WRONG_KEY)
    kube.apply(agent("desk", models=[model(base_url, name)]), namespace)
    with watching(kube, "agents.abide.dev", "desk", namespace) as ready:
        ready.wait("^False/ModelAuthFailed$", seconds=60)
        assert brief(kube, "desk", namespace)["ModelReachable"] == "False/ModelAuthFailed"
        message = status_of(kube, "desk", namespace)["conditions"][0]["message"]
        assert message.startswith(f"{name}/{MODEL} ")
        assert f"(Secret {namespace}/llm, key key). Users get the fallback message." in message
        assert provider.asked("chat") == []
        (pod,) = pods_of(kube, "desk", namespace)
        put_key(kube, namespace, KEY)
        ready.wait("^True/Serving$", seconds=60)
    answer = Client(kube, "desk", namespace).send("s", "hello")
    assert answer["reply"] == {"content": GREETING}
    assert answer["turn"]["model"] == f"{name}/{MODEL}"
    assert (answer["turn"]["usage"]["currency"], answer["turn"]["usage"]["inputTokens"] > 0) == ("USD", True)
    (after,) = pods_of(kube, "desk", namespace)
    assert after["metadata"]["uid"] == pod["metadata"]["uid"]
    assert restarts_of(after) == 0


def test_one_provider_answers_while_the_other_fails(kube: Kube, namespace: str, provider: ModelProvider) -> None:
    base_url = expose(kube, namespace, provider.port)
    put_key(kube, namespace, KEY)
    models = [model(base_url, "anthropic"), model(base_url, "google")]
    kube.apply(agent("desk", models=models), namespace)
    kube.wait_ready("desk", namespace)
    client = Client(kube, "desk", namespace)
    assert client.send("s", "hello")["turn"]["model"] == f"anthropic/{MODEL}"
    provider.fail(529, 2)
    answer = client.send("s", "hello again")
    assert (answer["turn"]["status"], answer["turn"]["model"]) == ("completed", f"google/{MODEL}")
    assert client.send("s", "and again")["turn"]["model"] == f"anthropic/{MODEL}"
