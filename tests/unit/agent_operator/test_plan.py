"""The plan: state in, writes out; and the law that planning again after applying gives nothing to do."""

import copy
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from agent_operator.kube.port import CONFIG_MAP, DEPLOYMENT, DISRUPTION_BUDGET, SECRET, Kind
from agent_operator.reconcile.cache import seal
from agent_operator.reconcile.plan import (
    APPLY,
    CREATE,
    DELETE,
    MERGE,
    Found,
    Plan,
    count_revision,
    find_old_revisions,
    plan_children,
    plan_cleanup,
    plan_scale,
)
from agent_operator.resources.children import Desired, build_desired
from agent_operator.resources.secrets import with_api_key
from tests.unit.agent_operator.makers import UID, make_agent, make_inputs, stamp
from tests.unit.agent_operator.makers import at as instant

State = dict[tuple[Kind, str], Found | None]


def nothing(desired: Desired) -> State:
    return {(child.kind, child.name): None for child in desired.children}


def live(kind: Kind, body: dict[str, Any], uid: str = "u1") -> Found:
    """Return the sealed body as the API server would hold it."""
    body = copy.deepcopy(body)
    body["metadata"].setdefault("uid", uid)
    if kind is DEPLOYMENT:
        body["spec"]["progressDeadlineSeconds"] = 600
    return Found(body, applied=True)


def carry_out(state: State, plan: Plan) -> State:
    """Apply a plan to a state as the API server would: merge on our paths, keep what is foreign."""
    state = dict(state)
    for write in plan.writes:
        key = (write.kind, write.name)
        if write.verb == DELETE:
            state[key] = None
        elif write.verb == CREATE:
            state[key] = live(write.kind, seal(write.kind, with_api_key(write.body, "secret")))
        else:
            before = state.get(key)
            merged = merge(before.body if before else {}, seal(write.kind, write.body))
            state[key] = live(write.kind, merged)
    return state


def merge(old: Any, new: Any) -> Any:
    if isinstance(old, dict) and isinstance(new, dict):
        return {**old, **{key: merge(old.get(key), value) for key, value in new.items()}}
    return copy.deepcopy(new)


def test_a_new_agent_gets_everything_and_the_deployment_last() -> None:
    desired = build_desired(make_inputs())
    plan = plan_children("support", UID, desired, nothing(desired))
    assert len(plan.writes) == len(desired.children)
    assert [write.kind for write in plan.stages[-1]] == [DEPLOYMENT]
    assert plan.creates
    assert [write.verb for write in plan.writes if write.name.endswith("-api")] == [CREATE]


def test_writes_to_what_exists_carry_its_uid() -> None:
    desired = build_desired(make_inputs())
    state = carry_out(nothing(desired), plan_children("support", UID, desired, nothing(desired)))
    other = build_desired(make_inputs(runtime_image="abide/runtime:2"))
    state = {**nothing(other), **{key: found for key, found in state.items() if key in nothing(other)}}
    plan = plan_children("support", UID, other, state)
    by_kind = {write.kind: write for write in plan.writes}
    assert by_kind[DEPLOYMENT].body["metadata"]["uid"] == "u1"
    assert "uid" not in by_kind[CONFIG_MAP].body["metadata"]


specs = st.fixed_dictionaries(
    {
        "systemPrompt": st.text(min_size=1, max_size=40),
        "replicas": st.integers(0, 3),
        "suspend": st.booleans(),
        "history": st.fixed_dictionaries({"limit": st.integers(1, 10000)}),
        "runtime": st.fixed_dictionaries(
            {
                "image": st.sampled_from(["", "registry.example/abide:7"]),
                "resources": st.fixed_dictionaries(
                    {
                        "requests": st.fixed_dictionaries({"cpu": st.sampled_from(["50m", "0.5", "1"])}),
                        "limits": st.fixed_dictionaries({"memory": st.sampled_from(["256Mi", "1024Mi", "1Gi"])}),
                    }
                ),
            }
        ),
    }
)


