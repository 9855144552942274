"""What status says, on a real API server: causes within seconds, recovery by itself, Events, nothing invented."""

import asyncio
import base64
from typing import Any

import pytest

from agent_operator.kube.client import MERGE
from agent_operator.kube.port import AGENT, CONFIG_MAP, DEPLOYMENT, EVENT, POD, SECRET, Kind
from tests.cluster.controlplane import ControlPlane
from tests.integration.agent_operator.harness import (
    Api,
    OperatorThread,
    RuntimeHealth,
    ended,
    eventually,
    running_operator,
)

LIMIT_RANGE = Kind("", "v1", "LimitRange", "limitranges")
QUOTA = Kind("", "v1", "ResourceQuota", "resourcequotas")
KEYED = {"models": [{"provider": "echo", "apiKeySecretRef": {"name": "llm", "key": "openai"}}]}
VALUE = base64.b64encode(b"sk-hunter2hunter2").decode()


async def starting(api: Api, namespace: str, **spec: Any) -> str:
    await api.make_agent(namespace, **spec)
    await api.wait_condition(namespace, "Ready", "False/Starting")
    return await api.the_pod(namespace)


async def serving(api: Api, namespace: str, **spec: Any) -> str:
    pod = await starting(api, namespace, **spec)
    await api.set_ready(namespace, pod)
    await api.wait_condition(namespace, "Ready", "True/Serving")
    return pod


async def test_a_missing_secret_is_named_and_heals_within_five_seconds(
    api: Api, namespace: str, operator: OperatorThread
) -> None:
    await api.make_agent(namespace, **KEYED)
    await api.wait_condition(namespace, "Accepted", "False/SecretMissing", timeout=5)
    prefix = f"spec.models[0].apiKeySecretRef: Secret {namespace}/llm"
    assert (await api.message(namespace, "Accepted")).startswith(f"{prefix} does not exist.")
    assert (await api.conditions(namespace))["Ready"] == "False/SecretMissing"
    assert await api.all(DEPLOYMENT, namespace) == []

    await api.make(SECRET, namespace, "llm", data={"other": VALUE})

    async def keyless() -> bool:
        return (await api.message(namespace, "Accepted")).startswith(f'{prefix} has no key "openai".')

    await eventually(keyless, timeout=5)
    await api.edit(SECRET, namespace, "llm", {"data": {"openai": VALUE}})
    await api.wait_condition(namespace, "Accepted", "True/Valid", timeout=5)
    await api.the_pod(namespace)
    agent = await api.get(AGENT, namespace, "bot")
    assert "hunter2" not in str(agent)
    assert VALUE not in str(agent)


async def test_a_running_agent_keeps_its_pods_while_a_secret_is_missing(
    api: Api, namespace: str, operator: OperatorThread
) -> None:
    pod = await serving(api, namespace)
    revision = await api.revision(namespace)
    await api.edit(AGENT, namespace, "bot", {"spec": KEYED})
    await api.wait_condition(namespace, "Accepted", "False/SecretMissing", timeout=5)
    conditions = await api.conditions(namespace)
    assert conditions["Ready"] == "True/SecretMissing"
    assert conditions["Degraded"] == "True/SecretMissing"
    assert await api.revision(namespace) == revision
    assert await api.the_pod(namespace) == pod

    await api.edit(AGENT, namespace, "bot", {"spec": {"suspend": True}})

    async def stopped() -> bool:
        deployment = await api.get(DEPLOYMENT, namespace, "agent-bot")
        return deployment is not None and deployment["spec"]["replicas"] == 0

    await eventually(stopped)
    await api.edit(AGENT, namespace, "bot", {"spec": {"suspend": False}})
    await api.make(SECRET, namespace, "llm", data={"openai": VALUE})
    await api.wait_condition(namespace, "Accepted", "True/Valid", timeout=5)
    assert await api.revision(namespace) != revision


async def test_a_prompt_from_a_config_map(control_plane: ControlPlane, api: Api, namespace: str) -> None:
    async with running_operator(control_plane.kubeconfig, namespace, reference_present_interval=2.0):
        source = {"systemPromptFrom": {"configMapKeyRef": {"name": "prompts", "key": "support"}}}
        await api.make_agent(namespace, **source)
        await api.wait_condition(namespace, "Accepted", "False/ConfigMapMissing", timeout=5)
        await api.make(CONFIG_MAP, namespace, "prompts", data={"support": "Be brief."})
        await api.wait_condition(namespace, "Accepted", "True/Valid", timeout=5)
        first = await api.revision(namespace)
        config_map = await api.get(CONFIG_MAP, namespace, f"agent-bot-{first}")
        assert config_map is not None
        assert '"systemPrompt": "Be brief."' in config_map["data"]["agent.json"]
        await api.edit(CONFIG_MAP, namespace, "prompts", {"data": {"support": "Be long."}})

        async def rolled() -> bool:
            return await api.revision(namespace) != first

        await eventually(rolled, timeout=8)


