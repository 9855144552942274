"""Every label, annotation, field manager and generated object name, in one place."""

from typing import Final

GROUP: Final = "abide.dev"
VERSION: Final = "v1alpha1"
API_VERSION: Final = f"{GROUP}/{VERSION}"
KIND: Final = "Agent"
PLURAL: Final = "agents"

FIELD_MANAGER: Final = "abide-operator"
STATUS_FIELD_MANAGER: Final = "abide-operator-status"

LABEL_MANAGED_BY: Final = "app.kubernetes.io/managed-by"
MANAGED_BY: Final = "abide-operator"
LABEL_NAME: Final = "app.kubernetes.io/name"
LABEL_COMPONENT: Final = "app.kubernetes.io/component"
LABEL_AGENT: Final = f"{GROUP}/agent"
LABEL_REVISION: Final = f"{GROUP}/revision"

ANNOTATION_SPEC_HASH: Final = f"{GROUP}/spec-hash"
ANNOTATION_ADOPT_STATE: Final = f"{GROUP}/adopt-state"
ANNOTATION_SECRETS: Final = f"{GROUP}/secrets-version"
ANNOTATION_TOKEN_RENEWAL: Final = f"{GROUP}/token-renewal"
ANNOTATION_REVISION_NUMBER: Final = f"{GROUP}/revision-number"
LABEL_DEBT: Final = f"{GROUP}/debt"
FINALIZER_ERASE: Final = f"{GROUP}/erase-state"

NAME_MAX_LENGTH: Final = 50
"""Longest Agent name: `agent-<name>` and its suffixes must stay within the 63 characters of a DNS label."""


def child_name(agent_name: str) -> str:
    """Return the name shared by an Agent's Deployment, Service and ServiceAccount."""
    return f"agent-{agent_name}"


def api_secret_name(agent_name: str) -> str:
    """Return the name of the Secret with the agent's generated API key (key `key`)."""
    return f"{child_name(agent_name)}-api"


def postgres_secret_name(agent_name: str) -> str:
    """Return the name of the Secret with the agent's Postgres URL (key `url`)."""
    return f"{child_name(agent_name)}-postgres"


def reviewer_secret_name(agent_name: str) -> str:
    """Return the name of the Secret with the token that the agent asks the API server about callers with."""
    return f"{child_name(agent_name)}-reviewer"


def encryption_secret_name(agent_name: str) -> str:
    """Return the name of the Secret with the keys that wrap the agent's data keys, one per key id."""
    return f"{child_name(agent_name)}-encryption"


def revision_name(agent_name: str, revision: str) -> str:
    """Return the name of the immutable ConfigMap that holds one revision of an agent."""
    return f"{child_name(agent_name)}-{revision}"