@settings(max_examples=60, deadline=None)
@given(first=specs, second=specs)
def test_planning_twice_after_applying_gives_an_empty_plan(first: dict[str, Any], second: dict[str, Any]) -> None:
    state: State = {}
    for spec in (first, second, first):
        desired = build_desired(make_inputs(make_agent(**spec), prompt=spec["systemPrompt"]))
        state = {**nothing(desired), **state}
        state = carry_out(state, plan_children("support", UID, desired, state))
        assert plan_children("support", UID, desired, state) == Plan()


def test_a_foreign_object_stops_everything_and_is_named() -> None:
    desired = build_desired(make_inputs())
    state = nothing(desired)
    owner = {"apiVersion": "v1", "kind": "ConfigMap", "name": "x", "uid": "other", "controller": True}
    for metadata in ({"ownerReferences": [owner]}, {}):
        body = {"metadata": {"name": "agent-support-api", "namespace": "shop", "uid": "x", **metadata}}
        state[(SECRET, "agent-support-api")] = Found(body, applied=False, complete=False)
        plan = plan_children("support", UID, desired, state)
        assert plan.conflict == "Secret shop/agent-support-api"
        assert plan.writes == ()


def test_what_an_earlier_agent_of_that_name_left_is_waited_for() -> None:
    desired = build_desired(make_inputs())
    earlier = build_desired(make_inputs(uid="7d9d9f0c-5a0e-4bd8-9f0e-000000000000"))
    state = nothing(desired)
    service = next(
        child for child in earlier.children if child.name == "agent-support" and child.kind.name == "Service"
    )
    state[(service.kind, service.name)] = live(service.kind, service.body)
    plan = plan_children("support", UID, desired, state)
    assert plan.conflict == ""
    assert plan.waiting == "Service/agent-support is being deleted"
    assert DEPLOYMENT not in [write.kind for write in plan.writes]


def test_an_owner_that_somebody_removed_is_put_back() -> None:
    desired = build_desired(make_inputs())
    state = carry_out(nothing(desired), plan_children("support", UID, desired, nothing(desired)))
    for key, found in state.items():
        assert found is not None
        orphan = copy.deepcopy(found.body)
        del orphan["metadata"]["ownerReferences"]
        plan = plan_children("support", UID, desired, {**state, key: Found(orphan, applied=True)})
        # What cannot change as a whole gets its metadata back by a merge.
        verb = MERGE if key[0] is CONFIG_MAP else APPLY
        assert [(write.verb, write.why) for write in plan.writes] == [(verb, "metadata.ownerReferences")]
        assert verb == APPLY or "data" not in plan.writes[0].body


def test_without_what_it_refers_to_a_new_agent_gets_no_deployment() -> None:
    desired = build_desired(make_inputs())
    plan = plan_children("support", UID, desired, nothing(desired), start=False)
    assert DEPLOYMENT not in [write.kind for write in plan.writes]
    assert len(plan.writes) == len(desired.children) - 1


def test_a_held_deployment_can_still_be_stopped() -> None:
    desired = build_desired(make_inputs())
    found = live(DEPLOYMENT, desired.children[-1].body)
    (write,) = plan_scale(found, UID, 0).writes
    assert write.body["spec"] == {"replicas": 0}
    assert write.body["metadata"]["uid"] == found.uid
    assert plan_scale(found, UID, 1) == Plan()
    assert plan_scale(found, UID, None) == Plan()
    assert plan_scale(found, "somebody else", 0) == Plan()
    assert plan_scale(None, UID, 0) == Plan()


def test_several_pods_get_a_budget_and_a_single_one_loses_it() -> None:
    several, single = (build_desired(make_inputs(make_agent(replicas=count))) for count in (2, 1))
    assert several.unwanted == ()
    state = carry_out(nothing(several), plan_children("support", UID, several, nothing(several)))
    budget = (DISRUPTION_BUDGET, "agent-support")
    assert state[budget] is not None
    plan = plan_children("support", UID, single, state)
    assert [(write.verb, write.kind) for write in plan.writes] == [(DELETE, DISRUPTION_BUDGET), (APPLY, DEPLOYMENT)]
    state = carry_out(state, plan)
    assert plan_children("support", UID, single, state) == Plan()


