"""The two Secrets of an agent: its API key, made once and never changed, and the URL of its Postgres."""

import base64
import secrets
from typing import Any, Final

from agent_api import labels
from agent_operator.resources.inputs import AgentInputs, build_metadata, stamp

API_KEY: Final = "key"
POSTGRES_KEY: Final = "url"
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


def build_postgres_secret(inputs: AgentInputs) -> dict[str, Any]:
    """Build the Secret with the agent's Postgres URL; it follows the operator's setting."""
    metadata = build_metadata(inputs, labels.postgres_secret_name(inputs.name))
    data = {POSTGRES_KEY: base64.b64encode(inputs.postgres_url.encode()).decode()}
    body = {"apiVersion": "v1", "kind": "Secret", "type": "Opaque", "metadata": metadata, "data": data}
    return stamp(body, secret_fields=("data",))
