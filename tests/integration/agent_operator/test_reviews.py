"""Callers with tokens of the cluster: the agent's token for reviews, and what a real API server says of callers."""

import base64
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from agent_api.v1alpha1 import KubernetesAccess
from agent_operator.kube.port import AGENT, DEPLOYMENT, SECRET, SERVICE_ACCOUNT
from agent_operator.resources.deployment import ROOT_AUTHORITY
from agent_runtime.access.errors import AccessUnavailable
from agent_runtime.access.kubernetes import KNOWN_SECONDS, TokenReviewer
from agent_runtime.access.principal import Right
from agent_runtime.clock import ManualClock
from agent_runtime.settings import AuthMode
from tests.cluster.controlplane import ControlPlane
from tests.integration.agent_operator.harness import Api, OperatorThread, RuntimeHealth, eventually, running_operator
from tests.integration.agent_runtime.harness import manifest, serving

RBAC = "/apis/rbac.authorization.k8s.io/v1"
REVIEWER = "token-reviewer"
SECRET_NAME = "agent-bot-reviewer"
ASKING = {"kubernetes": {"enabled": True}}


async def grant(api: Api, namespace: str, account: str, *verbs: str) -> None:
    """Let a ServiceAccount use these verbs on the agents of its namespace."""
    rules = [{"apiGroups": ["abide.dev"], "resources": ["agents"], "verbs": list(verbs)}]
    await api.raw("POST", f"{RBAC}/namespaces/{namespace}/roles", {"metadata": {"name": account}, "rules": rules})
    binding = {
        "metadata": {"name": account},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": account},
        "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": namespace}],
    }
    await api.raw("POST", f"{RBAC}/namespaces/{namespace}/rolebindings", binding)


async def token_for(api: Api, namespace: str, account: str, audience: str = "abide.dev") -> str:
    spec = {"audiences": [audience], "expirationSeconds": 600}
    body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
    made = await api.raw("POST", f"/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token", body)
    return str(made["status"]["token"])


@pytest.fixture
async def reviewing(
    control_plane: ControlPlane, api: Api, namespace: str, runtime: RuntimeHealth
) -> AsyncIterator[OperatorThread]:
    """An operator whose installation may review tokens, with the rights that the chart gives."""
    await api.make(SERVICE_ACCOUNT, namespace, REVIEWER)
    name = f"reviews-{namespace}"
    rules = [
        {"apiGroups": ["authentication.k8s.io"], "resources": ["tokenreviews"], "verbs": ["create"]},
        {"apiGroups": ["authorization.k8s.io"], "resources": ["subjectaccessreviews"], "verbs": ["create"]},
    ]
    await api.raw("POST", f"{RBAC}/clusterroles", {"metadata": {"name": name}, "rules": rules})
    binding = {
        "metadata": {"name": name},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name},
        "subjects": [{"kind": "ServiceAccount", "name": REVIEWER, "namespace": namespace}],
    }
    await api.raw("POST", f"{RBAC}/clusterrolebindings", binding)
    async with running_operator(
        control_plane.kubeconfig,
        namespace,
        agent_port=runtime.port,
        namespace=namespace,
        reviewer_account=REVIEWER,
    ) as operator:
        yield operator


async def secret_of(api: Api, namespace: str) -> dict[str, Any]:
    async def there() -> Any:
        return await api.get(SECRET, namespace, SECRET_NAME)

    return dict(await eventually(there, what="the Secret with the token"))


async def mounted(api: Api, control_plane: ControlPlane, namespace: str, folder: Path) -> Path:
    """Write the files that a pod of the agent has mounted."""
    secret = await secret_of(api, namespace)
    folder.mkdir()
    (folder / "token").write_bytes(base64.b64decode(secret["data"]["token"]))
    authority = Path(control_plane.kubeconfig).parent / "pki" / "ca.crt"
    (folder / "ca.crt").write_bytes(authority.read_bytes())
    return folder


