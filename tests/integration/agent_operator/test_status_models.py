"""What status says of models, on a real API server and a real Postgres: within seconds, nothing early, no secret."""

import asyncio
import base64
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest

from agent_api.wire import ModelCheck
from agent_operator.kube.port import AGENT, CONFIG_MAP, EVENT, POD, SECRET
from agent_store.ports import ErrorRecord
from agent_store.postgres.store import PostgresStore
from tests.cluster.controlplane import ControlPlane
from tests.integration.agent_operator.harness import (
    Api,
    OperatorThread,
    RuntimeHealth,
    ended,
    eventually,
    running_operator,
)

KEY = base64.b64encode(b"sk-hunter2hunter2hunter2").decode()
OPENAI = {
    "name": "primary",
    "provider": "openai",
    "model": "gpt-5-mini",
    "apiKeySecretRef": {"name": "llm", "key": "openai"},
}
SMALL = {"name": "backup", "provider": "openai-compatible", "model": "small", "baseURL": "http://llm.example/v1"}
DENIED = ("ModelAuthFailed", "answers 401: incorrect API key provided: sk-hunter2hunter2hunter2")


def check(entry: dict[str, Any], ok: bool | None, reason: str = "", message: str = "") -> ModelCheck:
    now = datetime.now(UTC)
    model = f"{entry['provider']}/{entry['model']}"
    return ModelCheck(name=entry["name"], model=model, ok=ok, reason=reason, message=message, since=now, checked_at=now)


async def starting(api: Api, namespace: str, *models: dict[str, Any], **spec: Any) -> str:
    await api.make(SECRET, namespace, "llm", data={"openai": KEY})
    await api.make_agent(namespace, models=list(models) or [OPENAI], **spec)
    return await api.the_pod(namespace)


async def told(api: Api, namespace: str) -> set[str]:
    """Return the reasons of the Agent's Events."""
    return {one["reason"] for one in await api.all(EVENT, namespace) if one["regarding"]["kind"] == "Agent"}


async def wait_told(api: Api, namespace: str, reason: str) -> set[str]:
    async def check_told() -> set[str]:
        reasons = await told(api, namespace)
        assert reason in reasons, reasons
        return reasons

    return await eventually(check_told)


async def status(api: Api, namespace: str) -> dict[str, Any]:
    agent = await api.get(AGENT, namespace, "bot")
    assert agent is not None
    return dict(agent["status"])


async def test_a_refused_key_is_told_without_any_user_and_without_having_said_that_it_serves(
    api: Api, namespace: str, operator: OperatorThread, runtime: RuntimeHealth
) -> None:
    pod = await starting(api, namespace)
    runtime.models = [check(OPENAI, None)]
    await api.set_ready(namespace, pod)

    async def ready_but_unknown() -> bool:
        found = await status(api, namespace)
        return found["readyReplicas"] == 1 and found["conditions"][0]["reason"] == "Starting"

    await eventually(ready_but_unknown, timeout=5)
    runtime.models = [check(OPENAI, False, *DENIED)]
    await api.wait_condition(namespace, "Ready", "False/ModelAuthFailed", timeout=5)
    conditions = await api.conditions(namespace)
    assert conditions["ModelReachable"] == "False/ModelAuthFailed"
    assert conditions["Degraded"] == "False/NotServing"
    assert conditions["Accepted"] == "True/Valid"
    message = await api.message(namespace)
    assert message.startswith("openai/gpt-5-mini answers 401")
    assert f"(Secret {namespace}/llm, key openai). Users get the fallback message. Put a valid key there;" in message
    found = await status(api, namespace)
    assert (found["desiredReplicas"], found["readyReplicas"]) == (1, 1)
    assert {one["name"]: one["ok"] for one in found["health"]["checks"]}["model/primary"] is False
    reasons = await wait_told(api, namespace, "ModelAuthFailed")
    assert "Serving" not in reasons
    everything = f"{await api.get(AGENT, namespace, 'bot')}{await api.all(EVENT, namespace)}"
    assert "hunter2" not in everything
    assert KEY not in everything


