"""From what is desired and what is there to what must be written: pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from agent_api import labels
from agent_operator.kube.port import CONFIG_MAP, DEPLOYMENT, Kind, Object
from agent_operator.reconcile.cache import seal
from agent_operator.resources.children import Child, Desired
from agent_operator.resources.compare import find_difference


@dataclass(frozen=True, slots=True)
class Found:
    """A live object under a name the agent needs. `complete` is False where only its metadata was read."""

    body: Object
    applied: bool
    complete: bool = True

    @property
    def uid(self) -> str:
        """Return the object's uid."""
        return str(self.body["metadata"]["uid"])

    @property
    def deleting(self) -> bool:
        """Whether the object is on its way out."""
        return "deletionTimestamp" in self.body["metadata"]


Children = Mapping[tuple[Kind, str], Found | None]
"""What is there under each name the agent needs."""


class Ownership(Enum):
    """Whose an object is."""

    OURS = "ours"
    FOREIGN = "foreign"
    LEFTOVER = "leftover"


@dataclass(frozen=True, slots=True)
class Write:
    """One write. `why` says what differs, for the log; `uid` guards against a successor of what was seen."""

    verb: str
    kind: Kind
    body: Object = field(repr=False)
    why: str = ""

    @property
    def name(self) -> str:
        """Return the object's name."""
        return str(self.body["metadata"]["name"])

    def __str__(self) -> str:
        """Return `verb kind/name (why)`."""
        return f"{self.verb} {self.kind.name}/{self.name}" + (f" ({self.why})" if self.why else "")


CREATE, APPLY, MERGE, SCALE, DELETE = "create", "apply", "merge", "scale", "delete"


@dataclass(frozen=True, slots=True)
class Plan:
    """What to write, in stages: those of one stage do not depend on each other.

    `conflict` names an object that stands in the way and belongs to somebody else; nothing is written then. `waiting`
    says what must go first.
    """

    stages: tuple[tuple[Write, ...], ...] = ()
    conflict: str = ""
    waiting: str = ""

    @property
    def writes(self) -> tuple[Write, ...]:
        """Return all writes in order."""
        return tuple(write for stage in self.stages for write in stage)

    @property
    def creates(self) -> bool:
        """Whether something new would come into being."""
        return any(not write.body["metadata"].get("uid") for write in self.writes)


def decide_ownership(found: Found, child: Child, agent: str, uid: str) -> Ownership:
    """Return whose a live object is.

    Ours: controlled by this Agent's uid, or controlled by nobody, but written by the operator with exactly what it is
    to be now (somebody removed the owner). Leftover: of an earlier Agent of the same name, about to be collected.
    """
    metadata = found.body["metadata"]
    controller = next((one for one in metadata.get("ownerReferences") or () if one.get("controller")), None)
    if controller is None:
        annotations = metadata.get("annotations") or {}
        mine = child.body["metadata"]["annotations"][labels.ANNOTATION_SPEC_HASH]
        same = found.applied and annotations.get(labels.ANNOTATION_SPEC_HASH) == mine
        return Ownership.OURS if same else Ownership.FOREIGN
    if controller["uid"] == uid:
        return Ownership.OURS
    group = str(controller.get("apiVersion", "")).partition("/")[0]
    if group == labels.GROUP and controller.get("kind") == labels.KIND and controller.get("name") == agent:
        return Ownership.LEFTOVER
    return Ownership.FOREIGN


def plan_children(agent: str, uid: str, desired: Desired, children: Children, *, start: bool = True) -> Plan:
    """Plan the writes that make an agent's objects as desired; nothing to do gives no writes.

    With `start` False the Deployment is left as it is, or not made at all: the spec cannot be carried out now.
    """
    first: list[Write] = []
    last: list[Write] = []
    waiting = ""
    for child in desired.children:
        found = children[(child.kind, child.name)]
        if found is not None:
            ownership = decide_ownership(found, child, agent, uid)
            if ownership is Ownership.FOREIGN:
                return Plan(conflict=f"{child.kind.name} {child.body['metadata']['namespace']}/{child.name}")
            if ownership is Ownership.LEFTOVER or found.deleting:
                waiting = waiting or f"{child.kind.name}/{child.name} is being deleted"
                continue
        if child.kind is DEPLOYMENT:
            if start and (write := _plan_child(child, found)):
                last.append(write)
        elif write := _plan_child(child, found):
            first.append(write)
    first += _plan_unwanted(uid, desired, children)
    if waiting:
        # Without one of the others the new pods would not start.
        last = []
    return Plan(tuple(stage for stage in (tuple(first), tuple(last)) if stage), waiting=waiting)