def test_a_budget_of_somebody_else_stays() -> None:
    single = build_desired(make_inputs())
    state = carry_out(nothing(single), plan_children("support", UID, single, nothing(single)))
    owner = {"apiVersion": "v1", "kind": "ConfigMap", "name": "x", "uid": "other", "controller": True}
    theirs = {"metadata": {"name": "agent-support", "namespace": "shop", "uid": "x", "ownerReferences": [owner]}}
    state[(DISRUPTION_BUDGET, "agent-support")] = Found(theirs, applied=False)
    assert plan_children("support", UID, single, state) == Plan()


def test_the_same_revision_written_otherwise_changes_no_config_map() -> None:
    inline = build_desired(make_inputs(make_agent(systemPrompt="Be brief."), spec={"systemPrompt": "Be brief."}))
    source = {"systemPromptFrom": {"configMapKeyRef": {"name": "prompts", "key": "support"}}}
    referred = build_desired(make_inputs(make_agent(**source), prompt="Be brief.", spec=source))
    assert inline.revision == referred.revision
    state = carry_out(nothing(inline), plan_children("support", UID, inline, nothing(inline)))
    assert plan_children("support", UID, referred, state) == Plan()


def test_an_owner_that_others_added_to_a_config_map_stays() -> None:
    desired = build_desired(make_inputs())
    state = carry_out(nothing(desired), plan_children("support", UID, desired, nothing(desired)))
    name = (CONFIG_MAP, f"agent-support-{desired.revision}")
    found = state[name]
    assert found is not None
    other = {"apiVersion": "v1", "kind": "ConfigMap", "name": "x", "uid": "other"}
    body = copy.deepcopy(found.body)
    body["metadata"]["ownerReferences"] = [other, *body["metadata"]["ownerReferences"]]
    del body["metadata"]["labels"]["abide.dev/revision"]
    plan = plan_children("support", UID, desired, {**state, name: Found(body, applied=True)})
    (write,) = plan.writes
    assert [one["uid"] for one in write.body["metadata"]["ownerReferences"]] == [UID, "other"]


def config_map(number: int, *, uid: str = UID, count: int | None = None) -> dict[str, Any]:
    owner = {"apiVersion": "abide.dev/v1alpha1", "kind": "Agent", "name": "support", "uid": uid, "controller": True}
    return {
        "metadata": {
            "name": f"agent-support-{number:010x}",
            "namespace": "shop",
            "uid": f"u{number}",
            "creationTimestamp": stamp(instant(number)),
            "ownerReferences": [owner],
            **({} if count is None else {"annotations": {"abide.dev/revision-number": str(count)}}),
        }
    }


def test_only_old_unused_revisions_beyond_the_limit_are_deleted() -> None:
    maps = [config_map(number) for number in range(9)] + [config_map(20, uid="other")]
    old = find_old_revisions("agent-support-0000000008", maps, UID, 5)
    assert [body["metadata"]["name"][-1] for body in old] == ["2", "1", "0"]
    plan = plan_cleanup(old, frozenset(("agent-support-0000000001",)))
    assert [(write.verb, write.name[-1]) for write in plan.writes] == [(DELETE, "2"), (DELETE, "0")]


def test_nothing_is_deleted_while_there_are_few() -> None:
    maps = [config_map(number) for number in range(6)]
    assert find_old_revisions("agent-support-0000000005", maps, UID, 5) == []
    assert len(find_old_revisions("agent-support-0000000005", maps, UID, 0)) == 5


def test_age_is_when_a_revision_was_current_last_and_not_when_it_was_made() -> None:
    maps = [config_map(0, count=5), config_map(1, count=2), config_map(2, count=3), config_map(3, count=6)]
    old = find_old_revisions("agent-support-0000000003", maps, UID, 1)
    assert [body["metadata"]["name"][-1] for body in old] == ["2", "1"]


def test_the_number_grows_each_time_a_revision_becomes_the_current_one() -> None:
    maps = [config_map(0, count=1), config_map(1, count=2), config_map(9, uid="other", count=70)]
    assert count_revision("agent-support-0000000001", maps, UID) == 2
    assert count_revision("agent-support-0000000000", maps, UID) == 3
    assert count_revision("agent-support-0000000005", maps, UID) == 3
    assert count_revision("agent-support-0000000005", [], UID) == 1
    assert count_revision("agent-support-0000000004", [config_map(4)], UID) == 1