async def test_a_model_that_answers_at_once_serves_at_once(
    api: Api, namespace: str, operator: OperatorThread, runtime: RuntimeHealth
) -> None:
    pod = await starting(api, namespace, SMALL)
    runtime.models = [check(SMALL, True)]
    await api.set_ready(namespace, pod)
    await api.wait_condition(namespace, "Ready", "True/Serving", timeout=2)
    assert (await api.conditions(namespace))["ModelReachable"] == "True/Reachable"


class Beats:
    """Heartbeats of an agent's pod, as its runtime writes them."""

    def __init__(self, store: PostgresStore, agent_id: UUID, pod: str) -> None:
        self.store, self.agent_id, self.pod = store, agent_id, pod

    async def say(self, *models: ModelCheck, pod: str = "") -> None:
        details = {"sessions": {"active": 0}, "models": [one.model_dump(mode="json", by_alias=True) for one in models]}
        await self.store.beat(self.agent_id, pod or self.pod, details)


@pytest.fixture
async def with_postgres(
    control_plane: ControlPlane, namespace: str, runtime: RuntimeHealth, postgres_url: str
) -> AsyncIterator[OperatorThread]:
    """An operator that reads heartbeats."""
    async with running_operator(
        control_plane.kubeconfig, namespace, agent_port=runtime.port, postgres_url=postgres_url
    ) as operator:
        yield operator


async def beats_of(api: Api, namespace: str, store: PostgresStore, pod: str) -> Beats:
    agent = await api.get(AGENT, namespace, "bot")
    assert agent is not None
    agent_id = UUID(agent["metadata"]["uid"])
    await store.register(agent_id, namespace, "bot", "test", ttl=60)
    return Beats(store, agent_id, pod)


async def test_heartbeats_tell_within_five_seconds_and_so_they_do_of_the_recovery(
    api: Api, namespace: str, with_postgres: OperatorThread, runtime: RuntimeHealth, store: PostgresStore
) -> None:
    pod = await starting(api, namespace, OPENAI, SMALL)
    runtime.models = [check(OPENAI, True), check(SMALL, True)]
    await api.set_ready(namespace, pod)
    await api.wait_condition(namespace, "Ready", "True/Serving")
    beats = await beats_of(api, namespace, store, pod)

    await beats.say(check(OPENAI, False, *DENIED), check(SMALL, True))
    await api.wait_condition(namespace, "Ready", "True/ServingOnFallback", timeout=5)
    conditions = await api.conditions(namespace)
    assert conditions["ModelReachable"] == "True/FallbackOnly"
    assert conditions["Degraded"] == "True/ModelAuthFailed"
    assert (await api.message(namespace)).startswith("Served by openai-compatible/small; openai/gpt-5-mini answers 401")

    await beats.say(check(OPENAI, False, *DENIED), check(SMALL, False, "ModelUnreachable", "refuses connections"))
    await api.wait_condition(namespace, "Ready", "False/ModelAuthFailed", timeout=5)

    # A pod that says the same again and again, a little later each time, is no news.
    before = await with_postgres.settled_writes()
    for _ in range(3):
        await beats.say(check(OPENAI, False, *DENIED), check(SMALL, False, "ModelUnreachable", "refuses connections"))
        await with_postgres.run(with_postgres.context.facts.read)
    assert await with_postgres.settled_writes() == before

    await beats.say(check(OPENAI, True), check(SMALL, True))
    await api.wait_condition(namespace, "Ready", "True/Serving", timeout=5)
    assert (await api.conditions(namespace))["Degraded"] == "False/AllWell"
    reasons = await told(api, namespace)
    assert {"ServingOnFallback", "ModelAuthFailed"} <= reasons


