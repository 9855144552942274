"""Everything the operator makes for one valid agent."""

from dataclasses import dataclass
from typing import Any

from agent_operator.kube.port import CONFIG_MAP, DEPLOYMENT, SECRET, SERVICE, SERVICE_ACCOUNT, Kind
from agent_operator.resources.configmap import build_config_map
from agent_operator.resources.deployment import build_deployment, build_revision
from agent_operator.resources.inputs import AgentInputs
from agent_operator.resources.secrets import build_api_secret, build_postgres_secret
from agent_operator.resources.service import build_service
from agent_operator.resources.serviceaccount import build_service_account


@dataclass(frozen=True, slots=True)
class Child:
    """One object the agent is to have. `generated` content is made at creation and never looked at again."""

    kind: Kind
    body: dict[str, Any]
    generated: bool = False

    @property
    def name(self) -> str:
        """Return the object's name."""
        return str(self.body["metadata"]["name"])


@dataclass(frozen=True, slots=True)
class Desired:
    """All objects of one revision of an agent, the Deployment last: it needs the others."""

    revision: str
    children: tuple[Child, ...]


def build_desired(inputs: AgentInputs) -> Desired:
    """Build everything for one agent."""
    revision = build_revision(inputs)
    return Desired(
        revision,
        (
            Child(SERVICE_ACCOUNT, build_service_account(inputs)),
            Child(SECRET, build_api_secret(inputs), generated=True),
            Child(SECRET, build_postgres_secret(inputs)),
            Child(CONFIG_MAP, build_config_map(inputs, revision)),
            Child(SERVICE, build_service(inputs)),
            Child(DEPLOYMENT, build_deployment(inputs, revision)),
        ),
    )