async def test_what_the_api_server_let_through_is_refused_with_its_field(
    api: Api, namespace: str, operator: OperatorThread
) -> None:
    replies = [{"error": 500, "content": "both"}]
    await api.make_agent(namespace, models=[{"provider": "scripted", "parameters": {"replies": replies}}])
    await api.wait_condition(namespace, "Accepted", "False/InvalidSpec", timeout=5)
    assert (await api.message(namespace, "Accepted")).startswith("spec.models[0].parameters.replies[0]")
    assert await api.all(DEPLOYMENT, namespace) == []


async def test_an_image_name_nobody_can_read_is_an_image_that_cannot_be_pulled(
    api: Api, namespace: str, operator: OperatorThread
) -> None:
    await api.make_agent(namespace, runtime={"image": "not an image name"})
    await api.set_pod(
        namespace, await api.the_pod(namespace), waiting=("InvalidImageName", "couldn't parse image name")
    )
    await api.wait_condition(namespace, "Ready", "False/ImagePullFailed", timeout=5)


POD_CAUSES: list[tuple[str, dict[str, Any], str]] = [
    ("ImagePullFailed", {"waiting": ("ImagePullBackOff", "Back-off pulling image")}, "Image abide/runtime:"),
    (
        "OOMKilled",
        {"waiting": ("CrashLoopBackOff", "back-off"), "last": ended("OOMKilled", 137), "restarts": 3},
        "killed for memory (limit 256Mi) repeatedly",
    ),
    (
        "CrashLoop",
        {"waiting": ("CrashLoopBackOff", "back-off"), "last": ended("Error", 1, "boom: no such file"), "restarts": 3},
        "exit code 1; its last words: boom: no such file",
    ),
    ("Unschedulable", {"unschedulable": "0/3 nodes are available: 3 Insufficient memory."}, "3 Insufficient memory"),
]


@pytest.mark.parametrize(("reason", "status", "words"), POD_CAUSES, ids=[cause[0] for cause in POD_CAUSES])
async def test_the_cause_of_a_pod_shows_within_five_seconds_and_goes_by_itself(
    api: Api, namespace: str, operator: OperatorThread, reason: str, status: dict[str, Any], words: str
) -> None:
    pod = await starting(api, namespace)
    await api.set_pod(namespace, pod, **status)
    await api.wait_condition(namespace, "Ready", f"False/{reason}", timeout=5)
    message = await api.message(namespace)
    assert words in message
    assert message.endswith(f" docs/reasons/{reason}.md")
    # The same trouble once more, as a kubelet keeps reporting it, is no news.
    before = await operator.settled_writes()
    await api.set_pod(namespace, pod, **{**status, "restarts": 7})
    assert await operator.settled_writes() == before
    await api.set_ready(namespace, pod)
    await api.wait_condition(namespace, "Ready", "True/Serving", timeout=5)
    assert (await api.conditions(namespace))["Progressing"] == "False/UpToDate"


async def test_a_quota_is_named(api: Api, namespace: str, operator: OperatorThread) -> None:
    await api.make(QUOTA, namespace, "none", spec={"hard": {"pods": "0"}})

    async def counted() -> bool:
        quota = await api.get(QUOTA, namespace, "none")
        return bool((quota or {}).get("status", {}).get("hard"))

    await eventually(counted)
    await api.make_agent(namespace)
    await api.wait_condition(namespace, "Ready", "False/QuotaExceeded", timeout=10)
    assert "exceeded quota: none" in await api.message(namespace)
    await api.drop(QUOTA, namespace, "none")


async def test_a_rule_of_the_namespace_is_named(api: Api, namespace: str, operator: OperatorThread) -> None:
    limits = [{"type": "Container", "max": {"memory": "64Mi"}}]
    await api.make(LIMIT_RANGE, namespace, "small", spec={"limits": limits})
    await api.make_agent(namespace)
    await api.wait_condition(namespace, "Ready", "False/PodForbidden", timeout=10)
    assert "maximum memory usage per Container is 64Mi" in await api.message(namespace)


async def test_agents_run_in_a_namespace_of_the_restricted_level(
    api: Api, namespace: str, operator: OperatorThread
) -> None:
    label = {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}}
    await api.raw("PATCH", f"/api/v1/namespaces/{namespace}", label, MERGE)
    await serving(api, namespace)


