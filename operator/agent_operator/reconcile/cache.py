"""What the operator last saw of the cluster: fed by watch events, by its own writes and by the sweep.

Objects are kept as compact JSON without what nobody compares, so that thousands of agents fit into little memory;
contents of Secrets and ConfigMaps are kept as digests only. The cache may lag behind: nothing is created or deleted on
its word alone.
"""

import json
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from agent_api.labels import FIELD_MANAGER, LABEL_AGENT
from agent_operator.keys import AgentKey
from agent_operator.kube.port import AGENT, CONFIG_MAP, DEPLOYMENT, POD, SECRET, Kind, Object
from agent_operator.resources.inputs import digest
from agent_operator.status.pods import PodView, parse_pod

_UNCOMPARED: Final = frozenset(("managedFields", "generation", "resourceVersion", "selfLink", "generateName"))
DELETIONS_REMEMBERED: Final = 4096
_KUBECTL_COPY: Final = "kubectl.kubernetes.io/last-applied-configuration"


@dataclass(frozen=True, slots=True)
class CachedObject:
    """One object as last seen. `controller` is the uid of its controlling owner, "" without one.

    `applied` tells whether the operator's field manager owns fields of it.
    """

    kind: Kind
    namespace: str
    name: str
    uid: str
    version: int
    controller: str
    deleting: bool
    applied: bool
    content: bytes

    def body(self) -> Object:
        """Return the object without what nobody compares; contents of Secrets and ConfigMaps are digests."""
        return dict(json.loads(self.content))


def seal(kind: Kind, body: Object) -> Object:
    """Return the object with the contents of a Secret or ConfigMap replaced by digests, fit to compare and to keep."""
    if kind not in (SECRET, CONFIG_MAP) or not body.get("data"):
        return body
    return {**body, "data": {key: digest(value) for key, value in body["data"].items()}}


def controller_of(metadata: Object) -> str:
    """Return the uid of the controlling owner, "" if there is none."""
    for reference in metadata.get("ownerReferences") or ():
        if reference.get("controller"):
            return str(reference["uid"])
    return ""


def is_applied(metadata: Object) -> bool:
    """Tell whether the operator's field manager owns fields of the object."""
    return any(entry.get("manager") == FIELD_MANAGER for entry in metadata.get("managedFields") or ())


def to_cached(kind: Kind, body: Object) -> CachedObject:
    """Return what the cache keeps of a live object."""
    metadata = body["metadata"]
    return CachedObject(
        kind=kind,
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid=metadata["uid"],
        version=int(metadata["resourceVersion"]),
        controller=controller_of(metadata),
        deleting=bool(metadata.get("deletionTimestamp")),
        applied=is_applied(metadata),
        content=json.dumps(_slim(kind, body), separators=(",", ":"), ensure_ascii=False).encode(),
    )


def _slim(kind: Kind, body: Object) -> Object:
    drop = _UNCOMPARED - {"generation"} if kind is AGENT else _UNCOMPARED
    metadata = {key: value for key, value in body["metadata"].items() if key not in drop}
    if annotations := metadata.get("annotations"):
        metadata["annotations"] = {key: value for key, value in annotations.items() if key != _KUBECTL_COPY}
    slim = {**seal(kind, body), "metadata": metadata}
    if kind is AGENT:
        return slim
    slim.pop("status", None)
    if kind is DEPLOYMENT:
        conditions = (body.get("status") or {}).get("conditions") or ()
        failures = [condition for condition in conditions if condition.get("type") == "ReplicaFailure"]
        if failures:
            slim["status"] = {"conditions": failures}
    return slim


