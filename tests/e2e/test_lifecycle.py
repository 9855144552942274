"""Stopping, scaling, losing, deleting and taking over agents, on a real node."""

import json
import time
import uuid
from typing import Any

import httpx

from tests.e2e.kube import Client, Kube, agent, wait_for
from tests.e2e.surroundings import kill_processes, pods_of

SYSTEM = "abide-system"
ADOPT = "abide.dev/adopt-state"
DELAY = 8
SLOW = [{"name": "primary", "provider": "echo", "parameters": {"delaySeconds": DELAY}}]
ERASE = {"deletionPolicy": "Delete"}


def serving(kube: Kube, namespace: str, count: int, *, seconds: float = 90) -> list[dict[str, Any]]:
    """Wait until exactly so many pods of the agent exist and all are ready; return them."""

    def check() -> list[dict[str, Any]] | None:
        pods = pods_of(kube, "desk", namespace)
        ready = [
            pod
            for pod in pods
            if "deletionTimestamp" not in pod["metadata"]
            and any(c["type"] == "Ready" and c["status"] == "True" for c in pod.get("status", {}).get("conditions", []))
        ]
        return ready if len(ready) == len(pods) == count else None

    return wait_for(check, seconds=seconds, what=f"{count} ready pods and no others")


def stopped(kube: Kube, namespace: str) -> None:
    wait_for(lambda: not kube.items("pods", namespace, "abide.dev/agent=desk"), seconds=60, what="no pod left")


def uid_of(kube: Kube, namespace: str, name: str = "desk") -> str:
    found = kube.get("agents.abide.dev", name, namespace)
    assert found is not None
    return str(found["metadata"]["uid"])


def rows(kube: Kube, agent_id: str) -> int:
    """Return how many rows of an agent are left, in the tables a chat writes to."""
    tables = ("sessions", "turns", "messages", "agent_states", "agent_errors", "agent_metrics", "agent_heartbeats")
    counts = " + ".join(f"(SELECT count(*) FROM abide.{table} WHERE agent_id = '{agent_id}')" for table in tables)
    return int(kube.sql(f"SELECT {counts}")[0][0])


def audited(kube: Kube, agent_id: str, event_type: str) -> bool:
    query = f"SELECT count(*) FROM abide.system_events WHERE agent_id = '{agent_id}' AND event_type = '{event_type}'"
    return int(kube.sql(query)[0][0]) == 1


def debts(kube: Kube) -> list[str]:
    """Return the uids of deleted agents whose rows are still owed."""
    return [body["data"]["uid"] for body in kube.items("configmaps", SYSTEM, "abide.dev/debt=erase")]


def test_suspending_and_scaling_keep_the_chat(kube: Kube, namespace: str) -> None:
    kube.apply(agent("desk"), namespace)
    kube.wait_ready("desk", namespace)
    client = Client(kube, "desk", namespace)
    assert client.send("s", "one")["reply"] == {"content": "one [1]"}
    for value in ("true", "false"):
        patch = f'{{"spec":{{"suspend":{value}}}}}'
        kube.run("patch", "agents.abide.dev/desk", "-n", namespace, "--type=merge", "-p", patch)
        if value == "true":
            kube.wait_condition("desk", namespace, "Ready", "False", "Suspended", seconds=10)
            stopped(kube, namespace)
    kube.wait_ready("desk", namespace)
    assert client.send("s", "two")["reply"] == {"content": "two [2]"}
    scale = ("scale", "agents.abide.dev/desk", "-n", namespace)
    kube.run(*scale, "--replicas=0")
    kube.wait_condition("desk", namespace, "Ready", "False", "ScaledToZero", seconds=10)
    stopped(kube, namespace)
    kube.run(*scale, "--replicas=2")
    before = {pod["metadata"]["name"] for pod in serving(kube, namespace, 2)}
    assert kube.get("poddisruptionbudgets", "agent-desk", namespace) is not None
    assert client.send("s", "three")["reply"] == {"content": "three [3]"}
    kube.run(*scale, "--replicas=1")
    (left,) = serving(kube, namespace, 1)
    assert left["metadata"]["name"] in before, "scaling is not a rollout"
    wait_for(
        lambda: kube.get("poddisruptionbudgets", "agent-desk", namespace) is None, seconds=10, what="no budget left"
    )
    assert client.send("s", "four")["reply"] == {"content": "four [4]"}


def test_another_pod_takes_over_within_ten_seconds_and_answers_once(kube: Kube, namespace: str) -> None:
    kube.apply(agent("desk", models=SLOW, replicas=2), namespace)
    victim, _ = serving(kube, namespace, 2)
    client = Client(kube, "desk", namespace)
    base = f"/v1/agents/{namespace}/desk"
    with kube.forward("desk", namespace, pod=victim["metadata"]["name"]) as url:
        answer = client_post(url + base, client, uuid.uuid4().hex)
    turn = answer["turn"]["id"]
    instance = kube.sql(f"SELECT instance FROM abide.active_turns WHERE turn_id = '{turn}'")
    assert instance == [[victim["metadata"]["uid"]]]
    killed = time.time()
    kill_processes(victim["metadata"]["uid"])

    def outcome() -> dict[str, Any] | None:
        found: dict[str, Any] = client.request("GET", f"/turns/{turn}").json()
        return found if found["turn"]["status"] == "completed" else None

    assert wait_for(outcome, seconds=10 + DELAY + 15, what="the reply")["reply"] == {"content": "once [1]"}
    ((attempts, started),) = kube.sql(
        f"SELECT attempts, extract(epoch FROM started_at) FROM abide.turns WHERE id = '{turn}'"
    )
    assert int(attempts) == 2
    assert float(started) - killed <= 10
    assert [m["content"] for m in client.history("s")] == ["once", "once [1]"]
    assert client.send("s", "more")["reply"] == {"content": "more [2]"}
    kube.wait_ready("desk", namespace)


