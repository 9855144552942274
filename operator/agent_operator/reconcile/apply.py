"""Carrying out a plan: the only place that writes children."""

import asyncio
from typing import Final

from agent_api.conditions import Reason
from agent_operator.errors import Stalled, Transient, Waiting
from agent_operator.keys import AgentKey
from agent_operator.kube.port import (
    AGENT,
    AlreadyExists,
    Cluster,
    Conflict,
    Forbidden,
    Invalid,
    NotFound,
    Object,
)
from agent_operator.reconcile.cache import ClusterCache
from agent_operator.reconcile.plan import APPLY, CREATE, DELETE, MERGE, SCALE, Plan, Write
from agent_operator.resources.secrets import generate_api_key, with_api_key
from agent_operator.status.causes import classify_refusal

NAMESPACE_GOING_PAUSE: Final = 60.0


async def apply_plan(cluster: Cluster, cache: ClusterCache, key: AgentKey, uid: str, plan: Plan) -> tuple[str, ...]:
    """Carry out the plan, stage by stage; return what was written.

    Raises: Waiting when the Agent is gone or its namespace goes, Transient when something moved meanwhile, Stalled when
    the API server refuses an object. Writes of the same stage that succeeded stay; planning again finds the rest.
    """
    if plan.creates:
        await _ensure_agent_lives(cluster, key, uid)
    for stage in plan.stages:
        results = await asyncio.gather(*(_write(cluster, cache, write) for write in stage), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result
    return tuple(str(write) for write in plan.writes)


async def _ensure_agent_lives(cluster: Cluster, key: AgentKey, uid: str) -> None:
    """Make sure that nothing is created for an Agent that was deleted while its event was on the way."""
    agent = await cluster.get_metadata(AGENT, key.namespace, key.name)
    if agent is None or agent["metadata"]["uid"] != uid or agent["metadata"].get("deletionTimestamp"):
        raise Waiting("the Agent is gone", retry_after=1.0)


async def _write(cluster: Cluster, cache: ClusterCache, write: Write) -> None:
    try:
        body = await _send(cluster, write)
    except (Conflict, AlreadyExists, NotFound) as exc:
        raise Transient("Conflict", f"{write.kind.name}/{write.name} changed meanwhile: {exc}") from exc
    except Invalid as exc:
        raise Stalled(Reason.INVALID_SPEC, f"{write.kind.name} {write.name} is refused: {exc}") from exc
    except Forbidden as exc:
        if "being terminated" in str(exc):
            raise Waiting("the namespace is being deleted", retry_after=NAMESPACE_GOING_PAUSE) from exc
        raise Stalled(classify_refusal(str(exc)), str(exc)) from exc
    if body is None:
        cache.remove(write.kind, write.body)
    else:
        cache.put(write.kind, body)


async def _send(cluster: Cluster, write: Write) -> Object | None:
    if write.verb == CREATE:
        return await cluster.create(write.kind, with_api_key(write.body, generate_api_key()))
    if write.verb == APPLY:
        return await cluster.apply(write.kind, write.body)
    if write.verb in (SCALE, MERGE):
        return await cluster.merge(write.kind, write.body)
    if write.verb == DELETE:
        metadata = write.body["metadata"]
        await cluster.delete(write.kind, metadata["namespace"], metadata["name"], uid=metadata["uid"])
        return None
    raise AssertionError(f"no such verb: {write.verb}")