def _plan_unwanted(uid: str, desired: Desired, children: Children) -> list[Write]:
    """Plan to delete what the agent had and is not to have any more; what is not its own stays."""
    found = [(kind, children.get((kind, name))) for kind, name in desired.unwanted]
    return [
        Write(DELETE, kind, one.body, "not wanted any more")
        for kind, one in found
        if one is not None and not one.deleting and is_owned(one.body, uid)
    ]


def is_owned(body: Object, uid: str) -> bool:
    """Whether an object is controlled by the owner of this uid."""
    owners = body["metadata"].get("ownerReferences") or ()
    return any(one["uid"] == uid for one in owners if one.get("controller"))


def _plan_child(child: Child, found: Found | None) -> Write | None:
    if found is None:
        return Write(CREATE if child.generated else APPLY, child.kind, child.body, "absent")
    if child.frozen:
        return _plan_frozen(child, found)
    difference = "labels" if not found.complete else find_difference(seal(child.kind, child.body), found.body)
    return Write(APPLY, child.kind, _guarded(child.body, found.uid), difference) if difference else None


def _plan_frozen(child: Child, found: Found) -> Write | None:
    """Plan to put the metadata right by a merge: an apply would have to repeat content that may not change."""
    metadata = child.body["metadata"]
    difference = find_difference({"metadata": metadata}, found.body) if found.complete else "labels"
    if not difference:
        return None
    mine = {one["uid"] for one in metadata["ownerReferences"]}
    # A merge replaces lists as a whole; owners that others added stay.
    others = [one for one in found.body["metadata"].get("ownerReferences") or () if one["uid"] not in mine]
    body = {
        "apiVersion": child.kind.api_version,
        "kind": child.kind.name,
        "metadata": {**metadata, "ownerReferences": [*metadata["ownerReferences"], *others]},
    }
    return Write(MERGE, child.kind, _guarded(body, found.uid), difference)


def _guarded(body: Object, uid: str) -> Object:
    """Return the object with the uid it must have, so that the write fails if that one is gone."""
    return {**body, "metadata": {**body["metadata"], "uid": uid}}


def plan_scale(deployment: Found | None, uid: str, replicas: int | None) -> Plan:
    """Plan to give an agent's Deployment its replicas and to leave the rest as it is.

    For specs that cannot be carried out: stopping the pods must still be possible.
    """
    if deployment is None or replicas is None or deployment.deleting:
        return Plan()
    metadata = deployment.body["metadata"]
    if not is_owned(deployment.body, uid) or deployment.body.get("spec", {}).get("replicas") == replicas:
        return Plan()
    body: dict[str, Any] = {
        "apiVersion": DEPLOYMENT.api_version,
        "kind": DEPLOYMENT.name,
        "metadata": {"name": metadata["name"], "namespace": metadata["namespace"], "uid": metadata["uid"]},
        "spec": {"replicas": replicas},
    }
    return Plan(((Write(SCALE, DEPLOYMENT, body, f"replicas {replicas}"),),))


def number_of(config_map: Object) -> int:
    """Return the number of a revision's ConfigMap, 0 where it has none that can be read."""
    text = (config_map["metadata"].get("annotations") or {}).get(labels.ANNOTATION_REVISION_NUMBER, "")
    return int(text) if text.isdecimal() else 0


def count_revision(name: str, config_maps: list[Object], uid: str) -> int:
    """Return the number that the revision of this ConfigMap is to have, which is to be the current one.

    One that is the newest already keeps its number; every other, also one that was current long ago, gets the next.
    """
    numbers = {body["metadata"]["name"]: number_of(body) for body in config_maps if is_owned(body, uid)}
    newest, own = max(numbers.values(), default=0), numbers.get(name, 0)
    return own if own and own == newest else newest + 1


def find_old_revisions(current: str, config_maps: list[Object], uid: str, limit: int) -> list[Object]:
    """Return the agent's own ConfigMaps of old revisions beyond the `limit` that were current last."""
    mine = [
        body
        for body in config_maps
        if body["metadata"]["name"] != current and "deletionTimestamp" not in body["metadata"] and is_owned(body, uid)
    ]

    def age(body: Object) -> tuple[int, str, str]:
        return number_of(body), body["metadata"]["creationTimestamp"], body["metadata"]["name"]

    return sorted(mine, key=age, reverse=True)[limit:]


def plan_cleanup(old: list[Object], in_use: frozenset[str]) -> Plan:
    """Plan to delete old ConfigMaps that neither a ReplicaSet nor a pod refers to."""
    writes = tuple(
        Write(DELETE, CONFIG_MAP, body, "old revision") for body in old if body["metadata"]["name"] not in in_use
    )
    return Plan((writes,) if writes else ())