async def test_an_agent_that_asks_gets_a_token_for_reviews_and_nothing_else(
    api: Api, namespace: str, reviewing: OperatorThread
) -> None:
    await api.make_agent(namespace, access=ASKING)
    secret = await secret_of(api, namespace)
    assert secret["metadata"]["ownerReferences"][0]["name"] == "bot"

    async def deployed() -> Any:
        return await api.get(DEPLOYMENT, namespace, "agent-bot")

    template = (await eventually(deployed, what="the Deployment"))["spec"]["template"]["spec"]
    assert template["automountServiceAccountToken"] is False
    (volume,) = [one for one in template["volumes"] if one["name"] == "kubernetes"]
    sources = volume["projected"]["sources"]
    assert [source.get("secret", source.get("configMap"))["name"] for source in sources] == [
        SECRET_NAME,
        ROOT_AUTHORITY,
    ]
    (mount,) = [one for one in template["containers"][0]["volumeMounts"] if one["name"] == "kubernetes"]
    assert (mount["mountPath"], mount["readOnly"]) == ("/etc/abide/kubernetes", True)
    before = await reviewing.settled_writes()
    assert await reviewing.settled_writes() == before


async def test_a_token_is_renewed_in_time_and_taken_back(api: Api, namespace: str, reviewing: OperatorThread) -> None:
    await api.make_agent(namespace, access=ASKING)
    secret = await secret_of(api, namespace)
    due = datetime.fromisoformat(secret["metadata"]["annotations"]["abide.dev/token-renewal"])
    assert timedelta(hours=11) < due - datetime.now(UTC) < timedelta(hours=13)
    past = (datetime.now(UTC) - timedelta(minutes=1)).isoformat()
    await api.edit(SECRET, namespace, SECRET_NAME, {"metadata": {"annotations": {"abide.dev/token-renewal": past}}})

    async def renewed() -> bool:
        now = await secret_of(api, namespace)
        return bool(now["data"] != secret["data"] and now["metadata"]["annotations"]["abide.dev/token-renewal"] > past)

    await eventually(renewed, what="a new token")
    await api.drop(SECRET, namespace, SECRET_NAME)
    again = await secret_of(api, namespace)
    assert again["data"]["token"]
    await api.edit(AGENT, namespace, "bot", {"spec": {"access": {"kubernetes": {"enabled": False}}}})

    async def empty() -> bool:
        return not (await secret_of(api, namespace)).get("data")

    await eventually(empty, what="the token to be taken back")


async def test_without_the_rights_the_field_is_refused_with_the_remedy(
    api: Api, namespace: str, operator: OperatorThread
) -> None:
    await api.make_agent(namespace, access=ASKING)
    await api.wait_condition(namespace, "Accepted", "False/InvalidSpec")
    assert "kubernetesTokens.enabled=true" in await api.message(namespace, "Accepted")
    assert await api.get(DEPLOYMENT, namespace, "agent-bot") is None


@pytest.mark.parametrize("stop", [{"suspend": True}, {"replicas": 0}])
async def test_without_the_rights_what_runs_can_be_stopped_and_started(
    api: Api, namespace: str, operator: OperatorThread, stop: dict[str, Any]
) -> None:
    await api.make_agent(namespace)

    async def scaled(replicas: int) -> None:
        async def found() -> bool:
            deployment = await api.get(DEPLOYMENT, namespace, "agent-bot")
            return deployment is not None and deployment["spec"]["replicas"] == replicas

        await eventually(found, what=f"a Deployment of {replicas}")

    await scaled(1)
    await api.edit(AGENT, namespace, "bot", {"spec": {"access": ASKING}})
    await api.wait_condition(namespace, "Accepted", "False/InvalidSpec")
    await api.edit(AGENT, namespace, "bot", {"spec": stop})
    await scaled(0)
    await api.edit(AGENT, namespace, "bot", {"spec": {"suspend": False, "replicas": 1}})
    await scaled(1)
    await api.wait_condition(namespace, "Accepted", "False/InvalidSpec")


