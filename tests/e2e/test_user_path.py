"""What a new user does and must see, on a real node."""

import json
import subprocess
import sys
import threading
import uuid
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.kube import Client, Kube, agent, wait_for

ROOT = Path(__file__).parents[2]


def abide(kube: Kube, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("abide")), *arguments]
    return subprocess.run(
        command, env=kube.environ, input=stdin, capture_output=True, text=True, timeout=120, check=False
    )


def test_apply_wait_get_and_describe_tell_the_truth(kube: Kube, namespace: str) -> None:
    kube.apply(agent("desk"), namespace)
    kube.wait_ready("desk", namespace)
    listing = kube.run("get", "agents.abide.dev", "-n", namespace)
    header, row = listing.splitlines()
    assert header.split() == ["NAME", "READY", "REASON", "MODEL", "DESIRED", "UP", "SESSIONS", "AGE"]
    assert row.split()[:6] == ["desk", "True", "Serving", "echo/echo", "1", "1"]
    wide = kube.run("get", "agents.abide.dev", "-n", namespace, "-o", "wide").splitlines()[0]
    assert all(column in wide for column in ("ANSWERING", "REVISION", "ENDPOINT", "LAST ERROR"))
    told = kube.run("describe", "agents.abide.dev", "desk", "-n", namespace)
    for word in (
        "Serving",
        "UpToDate",
        "AllWell",
        "Connected",
        "NotSuspended",
        f"http://agent-desk.{namespace}.svc:8080",
    ):
        assert word in told
    assert "Events:" in told
    assert "<none>" not in told.split("Events:")[1]
    found = kube.get("agents.abide.dev", "desk", namespace)
    assert found is not None
    assert [c["type"] for c in found["status"]["conditions"]] == [
        "Ready", "Accepted", "Progressing", "Degraded", "StateStoreReady", "ModelReachable", "Suspended",
    ]  # fmt: skip
    assert found["status"]["observedGeneration"] == found["metadata"]["generation"]


def test_chat_and_curl_share_a_session_and_users_are_apart(kube: Kube, namespace: str) -> None:
    kube.apply(agent("desk"), namespace)
    kube.wait_ready("desk", namespace)
    first = abide(kube, "chat", "desk", "hello", "-n", namespace, "--session", "one")
    assert (first.returncode, first.stdout.strip()) == (0, "hello [1]"), first.stderr
    client = Client(kube, "desk", namespace)
    with kube.forward("desk", namespace) as url:
        path = f"{url}/v1/agents/{namespace}/desk/sessions/one/messages"
        curl = [
            "curl",
            "-sS",
            "-w",
            "\n%{http_code}",
            path,
            "-H",
            "Content-Type: application/json",
            "-d",
            '{"content":"again"}',
        ]
        body, code = subprocess.run(
            [*curl, "-H", f"Authorization: Bearer {client.key}"], capture_output=True, text=True, timeout=60, check=True
        ).stdout.rsplit("\n", 1)
        assert code == "200"
        assert json.loads(body)["reply"] == {"content": "again [2]"}
        stranger = subprocess.run(curl, capture_output=True, text=True, timeout=60, check=True).stdout
        assert stranger.endswith("\n401")
        wrong = [*curl, "-H", "Authorization: Bearer wrong"]
        assert subprocess.run(wrong, capture_output=True, text=True, timeout=60, check=True).stdout.endswith("\n401")
    other = client.as_user("maria")
    assert other.history("one") == []
    assert other.send("one", "hello")["reply"] == {"content": "hello [1]"}
    assert [m["content"] for m in client.history("one")] == ["hello", "hello [1]", "again", "again [2]"]


