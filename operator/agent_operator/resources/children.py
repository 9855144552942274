"""Everything the operator makes for one valid agent."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from agent_operator.kube.port import (
    CONFIG_MAP,
    DEPLOYMENT,
    DISRUPTION_BUDGET,
    SECRET,
    SERVICE,
    SERVICE_ACCOUNT,
    Kind,
)
from agent_operator.resources.configmap import build_config_map
from agent_operator.resources.deployment import build_deployment, build_revision
from agent_operator.resources.disruptionbudget import build_disruption_budget
from agent_operator.resources.inputs import AgentInputs
from agent_operator.resources.secrets import build_api_secret, build_encryption_secret, build_postgres_secret
from agent_operator.resources.service import build_service
from agent_operator.resources.serviceaccount import build_service_account


@dataclass(frozen=True, slots=True)
class Child:
    """One object the agent is to have.

    `generated` content is made at creation and never looked at again; `frozen` content is made at creation and cannot
    change, only the metadata can.
    """

    kind: Kind
    body: dict[str, Any]
    generated: bool = False
    frozen: bool = False

    @property
    def name(self) -> str:
        """Return the object's name."""
        return str(self.body["metadata"]["name"])


@dataclass(frozen=True, slots=True)
class Desired:
    """All objects of one revision of an agent, the Deployment last: it needs the others.

    `unwanted` names those that an agent may have and this one is not to have.
    """

    revision: str
    children: tuple[Child, ...]
    unwanted: tuple[tuple[Kind, str], ...] = ()


def build_desired(inputs: AgentInputs, count: Callable[[str], int] = lambda revision: 1) -> Desired:
    """Build everything for one agent. `count` returns the number of a revision, see `build_config_map`."""
    revision = build_revision(inputs)
    budget = build_disruption_budget(inputs)
    several = inputs.agent.spec.replicas > 1
    return Desired(
        revision,
        (
            Child(SERVICE_ACCOUNT, build_service_account(inputs)),
            Child(SECRET, build_api_secret(inputs), generated=True),
            Child(SECRET, build_postgres_secret(inputs)),
            *((Child(SECRET, build_encryption_secret(inputs)),) if inputs.wrapping_keys else ()),
            Child(CONFIG_MAP, build_config_map(inputs, revision, count(revision)), frozen=True),
            Child(SERVICE, build_service(inputs)),
            *((Child(DISRUPTION_BUDGET, budget),) if several else ()),
            Child(DEPLOYMENT, build_deployment(inputs, revision)),
        ),
        () if several else ((DISRUPTION_BUDGET, str(budget["metadata"]["name"])),),
    )
