"""Models that break and come back, on a real node: what status says, when, and what users get."""

import json
import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest

from tests.e2e.kube import Client, Kube, agent, wait_for
from tests.e2e.surroundings import brief, expose, pods_of, restarts_of, status_of, watching
from tests.fakes.provider import GREETING, KEY, MODEL, ModelProvider

WRONG_KEY = "sk-test-wrong-key-000001"
FALLBACK_TEXT = "Sorry, I cannot answer right now."
MARGIN = 0.5
"""What kubectl itself takes to show a change."""


@pytest.fixture(scope="module")
def providers() -> Iterator[tuple[ModelProvider, ModelProvider]]:
    """Two providers on this machine, which pods reach by a Service."""
    with ModelProvider() as _:
        pass  # installs what is missing outside of any test's time
    one, two = ModelProvider(), ModelProvider()
    try:
        one.start("0.0.0.0")
        two.start("0.0.0.0")
        yield one, two
    finally:
        one.stop()
        two.stop()


@pytest.fixture
def provider(providers: tuple[ModelProvider, ModelProvider]) -> ModelProvider:
    """A provider as new."""
    providers[0].reset()
    return providers[0]


def put_key(kube: Kube, namespace: str, key: str, *, secret: str = "llm") -> None:
    content = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": secret}, "stringData": {"openai": key}}
    kube.apply(content, namespace)


def model(base_url: str, name: str = "primary", *, secret: str = "llm", model_name: str = MODEL) -> dict[str, Any]:
    return {
        "name": name,
        "provider": "openai-compatible",
        "model": model_name,
        "baseURL": base_url,
        "apiKeySecretRef": {"name": secret, "key": "openai"},
    }


def everything_written(kube: Kube, namespace: str) -> str:
    """Return all that anybody may read: the Agent, Events, logs of the agent and of the operator."""
    texts = [
        kube.run("get", "agents.abide.dev", "-n", namespace, "-o", "json"),
        kube.run("get", "events.events.k8s.io", "-n", namespace, "-o", "json"),
        kube.run("logs", "-n", "abide-system", "-l", "app.kubernetes.io/name=abide", "--tail=-1", "--all-containers"),
    ]
    pods = kube.items("pods", namespace, "abide.dev/agent")
    texts += [kube.run("logs", "-n", namespace, pod["metadata"]["name"], "--tail=-1") for pod in pods]
    return "\n".join(texts)


def test_a_refused_key_is_told_before_any_user_and_a_good_one_serves_without_a_restart(
    kube: Kube, namespace: str, provider: ModelProvider
) -> None:
    base_url = expose(kube, namespace, provider.port)
    put_key(kube, namespace, WRONG_KEY)
    kube.apply(agent("desk", models=[model(base_url)]), namespace)
    with watching(kube, "agents.abide.dev", "desk", namespace) as ready:
        ready.wait("^False/ModelAuthFailed$", seconds=60)
        told_at = time.time()
        (pod,) = pods_of(kube, "desk", namespace)
        started = pod["status"]["containerStatuses"][0]["state"]["running"]["startedAt"]
        assert told_at - datetime.fromisoformat(started).timestamp() <= 15 + MARGIN
        assert provider.asked("chat") == []
        assert not any(state.startswith("True") for state in ready.all()), ready.all()

        status = status_of(kube, "desk", namespace)
        assert (status["desiredReplicas"], status["readyReplicas"]) == (1, 1)
        conditions = brief(kube, "desk", namespace)
        assert conditions["ModelReachable"] == "False/ModelAuthFailed"
        assert conditions["Degraded"] == "False/NotServing"
        message = status["conditions"][0]["message"]
        assert message.startswith(f"openai-compatible/{MODEL} ")
        assert f"(Secret {namespace}/llm, key openai). Users get the fallback message." in message
        assert "it is read within 60 s" in message

        client = Client(kube, "desk", namespace)
        for number in range(3):
            answer = client.send("s", f"hello {number}")
            assert answer["turn"]["status"] == "fallback"
            assert FALLBACK_TEXT in answer["reply"]["content"]
        # A refused key is not tried again for every user.
        assert len(provider.asked("chat")) <= 1
        assert len(provider.asked("list")) <= 4
        written = everything_written(kube, namespace)
        assert WRONG_KEY not in written
        assert WRONG_KEY[8:] not in written

        fixed_at = time.monotonic()
        put_key(kube, namespace, KEY)
        assert ready.wait("^True/Serving$", seconds=60, since=fixed_at) - fixed_at <= 60
    assert client.send("s", "and now")["reply"] == {"content": GREETING}
    (after,) = pods_of(kube, "desk", namespace)
    assert after["metadata"]["uid"] == pod["metadata"]["uid"]
    assert restarts_of(after) == 0
    assert KEY not in everything_written(kube, namespace)