def test_everything_is_in_postgres(kube: Kube, namespace: str) -> None:
    replies: list[Any] = ["one", "two", "three", "four", "five", {"error": 500}]
    kube.apply(agent("desk", models=[{"provider": "scripted", "parameters": {"replies": replies}}]), namespace)
    kube.wait_ready("desk", namespace)
    client = Client(kube, "desk", namespace)
    for number in range(5):
        assert client.send("s", f"question {number}")["turn"]["status"] == "completed"
    failed = client.send("s", "now fail")
    assert failed["turn"]["status"] == "fallback"
    assert "Sorry" in failed["reply"]["content"]
    found = kube.get("agents.abide.dev", "desk", namespace)
    assert found is not None
    uid = found["metadata"]["uid"]

    def count(table: str, where: str = "true") -> int:
        return int(kube.sql(f"SELECT count(*) FROM abide.{table} WHERE agent_id = '{uid}' AND {where}")[0][0])

    assert count("sessions", "name = 's' AND user_id = 'anonymous'") == 1
    assert kube.sql(f"SELECT status, count(*) FROM abide.turns WHERE agent_id = '{uid}' GROUP BY 1 ORDER BY 1") == [
        ["completed", "5"],
        ["fallback", "1"],
    ]
    seqs = kube.sql(
        f"SELECT m.seq, m.role FROM abide.messages m JOIN abide.sessions s ON s.id = m.session_id "
        f"WHERE s.agent_id = '{uid}' ORDER BY m.seq"
    )
    assert [role for _, role in seqs] == ["user", "assistant"] * 6
    assert [int(seq) for seq, _ in seqs] == sorted({int(seq) for seq, _ in seqs})
    wait_for(lambda: count("agent_states") == 1, seconds=10, what="a snapshot after five messages")
    wait_for(
        lambda: count("agent_metrics", "metric_type = 'message_received'") > 0, seconds=15, what="message_received"
    )
    wait_for(lambda: count("agent_metrics", "metric_type = 'auto_save'") > 0, seconds=15, what="auto_save")
    assert count("agent_heartbeats") >= 1
    assert count("agent_errors") >= 1
    wait_for(
        lambda: (kube.get("agents.abide.dev", "desk", namespace) or {})["status"].get("lastError"),
        seconds=60,
        what="lastError in status",
    )


@pytest.mark.parametrize("how", ["delete pod", "kill -9"])
def test_a_message_in_flight_survives_the_pod(kube: Kube, namespace: str, how: str) -> None:
    slow = [{"name": "primary", "provider": "echo", "parameters": {"delaySeconds": 4}}]
    kube.apply(agent("desk", models=slow), namespace)
    kube.wait_ready("desk", namespace)
    client = Client(kube, "desk", namespace)
    assert client.send("s", "first")["reply"] == {"content": "first [1]"}
    key = uuid.uuid4().hex
    accepted = client.request(
        "POST",
        "/sessions/s/messages",
        json={"content": "second"},
        headers={"Idempotency-Key": key, "Prefer": "respond-async"},
    )
    assert accepted.status_code == 202
    turn = accepted.json()["turn"]["id"]
    pod = kube.pod("desk", namespace)["metadata"]["name"]
    if how == "delete pod":
        kube.run("delete", "pod", pod, "-n", namespace, "--wait=false")
    else:
        kube.try_run("exec", "-n", namespace, pod, "--", "sh", "-c", "kill -9 -1")

    def finished() -> dict[str, Any] | None:
        answer = client.request("GET", f"/turns/{turn}")
        return answer.json() if answer.json()["turn"]["status"] == "completed" else None

    outcome = wait_for(finished, seconds=60, what="the reply to the message in flight")
    assert outcome["reply"] == {"content": "second [2]"}
    assert client.send("s", "second", key)["turn"]["id"] == turn
    assert client.send("s", "third")["reply"] == {"content": "third [3]"}
    assert [m["content"] for m in client.history("s")] == [
        "first", "first [1]", "second", "second [2]", "third", "third [3]",
    ]  # fmt: skip


def test_deleting_an_agent_is_clean_and_keeps_its_rows(kube: Kube, namespace: str) -> None:
    kube.apply(agent("desk"), namespace)
    kube.wait_ready("desk", namespace)
    Client(kube, "desk", namespace).send("s", "remember me")
    found = kube.get("agents.abide.dev", "desk", namespace)
    assert found is not None
    uid = found["metadata"]["uid"]
    kube.run("delete", "agents.abide.dev/desk", "-n", namespace, "--timeout=60s", timeout=90)

    def all_gone() -> bool:
        kinds = "deployments,replicasets,pods,services,configmaps,secrets,serviceaccounts"
        left = json.loads(kube.run("get", kinds, "-n", namespace, "-l", "abide.dev/agent=desk", "-o", "json"))
        return not left["items"]

    wait_for(all_gone, seconds=90, what="no child left")
    assert kube.sql(f"SELECT count(*) FROM abide.turns WHERE agent_id = '{uid}'") == [["1"]]
    kube.apply(agent("desk"), namespace)
    kube.wait_ready("desk", namespace)
    assert Client(kube, "desk", namespace).history("s") == []  # a namesake never gets another's conversations


