"""Who comes in: finds the principal behind a token, and counts its requests."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agent_api.v1alpha1 import Agent
from agent_runtime.access.errors import NotIdentifiedError
from agent_runtime.access.keys import NamedKeys
from agent_runtime.access.kubernetes import TokenReviewer
from agent_runtime.access.principal import Principal
from agent_runtime.access.rates import Rates
from agent_runtime.access.tokens import TokenVerifier
from agent_runtime.auth import KeyRing
from agent_runtime.clock import Clock

GENERATED: Final = Principal("key")
"""The holder of a key of `ABIDE_API_KEYS_DIR`: every right, on every agent of the process."""

AgentKey = tuple[str, str]


@dataclass(frozen=True, slots=True)
class AgentAccess:
    """What `spec.access` and `spec.limits.requestsPerMinute` of one agent have become."""

    keys: NamedKeys
    tokens: TokenVerifier
    reviewer: TokenReviewer | None
    rates: Rates

    async def identify(self, token: str) -> Principal | None:
        """Return who holds the token, None if nobody here knows. Raises NotIdentifiedError, AccessUnavailable."""
        principal = self.keys.find(token) or (await self.tokens.identify(token) if self.tokens else None)
        if principal is None and self.reviewer is not None:
            principal = await self.reviewer.identify(token)
        return principal


class Gate:
    """The way in to all agents of the process."""

    def __init__(self, generated: KeyRing, agents: Mapping[AgentKey, AgentAccess]) -> None:
        self._generated = generated
        self._agents = agents

    async def identify(self, token: str, agent: AgentKey | None) -> Principal:
        """Return who holds the token. `agent`: the one that is asked for, None if the path names none.

        Raises NotIdentifiedError, saying what is wrong; AccessUnavailable when that cannot be found out now.
        """
        if self._generated.is_valid(token):
            return GENERATED
        access = self._agents.get(agent) if agent is not None else None
        problem: NotIdentifiedError | None = None
        for one in (access,) if access is not None else self._agents.values():
            try:
                if principal := await one.identify(token):
                    return principal
            except NotIdentifiedError as error:
                problem = error
        raise problem or NotIdentifiedError("This key or token is not valid for this agent.")

    def take(self, agent: AgentKey, principal: Principal, user: str) -> float:
        """Count a request; return 0.0, or after how many seconds to send it again."""
        access = self._agents.get(agent)
        return access.rates.take(principal.name, user) if access is not None else 0.0

    async def aclose(self) -> None:
        """Close all connections."""
        for access in self._agents.values():
            await access.tokens.aclose()
            if access.reviewer is not None:
                await access.reviewer.aclose()


def build_access(
    agent: Agent, secrets_dir: Path, kubernetes_url: str, kubernetes_dir: Path, clock: Clock, *, anybody: bool = False
) -> AgentAccess:
    """Build the way in to one agent.

    `anybody`: nobody is asked who they are. Callers cannot be told apart then, so only a limit that is written counts.
    """
    limits = agent.spec.limits
    per_minute = 0 if anybody and "requests_per_minute" not in limits.model_fields_set else limits.requests_per_minute
    spec, namespace, name = agent.spec.access, agent.metadata.namespace, agent.metadata.name
    label = f"{namespace}/{name}"
    reviewer = (
        TokenReviewer(spec.kubernetes, namespace, name, kubernetes_url, kubernetes_dir, clock)
        if spec.kubernetes.enabled
        else None
    )
    return AgentAccess(
        NamedKeys(secrets_dir, spec.keys, label, clock),
        TokenVerifier(spec.jwt, label, clock),
        reviewer,
        Rates(per_minute, clock),
    )
