"""The Secrets of an agent: its API key, made once and never changed, the URL of its Postgres, its encryption keys."""

import base64
import secrets
from typing import Any, Final

from agent_api import labels
from agent_operator.resources.inputs import AgentInputs, build_metadata, stamp

API_KEY: Final = "key"
POSTGRES_KEY: Final = "url"
TOKEN_KEY: Final = "token"
API_KEY_BYTES: Final = 32


def generate_api_key() -> str:
    """Return a new random API key, URL-safe."""
    return secrets.token_urlsafe(API_KEY_BYTES)


def build_api_secret(inputs: AgentInputs) -> dict[str, Any]:
    """Build the API key's Secret without its content, which belongs to whoever holds the key.

    Applying this never touches `data`: the operator does not own those fields.
    """
    metadata = build_metadata(inputs, labels.api_secret_name(inputs.name))
    return stamp({"apiVersion": "v1", "kind": "Secret", "type": "Opaque", "metadata": metadata})


def with_api_key(secret: dict[str, Any], key: str) -> dict[str, Any]:
    """Return the API key's Secret with its content, for its creation."""
    return {**secret, "data": {API_KEY: base64.b64encode(key.encode()).decode()}}


def build_reviewer_secret(inputs: AgentInputs, token: str = "", renewal: str = "") -> dict[str, Any]:
    """Build the Secret with the token for reviews; `renewal` is when it is to be replaced, an ISO 8601 instant.

    Without a token it is empty.
    """
    metadata = build_metadata(inputs, labels.reviewer_secret_name(inputs.name))
    if token:
        metadata["annotations"] = {labels.ANNOTATION_TOKEN_RENEWAL: renewal}
    data = {TOKEN_KEY: base64.b64encode(token.encode()).decode()} if token else {}
    body = {"apiVersion": "v1", "kind": "Secret", "type": "Opaque", "metadata": metadata, "data": data}
    return stamp(body, secret_fields=("data",))


def build_postgres_secret(inputs: AgentInputs) -> dict[str, Any]:
    """Build the Secret with the agent's Postgres URL; it follows the operator's setting."""
    metadata = build_metadata(inputs, labels.postgres_secret_name(inputs.name))
    data = {POSTGRES_KEY: base64.b64encode(inputs.postgres_url.encode()).decode()}
    body = {"apiVersion": "v1", "kind": "Secret", "type": "Opaque", "metadata": metadata, "data": data}
    return stamp(body, secret_fields=("data",))


def build_encryption_secret(inputs: AgentInputs) -> dict[str, Any]:
    """Build the Secret with the keys that wrap the agent's data keys; they follow the installation's root keys.

    It can be made again at any time, since all of it is derived.
    """
    metadata = build_metadata(inputs, labels.encryption_secret_name(inputs.name))
    data = {name: base64.b64encode(value.encode()).decode() for name, value in inputs.wrapping_keys.items()}
    body = {"apiVersion": "v1", "kind": "Secret", "type": "Opaque", "metadata": metadata, "data": data}
    return stamp(body, secret_fields=("data",))