class ClusterCache:
    """Agents, their children and their pods, each found by its Agent.

    Versions only rise (resourceVersion is one growing number for all objects of a kind, and comparing it is part of the
    API since Kubernetes 1.35), so that an event that overtook another, or the answer to our own write, is not undone by
    the late one. For the same reason deletions are remembered for a while.
    """

    def __init__(self) -> None:
        self._agents: dict[AgentKey, CachedObject] = {}
        self._children: dict[AgentKey, dict[tuple[str, str], CachedObject]] = {}
        self._pods: dict[AgentKey, dict[str, PodView]] = {}
        self._owners: dict[tuple[str, str, str], AgentKey] = {}
        self._deleted: OrderedDict[tuple[str, str, str], int] = OrderedDict()

    def put(self, kind: Kind, body: Object) -> AgentKey | None:
        """Remember a live object; return the Agent to look at, or None if nothing of interest changed."""
        metadata = body["metadata"]
        name = (kind.key, metadata["namespace"], metadata["name"])
        if self._deleted.get(name, 0) >= int(metadata["resourceVersion"]):
            return None
        if kind is AGENT:
            return self._put_agent(body)
        key = self._owner(kind, body["metadata"])
        if key is None:
            return None
        return self._put_pod(key, body) if kind is POD else self._put_child(key, kind, body)

    def remove(self, kind: Kind, body: Object) -> AgentKey | None:
        """Forget an object that is gone; return the Agent to look at, or None if it was not known (any more)."""
        metadata = body["metadata"]
        if version := metadata.get("resourceVersion"):
            self._deleted[(kind.key, metadata["namespace"], metadata["name"])] = int(version)
            if len(self._deleted) > DELETIONS_REMEMBERED:
                self._deleted.popitem(last=False)
        return self._remove(kind, metadata["namespace"], metadata["name"], metadata["uid"])

    def _remove(self, kind: Kind, namespace: str, name: str, uid: str) -> AgentKey | None:
        if kind is AGENT:
            key = AgentKey(namespace, name)
            known = self._agents.get(key)
            if known is None or known.uid != uid:
                return None
            del self._agents[key]
            return key
        owner = self._owners.get((kind.key, namespace, name))
        if owner is None:
            return None
        if kind is POD:
            pod = self._pods.get(owner, {}).get(name)
            if pod is None or pod.uid != uid:
                return None
            del self._pods[owner][name]
            if not self._pods[owner]:
                del self._pods[owner]
        else:
            child = self._children.get(owner, {}).get((kind.key, name))
            if child is None or child.uid != uid:
                return None
            del self._children[owner][(kind.key, name)]
            if not self._children[owner]:
                del self._children[owner]
        del self._owners[(kind.key, namespace, name)]
        return owner

    def drop_missing(self, kind: Kind, before: set[str], present: set[str]) -> set[AgentKey]:
        """Forget what a complete listing of a kind did not show; return the Agents to look at.

        `before` are the uids known when the listing began: what appeared meanwhile is not in it and not gone.
        """
        gone = [(namespace, name, uid) for namespace, name, uid in self._known(kind) if uid in before - present]
        return {key for namespace, name, uid in gone if (key := self._remove(kind, namespace, name, uid))}

    def known_uids(self, kind: Kind) -> set[str]:
        """Return the uids of all objects of a kind."""
        return {uid for _, _, uid in self._known(kind)}

    def _known(self, kind: Kind) -> Iterator[tuple[str, str, str]]:
        if kind is AGENT:
            for key, agent in self._agents.items():
                yield key.namespace, key.name, agent.uid
            return
        for (plural, namespace, name), key in self._owners.items():
            if plural == kind.key:
                if kind is POD:
                    yield namespace, name, self._pods[key][name].uid
                else:
                    yield namespace, name, self._children[key][(plural, name)].uid

    def agent(self, key: AgentKey) -> CachedObject | None:
        """Return the Agent, or None."""
        return self._agents.get(key)

    def states(self) -> Iterator[tuple[AgentKey, int, bytes]]:
        """Yield key, version and content (JSON) of every Agent."""
        return ((key, agent.version, agent.content) for key, agent in self._agents.items())

    def agents(self) -> dict[AgentKey, str]:
        """Return the uid of every Agent."""
        return {key: agent.uid for key, agent in self._agents.items()}

    def keys(self) -> set[AgentKey]:
        """Return every Agent that is known, or of which something is left."""
        return {*self._agents, *self._children, *self._pods}

    def child(self, key: AgentKey, kind: Kind, name: str) -> CachedObject | None:
        """Return one object of an Agent, or None."""
        return self._children.get(key, {}).get((kind.key, name))

    def children(self, key: AgentKey, kind: Kind) -> list[CachedObject]:
        """Return an Agent's objects of one kind."""
        return [child for (plural, _), child in self._children.get(key, {}).items() if plural == kind.key]

    def pods(self, key: AgentKey) -> tuple[PodView, ...]:
        """Return an Agent's pods, oldest first."""
        return tuple(sorted(self._pods.get(key, {}).values(), key=lambda pod: (pod.created_at, pod.name)))

    def statistics(self) -> dict[str, int]:
        """Return how many agents, children and pods are known."""
        return {
            "agents": len(self._agents),
            "children": sum(len(children) for children in self._children.values()),
            "pods": sum(len(pods) for pods in self._pods.values()),
        }

    def _owner(self, kind: Kind, metadata: Object) -> AgentKey | None:
        """Return the Agent an object says it belongs to, else the one it belonged to when last seen."""
        name = (metadata.get("labels") or {}).get(LABEL_AGENT)
        known = self._owners.get((kind.key, metadata["namespace"], metadata["name"]))
        if known is not None:
            # Somebody who changes the label takes nothing away from its Agent: the reconcile puts it back.
            return known
        return AgentKey(metadata["namespace"], name) if name else None

    def _put_agent(self, body: Object) -> AgentKey | None:
        fresh = to_cached(AGENT, body)
        key = AgentKey(fresh.namespace, fresh.name)
        known = self._agents.get(key)
        if known is not None and known.version >= fresh.version:
            return None
        self._agents[key] = fresh
        return None if known is not None and known.content == fresh.content else key

    def _put_child(self, key: AgentKey, kind: Kind, body: Object) -> AgentKey | None:
        fresh = to_cached(kind, body)
        children = self._children.setdefault(key, {})
        known = children.get((kind.key, fresh.name))
        if known is not None and known.version >= fresh.version:
            return None
        children[(kind.key, fresh.name)] = fresh
        self._owners[(kind.key, fresh.namespace, fresh.name)] = key
        return None if known is not None and _same_child(known, fresh) else key

    def _put_pod(self, key: AgentKey, body: dict[str, Any]) -> AgentKey | None:
        fresh = parse_pod(body)
        pods = self._pods.setdefault(key, {})
        known = pods.get(fresh.name)
        if known is not None and known.version >= fresh.version:
            return None
        pods[fresh.name] = fresh
        self._owners[(POD.key, key.namespace, fresh.name)] = key
        return None if known is not None and known.same_as(fresh) else key


def _same_child(known: CachedObject, fresh: CachedObject) -> bool:
    return known.content == fresh.content and known.deleting == fresh.deleting and known.uid == fresh.uid
