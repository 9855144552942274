"""Callers of an agent on a real node: a key with one right, and tokens of the cluster judged by RBAC."""

import json
from typing import Any

from tests.e2e.kube import Client, Kube, agent, wait_for

KEYS = {"website": "website-key-of-a-test-0001", "reader": "reader-key-of-a-test-0001"}


def with_access(**kubernetes: Any) -> dict[str, Any]:
    """Return an agent with a key to talk, a key to read, and callers from the cluster."""
    keys = [
        {"name": "website", "secretKeyRef": {"name": "callers", "key": "website"}, "user": "visitor"},
        {"name": "reader", "secretKeyRef": {"name": "callers", "key": "reader"}, "rights": ["Read"]},
    ]
    return agent("desk", access={"keys": keys, "kubernetes": {"enabled": True, **kubernetes}})


def test_keys_and_tokens_give_their_rights_and_no_other(kube: Kube, namespace: str) -> None:
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "callers"}, "stringData": KEYS}
    kube.apply(with_access(), namespace)
    kube.wait_condition("desk", namespace, "Accepted", "False", "SecretMissing", seconds=30)
    kube.apply(secret, namespace)
    kube.wait_ready("desk", namespace)

    website = Client(kube, "desk", namespace, key=KEYS["website"])
    assert website.send("s", "hello")["reply"] == {"content": "hello [1]"}
    assert website.request("GET", "/errors").status_code == 403
    assert website.as_user("alice").request("GET", "/sessions").status_code == 403
    reader = Client(kube, "desk", namespace, user="visitor", key=KEYS["reader"])
    assert len(reader.history("s")) == 2
    assert reader.request("POST", "/sessions/s/messages", json={"content": "x"}).status_code == 403

    for account in ("shop", "stranger"):
        kube.run("create", "serviceaccount", account, "-n", namespace)
    kube.run(
        "create", "rolebinding", "shop-chats", "-n", namespace,
        "--clusterrole=abide-agents-chat", f"--serviceaccount={namespace}:shop",
    )  # fmt: skip

    def token(account: str, audience: str) -> str:
        return kube.run("create", "token", account, "-n", namespace, f"--audience={audience}").strip()

    shop = Client(kube, "desk", namespace, key=token("shop", "abide.dev"))

    def talks() -> bool:
        # A binding that is newer than an answer that is remembered counts within 30 s.
        return shop.request("POST", "/sessions/s/messages", json={"content": "hi"}).status_code == 200

    wait_for(talks, seconds=60, what="the caller from the cluster to be taken")
    user = f"system:serviceaccount:{namespace}:shop"
    sessions = shop.request("GET", "/sessions").json()["items"]
    assert [session["user"] for session in sessions] == [user]
    stranger = Client(kube, "desk", namespace, key=token("stranger", "abide.dev"))
    assert stranger.request("GET", "/sessions").status_code == 403
    other = Client(kube, "desk", namespace, key=token("shop", "https://kubernetes.default.svc"))
    assert other.request("GET", "/sessions").status_code == 401

    pod = kube.pod("desk", namespace)
    assert pod["spec"]["automountServiceAccountToken"] is False

    owner = Client(kube, "desk", namespace)
    lines = [json.loads(line) for line in owner.request("GET", f"/users/{user}/export").text.splitlines()]
    assert {line["kind"] for line in lines} >= {"session", "turn", "message", "end"}
    assert owner.request("DELETE", f"/users/{user}").json()["sessions"] == 1
    assert shop.request("GET", "/sessions").json()["items"] == []
    rows = kube.sql(
        "SELECT details->>'method', details->>'outcome' FROM abide.system_events"
        f" WHERE event_type = 'access.operate' AND details->>'path' LIKE '%/{namespace}/desk/users/%'"
        " ORDER BY occurred_at"
    )
    assert rows == [["GET", "done"], ["DELETE", "done"]]
