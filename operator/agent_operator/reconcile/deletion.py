"""The end of an Agent: with `deletionPolicy: Delete` its pods stop, its rows are erased, and only then it goes.

A finalizer holds the Agent for that, never for long: rows that cannot be erased now become a debt, recorded in the
operator's namespace and paid later, and the Agent goes at once.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Protocol
from uuid import UUID

import structlog

from agent_api.labels import FINALIZER_ERASE
from agent_operator.errors import OperatorError, Transient
from agent_operator.keys import AgentKey
from agent_operator.kube.port import AGENT, ApiUnavailable, Cluster, Conflict, Forbidden, Invalid, NotFound, Object
from agent_operator.reconcile.apply import apply_plan
from agent_operator.reconcile.cache import CachedObject, ClusterCache
from agent_operator.reconcile.debts import Debts
from agent_operator.reconcile.erasure import Eraser
from agent_operator.reconcile.observe import observe_deployment
from agent_operator.reconcile.outcome import Outcome
from agent_operator.reconcile.plan import plan_scale
from agent_operator.resources.debt import Debt, debt_name
from agent_operator.status.pods import parse_time
from agent_operator.status.text import instant, scrub
from agent_operator.telemetry.audit import Entry
from agent_store.errors import StoreError

log = structlog.get_logger(__name__)

STOP_SECONDS: Final = 60.0
"""So long the pods may take to stop: their grace period and some. Those that do not are fenced out."""
ERASE_SECONDS: Final = 120.0
"""So long after its deletion an Agent waits for its rows to go; then they are a debt."""
RECORD_SECONDS: Final = 300.0
"""So long an Agent is held because its debt cannot be recorded; then it goes, and the log says what is left."""
STEP_SECONDS: Final = 10.0
STEP_DEADLINE: Final = 25.0
POLL: Final = 1.0
CHECK_DEADLINE: Final = 4.0

STATE_ERASED: Final = "StateErased"
STATE_RETAINED: Final = "StateRetained"
ERASE_DEFERRED: Final = "EraseDeferred"
ERASE_IMPOSSIBLE: Final = "EraseImpossible"


class Tell(Protocol):
    """Makes a Kubernetes Event."""

    def __call__(self, agent: Object, reason: str, message: str, *, normal: bool) -> None:
        """Take note; must not block."""
        ...


class Check(Protocol):
    """Makes sure that Postgres answers."""

    async def __call__(self) -> None:
        """Raise StoreUnavailable if it does not."""
        ...


@dataclass(frozen=True, slots=True)
class _Known:
    """An Agent as it was last reconciled."""

    uid: str
    state_id: str


def wants_erasure(body: Object) -> bool:
    """Whether the spec asks for the rows to go with the Agent; readable in an invalid spec, too."""
    state = (body.get("spec") or {}).get("state")
    return isinstance(state, dict) and state.get("deletionPolicy") == "Delete"


def plan_finalizer(metadata: Object, version: int, *, wanted: bool) -> list[dict[str, Any]]:
    """Return the JSON patch that makes the finalizer be there or not, [] if it is so. Others' finalizers stay.

    It fails if the Agent is another one, or changed since it was seen.
    """
    present: list[str] = list(metadata.get("finalizers") or ())
    if (FINALIZER_ERASE in present) == wanted:
        return []
    fresh = [*present, FINALIZER_ERASE] if wanted else [one for one in present if one != FINALIZER_ERASE]
    return [
        {"op": "test", "path": "/metadata/uid", "value": metadata["uid"]},
        {"op": "test", "path": "/metadata/resourceVersion", "value": str(version)},
        {"op": "add", "path": "/metadata/finalizers", "value": fresh},
    ]


class Deletions:
    """Holds Agents that ask for erasure, and lets them go."""

    def __init__(
        self,
        cluster: Cluster,
        cache: ClusterCache,
        eraser: Eraser,
        debts: Debts,
        *,
        check: Check,
        audit: Callable[[Entry], None],
        tell: Tell,
        now: Callable[[], datetime],
    ) -> None:
        self._cluster = cluster
        self._cache = cache
        self._eraser = eraser
        self._debts = debts
        self._check = check
        self._audit = audit
        self._tell = tell
        self._now = now
        self._known: dict[AgentKey, _Known] = {}

    async def hold(self, key: AgentKey, cached: CachedObject, body: Object) -> tuple[str, ...]:
        """Set or remove the finalizer of a living Agent as its policy says; return what was written.

        Raises Transient if the Agent changed meanwhile.
        """
        wanted = wants_erasure(body)
        operations = plan_finalizer(body["metadata"], cached.version, wanted=wanted)
        if not operations:
            return ()
        await self._patch(key, operations)
        return (f"patch Agent/{key.name} (finalizer {'set' if wanted else 'removed'})",)

    def remember(self, key: AgentKey, uid: str, state_id: str) -> None:
        """Take note of a living Agent, to say what became of its rows when it is gone."""
        known = self._known.get(key)
        if known is not None and known.uid != uid:
            self.part(key)
        self._known[key] = _Known(uid, state_id)

    def part(self, key: AgentKey) -> None:
        """Take note that an Agent is gone and its rows are kept; does nothing the second time."""
        known = self._known.pop(key, None)
        if known is not None:
            message = f"Agent {key} was deleted; its rows are kept under {known.state_id}."
            self._audit(Entry(UUID(known.state_id), STATE_RETAINED, message, _details(key, known.uid)))

    def is_held(self, body: Object) -> bool:
        """Whether our finalizer holds the Agent."""
        return FINALIZER_ERASE in (body["metadata"].get("finalizers") or ())

    async def end(self, key: AgentKey, cached: CachedObject, body: Object, adopted_id: str) -> Outcome:
        """Bring a deleted Agent that is held nearer to its end. `adopted_id` are rows it asked for, "" for none.

        Raises Transient if the Agent changed meanwhile or the API server does not answer.
        """
        if not wants_erasure(body):
            return await self._release(key, cached, body, (), None)
        deleted_at = parse_time(body["metadata"].get("deletionTimestamp")) or self._now()
        waited = (self._now() - deleted_at).total_seconds()
        problem = await self._unreachable()
        if problem is None:
            writes = await self._stop_pods(key, cached.uid)
            if waited < STOP_SECONDS and any(not pod.finished for pod in self._cache.pods(key)):
                return Outcome("changed" if writes else "unchanged", writes, POLL)
            problem = await self._erase(key, cached.uid, adopted_id)
            if problem == "":
                return await self._release(key, cached, body, writes, _erased(key, cached.uid, adopted_id))
            if problem is None and waited < ERASE_SECONDS:
                return Outcome("changed", writes, 0.0)
        debt = Debt(cached.uid, adopted_id, key.namespace, key.name, instant(self._now()))
        said = await self._owe(key, debt, problem or "there is much to erase", waited)
        return await self._release(key, cached, body, (f"create ConfigMap/{debt_name(debt.uid)}",), said)

    async def _unreachable(self) -> str | None:
        """Return why Postgres cannot be used now, None if it can."""
        try:
            async with asyncio.timeout(CHECK_DEADLINE):
                await self._check()
        except (StoreError, TimeoutError, OSError) as exc:
            return scrub(str(exc)) or "no answer in time"
        return None

    async def _stop_pods(self, key: AgentKey, uid: str) -> tuple[str, ...]:
        try:
            plan = plan_scale(observe_deployment(self._cache, key), uid, 0)
            return await apply_plan(self._cluster, self._cache, key, uid, plan)
        except ApiUnavailable:
            raise
        except OperatorError as exc:
            # Somebody else deletes the Deployment, or the whole namespace: its pods go all the same.
            log.debug("pods of a deleted agent are left to others", agent=str(key), error=str(exc))
            return ()

    async def _erase(self, key: AgentKey, uid: str, adopted_id: str) -> str | None:
        """Return "" if nothing is left, None if there is more to do, else why it cannot be done now."""
        try:
            async with asyncio.timeout(STEP_DEADLINE):
                ids = await self._eraser.find_ids(key, uid, adopted_id)
                return "" if await self._eraser.erase(ids, budget=STEP_SECONDS) else None
        except (StoreError, TimeoutError, OSError) as exc:
            return scrub(str(exc)) or "no answer in time"

    async def _owe(self, key: AgentKey, debt: Debt, problem: str, waited: float) -> Entry:
        """Record the debt and return what to say. Raises Transient while that cannot be done, until RECORD_SECONDS."""
        agent_id, details = UUID(debt.uid), _details(key, debt.uid, debt.adopted_id)
        try:
            await self._debts.record(debt)
        except ApiUnavailable:
            raise
        except OperatorError as exc:
            if waited < RECORD_SECONDS and "being terminated" not in str(exc):
                raise Transient("DebtNotRecorded", f"the debt of {key} cannot be recorded: {exc}") from exc
            ids = " and ".join(one for one in (debt.uid, debt.adopted_id) if one)
            remedy = f"erase them by hand: call the SQL function abide.erase_agent until it returns true, for {ids}"
            message = f"The rows of agent {key} could not be erased ({problem}), nor could that be recorded; {remedy}."
            log.error("rows of a deleted agent are left", agent=str(key), error=str(exc), remedy=remedy)
            return Entry(agent_id, ERASE_IMPOSSIBLE, message, details)
        message = (
            f"The rows of agent {key} cannot be erased now ({problem}); ConfigMap "
            f"{self._debts.namespace}/{debt_name(debt.uid)} remembers that, and it is made up for."
        )
        return Entry(agent_id, ERASE_DEFERRED, message, details)

    async def _release(
        self, key: AgentKey, cached: CachedObject, body: Object, writes: tuple[str, ...], said: Entry | None
    ) -> Outcome:
        """Let the Agent go, and say once what became of its rows."""
        if not await self._patch(key, plan_finalizer(body["metadata"], cached.version, wanted=False)):
            return Outcome("gone", writes)
        if said is not None:
            self._known.pop(key, None)
            self._tell(body, said.event_type, said.message, normal=said.event_type == STATE_ERASED)
            self._audit(said)
        return Outcome("gone", (*writes, f"patch Agent/{key.name} (finalizer removed)"))

    async def _patch(self, key: AgentKey, operations: list[dict[str, Any]]) -> bool:
        """Patch the Agent; False if it is gone."""
        try:
            written = await self._cluster.patch_json(AGENT, key.namespace, key.name, operations)
        except NotFound:
            return False
        except (Conflict, Invalid) as exc:
            raise Transient("Conflict", f"the Agent changed meanwhile: {exc}") from exc
        except Forbidden as exc:
            raise Transient("Forbidden", f"the finalizer cannot be changed: {exc}") from exc
        if written["metadata"].get("deletionTimestamp") and not written["metadata"].get("finalizers"):
            # It is gone with this; another look at it, before its event comes, must not find it.
            self._cache.remove(AGENT, written)
        else:
            self._cache.put(AGENT, written)
        return True


def _erased(key: AgentKey, uid: str, adopted_id: str) -> Entry:
    message = f"Agent {key} was deleted and its rows were erased (deletionPolicy: Delete)."
    return Entry(UUID(uid), STATE_ERASED, message, _details(key, uid, adopted_id))


def _details(key: AgentKey, uid: str, adopted_id: str = "") -> dict[str, Any]:
    adopted = {"adoptedId": adopted_id} if adopted_id else {}
    return {"namespace": key.namespace, "name": key.name, "uid": uid, **adopted}
