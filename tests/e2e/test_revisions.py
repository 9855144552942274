"""Changing an agent while people talk to it, and going back, on a real node."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from tests.e2e.kube import Client, Kube, agent, wait_for

ABIDE = str(Path(sys.executable).with_name("abide"))
NUMBER = "abide.dev/revision-number"
SENDER = """
import json, sys, time, urllib.error, urllib.request, uuid

url, key = sys.argv[1:]
number = 0
while True:
    number += 1
    body = json.dumps({"content": f"message {number}"}).encode()
    headers = {"Content-Type": "application/json", "Idempotency-Key": uuid.uuid4().hex}
    headers["Authorization"] = f"Bearer {key}"
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=30) as answer:
            told = answer.status
    except urllib.error.HTTPError as error:
        told = f"{error.code} {error.read()[:200]!r}"
    except Exception as error:
        told = repr(error)
    print(told, flush=True)
    time.sleep(0.05)
"""
"""Sends one message after the other, each on a connection of its own, and prints what came back."""


def sender(image: str, url: str, key: str) -> dict[str, Any]:
    """Return the pod of a client that keeps sending from inside the cluster."""
    security = {
        "runAsNonRoot": True,
        "runAsUser": 65532,
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    container = {
        "name": "sender",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["python", "-c", SENDER, url, key],
        "securityContext": security,
    }
    spec = {"containers": [container], "terminationGracePeriodSeconds": 1, "automountServiceAccountToken": False}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "sender"}, "spec": spec}


def abide(kube: Kube, namespace: str, *arguments: str) -> str:
    done = subprocess.run(
        [ABIDE, *arguments, "-n", namespace],
        env=kube.environ, capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"abide {' '.join(arguments)}: {done.stderr}{done.stdout}"
    return done.stdout


def config_maps(kube: Kube, namespace: str) -> dict[str, dict[str, Any]]:
    """Return the agent's ConfigMaps by revision."""
    found = kube.items("configmaps", namespace, "abide.dev/agent=desk,abide.dev/revision")
    return {body["metadata"]["labels"]["abide.dev/revision"]: body for body in found}


def revision_status(kube: Kube, namespace: str) -> dict[str, str]:
    found = kube.get("agents.abide.dev", "desk", namespace)
    assert found is not None
    return dict(found["status"]["revision"])


def wait_rolled_out(kube: Kube, namespace: str, *, since: str) -> str:
    """Wait until another revision than `since` serves and the old pods are gone; return it."""

    def check() -> str | None:
        status = revision_status(kube, namespace)
        pods = kube.items("pods", namespace, "abide.dev/agent=desk")
        running = {pod["metadata"]["labels"]["abide.dev/revision"] for pod in pods}
        done = status["current"] == status["ready"] != since and running == {status["current"]}
        return status["current"] if done else None

    return wait_for(check, seconds=120, what=f"a revision after {since} to serve alone")


def change(kube: Kube, namespace: str, spec: dict[str, Any]) -> None:
    patch = json.dumps({"spec": spec})
    kube.run("patch", "agents.abide.dev/desk", "-n", namespace, "--type=merge", "-p", patch)


def test_changes_roll_out_without_one_failed_message(kube: Kube, namespace: str) -> None:
    source = {"configMapKeyRef": {"name": "prompts", "key": "desk"}}
    prompts = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "prompts"}, "data": {"desk": "Be brief."}}
    kube.apply(prompts, namespace)
    kube.apply(agent("desk", systemPrompt=None, systemPromptFrom=source, replicas=2, revisionHistoryLimit=1), namespace)
    kube.wait_ready("desk", namespace)
    first = revision_status(kube, namespace)["current"]
    client = Client(kube, "desk", namespace)
    image = kube.pod("desk", namespace)["spec"]["containers"][0]["image"]
    url = f"http://agent-desk.{namespace}.svc:8080/v1/agents/{namespace}/desk/sessions/busy/messages"
    kube.apply(sender(image, url, client.key), namespace)

    def sent() -> list[str]:
        return kube.run("logs", "sender", "-n", namespace).splitlines()

    kube.run("wait", "--for=condition=Ready", "pod/sender", "-n", namespace, "--timeout=60s")
    wait_for(lambda: len(sent()) > 20, seconds=60, what="the sender to send")
    kube.apply({**prompts, "data": {"desk": "Be long."}}, namespace)
    second = wait_rolled_out(kube, namespace, since=first)
    change(kube, namespace, {"models": [{"name": "other", "provider": "echo"}]})
    third = wait_rolled_out(kube, namespace, since=second)
    enough = len(sent()) + 20
    wait_for(lambda: len(sent()) > enough, seconds=60, what="the sender to go on")
    answers = Counter(sent())
    assert set(answers) == {"200"}, answers
    uid = (kube.get("agents.abide.dev", "desk", namespace) or {})["metadata"]["uid"]
    turns = kube.sql(f"SELECT DISTINCT revision FROM abide.turns WHERE agent_id = '{uid}'")
    assert {revision for (revision,) in turns} == {first, second, third}
    wait_for(
        lambda: set(config_maps(kube, namespace)) == {second, third}, seconds=150, what="the oldest one to be collected"
    )
    run = json.loads(config_maps(kube, namespace)[second]["data"]["agent.json"])
    assert run["spec"]["systemPrompt"] == "Be long."


def test_going_back_by_the_command_line(kube: Kube, namespace: str) -> None:
    kube.apply(agent("desk", systemPrompt="Be brief."), namespace)
    kube.wait_ready("desk", namespace)
    first = revision_status(kube, namespace)["current"]
    made = config_maps(kube, namespace)[first]["metadata"]["uid"]
    client = Client(kube, "desk", namespace)
    assert client.send("s", "one")["reply"] == {"content": "one [1]"}
    change(kube, namespace, {"systemPrompt": "Be long."})
    second = wait_rolled_out(kube, namespace, since=first)
    items = json.loads(abide(kube, namespace, "history", "desk", "-o", "json"))["items"]
    assert [(one["number"], one["revision"], one["current"]) for one in items] == [(2, second, True), (1, first, False)]
    changes = json.loads(abide(kube, namespace, "diff", "desk", "-o", "json"))["changes"]
    assert changes == [{"path": "spec.systemPrompt", "from": "Be brief.", "to": "Be long."}]
    abide(kube, namespace, "rollback", "desk", "--yes", "--wait")
    assert wait_rolled_out(kube, namespace, since=second) == first
    kept = config_maps(kube, namespace)
    assert kept[first]["metadata"]["uid"] == made
    assert kept[first]["metadata"]["annotations"][NUMBER] == "3"
    items = json.loads(abide(kube, namespace, "history", "desk", "-o", "json"))["items"]
    assert [(one["number"], one["revision"]) for one in items] == [(3, first), (2, second)]
    assert client.send("s", "two")["reply"] == {"content": "two [2]"}
