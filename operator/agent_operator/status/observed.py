"""What status is computed from: everything that was observed about one agent at one moment."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import Final

from agent_api.conditions import Reason
from agent_api.v1alpha1 import Budget, LastError, ModelSpec, ToolEntry
from agent_api.wire import BudgetCheck, HealthOut, ModelCheck, ToolCheck
from agent_operator.status.pods import PodView


class ProbeFailure(Enum):
    """Why a runtime's /readyz could not be read, or is no explanation."""

    NO_ANSWER = "does not answer"
    NOT_UNDERSTOOD = "answers something else than health"
    NOT_SEEN = "says that it is ready, and the kubelet does not see it"


ProbeResult = HealthOut | ProbeFailure
"""What a runtime said about itself when asked, or why it said nothing."""


DOCS: Final = "docs"
"""Where the pages are unless a setting says it: the folder in the project's source."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the spec can be carried out. `message` names the field and what to write instead."""

    reason: Reason
    message: str

    @property
    def accepted(self) -> bool:
        """Whether the spec is valid and everything it refers to exists."""
        return self.reason is Reason.VALID


ACCEPTED = Verdict(Reason.VALID, "The spec is valid and everything it refers to exists.")


@dataclass(frozen=True, slots=True)
class Refusal:
    """A write that the API server refuses, or pods that their ReplicaSet may not create."""

    reason: Reason
    message: str
    since: datetime | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    """What Postgres knows about an agent. None means not known (any more).

    `sessions_by_pod` counts the sessions in the memory of each pod that ever sent a heartbeat, living or not;
    `models_by_pod` holds what its newest heartbeat says of its models, the primary first; `tools_by_pod` of its tools,
    `budgets_by_pod` of its budgets.
    """

    sessions_by_pod: Mapping[str, int] | None = None
    sessions_total: int | None = None
    answering: str | None = None
    last_error: LastError | None = None
    models_by_pod: Mapping[str, tuple[ModelCheck, ...]] | None = None
    tools_by_pod: Mapping[str, tuple[ToolCheck, ...]] | None = None
    budgets_by_pod: Mapping[str, tuple[BudgetCheck, ...]] | None = None


@dataclass(frozen=True, slots=True)
class Observation:
    """Everything about one agent at the moment `now` (aware UTC).

    `desired` is how many pods should run. `revision` is the one the spec asks for, "" while that cannot be told.
    `models` and `tools` are the spec's, () while it cannot be read. `store` is host:port of the agent's Postgres.
    `probes` holds, by pod uid, what the runtimes said about themselves. `docs` is where links to pages lead.
    """

    now: datetime
    name: str
    namespace: str
    generation: int
    verdict: Verdict
    suspended: bool
    desired: int
    revision: str
    configured_model: str
    models: tuple[ModelSpec, ...] = ()
    tools: tuple[ToolEntry, ...] = ()
    budget: Budget | None = None
    store: str = ""
    pods: tuple[PodView, ...] = ()
    probes: Mapping[str, ProbeResult] = field(default_factory=dict)
    refusal: Refusal | None = None
    facts: Facts = Facts()
    docs: str = DOCS