def test_a_key_that_is_revoked_later_is_told_within_five_seconds_of_the_first_refusal(
    kube: Kube, namespace: str, provider: ModelProvider
) -> None:
    base_url = expose(kube, namespace, provider.port)
    put_key(kube, namespace, KEY)
    kube.apply(agent("desk", models=[model(base_url)]), namespace)
    kube.wait_ready("desk", namespace)
    client = Client(kube, "desk", namespace)
    assert client.send("s", "hello")["reply"] == {"content": GREETING}
    with watching(kube, "agents.abide.dev", "desk", namespace) as ready:
        ready.wait("^True/Serving$", seconds=10)
        provider.valid_keys.clear()
        assert client.send("s", "hello again")["turn"]["status"] == "fallback"
        refused_at = next(request.at for request in provider.requests if request.status == 401)
        told_at = ready.wait("^False/ModelAuthFailed$", seconds=15, since=refused_at)
        assert told_at - refused_at <= 5 + MARGIN
        provider.valid_keys.add("sk-test-new-key-000002")
        fixed_at = time.monotonic()
        put_key(kube, namespace, "sk-test-new-key-000002")
        assert ready.wait("^True/Serving$", seconds=60, since=fixed_at) - fixed_at <= 60
    assert client.send("s", "once more")["reply"] == {"content": GREETING}
    (pod,) = pods_of(kube, "desk", namespace)
    assert restarts_of(pod) == 0


def test_a_fallback_model_serves_and_the_primary_returns_by_itself(
    kube: Kube, namespace: str, providers: tuple[ModelProvider, ModelProvider]
) -> None:
    first, second = providers
    first.reset()
    second.reset()
    second.models[:] = ["gpt-small"]
    second.set_reply("Hello from the other one.")
    put_key(kube, namespace, KEY)
    models = [
        model(expose(kube, namespace, first.port)),
        model(expose(kube, namespace, second.port, name="other"), "backup", model_name="gpt-small"),
    ]
    kube.apply(agent("desk", models=models), namespace)
    kube.wait_ready("desk", namespace)
    client = Client(kube, "desk", namespace)
    assert client.send("s", "hello")["reply"] == {"content": GREETING}
    with watching(kube, "agents.abide.dev", "desk", namespace) as ready:
        ready.wait("^True/Serving$", seconds=10)
        first.close_port()
        try:
            closed_at = time.monotonic()
            for number in range(2):
                answer = client.send("s", f"without the first {number}")
                assert answer["turn"]["status"] == "completed"
                assert answer["turn"]["model"] == "openai-compatible/gpt-small"
                assert answer["reply"] == {"content": "Hello from the other one."}
            answered_at = time.monotonic()
            told_at = ready.wait("^True/ServingOnFallback$", seconds=15, since=closed_at)
            assert told_at - answered_at <= 5 + MARGIN
            conditions = brief(kube, "desk", namespace)
            assert conditions["ModelReachable"] == "True/FallbackOnly"
            assert conditions["Degraded"] == "True/ModelUnreachable"
            message = kube.condition("desk", namespace, "Ready")["message"]
            assert message.startswith(f"Served by openai-compatible/gpt-small; openai-compatible/{MODEL} ")
        finally:
            first.open_port()
        opened_at = time.monotonic()
        ready.wait("^True/Serving$", seconds=30, since=opened_at)
        assert not any(state.startswith("False") for state in ready.all()), ready.all()
    assert client.send("s", "with the first")["reply"] == {"content": GREETING}


def test_a_missing_secret_of_a_new_and_of_a_running_agent(kube: Kube, namespace: str, provider: ModelProvider) -> None:
    base_url = expose(kube, namespace, provider.port)
    kube.apply(agent("desk", models=[model(base_url)]), namespace)
    with watching(kube, "agents.abide.dev", "desk", namespace) as ready:
        begun = time.monotonic()
        ready.wait("^False/SecretMissing$", seconds=5 + MARGIN)
        told = kube.condition("desk", namespace, "Accepted")
        assert (told["status"], told["reason"]) == ("False", "SecretMissing")
        assert f"spec.models[0].apiKeySecretRef: Secret {namespace}/llm does not exist." in told["message"]
        assert pods_of(kube, "desk", namespace) == []
        made_at = time.monotonic()
        put_key(kube, namespace, KEY)
        kube.wait_condition("desk", namespace, "Accepted", "True", "Valid", seconds=5)
        assert time.monotonic() - made_at <= 5 + 2 * MARGIN
        ready.wait("^True/Serving$", seconds=60, since=begun)
        (pod,) = pods_of(kube, "desk", namespace)
        assert restarts_of(pod) == 0

        edited_at = time.monotonic()
        kube.apply(agent("desk", models=[model(base_url, secret="new")]), namespace)
        assert ready.wait("^True/SecretMissing$", seconds=10, since=edited_at) - edited_at <= 5 + MARGIN
        assert brief(kube, "desk", namespace)["Degraded"] == "True/SecretMissing"
        assert Client(kube, "desk", namespace).send("s", "still there?")["reply"] == {"content": GREETING}
        assert [one["metadata"]["uid"] for one in pods_of(kube, "desk", namespace)] == [pod["metadata"]["uid"]]
        created_at = time.monotonic()
        put_key(kube, namespace, KEY, secret="new")
        kube.wait_condition("desk", namespace, "Accepted", "True", "Valid", seconds=5)
        assert time.monotonic() - created_at <= 5 + 2 * MARGIN
        ready.wait("^True/Serving$", seconds=60, since=created_at)
        assert not any(state.startswith("False") for state in ready.all(since=edited_at)), ready.all()

    def replaced() -> bool:
        return [one["metadata"]["uid"] for one in pods_of(kube, "desk", namespace)] != [pod["metadata"]["uid"]]

    wait_for(replaced, seconds=60, what="the pod of the new spec")
    events = json.loads(kube.run("get", "events.events.k8s.io", "-n", namespace, "-o", "json"))["items"]
    told_events = [one["reason"] for one in events if one["regarding"]["kind"] == "Agent"]
    assert told_events.count("SecretMissing") == 1