async def test_rbac_decides_what_holders_of_tokens_may_do(
    api: Api, control_plane: ControlPlane, namespace: str, reviewing: OperatorThread, tmp_path: Path
) -> None:
    await api.make_agent(namespace, access=ASKING)
    folder = await mounted(api, control_plane, namespace, tmp_path / "kubernetes")
    for account, verbs in (("talker", ["chat"]), ("boss", ["chat", "read", "approve", "operate"]), ("stranger", [])):
        await api.make(SERVICE_ACCOUNT, namespace, account)
        if verbs:
            await grant(api, namespace, account, *verbs)
    clock = ManualClock()
    access = KubernetesAccess(enabled=True)
    reviewer = TokenReviewer(access, namespace, "bot", control_plane.url, folder, clock)
    try:
        token = await token_for(api, namespace, "talker")
        talker = await reviewer.identify(token)
        assert talker is not None
        user = f"system:serviceaccount:{namespace}:talker"
        assert (talker.name, talker.user, talker.rights) == (f"kubernetes:{user}", user, {Right.CHAT})
        boss = await reviewer.identify(await token_for(api, namespace, "boss"))
        assert boss is not None
        assert boss.rights == set(Right)
        stranger = await reviewer.identify(await token_for(api, namespace, "stranger"))
        assert stranger is not None
        assert stranger.rights == set()
        # A token for the API server itself, or made up, or spoilt, is nobody's.
        for nobody in (
            await token_for(api, namespace, "boss", "https://kubernetes.default.svc"),
            "made-up",
            f"{token[:-4]}AAAA",
        ):
            assert await reviewer.identify(nobody) is None
        # What is withdrawn counts until the answer is asked for again.
        await api.raw("DELETE", f"{RBAC}/namespaces/{namespace}/rolebindings/talker")
        again = await reviewer.identify(token)
        assert again is not None
        assert again.rights == {Right.CHAT}

        async def withdrawn() -> bool:
            await clock.advance(KNOWN_SECONDS)
            found = await reviewer.identify(token)
            return found is not None and not found.rights

        await eventually(withdrawn, what="the right to be gone")
        await api.drop(SERVICE_ACCOUNT, namespace, "boss")
        (folder / "token").write_text("spoilt")
        with pytest.raises(AccessUnavailable):
            await reviewer.identify("another")
    finally:
        await reviewer.aclose()


async def test_a_caller_with_a_token_talks_as_itself(
    api: Api,
    control_plane: ControlPlane,
    namespace: str,
    reviewing: OperatorThread,
    tmp_path: Path,
    postgres_url: str,
) -> None:
    await api.make_agent(namespace, access=ASKING)
    folder = await mounted(api, control_plane, namespace, tmp_path / "kubernetes")
    await api.make(SERVICE_ACCOUNT, namespace, "talker")
    await api.make(SERVICE_ACCOUNT, namespace, "stranger")
    await grant(api, namespace, "talker", "chat")
    agent = manifest("bot", access=ASKING)
    agent["metadata"]["namespace"] = namespace
    settings: dict[str, Any] = {"auth": AuthMode.KEY, "kubernetes_url": control_plane.url, "kubernetes_dir": folder}
    async with serving(postgres_url, agent, **settings) as served:
        url = f"{served.base}/v1/agents/{namespace}/bot/sessions/s/messages"

        async def say(token: str, user: str = "") -> Any:
            headers = {"Authorization": f"Bearer {token}", **({"Abide-User": user} if user else {})}
            return await served.http.post(url, json={"content": "hello"}, headers=headers)

        token = await token_for(api, namespace, "talker")
        answer = await say(token)
        assert (answer.status_code, answer.json()["reply"]["content"]) == (200, "hello [1]")
        assert (await say(token, "alice")).status_code == 403
        refused = await say(await token_for(api, namespace, "stranger"))
        assert refused.status_code == 403
        assert "stranger does not have it" in refused.json()["detail"]
        assert (await say("made-up")).status_code == 401
