"""One reconcile: observe → plan → apply → report. Reached from every event, sweep and timer alike."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final, Protocol
from uuid import UUID

from agent_api import labels
from agent_api.conditions import Reason
from agent_api.v1alpha1 import AgentStatus
from agent_operator.errors import Stalled, Transient, Waiting
from agent_operator.keys import AgentKey
from agent_operator.kube.port import AGENT, Cluster, Conflict, Forbidden, NotFound, Object
from agent_operator.reconcile.adoption import StateIds, find_running_id, wanted_state_id
from agent_operator.reconcile.apply import apply_plan
from agent_operator.reconcile.cache import ClusterCache
from agent_operator.reconcile.deletion import Deletions
from agent_operator.reconcile.observe import (
    FactsSource,
    Health,
    SpecView,
    observe_children,
    observe_deployment,
    observe_old_revisions,
    observe_refusal,
    observe_revisions,
    parse_agent,
    resolve_prompt,
    resolve_references,
)
from agent_operator.reconcile.outcome import Outcome, soonest
from agent_operator.reconcile.plan import count_revision, plan_children, plan_cleanup, plan_scale
from agent_operator.reconcile.references import References
from agent_operator.reconcile.reviews import Reviews
from agent_operator.reconcile.rootkeys import RootKeys
from agent_operator.reconcile.rotation import SecretRotation, secrets_version
from agent_operator.resources.children import build_desired
from agent_operator.resources.inputs import AgentInputs
from agent_operator.status.observed import DOCS, Observation, Refusal, Verdict
from agent_operator.status.summary import build_status, decide, dump_status, parse_status
from agent_operator.status.timing import recheck_after

REFUSED_PAUSE: Final = 5.0
ADOPTION_PAUSE: Final = 60.0
SURPLUS_PAUSE: Final = 60.0
"""Old revisions that are too many are looked at so often: nobody tells when their last ReplicaSet goes."""
WAITING_PAUSE: Final = 1.0
DEADLINE: Final = 60.0


UNKNOWN_ADOPTION: Final = Refusal(
    Reason.STATE_STORE_UNREACHABLE,
    f"whether the state named by annotation {labels.ANNOTATION_ADOPT_STATE} may be taken over cannot be told",
)


@dataclass(frozen=True, slots=True)
class ReconcilerSettings:
    """What the reconciler needs of the operator's settings. `store_address` is host:port of the agents' Postgres."""

    runtime_image: str
    agent_postgres_url: str
    counters_interval: float
    store_address: str = ""
    docs: str = DOCS


class Report(Protocol):
    """Who is told of a changed status, to make Events of it."""

    def __call__(self, agent: Object, before: AgentStatus, after: AgentStatus) -> None:
        """Take note; must not block."""
        ...


@dataclass(frozen=True, slots=True)
class _Carried:
    """How far a spec was carried out: what was written, and what status must say about it."""

    verdict: Verdict
    revision: str = ""
    writes: tuple[str, ...] = ()
    refusal: Refusal | None = None
    recheck_in: float | None = None


class Reconciler:
    """Makes one Agent's objects and status true. Idempotent; safe to stop at any point."""

    def __init__(
        self,
        cluster: Cluster,
        cache: ClusterCache,
        references: References,
        health: Health,
        facts: FactsSource,
        report: Report,
        settings: ReconcilerSettings,
        states: StateIds,
        deletions: Deletions,
        rotation: SecretRotation,
        root_keys: RootKeys,
        reviews: Reviews,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._cluster = cluster
        self._cache = cache
        self._references = references
        self._health = health
        self._facts = facts
        self._report = report
        self._settings = settings
        self._states = states
        self._deletions = deletions
        self._rotation = rotation
        self._root_keys = root_keys
        self._reviews = reviews
        self._now = now

    async def reconcile(self, key: AgentKey) -> Outcome:
        """Bring one Agent to what its spec asks for and its status to what is true.

        Raises: Waiting and Transient; the caller tries again. A spec that cannot be carried out is reported in status.
        """
        async with asyncio.timeout(DEADLINE):
            cached = self._cache.agent(key)
            if cached is None:
                return self._part(key)
            body = cached.body()
            if cached.deleting:
                if not self._deletions.is_held(body):
                    return self._part(key)
                self._stop_looking(key)
                return await self._deletions.end(key, cached, body, wanted_state_id(body["metadata"]))
            held = await self._deletions.hold(key, cached, body)
            view = parse_agent(body)
            carried = await self._carry_out(key, body, view)
            carried = replace(carried, writes=held + carried.writes)
            self._deletions.remember(key, cached.uid, self._states.state_id(key, cached.uid))
            return await self._write_status(key, body, view, carried)

    def _part(self, key: AgentKey) -> Outcome:
        """Forget an Agent that is gone: the garbage collector takes its children, which carry its uid."""
        self._stop_looking(key)
        self._deletions.part(key)
        self._states.forget(key)
        return Outcome("gone")

    def _stop_looking(self, key: AgentKey) -> None:
        self._references.forget(key)
        self._health.forget(key)
        self._rotation.forget(key)

    async def _carry_out(self, key: AgentKey, body: Object, view: SpecView) -> _Carried:
        """Apply what the spec asks for, as far as it can be."""
        uid = str(body["metadata"]["uid"])
        if view.agent is None:
            self._references.forget(key)
            return await self._hold(key, uid, view, view.verdict)
        verdict, found = await resolve_references(self._references, key, view.agent)
        if not verdict.accepted and verdict.reason is not Reason.SECRET_MISSING:
            return await self._hold(key, uid, view, verdict)
        adoption = await self._states.resolve(key, body["metadata"], self._running_id(key))
        if adoption.refusal is not None:
            held = await self._hold(key, uid, view, adoption.refusal)
            return replace(held, recheck_in=ADOPTION_PAUSE)
        if adoption.unknown:
            held = await self._hold(key, uid, view, verdict)
            return replace(
                held, revision=self._running_revision(key), refusal=UNKNOWN_ADOPTION, recheck_in=REFUSED_PAUSE
            )
        inputs = AgentInputs(
            agent=view.agent,
            uid=uid,
            adopted_id=adoption.adopted_id,
            spec=body["spec"],
            prompt=resolve_prompt(view.agent, found),
            runtime_image=self._settings.runtime_image,
            postgres_url=self._settings.agent_postgres_url,
            wrapping_keys=self._root_keys.wrapping_keys(adoption.adopted_id or uid),
        )
        try:
            reviewed, renew_in = await self._reviews.ensure(key, inputs)
            carried = await self._apply(key, inputs, view, verdict)
            again = soonest(carried.recheck_in, renew_in)
            carried = replace(carried, writes=reviewed + carried.writes, recheck_in=again)
            told = await self._rotation.tell(key, secrets_version(view.agent, found)) if verdict.accepted else ()
            return replace(carried, writes=carried.writes + told)
        except Stalled as stalled:
            if stalled.reason is Reason.INVALID_SPEC:
                carried = _Carried(Verdict(stalled.reason, stalled.message), recheck_in=REFUSED_PAUSE)
            else:
                refusal = Refusal(stalled.reason, stalled.message)
                carried = _Carried(verdict, refusal=refusal, recheck_in=REFUSED_PAUSE)
        try:
            held = await self._hold(key, uid, view, carried.verdict)
        except Stalled:
            return carried  # what was refused is refused again, and told already
        return replace(carried, writes=held.writes)

    async def _hold(self, key: AgentKey, uid: str, view: SpecView, verdict: Verdict) -> _Carried:
        """Leave everything as it is, but let the user stop and start what runs."""
        plan = plan_scale(observe_deployment(self._cache, key), uid, view.replicas)
        writes = await apply_plan(self._cluster, self._cache, key, uid, plan)
        return _Carried(verdict, writes=writes)

    async def _apply(self, key: AgentKey, inputs: AgentInputs, view: SpecView, verdict: Verdict) -> _Carried:
        revisions = observe_revisions(self._cache, key)
        desired = build_desired(
            inputs, lambda revision: count_revision(labels.revision_name(key.name, revision), revisions, inputs.uid)
        )
        children = await observe_children(self._cluster, self._cache, key, desired)
        # A Deployment of another revision waits for the missing Secret: its pods could not start. The same revision
        # is kept as it should be, and one that should run no pods has nothing to wait for.
        plan = plan_children(
            key.name, inputs.uid, desired, children, start=verdict.accepted or self._runs(key, desired.revision)
        )
        if plan.conflict:
            message = f"{plan.conflict} exists and belongs to something else."
            return _Carried(Verdict(Reason.NAME_CONFLICT, message), desired.revision, recheck_in=REFUSED_PAUSE)
        writes = await apply_plan(self._cluster, self._cache, key, inputs.uid, plan)
        if not verdict.accepted:
            scale = plan_scale(observe_deployment(self._cache, key), inputs.uid, view.replicas)
            writes += await apply_plan(self._cluster, self._cache, key, inputs.uid, scale)
        removed, surplus = await self._clean_up(key, inputs, desired.revision)
        pauses = (WAITING_PAUSE if plan.waiting else None, SURPLUS_PAUSE if surplus else None)
        return _Carried(verdict, desired.revision, writes + removed, recheck_in=soonest(*pauses))

    def _runs(self, key: AgentKey, revision: str) -> bool:
        """Whether the agent's Deployment is of this revision already."""
        return self._running_revision(key) == revision

    def _running_revision(self, key: AgentKey) -> str:
        """Return the revision the agent's Deployment is of, "" without one."""
        deployment = observe_deployment(self._cache, key)
        if deployment is None:
            return ""
        template = deployment.body["spec"]["template"]["metadata"].get("labels") or {}
        return str(template.get(labels.LABEL_REVISION, ""))

    def _running_id(self, key: AgentKey) -> str:
        deployment = observe_deployment(self._cache, key)
        return find_running_id(None if deployment is None else deployment.body)

    async def _clean_up(self, key: AgentKey, inputs: AgentInputs, revision: str) -> tuple[tuple[str, ...], bool]:
        """Delete old revisions; return what was written, and whether some that are too many are still in use."""
        old, in_use = await observe_old_revisions(
            self._cluster, self._cache, key, inputs.uid, revision, inputs.agent.spec.revision_history_limit
        )
        if not old:
            return (), False
        plan = plan_cleanup(old, in_use)
        writes = await apply_plan(self._cluster, self._cache, key, inputs.uid, plan)
        return writes, len(writes) < len(old)

    async def _write_status(self, key: AgentKey, body: Object, view: SpecView, carried: _Carried) -> Outcome:
        observation = await self._observe(key, body, view, carried)
        before = parse_status(body.get("status"))
        status = build_status(observation, before)
        # A refused key is corrected in its Secret; that is to show at once.
        refused = any(condition.reason == Reason.MODEL_AUTH_FAILED for condition in status.conditions)
        self._references.watch_closely(key, closely=refused)
        decision = decide(status, before, observation.now, counters_interval=self._settings.counters_interval)
        writes = carried.writes
        if decision.status is not None:
            await self._send_status(body, decision.status)
            self._report(body, before, decision.status)
            writes += (f"status {decision.status.conditions[0].status}/{decision.status.conditions[0].reason}",)
        return Outcome(
            result="refused"
            if carried.refusal or not carried.verdict.accepted
            else "changed"
            if writes
            else "unchanged",
            writes=writes,
            recheck_in=soonest(carried.recheck_in, decision.due_in, recheck_after(observation)),
        )

    async def _observe(self, key: AgentKey, body: Object, view: SpecView, carried: _Carried) -> Observation:
        metadata = body["metadata"]
        observation = Observation(
            now=self._now(),
            docs=self._settings.docs,
            name=key.name,
            namespace=key.namespace,
            generation=int(metadata.get("generation", 0)),
            verdict=carried.verdict,
            suspended=view.suspended,
            desired=1 if view.replicas is None else view.replicas,
            revision=carried.revision,
            configured_model=view.agent.spec.models[0].display if view.agent is not None else "",
            models=tuple(view.agent.spec.models) if view.agent is not None else (),
            tools=tuple(view.agent.spec.tools) if view.agent is not None else (),
            budget=view.agent.spec.budget if view.agent is not None else None,
            store=self._settings.store_address,
            pods=self._cache.pods(key),
            refusal=carried.refusal or observe_refusal(observe_deployment(self._cache, key)),
            facts=self._facts.facts(UUID(self._states.state_id(key, metadata["uid"]))),
        )
        probes = await self._health.ask(key, observation.pods, now=observation.now)
        # Asking takes a moment in which pods may have changed.
        return replace(observation, now=self._now(), pods=self._cache.pods(key), probes=probes)

    async def _send_status(self, body: Object, status: AgentStatus) -> None:
        metadata = body["metadata"]
        try:
            written = await self._cluster.apply_status(
                AGENT,
                {
                    "apiVersion": labels.API_VERSION,
                    "kind": labels.KIND,
                    "metadata": {name: metadata[name] for name in ("name", "namespace", "uid")},
                    "status": dump_status(status),
                },
            )
        except NotFound as exc:
            raise Waiting("the Agent is gone", retry_after=WAITING_PAUSE) from exc
        except Conflict as exc:
            raise Transient("Conflict", f"the Agent changed meanwhile: {exc}") from exc
        except Forbidden as exc:
            raise Transient("Forbidden", f"status cannot be written: {exc}") from exc
        self._cache.put(AGENT, written)
