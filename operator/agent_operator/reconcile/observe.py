"""Reading what a reconcile needs: the Agent, what it refers to, and what exists under its names."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Protocol
from uuid import UUID

from pydantic import ValidationError

from agent_api import labels
from agent_api.conditions import Reason
from agent_api.problems import explain
from agent_api.references import env_secret_refs, mounted_secret_refs
from agent_api.v1alpha1 import PROMPT_MAX_LENGTH, Agent
from agent_operator.keys import AgentKey
from agent_operator.kube.port import (
    CONFIG_MAP,
    DEPLOYMENT,
    REPLICA_SET,
    SECRET,
    Cluster,
    Kind,
    Object,
)
from agent_operator.reconcile.cache import CachedObject, ClusterCache, is_applied
from agent_operator.reconcile.plan import Children, Found, find_old_revisions
from agent_operator.reconcile.references import Reference, References, Referent
from agent_operator.resources.children import Child, Desired
from agent_operator.status.causes import classify_refusal
from agent_operator.status.observed import ACCEPTED, Facts, ProbeResult, Refusal, Verdict
from agent_operator.status.pods import PodView, parse_time

SHOWN_PROBLEMS: Final = 3


class Health(Protocol):
    """What runtimes say about themselves when asked."""

    async def ask(self, key: AgentKey, pods: Sequence[PodView], *, now: datetime) -> Mapping[str, ProbeResult]:
        """Return, by pod uid, the newest answer of each pod that has one, waiting only shortly for fresh ones."""
        ...

    def forget(self, key: AgentKey) -> None:
        """Drop everything known about an agent's pods."""
        ...


class FactsSource(Protocol):
    """What Postgres knows about agents."""

    def facts(self, agent_id: UUID) -> Facts:
        """Return what was last read; never waits."""
        ...


@dataclass(frozen=True, slots=True)
class SpecView:
    """An Agent's spec as far as it can be read: `agent` is None where it is invalid.

    `replicas` is how many pods should run, None where even that cannot be told.
    """

    agent: Agent | None
    verdict: Verdict
    suspended: bool
    replicas: int | None


def parse_agent(body: Object) -> SpecView:
    """Validate a live Agent again: an older CRD, or rules CEL cannot express, may have let something through."""
    content = {key: body[key] for key in ("apiVersion", "kind", "metadata", "spec") if key in body}
    spec: dict[str, Any] = body.get("spec") or {}
    suspended = spec.get("suspend") is True
    try:
        agent = Agent.model_validate(content)
    except ValidationError as error:
        problems = "; ".join(str(problem) for problem in explain(error)[:SHOWN_PROBLEMS])
        replicas = spec.get("replicas", 1)
        known = replicas if isinstance(replicas, int) and replicas >= 0 else None
        return SpecView(None, Verdict(Reason.INVALID_SPEC, f"{problems}."), suspended, 0 if suspended else known)
    return SpecView(agent, ACCEPTED, suspended, 0 if suspended else agent.spec.replicas)


def find_references(agent: Agent) -> dict[Reference, frozenset[str]]:
    """Return what the agent refers to, and which keys it needs there."""
    namespace = agent.metadata.namespace
    wanted: dict[Reference, set[str]] = {}
    for _, ref in [*mounted_secret_refs(agent), *env_secret_refs(agent)]:
        wanted.setdefault(Reference(SECRET, namespace, ref.name), set()).add(ref.key)
    if keys := agent.spec.state.encryption.keys_secret_ref:
        # All keys of it are encryption keys; which ones are needed the runtime knows.
        wanted.setdefault(Reference(SECRET, namespace, keys.name), set())
    if prompt := agent.spec.system_prompt_from:
        ref = prompt.config_map_key_ref
        wanted.setdefault(Reference(CONFIG_MAP, namespace, ref.name), set()).add(ref.key)
    return {reference: frozenset(keys) for reference, keys in wanted.items()}


def judge_references(agent: Agent, found: Mapping[Reference, Referent]) -> Verdict:
    """Return whether everything the agent refers to exists; else the first field that leads nowhere."""
    namespace = agent.metadata.namespace
    for field, ref in [*mounted_secret_refs(agent), *env_secret_refs(agent)]:
        referent = found[Reference(SECRET, namespace, ref.name)]
        if missing := _describe_missing(SECRET, namespace, ref.name, ref.key, referent):
            return Verdict(Reason.SECRET_MISSING, f"{field}: {missing}")
    if (keys := agent.spec.state.encryption.keys_secret_ref) and not found[
        Reference(SECRET, namespace, keys.name)
    ].exists:
        missing = f"Secret {namespace}/{keys.name} does not exist."
        return Verdict(Reason.SECRET_MISSING, f"spec.state.encryption.keysSecretRef: {missing}")
    if prompt := agent.spec.system_prompt_from:
        ref = prompt.config_map_key_ref
        referent = found[Reference(CONFIG_MAP, namespace, ref.name)]
        field = "spec.systemPromptFrom.configMapKeyRef"
        if missing := _describe_missing(CONFIG_MAP, namespace, ref.name, ref.key, referent):
            return Verdict(Reason.CONFIG_MAP_MISSING, f"{field}: {missing}")
        if not referent.values.get(ref.key, "").strip():
            empty = f'key "{ref.key}" of ConfigMap {namespace}/{ref.name} is empty; write the system prompt there.'
            return Verdict(Reason.INVALID_SPEC, f"{field}: {empty}")
        if (length := len(referent.values[ref.key])) > PROMPT_MAX_LENGTH:
            long = f'key "{ref.key}" of ConfigMap {namespace}/{ref.name} has {length} characters'
            return Verdict(Reason.INVALID_SPEC, f"{field}: {long}; write at most {PROMPT_MAX_LENGTH}.")
    return ACCEPTED