def client_post(base: str, client: Client, key: str) -> dict[str, Any]:
    """Send a message to one pod without waiting for its reply."""
    answer = httpx.post(
        f"{base}/sessions/s/messages",
        json={"content": "once"},
        headers={**client.headers, "Idempotency-Key": key, "Prefer": "respond-async"},
        timeout=30,
    )
    assert answer.status_code == 202, answer.text
    return dict(answer.json())


def test_rows_go_with_an_agent_that_asks_for_it(kube: Kube, namespace: str) -> None:
    kube.apply(agent("desk", state=ERASE), namespace)
    kube.wait_ready("desk", namespace)
    found = kube.get("agents.abide.dev", "desk", namespace)
    assert found is not None
    assert found["metadata"]["finalizers"] == ["abide.dev/erase-state"]
    Client(kube, "desk", namespace).send("s", "forget me")
    uid = uid_of(kube, namespace)
    assert rows(kube, uid) > 0
    begun = time.monotonic()
    kube.run("delete", "agents.abide.dev/desk", "-n", namespace, "--timeout=60s", timeout=90)
    assert time.monotonic() - begun < 45 + 10, "grace period and 10 s"
    assert rows(kube, uid) == 0
    wait_for(lambda: audited(kube, uid, "StateErased"), seconds=15, what="the audit row")
    assert uid not in debts(kube)


def test_deleting_does_not_wait_for_postgres_and_the_debt_is_paid(kube: Kube, namespace: str) -> None:
    kube.apply(agent("desk", state=ERASE), namespace)
    kube.wait_ready("desk", namespace)
    Client(kube, "desk", namespace).send("s", "forget me later")
    uid = uid_of(kube, namespace)
    kube.run("scale", "statefulset", "abide-postgres", "-n", SYSTEM, "--replicas=0")
    try:
        wait_for(lambda: kube.get("pods", "abide-postgres-0", SYSTEM) is None, seconds=60, what="Postgres to be gone")
        kube.run("delete", "agents.abide.dev/desk", "-n", namespace, "--timeout=30s", timeout=60)
        assert debts(kube) == [uid]
    finally:
        kube.run("scale", "statefulset", "abide-postgres", "-n", SYSTEM, "--replicas=1")
    kube.run("rollout", "status", "statefulset/abide-postgres", "-n", SYSTEM, "--timeout=90s", timeout=120)
    wait_for(lambda: debts(kube) == [], seconds=90, what="the debt to be paid")
    assert rows(kube, uid) == 0
    wait_for(lambda: audited(kube, uid, "StateErased"), seconds=90, what="the audit row")


def test_retained_state_is_taken_over_only_on_request(kube: Kube, namespace: str) -> None:
    kube.apply(agent("desk"), namespace)
    kube.wait_ready("desk", namespace)
    Client(kube, "desk", namespace).send("s", "remember me")
    earlier = uid_of(kube, namespace)
    kube.run("delete", "agents.abide.dev/desk", "-n", namespace, "--timeout=60s", timeout=90)
    wait_for(lambda: audited(kube, earlier, "StateRetained"), seconds=15, what="the audit row")
    kube.apply(agent("desk"), namespace)
    kube.wait_ready("desk", namespace)
    client = Client(kube, "desk", namespace)
    assert client.history("s") == []

    def adopt(wanted: str) -> None:
        kube.run("annotate", "agents.abide.dev/desk", "-n", namespace, "--overwrite", f"{ADOPT}={wanted}")

    adopt(str(uuid.uuid4()))
    told = kube.wait_condition("desk", namespace, "Accepted", "False", "StateAdoptionRefused", seconds=10)
    assert "no state is kept under the uid" in told["message"]
    assert kube.condition("desk", namespace, "Ready")["status"] == "True"
    adopt(earlier)
    kube.wait_condition("desk", namespace, "Accepted", "True", "Valid", seconds=10)
    kube.wait_condition("desk", namespace, "Progressing", "False", "UpToDate", seconds=60)
    serving(kube, namespace, 1)
    assert [m["content"] for m in client.history("s")] == ["remember me", "remember me [1]"]
    assert client.send("s", "again")["reply"] == {"content": "again [2]"}


def test_a_namespace_full_of_agents_can_be_deleted(kube: Kube) -> None:
    namespace = f"e2e-{uuid.uuid4().hex[:8]}"
    kube.run("create", "namespace", namespace)
    agents = [agent(f"desk-{n}", state=ERASE, replicas=int(n < 2)) for n in range(12)]
    kube.apply(json.dumps({"apiVersion": "v1", "kind": "List", "items": agents}), namespace)

    def held() -> bool:
        found = kube.items("agents.abide.dev", namespace)
        return len(found) == 12 and all(one["metadata"].get("finalizers") for one in found)

    wait_for(held, seconds=30, what="finalizers on all of them")
    kube.run("delete", "namespace", namespace, "--timeout=120s", timeout=150)