async def test_one_of_two_pods_with_a_broken_model_is_told_and_the_agent_serves(
    api: Api, namespace: str, with_postgres: OperatorThread, runtime: RuntimeHealth, store: PostgresStore
) -> None:
    await starting(api, namespace, SMALL, replicas=2)

    async def both() -> list[str]:
        pods = [one["metadata"]["name"] for one in await api.all(POD, namespace, "abide.dev/agent=bot")]
        assert len(pods) == 2, pods
        return pods

    pods = await eventually(both)
    runtime.models = [check(SMALL, True)]
    for pod in pods:
        await api.set_ready(namespace, pod)
    await api.wait_condition(namespace, "Ready", "True/Serving")
    beats = await beats_of(api, namespace, store, pods[0])
    await beats.say(check(SMALL, False, "ModelUnreachable", "refuses connections"))
    await api.wait_condition(namespace, "Ready", "True/ModelUnreachable", timeout=5)
    assert (await api.conditions(namespace))["Degraded"] == "True/ModelUnreachable"
    assert (await api.message(namespace)).startswith("1 of 2 pods: openai-compatible/small refuses connections since")
    # The other one breaks in a way of its own: it is killed for memory again and again.
    await beats.say(check(SMALL, True))
    await api.wait_condition(namespace, "Ready", "True/Serving", timeout=5)
    back_off = ("CrashLoopBackOff", "back-off")
    await api.set_pod(namespace, pods[1], waiting=back_off, last=ended("OOMKilled", 137), restarts=3)
    await api.wait_condition(namespace, "Ready", "True/OOMKilled", timeout=5)
    found = await status(api, namespace)
    assert (found["desiredReplicas"], found["readyReplicas"]) == (2, 1)
    message = await api.message(namespace)
    assert message.startswith("1 of 2 pods: Container runtime killed for memory (limit 256Mi) repeatedly since")
    assert "its sessions were taken over." in message


async def test_a_restarted_operator_writes_nothing_about_a_broken_model(
    control_plane: ControlPlane,
    api: Api,
    namespace: str,
    runtime: RuntimeHealth,
    store: PostgresStore,
    postgres_url: str,
) -> None:
    runtime.models = [check(OPENAI, False, *DENIED)]
    async with running_operator(
        control_plane.kubeconfig, namespace, agent_port=runtime.port, postgres_url=postgres_url
    ) as operator:
        pod = await starting(api, namespace)
        await api.set_ready(namespace, pod)
        await api.wait_condition(namespace, "Ready", "False/ModelAuthFailed")
        await operator.settled_writes()
    before = await api.snapshot(namespace)
    # Nobody answers it: no Postgres, and another port than the runtimes have.
    environ = {"ABIDE_AGENT_POSTGRES_URL": postgres_url}
    async with running_operator(control_plane.kubeconfig, namespace, agent_port=9, environ=environ) as operator:
        assert await operator.settled_writes() == {}
        assert await api.snapshot(namespace) == before
    assert (await api.conditions(namespace))["Ready"] == "False/ModelAuthFailed"


async def test_the_newest_error_of_an_agent_shows(
    api: Api, namespace: str, with_postgres: OperatorThread, runtime: RuntimeHealth, store: PostgresStore
) -> None:
    pod = await starting(api, namespace, SMALL)
    runtime.models = [check(SMALL, True)]
    await api.set_ready(namespace, pod)
    beats = await beats_of(api, namespace, store, pod)
    await store.record_error(ErrorRecord(beats.agent_id, "ModelUnreachable", "key sk-hunter2hunter2 did not help"))

    async def shown() -> dict[str, Any]:
        return dict((await status(api, namespace)).get("lastError") or {})

    error = await eventually(shown, timeout=15)
    assert error["type"] == "ModelUnreachable"
    assert "hunter2" not in error["message"]


async def test_a_prompt_that_is_too_long_is_refused_with_its_field(
    api: Api, namespace: str, operator: OperatorThread
) -> None:
    await api.make(CONFIG_MAP, namespace, "prompts", data={"support": "x" * 100_001})
    await api.make_agent(namespace, systemPromptFrom={"configMapKeyRef": {"name": "prompts", "key": "support"}})
    await api.wait_condition(namespace, "Accepted", "False/InvalidSpec", timeout=5)
    message = await api.message(namespace, "Accepted")
    assert message.startswith("spec.systemPromptFrom.configMapKeyRef: key")
    assert "has 100001 characters; write at most 100000." in message


