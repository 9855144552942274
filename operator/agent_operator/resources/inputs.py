"""What the builders need to know about one agent."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final

from agent_api import labels
from agent_api.references import mounted_secret_refs
from agent_api.v1alpha1 import Agent

API_KEYS_DIR: Final = "/etc/abide/api-keys"
MANIFEST_DIR: Final = "/etc/abide/manifest"
MANIFEST_FILE: Final = "agent.json"
SPEC_FILE: Final = "spec.json"
SECRETS_DIR: Final = "/etc/abide/secrets"
ENCRYPTION_KEYS_DIR: Final = "/etc/abide/encryption-keys"
KUBERNETES_DIR: Final = "/etc/abide/kubernetes"
PORT: Final = 8080
PORT_NAME: Final = "http"
CONTAINER: Final = "runtime"

_FINGERPRINT_COST: Final = {"n": 2**14, "r": 8, "p": 1}


@dataclass(frozen=True, slots=True)
class AgentInputs:
    """One valid agent with everything it refers to resolved.

    `prompt` is the system prompt itself, wherever it came from. `postgres_url` is what the agent is to use.
    `adopted_id` is the id of the rows it took over from an earlier agent of its name, "" where it uses its own. `spec`
    is the spec as it was written. `wrapping_keys` is the content of the Secret with the agent's encryption keys, none
    where the installation has no root key.
    """

    agent: Agent
    uid: str
    prompt: str
    runtime_image: str
    postgres_url: str = field(repr=False)
    adopted_id: str = ""
    spec: Mapping[str, Any] = field(default_factory=dict)
    wrapping_keys: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def encryption_secret(self) -> str:
        """Return the name of the Secret whose keys the runtime encrypts with, "" where there is none."""
        if ref := self.agent.spec.state.encryption.keys_secret_ref:
            return ref.name
        return labels.encryption_secret_name(self.name) if self.wrapping_keys else ""

    @property
    def state_id(self) -> str:
        """Return the id under which Postgres keeps the agent's rows."""
        return self.adopted_id or self.uid

    @property
    def name(self) -> str:
        """Return the Agent's name."""
        return self.agent.metadata.name

    @property
    def namespace(self) -> str:
        """Return the Agent's namespace."""
        return self.agent.metadata.namespace

    @property
    def image(self) -> str:
        """Return the image the agent runs: its own choice, or the operator's."""
        return self.agent.spec.runtime.image or self.runtime_image

    @property
    def replicas(self) -> int:
        """Return how many pods should run now."""
        return 0 if self.agent.spec.suspend else self.agent.spec.replicas


def selector_labels(name: str) -> dict[str, str]:
    """Return the labels that select an agent's pods."""
    return {labels.LABEL_AGENT: name}


def common_labels(name: str) -> dict[str, str]:
    """Return the labels every object of an agent carries."""
    return {
        labels.LABEL_MANAGED_BY: labels.MANAGED_BY,
        labels.LABEL_NAME: "abide-agent",
        labels.LABEL_COMPONENT: "runtime",
        **selector_labels(name),
    }


def build_metadata(inputs: AgentInputs, name: str) -> dict[str, Any]:
    """Build the metadata of an object controlled by the Agent, so that it goes when the Agent goes."""
    return {
        "name": name,
        "namespace": inputs.namespace,
        "labels": common_labels(inputs.name),
        "ownerReferences": [
            {
                "apiVersion": labels.API_VERSION,
                "kind": labels.KIND,
                "name": inputs.name,
                "uid": inputs.uid,
                "controller": True,
                "blockOwnerDeletion": True,
            }
        ],
    }


def digest(value: object) -> str:
    """Return the sha256 of a JSON value, in hex; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def stamp(body: dict[str, Any], *, secret_fields: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the object with the hash of its own desired content as an annotation.

    A field that is no longer wanted leaves no trace in the desired object; the annotation makes the change visible in
    a comparison with the live one. Fields that hold secrets stay out of the hash.
    """
    hashed = digest({key: value for key, value in body.items() if key not in secret_fields})
    annotations = {**body["metadata"].get("annotations", {}), labels.ANNOTATION_SPEC_HASH: hashed[:16]}
    return {**body, "metadata": {**body["metadata"], "annotations": annotations}}


@lru_cache(maxsize=8)
def url_fingerprint(url: str) -> str:
    """Return a short value that changes with the URL and does not help to guess the password in it.

    It becomes part of the revision, which anybody who sees pods can read; a plain hash could be tried against a list
    of passwords. scrypt (RFC 7914) with 16 MiB makes one try cost some 50 ms; the result is kept, so that the operator
    pays once and not per agent.
    """
    return hashlib.scrypt(url.encode(), salt=b"abide.dev/postgres-url", **_FINGERPRINT_COST, dklen=16).hex()


def secret_keys(agent: Agent) -> Mapping[str, tuple[str, ...]]:
    """Return the keys that the agent's pods read from files, by Secret, both sorted."""
    wanted: dict[str, set[str]] = {}
    for _, ref in mounted_secret_refs(agent):
        wanted.setdefault(ref.name, set()).add(ref.key)
    return {name: tuple(sorted(keys)) for name, keys in sorted(wanted.items())}