def _describe_missing(kind: Kind, namespace: str, name: str, key: str, referent: Referent) -> str:
    if not referent.exists:
        return f"{kind.name} {namespace}/{name} does not exist."
    return "" if key in referent.keys else f'{kind.name} {namespace}/{name} has no key "{key}".'


def resolve_prompt(agent: Agent, found: Mapping[Reference, Referent]) -> str:
    """Return the system prompt, wherever it is written; the agent must have been judged valid."""
    if source := agent.spec.system_prompt_from:
        ref = source.config_map_key_ref
        return found[Reference(CONFIG_MAP, agent.metadata.namespace, ref.name)].values[ref.key]
    return agent.spec.system_prompt or ""


async def resolve_references(
    references: References, key: AgentKey, agent: Agent
) -> tuple[Verdict, Mapping[Reference, Referent]]:
    """Read what the agent refers to. Raises what `Cluster.get` raises."""
    found = await references.resolve(key, find_references(agent))
    return judge_references(agent, found), found


async def observe_children(cluster: Cluster, cache: ClusterCache, key: AgentKey, desired: Desired) -> Children:
    """Return what exists under each name the agent needs.

    What the cache does not hold is looked up: it may be somebody else's, without our label.
    """
    found = await asyncio.gather(
        *(_find_child(cluster, cache.child(key, child.kind, child.name), key, child) for child in desired.children)
    )
    children = {(child.kind, child.name): one for child, one in zip(desired.children, found, strict=True)}
    for kind, name in desired.unwanted:
        if (cached := cache.child(key, kind, name)) is not None:
            children[(kind, name)] = Found(cached.body(), cached.applied)
    return children


async def _find_child(cluster: Cluster, cached: CachedObject | None, key: AgentKey, child: Child) -> Found | None:
    if cached is not None:
        return Found(cached.body(), cached.applied)
    body = await cluster.get_metadata(child.kind, key.namespace, child.name)
    return None if body is None else Found(body, is_applied(body["metadata"]), complete=False)


def observe_deployment(cache: ClusterCache, key: AgentKey) -> Found | None:
    """Return the agent's Deployment as last seen."""
    cached = cache.child(key, DEPLOYMENT, labels.child_name(key.name))
    return None if cached is None else Found(cached.body(), cached.applied)


def observe_refusal(deployment: Found | None) -> Refusal | None:
    """Return why the Deployment cannot create pods, if it says so."""
    conditions = deployment.body.get("status", {}).get("conditions", ()) if deployment is not None else ()
    for condition in conditions:
        if condition.get("type") == "ReplicaFailure" and condition.get("status") == "True":
            message = condition.get("message", "")
            return Refusal(classify_refusal(message), message, parse_time(condition.get("lastTransitionTime")))
    return None


def observe_revisions(cache: ClusterCache, key: AgentKey) -> list[Object]:
    """Return the ConfigMaps of the agent's revisions as last seen."""
    return [cached.body() for cached in cache.children(key, CONFIG_MAP)]


async def observe_old_revisions(
    cluster: Cluster, cache: ClusterCache, key: AgentKey, uid: str, revision: str, limit: int
) -> tuple[list[Object], frozenset[str]]:
    """Return ConfigMaps of old revisions that are too many, and the names of those that something refers to.

    ReplicaSets are only listed when there are too many: a pod of any of them needs its ConfigMap.
    """
    old = find_old_revisions(labels.revision_name(key.name, revision), observe_revisions(cache, key), uid, limit)
    if not old:
        return [], frozenset()
    in_use = {labels.revision_name(key.name, pod.revision) for pod in cache.pods(key)}
    selector = f"{labels.LABEL_AGENT}={key.name}"
    async for page in cluster.list_pages(REPLICA_SET, namespace=key.namespace, selector=selector):
        in_use.update(name for body in page for name in _mounted_config_maps(body))
    return old, frozenset(in_use)


def _mounted_config_maps(replica_set: Object) -> list[str]:
    volumes = replica_set["spec"]["template"]["spec"].get("volumes") or ()
    return [volume["configMap"]["name"] for volume in volumes if "configMap" in volume]
