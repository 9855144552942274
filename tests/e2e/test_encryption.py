"""Encryption on a real node: on by default, keys of one's own, rotated while the agent serves, refused when wrong."""

import base64
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.e2e.kube import Client, Kube, agent, wait_for

ROOT = Path(__file__).parents[2]
WORDS = "the parcel number is 4711"


def put_keys(kube: Kube, namespace: str, name: str, **keys: bytes) -> None:
    data = {key: base64.b64encode(base64.b64encode(value)).decode() for key, value in keys.items()}
    kube.apply({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "data": data}, namespace)


def contents(kube: Kube, uid: str) -> list[list[str]]:
    """Return key id and content, as far as it is plain text, of every message of an agent."""
    # Ciphertext may hold line ends, which would look like rows.
    readable = "regexp_replace(encode(content, 'escape'), '[^ -~]', '?', 'g')"
    query = f"SELECT coalesce(key_id, ''), {readable} FROM abide.messages WHERE agent_id = '{uid}'"
    return kube.sql(query)


def uid_of(kube: Kube, name: str, namespace: str) -> str:
    found = kube.get("agents.abide.dev", name, namespace)
    assert found is not None
    return str(found["metadata"]["uid"])


def abide(kube: Kube, *arguments: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", "agent_cli.main", *arguments, "-o", "json"],
        cwd=ROOT, env=kube.environ, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_what_an_agent_keeps_is_encrypted_without_anybody_asking(kube: Kube, namespace: str) -> None:
    kube.apply(agent("quiet"), namespace)
    kube.wait_ready("quiet", namespace)
    Client(kube, "quiet", namespace).send("s", WORDS)
    rows = contents(kube, uid_of(kube, "quiet", namespace))
    assert len(rows) == 2
    assert all(key_id and "4711" not in content for key_id, content in rows)
    assert kube.get("secret", "agent-quiet-encryption", namespace) is not None


def test_keys_of_ones_own_are_rotated_and_a_wrong_one_is_told(kube: Kube, namespace: str) -> None:
    first, second = os.urandom(32), os.urandom(32)
    put_keys(kube, namespace, "mine", k1=first)
    kube.apply(agent("vault", state={"encryption": {"keysSecretRef": {"name": "mine"}}}), namespace)
    kube.wait_ready("vault", namespace)
    client = Client(kube, "vault", namespace)
    client.send("s", WORDS)

    put_keys(kube, namespace, "mine", k1=first, k2=second)

    def rotated() -> bool:
        # The new key is there once the kubelet has read the Secret again.
        items = abide(kube, "keys", "rotate", "vault", "-n", namespace)["items"]
        return all(item["wrappingKey"] == "k2" for item in items)

    wait_for(rotated, seconds=150, what="the pod has the new key")
    done = abide(kube, "keys", "reencrypt", "vault", "-n", namespace)
    assert (done["rewritten"], done["unreadable"]) == (2, 0)
    put_keys(kube, namespace, "mine", k2=second)
    (pod,) = kube.items("pods", namespace, "abide.dev/agent=vault")
    kube.run("delete", "pod", "-n", namespace, pod["metadata"]["name"])
    assert "[2]" in client.send("s", "which number was it?")["reply"]["content"]

    before = contents(kube, uid_of(kube, "vault", namespace))
    put_keys(kube, namespace, "mine", k2=os.urandom(32))
    pod_name = kube.pod("vault", namespace)["metadata"]["name"]
    kube.run("delete", "pod", "-n", namespace, pod_name)
    told = kube.wait_condition("vault", namespace, "Ready", "False", "EncryptionKeyMismatch", seconds=60)
    assert f'key "k2" of Secret {namespace}/mine is not the one' in told["message"]
    kube.wait_condition("vault", namespace, "StateStoreReady", "False", "EncryptionKeyMismatch", seconds=10)
    assert contents(kube, uid_of(kube, "vault", namespace)) == before
    put_keys(kube, namespace, "mine", k2=second)
    kube.wait_condition("vault", namespace, "Ready", "True", "Serving", seconds=150)
    assert "[3]" in client.send("s", "still there?")["reply"]["content"]
