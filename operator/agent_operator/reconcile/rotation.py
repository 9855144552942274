"""Telling pods of changed Secrets: kubelets read mounted ones again at once when something about the pod changes."""

import asyncio
from collections.abc import Mapping
from typing import Any, Final

import structlog

from agent_api import labels
from agent_api.v1alpha1 import Agent
from agent_operator.keys import AgentKey
from agent_operator.kube.port import POD, SECRET, Cluster, Conflict, Forbidden, Invalid, NotFound
from agent_operator.reconcile.cache import ClusterCache
from agent_operator.reconcile.references import Reference, Referent
from agent_operator.resources.inputs import digest, secret_keys
from agent_operator.status.pods import PodView

log = structlog.get_logger(__name__)

_VERSION_LENGTH: Final = 16


def secrets_version(agent: Agent, found: Mapping[Reference, Referent]) -> str:
    """Return a short value that changes with the Secrets mounted into the agent's pods, "" if there are none."""
    namespace = agent.metadata.namespace
    names = {*secret_keys(agent)}
    if keys := agent.spec.state.encryption.keys_secret_ref:
        names.add(keys.name)
    versions = {name: found[Reference(SECRET, namespace, name)].version for name in names}
    return digest(versions)[:_VERSION_LENGTH] if versions else ""


class SecretRotation:
    """Annotates an agent's pods once per change of its Secrets.

    What is seen first is no change: pods mount what is there when they start, and a new operator has nothing to tell.
    A change while no operator runs is found by the kubelets alone, within their minute.
    """

    def __init__(self, cluster: Cluster, cache: ClusterCache) -> None:
        self._cluster = cluster
        self._cache = cache
        self._seen: dict[AgentKey, str] = {}

    async def tell(self, key: AgentKey, version: str) -> tuple[str, ...]:
        """Let the pods read their Secrets if those changed; return what was written. Raises ApiUnavailable."""
        before = self._seen.get(key)
        if before is None or before == version:
            self._seen[key] = version
            return ()
        pods = [pod for pod in self._cache.pods(key) if not pod.deleting and not pod.finished]
        written = await asyncio.gather(*(self._annotate(key, pod, version) for pod in pods))
        self._seen[key] = version
        return tuple(name for name in written if name)

    def forget(self, key: AgentKey) -> None:
        """Drop what was remembered of an agent that is gone."""
        self._seen.pop(key, None)

    async def _annotate(self, key: AgentKey, pod: PodView, version: str) -> str:
        metadata: dict[str, Any] = {
            "name": pod.name,
            "namespace": key.namespace,
            "uid": pod.uid,
            "annotations": {labels.ANNOTATION_SECRETS: version},
        }
        body = {"apiVersion": POD.api_version, "kind": POD.name, "metadata": metadata}
        try:
            self._cache.put(POD, await self._cluster.merge(POD, body))
        except (NotFound, Conflict):
            return ""
        except (Forbidden, Invalid) as exc:
            # Only quicker is lost: the kubelet looks again by itself.
            log.warning("a pod could not be told of a changed Secret", agent=str(key), pod=pod.name, error=str(exc))
            return ""
        return f"patch Pod/{pod.name} (secrets changed)"