BAD = {
    "unknown provider": (agent("bad", models=[{"provider": "nosuch"}]), "spec.models[0].provider", "echo"),
    "negative limit": (agent("bad", history={"limit": -1}), "spec.history.limit", "greater than or equal to 1"),
    "two prompts": (
        agent("bad", systemPromptFrom={"configMapKeyRef": {"name": "a", "key": "b"}}),
        "spec",
        "exactly one of systemPrompt",
    ),
    "no prompt": (agent("bad", systemPrompt=None), "spec", "write systemPrompt, or systemPromptFrom.configMapKeyRef"),
    "no model": (agent("bad", models=None), "spec.models", "Required"),
    "unknown field": (agent("bad", modles=[]), "modles", "unknown field"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_wrong_manifest_is_refused_with_field_and_remedy(kube: Kube, namespace: str, case: str) -> None:
    manifest, path, remedy = BAD[case]
    words = kube.refuse(manifest, namespace)
    assert path in words
    assert remedy in words


def test_a_missing_secret_is_named_and_heals(kube: Kube, namespace: str) -> None:
    models = [{"provider": "echo", "apiKeySecretRef": {"name": "llm", "key": "openai"}}]
    kube.apply(agent("desk", models=models), namespace)
    told = kube.wait_condition("desk", namespace, "Accepted", "False", "SecretMissing", seconds=10)
    assert f"spec.models[0].apiKeySecretRef: Secret {namespace}/llm" in told["message"]
    assert kube.condition("desk", namespace, "Ready")["reason"] == "SecretMissing"
    kube.run("create", "secret", "generic", "llm", "-n", namespace, "--from-literal=other=x")
    wait_for(
        lambda: 'has no key "openai"' in kube.condition("desk", namespace, "Accepted")["message"],
        seconds=10,
        what="the missing key is named",
    )
    assert kube.items("pods", namespace) == []
    kube.run("patch", "secret", "llm", "-n", namespace, "-p", '{"stringData":{"openai":"sk-test"}}')
    kube.wait_condition("desk", namespace, "Accepted", "True", "Valid", seconds=5)
    kube.wait_ready("desk", namespace)


def test_status_of_the_example_agent_in_the_terminal(kube: Kube) -> None:
    shown = abide(kube, "status", "assistant")
    assert shown.returncode == 0, shown.stderr
    assert len(shown.stdout.splitlines()) <= 15
    assert "Serving" in shown.stdout


def test_postgres_outage_is_told_and_nothing_restarts(kube: Kube, namespace: str) -> None:
    kube.apply(agent("desk"), namespace)
    kube.wait_ready("desk", namespace)
    client = Client(kube, "desk", namespace)
    client.send("s", "before")
    kube.run("scale", "statefulset", "abide-postgres", "-n", "abide-system", "--replicas=0")
    try:
        told = kube.wait_condition("desk", namespace, "Ready", "False", "StateStoreUnreachable", seconds=60)
        assert "Postgres" in told["message"]
        assert kube.condition("desk", namespace, "StateStoreReady")["status"] == "False"
    finally:
        kube.run("scale", "statefulset", "abide-postgres", "-n", "abide-system", "--replicas=1")
    kube.wait_ready("desk", namespace)
    assert client.send("s", "after")["reply"] == {"content": "after [2]"}
    statuses = kube.pod("desk", namespace)["status"]["containerStatuses"]
    assert [status["restartCount"] for status in statuses] == [0]


def test_uninstall_keeps_agents_data_and_secrets(kube: Kube, namespace: str) -> None:
    kube.apply(agent("desk"), namespace)
    kube.wait_ready("desk", namespace)
    client = Client(kube, "desk", namespace)
    client.send("s", "before")
    subprocess.run(
        [kube.helm, "uninstall", "abide", "-n", "abide-system", "--wait", "--timeout=2m"],
        env=kube.environ,
        check=True,
        capture_output=True,
        timeout=180,
    )
    assert kube.get("agents.abide.dev", "desk", namespace) is not None
    assert kube.get("secret", "agent-desk-api", namespace) is not None
    assert kube.get("secret", "abide-postgres", "abide-system") is not None
    assert kube.items("persistentvolumeclaims", "abide-system")
    subprocess.run([sys.executable, "tools/up.py", "up"], cwd=ROOT, check=True, timeout=600)
    kube.wait_ready("desk", namespace)
    assert client.send("s", "after")["reply"] == {"content": "after [2]"}
    assert client.key == kube.api_key("desk", namespace)


def test_two_users_at_once_do_not_wait_for_each_other(kube: Kube, namespace: str) -> None:
    slow = [{"name": "primary", "provider": "echo", "parameters": {"delaySeconds": 3}}]
    kube.apply(agent("desk", models=slow), namespace)
    kube.wait_ready("desk", namespace)
    client = Client(kube, "desk", namespace)
    replies: dict[str, float] = {}
    with kube.forward("desk", namespace) as url:

        def chat(user: str) -> None:
            answer = httpx.post(
                f"{url}/v1/agents/{namespace}/desk/sessions/s/messages",
                json={"content": user},
                headers={**client.headers, "Abide-User": user},
                timeout=60,
            )
            assert answer.json()["reply"]["content"] == f"{user} [1]"
            replies[user] = answer.elapsed.total_seconds()

        threads = [threading.Thread(target=chat, args=(f"user-{n}",)) for n in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert len(replies) == 5
    assert max(replies.values()) < 9  # one after the other would take 15
