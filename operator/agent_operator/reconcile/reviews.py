"""The token with which an agent asks the API server who calls it, for agents with `spec.access.kubernetes`.

All of one installation ask as one ServiceAccount that may do nothing but review tokens and access; the operator may
make tokens of that one alone. So neither the operator nor the agents' own ServiceAccounts hold any such right, and
nothing has to be bound to a role when an agent comes, or unbound when it goes. A token lasts a day and is renewed after
half of it.
"""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Final

import structlog

from agent_api import labels
from agent_api.conditions import Reason
from agent_operator.errors import Stalled, Transient, Waiting
from agent_operator.keys import AgentKey
from agent_operator.kube.port import (
    AGENT,
    SECRET,
    AlreadyExists,
    Cluster,
    Conflict,
    Forbidden,
    Invalid,
    NotFound,
    Object,
)
from agent_operator.reconcile.cache import ClusterCache
from agent_operator.reconcile.plan import is_owned
from agent_operator.resources.inputs import AgentInputs
from agent_operator.resources.secrets import build_reviewer_secret

log = structlog.get_logger(__name__)

TOKEN_SECONDS: Final = 86_400
NOT_INSTALLED: Final = (
    "spec.access.kubernetes.enabled: this installation may not ask about tokens; install the chart with "
    "kubernetesTokens.enabled=true, or set the field to false."
)


class Reviews:
    """Gives agents their token. `service_account` in `namespace` is whose they are, "" where there is none."""

    def __init__(
        self,
        cluster: Cluster,
        cache: ClusterCache,
        namespace: str,
        service_account: str,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._cluster = cluster
        self._cache = cache
        self._namespace = namespace
        self._service_account = service_account
        self._now = now

    async def ensure(self, key: AgentKey, inputs: AgentInputs) -> tuple[tuple[str, ...], float | None]:
        """Make sure the agent's Secret holds a token that lasts; return what was written, and when to look again.

        Raises: Stalled where it cannot be had, Waiting and Transient.
        """
        if not inputs.agent.spec.access.kubernetes.enabled:
            return await self._take_back(key, inputs), None
        if not self._service_account:
            raise Stalled(Reason.INVALID_SPEC, NOT_INSTALLED)
        name = labels.reviewer_secret_name(inputs.name)
        found = await self._cluster.get_metadata(SECRET, inputs.namespace, name)
        if found is not None and not is_owned(found, inputs.uid):
            raise Stalled(Reason.INVALID_SPEC, f"Secret {inputs.namespace}/{name} is somebody else's: rename it.")
        left = _renew_in(found, self._now())
        if left > 0:
            return (), left
        token, expires = await self._new_token()
        left = (expires - self._now()).total_seconds() / 2
        await self._write(key, inputs, found, token, self._now() + timedelta(seconds=left))
        what = "apply" if found is not None else "create"
        return (f"{what} Secret/{name} (a token for reviews)",), left

    async def _take_back(self, key: AgentKey, inputs: AgentInputs) -> tuple[str, ...]:
        """Empty the Secret of an agent that asks no more: to delete Secrets is a right the operator does not have."""
        name = labels.reviewer_secret_name(inputs.name)
        cached = self._cache.child(key, SECRET, name)
        if cached is None:
            return ()
        metadata = cached.body()["metadata"]
        if labels.ANNOTATION_TOKEN_RENEWAL not in (metadata.get("annotations") or {}):
            return ()
        body = build_reviewer_secret(inputs)
        body["metadata"]["uid"] = metadata["uid"]
        await self._apply(body)
        return (f"apply Secret/{name} (no token any more)",)

    async def _new_token(self) -> tuple[str, datetime]:
        try:
            return await self._cluster.request_token(self._namespace, self._service_account, seconds=TOKEN_SECONDS)
        except (Forbidden, NotFound, Invalid) as exc:
            log.warning("no token for reviews can be had", service_account=self._service_account, error=str(exc))
            raise Stalled(Reason.INVALID_SPEC, NOT_INSTALLED) from exc

    async def _write(
        self, key: AgentKey, inputs: AgentInputs, found: Object | None, token: str, renewal: datetime
    ) -> None:
        body = build_reviewer_secret(inputs, token, renewal.astimezone(UTC).isoformat(timespec="seconds"))
        if found is not None:
            body["metadata"]["uid"] = found["metadata"]["uid"]
        else:
            agent = await self._cluster.get_metadata(AGENT, key.namespace, key.name)
            if agent is None or agent["metadata"]["uid"] != inputs.uid or agent["metadata"].get("deletionTimestamp"):
                raise Waiting("the Agent is gone", retry_after=1.0)
        await self._apply(body)

    async def _apply(self, body: Object) -> None:
        try:
            self._cache.put(SECRET, await self._cluster.apply(SECRET, body))
        except (Conflict, AlreadyExists, NotFound) as exc:
            raise Transient("Conflict", f"Secret {body['metadata']['name']} changed meanwhile: {exc}") from exc
        except (Forbidden, Invalid) as exc:
            raise Stalled(Reason.POD_FORBIDDEN, f"Secret {body['metadata']['name']} is refused: {exc}") from exc


def _renew_in(secret: Object | None, now: datetime) -> float:
    """Return in how many seconds the token should be renewed; not positive: now."""
    annotations = (secret or {"metadata": {}})["metadata"].get("annotations") or {}
    try:
        return (datetime.fromisoformat(annotations.get(labels.ANNOTATION_TOKEN_RENEWAL, "")) - now).total_seconds()
    except (ValueError, TypeError):
        return 0.0
