"""The cache: what it keeps, whom it wakes, what it forgets."""

import copy
import json
from typing import Any

from agent_operator.keys import AgentKey
from agent_operator.kube.port import AGENT, CONFIG_MAP, DEPLOYMENT, POD, SECRET, SERVICE
from agent_operator.reconcile.cache import ClusterCache, to_cached
from agent_operator.resources.children import build_desired
from tests.unit.agent_operator.makers import UID, make_inputs, pod_body

KEY = AgentKey("shop", "support")


def agent_body(version: int = 1, **changes: Any) -> dict[str, Any]:
    metadata = {"name": "support", "namespace": "shop", "uid": UID, "resourceVersion": str(version), "generation": 1}
    return {"apiVersion": "abide.dev/v1alpha1", "kind": "Agent", "metadata": metadata, "spec": {}, **changes}


def child_body(kind: Any, version: int = 1) -> dict[str, Any]:
    body = copy.deepcopy(next(child.body for child in build_desired(make_inputs()).children if child.kind is kind))
    body["metadata"] |= {"uid": f"uid-{kind.plural}", "resourceVersion": str(version), "managedFields": [{"x": 1}]}
    return body


def test_an_agent_wakes_itself_once_per_version() -> None:
    cache = ClusterCache()
    assert cache.put(AGENT, agent_body(5)) == KEY
    assert cache.put(AGENT, agent_body(5)) is None
    assert cache.put(AGENT, agent_body(4, spec={"late": True})) is None
    cached = cache.agent(KEY)
    assert cached is not None
    assert cached.body()["spec"] == {}


def test_only_the_version_changed_is_no_news_but_is_remembered() -> None:
    cache = ClusterCache()
    cache.put(DEPLOYMENT, child_body(DEPLOYMENT, 1))
    changed = child_body(DEPLOYMENT, 2) | {"status": {"readyReplicas": 1}}
    assert cache.put(DEPLOYMENT, changed) is None
    child = cache.child(KEY, DEPLOYMENT, "agent-support")
    assert child is not None
    assert child.version == 2


def test_a_changed_child_wakes_its_agent() -> None:
    cache = ClusterCache()
    cache.put(SERVICE, child_body(SERVICE, 1))
    changed = child_body(SERVICE, 2)
    changed["spec"]["ports"][0]["port"] = 9
    assert cache.put(SERVICE, changed) == KEY


def test_a_child_whose_label_was_changed_still_belongs_to_its_agent() -> None:
    cache = ClusterCache()
    cache.put(SERVICE, child_body(SERVICE, 1))
    stolen = child_body(SERVICE, 2)
    stolen["metadata"]["labels"]["abide.dev/agent"] = "other"
    assert cache.put(SERVICE, stolen) == KEY
    assert cache.child(AgentKey("shop", "other"), SERVICE, "agent-support") is None


def test_contents_of_secrets_and_config_maps_are_not_kept() -> None:
    for kind in (SECRET, CONFIG_MAP):
        body = child_body(kind)
        body["data"] = {"k": "aHVudGVyMg=="}
        assert b"aHVudGVyMg" not in to_cached(kind, body).content
        assert json.loads(to_cached(kind, body).content)["data"].keys() == {"k"}


def test_a_failure_to_create_pods_is_kept_and_the_rest_of_status_is_not() -> None:
    body = child_body(DEPLOYMENT)
    failure = {"type": "ReplicaFailure", "status": "True", "message": "exceeded quota"}
    body["status"] = {"replicas": 3, "conditions": [{"type": "Available", "status": "True"}, failure]}
    assert to_cached(DEPLOYMENT, body).body()["status"] == {"conditions": [failure]}


def test_deletion_of_an_earlier_object_of_that_name_changes_nothing() -> None:
    cache = ClusterCache()
    cache.put(SERVICE, child_body(SERVICE, 3))
    earlier = child_body(SERVICE, 2)
    earlier["metadata"]["uid"] = "earlier"
    assert cache.remove(SERVICE, earlier) is None
    assert cache.child(KEY, SERVICE, "agent-support") is not None
    assert cache.put(SERVICE, child_body(SERVICE, 4)) is None
    assert cache.remove(SERVICE, child_body(SERVICE, 4)) == KEY
    assert cache.remove(SERVICE, child_body(SERVICE, 4)) is None


def test_a_listing_shows_what_is_gone_but_not_what_came_meanwhile() -> None:
    cache = ClusterCache()
    cache.put(POD, pod_body("old"))
    before = cache.known_uids(POD)
    cache.put(POD, pod_body("new"))
    assert cache.drop_missing(POD, before, present=set()) == {KEY}
    assert [pod.name for pod in cache.pods(KEY)] == ["new"]


def test_nothing_is_left_of_what_is_gone() -> None:
    cache = ClusterCache()
    cache.put(AGENT, agent_body())
    bodies = [(kind, child_body(kind)) for kind in (SERVICE, DEPLOYMENT, SECRET)] + [(POD, pod_body())]
    for kind, body in bodies:
        cache.put(kind, body)
    assert cache.statistics() == {"agents": 1, "children": 3, "pods": 1}
    for kind, body in [*bodies, (AGENT, agent_body())]:
        assert cache.remove(kind, body) == KEY
    assert cache.statistics() == {"agents": 0, "children": 0, "pods": 0}
    assert cache.keys() == set()
    remembered = ("_deleted",)
    left = {name: value for name, value in vars(cache).items() if name not in remembered}
    assert left == {name: value for name, value in vars(ClusterCache()).items() if name not in remembered}


def test_pods_wake_only_when_something_that_counts_changed() -> None:
    cache = ClusterCache()
    assert cache.put(POD, pod_body(version=1)) == KEY
    assert cache.put(POD, pod_body(version=2)) is None
    assert cache.put(POD, pod_body(version=3, ready=True)) == KEY


def test_the_answer_to_a_write_does_not_bring_back_what_was_deleted_meanwhile() -> None:
    cache = ClusterCache()
    cache.put(SERVICE, child_body(SERVICE, 3))
    cache.remove(SERVICE, child_body(SERVICE, 5))
    assert cache.put(SERVICE, child_body(SERVICE, 4)) is None
    assert cache.child(KEY, SERVICE, "agent-support") is None
    assert cache.put(SERVICE, child_body(SERVICE, 6)) == KEY


def test_news_of_an_earlier_object_do_not_replace_its_successor() -> None:
    cache = ClusterCache()
    cache.put(AGENT, agent_body(9))
    earlier = agent_body(8)
    earlier["metadata"]["uid"] = "earlier"
    assert cache.put(AGENT, earlier) is None
    assert cache.agents() == {KEY: UID}