STORE_REASONS = [
    ("ConnectionRefused", "connection refused; check it", "refuses connections since"),
    ("Timeout", "no answer in time; check it", "does not answer in time since"),
    ("AuthFailed", "password authentication failed (28P01); check it", "refuses the user or password since"),
    ("TLSFailed", "it does not speak TLS; check it", "allows no TLS connection since"),
    ("ConnectionLimit", "too many clients already (53300); raise it", "has no free connection since"),
    ("ReadOnly", "it is read-only; check it", "is read-only since"),
    ("SchemaTooOld", "schema 0001, needed 0002; run it", "has a schema that is older than this version needs since"),
]


async def test_every_way_in_which_postgres_fails_is_told_without_a_word_on_the_probe(
    api: Api, namespace: str, operator: OperatorThread, runtime: RuntimeHealth
) -> None:
    await api.make_agent(namespace)
    pod = await api.the_pod(namespace)
    await api.set_ready(namespace, pod)
    await api.wait_condition(namespace, "Ready", "True/Serving")
    runtime.failed = ("store", STORE_REASONS[0][0], f"Postgres at pg.shop:5432: {STORE_REASONS[0][1]}")
    await api.set_pod(namespace, pod, running=True)
    for reason, words, expected in STORE_REASONS:
        runtime.failed = ("store", reason, f"Postgres at pg.shop:5432: {words}")
        await api.wait_condition(namespace, "StateStoreReady", f"False/{reason}", timeout=5)
        assert (await api.conditions(namespace))["Ready"] == "False/StateStoreUnreachable"
        message = await api.message(namespace)
        assert message.startswith(f"Postgres pg.shop:5432 {expected}")
        assert "503; acknowledged ones are kept" in message
    # Well again, a moment before the kubelet looks.
    runtime.failed = None

    async def seen() -> bool:
        return (await api.conditions(namespace))["StateStoreReady"] == "True/Connected"

    await eventually(seen, timeout=5)
    await api.set_ready(namespace, pod)
    await api.wait_condition(namespace, "Ready", "True/Serving", timeout=2)
    await wait_told(api, namespace, "StateStoreUnreachable")
    assert "ProbeFailing" not in await told(api, namespace)


async def test_a_loop_of_memory_kills_does_not_flap(api: Api, namespace: str, operator: OperatorThread) -> None:
    await api.make_agent(namespace)
    pod = await api.the_pod(namespace)
    killed = ended("OOMKilled", 137)
    await api.set_pod(namespace, pod, waiting=("CrashLoopBackOff", "back-off"), last=killed)
    await api.wait_condition(namespace, "Ready", "False/OOMKilled", timeout=5)
    seen: set[str] = set()
    for restarts in (1, 2, 3):
        for state in (
            {"running": True, "started_ago": 0.0},
            {"waiting": ("CrashLoopBackOff", "back-off")},
        ):
            await api.set_pod(namespace, pod, last=killed, restarts=restarts, **state)
            await operator.sweep()
            seen.add((await api.conditions(namespace))["Ready"])
    assert seen == {"False/OOMKilled"}
    # Ready at last: it is believed after a stable minute, not at once.
    await api.set_pod(namespace, pod, ready=True, running=True, started_ago=1.0, last=killed, restarts=4)
    await operator.sweep()
    assert (await api.conditions(namespace))["Ready"] == "False/OOMKilled"
    await api.set_pod(namespace, pod, ready=True, running=True, started_ago=58.0, last=killed, restarts=4)
    begun = asyncio.get_running_loop().time()
    await api.wait_condition(namespace, "Ready", "True/Serving", timeout=5)
    assert asyncio.get_running_loop().time() - begun < 5
