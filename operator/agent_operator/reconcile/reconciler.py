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
from agent_operator.reconcile.apply import apply_plan
from agent_operator.reconcile.cache import ClusterCache
from agent_operator.reconcile.observe import (
    FactsSource,
    Health,
    SpecView,
    observe_children,
    observe_deployment,
    observe_old_revisions,
    observe_refusal,
    parse_agent,
    resolve_prompt,
    resolve_references,
)
from agent_operator.reconcile.outcome import Outcome, soonest
from agent_operator.reconcile.plan import Plan, plan_children, plan_cleanup, plan_scale
from agent_operator.reconcile.references import References
from agent_operator.resources.children import build_desired
from agent_operator.resources.inputs import AgentInputs
from agent_operator.status.causes import recheck_after
from agent_operator.status.observed import Observation, Refusal, Verdict
from agent_operator.status.summary import build_status, decide, dump_status, parse_status

REFUSED_PAUSE: Final = 5.0
WAITING_PAUSE: Final = 1.0
DEADLINE: Final = 60.0


@dataclass(frozen=True, slots=True)
class ReconcilerSettings:
    """What the reconciler needs of the operator's settings."""

    runtime_image: str
    agent_postgres_url: str
    counters_interval: float


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
        self._now = now

    async def reconcile(self, key: AgentKey) -> Outcome:
        """Bring one Agent to what its spec asks for and its status to what is true.

        Raises: Waiting and Transient; the caller tries again. A spec that cannot be carried out is reported in status.
        """
        async with asyncio.timeout(DEADLINE):
            cached = self._cache.agent(key)
            if cached is None or cached.deleting:
                # Children carry the uid of their owner: the garbage collector takes them, and nothing is made again.
                self._forget(key)
                return Outcome("gone")
            body = cached.body()
            view = parse_agent(body)
            carried = await self._carry_out(key, body, view)
            return await self._write_status(key, body, view, carried)

    def _forget(self, key: AgentKey) -> None:
        self._references.forget(key)
        self._health.forget(key)

    async def _carry_out(self, key: AgentKey, body: Object, view: SpecView) -> _Carried:
        """Apply what the spec asks for, as far as it can be."""
        uid = str(body["metadata"]["uid"])
        if view.agent is None:
            self._references.forget(key)
            return await self._hold(key, uid, view, view.verdict)
        verdict, found = await resolve_references(self._references, key, view.agent)
        if not verdict.accepted and verdict.reason is not Reason.SECRET_MISSING:
            return await self._hold(key, uid, view, verdict)
        inputs = AgentInputs(
            agent=view.agent,
            uid=uid,
            prompt=resolve_prompt(view.agent, found),
            runtime_image=self._settings.runtime_image,
            postgres_url=self._settings.agent_postgres_url,
        )
        try:
            return await self._apply(key, inputs, view, verdict)
        except Stalled as stalled:
            if stalled.reason is Reason.INVALID_SPEC:
                return _Carried(Verdict(stalled.reason, stalled.message), recheck_in=REFUSED_PAUSE)
            refusal = Refusal(stalled.reason, stalled.message)
            return _Carried(verdict, refusal=refusal, recheck_in=REFUSED_PAUSE)

    async def _hold(self, key: AgentKey, uid: str, view: SpecView, verdict: Verdict) -> _Carried:
        """Leave everything as it is, but let the user stop and start what runs."""
        plan = plan_scale(observe_deployment(self._cache, key), uid, view.replicas)
        writes = await apply_plan(self._cluster, self._cache, key, uid, plan)
        return _Carried(verdict, writes=writes)

    async def _apply(self, key: AgentKey, inputs: AgentInputs, view: SpecView, verdict: Verdict) -> _Carried:
        desired = build_desired(inputs)
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
        writes += await self._clean_up(key, inputs.uid, desired.revision)
        return _Carried(verdict, desired.revision, writes, recheck_in=WAITING_PAUSE if plan.waiting else None)

    def _runs(self, key: AgentKey, revision: str) -> bool:
        """Whether the agent's Deployment is of this revision already."""
        deployment = observe_deployment(self._cache, key)
        if deployment is None:
            return False
        template = deployment.body["spec"]["template"]["metadata"].get("labels") or {}
        return bool(template.get(labels.LABEL_REVISION) == revision)

    async def _clean_up(self, key: AgentKey, uid: str, revision: str) -> tuple[str, ...]:
        old, in_use = await observe_old_revisions(self._cluster, self._cache, key, uid, revision)
        return await apply_plan(self._cluster, self._cache, key, uid, plan_cleanup(old, in_use) if old else Plan())

    async def _write_status(self, key: AgentKey, body: Object, view: SpecView, carried: _Carried) -> Outcome:
        observation = await self._observe(key, body, view, carried)
        before = parse_status(body.get("status"))
        decision = decide(
            build_status(observation, before), before, observation.now,
            counters_interval=self._settings.counters_interval,
        )  # fmt: skip
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
            name=key.name,
            namespace=key.namespace,
            generation=int(metadata.get("generation", 0)),
            verdict=carried.verdict,
            suspended=view.suspended,
            desired=1 if view.replicas is None else view.replicas,
            revision=carried.revision,
            configured_model=view.agent.spec.models[0].display if view.agent is not None else "",
            pods=self._cache.pods(key),
            refusal=carried.refusal or observe_refusal(observe_deployment(self._cache, key)),
            facts=self._facts.facts(UUID(metadata["uid"])),
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