async def test_postgres_as_the_cause_comes_from_the_runtimes_own_words(
    api: Api, namespace: str, operator: OperatorThread, runtime: RuntimeHealth
) -> None:
    pod = await serving(api, namespace)
    words = "Postgres at pg.shop:5432: postgresql://abide:hunter2@pg.shop cannot be resolved; look"
    runtime.failed = ("store", "ConnectionRefused", words)
    await api.set_pod(namespace, pod, running=True)
    await api.wait_condition(namespace, "Ready", "False/StateStoreUnreachable", timeout=5)
    conditions = await api.conditions(namespace)
    assert conditions["StateStoreReady"] == "False/ConnectionRefused"
    assert conditions["Degraded"] == "False/NotServing"
    message = await api.message(namespace)
    assert "pg.shop:5432 refuses connections" in message
    assert "hunter2" not in message
    agent = await api.get(AGENT, namespace, "bot")
    assert agent is not None
    assert {check["name"]: check["ok"] for check in agent["status"]["health"]["checks"]} == {
        "loop": True, "store": False, "lease": True,
    }  # fmt: skip
    before = await operator.settled_writes()

    async def asked_again(times: int = runtime.asked + 2) -> bool:
        return runtime.asked >= times

    await eventually(asked_again)
    assert await operator.settled_writes() == before
    # Another reason, without any event from the cluster.
    runtime.failed = ("store", "AuthFailed", "pg.shop:5432 refuses the password")
    await api.wait_condition(namespace, "StateStoreReady", "False/AuthFailed", timeout=5)
    runtime.failed = None
    await api.set_ready(namespace, pod)
    await api.wait_condition(namespace, "Ready", "True/Serving", timeout=5)
    assert (await api.conditions(namespace))["StateStoreReady"] == "True/Connected"


async def test_a_runtime_that_does_not_answer_is_said_to(api: Api, namespace: str, operator: OperatorThread) -> None:
    pod = await serving(api, namespace)
    await api.set_pod(namespace, pod, running=True, ip="127.0.91.200")
    await api.wait_condition(namespace, "Ready", "False/ProbeFailing", timeout=5)
    assert "does not answer" in await api.message(namespace)


async def test_ready_follows_the_pod_within_a_second(api: Api, namespace: str, operator: OperatorThread) -> None:
    pod = await serving(api, namespace)
    loop = asyncio.get_running_loop()
    for _ in range(5):
        begun = loop.time()
        await api.set_pod(namespace, pod, waiting=("ContainerCreating", ""))
        await api.wait_condition(namespace, "Ready", "False/Starting", timeout=2)
        assert loop.time() - begun < 1
        begun = loop.time()
        await api.set_ready(namespace, pod)
        await api.wait_condition(namespace, "Ready", "True/Serving", timeout=2)
        assert loop.time() - begun < 1


async def test_a_broken_new_revision_leaves_the_old_one_serving(
    api: Api, namespace: str, operator: OperatorThread
) -> None:
    old_pod = await serving(api, namespace)
    await api.edit(AGENT, namespace, "bot", {"spec": {"runtime": {"image": "registry.example/none:1"}}})
    await api.wait_condition(namespace, "Progressing", "True/RollingOut")
    new_pod = await api.the_pod(namespace, revision=await api.revision(namespace))
    await api.set_pod(namespace, new_pod, waiting=("ErrImagePull", "not found"))
    await api.wait_condition(namespace, "Ready", "True/RolloutFailed", timeout=5)
    conditions = await api.conditions(namespace)
    assert conditions["Progressing"] == "False/RolloutFailed"
    assert conditions["Degraded"] == "True/ImagePullFailed"
    assert "deletionTimestamp" not in ((await api.get(POD, namespace, old_pod)) or {"metadata": {}})["metadata"]


async def test_events_tell_what_happened_once_per_reason(api: Api, namespace: str, operator: OperatorThread) -> None:
    pod = await serving(api, namespace)
    for _ in range(3):
        await api.set_pod(namespace, pod, waiting=("ImagePullBackOff", "…"))
        await api.wait_condition(namespace, "Ready", "False/ImagePullFailed")
        await api.set_ready(namespace, pod)
        await api.wait_condition(namespace, "Ready", "True/Serving")

    async def told() -> bool:
        events = [one for one in await api.all(EVENT, namespace) if one["regarding"]["kind"] == "Agent"]
        found = sorted((one["type"], one["reason"]) for one in events)
        assert found == [("Normal", "Serving"), ("Normal", "Starting"), ("Warning", "ImagePullFailed")], found
        return True

    await eventually(told)


async def test_conditions_have_the_present_generation_and_move_only_with_their_status(
    api: Api, namespace: str, operator: OperatorThread
) -> None:
    await serving(api, namespace)
    before = await api.get(AGENT, namespace, "bot")
    await api.edit(AGENT, namespace, "bot", {"spec": {"displayName": "Bot"}})

    async def seen() -> bool:
        agent = await api.get(AGENT, namespace, "bot")
        assert agent is not None
        return bool(agent["status"]["observedGeneration"] == 2)

    await eventually(seen)
    after = await api.get(AGENT, namespace, "bot")
    assert before is not None
    assert after is not None
    was = {one["type"]: one for one in before["status"]["conditions"]}
    for condition in after["status"]["conditions"]:
        assert condition["observedGeneration"] == 2
        if condition["status"] == was[condition["type"]]["status"]:
            assert condition["lastTransitionTime"] == was[condition["type"]]["lastTransitionTime"]
