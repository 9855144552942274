"""Is a live object as desired? On the desired object's paths only."""

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_operator.kube.port import DEPLOYMENT
from agent_operator.resources.children import build_desired
from agent_operator.resources.compare import find_difference
from tests.unit.agent_operator.makers import make_inputs


def deployment() -> dict[str, Any]:
    return next(child.body for child in build_desired(make_inputs()).children if child.kind is DEPLOYMENT)


def test_the_same_is_the_same() -> None:
    assert find_difference(deployment(), copy.deepcopy(deployment())) is None


def test_foreign_fields_do_not_matter() -> None:
    live = copy.deepcopy(deployment())
    live["metadata"]["annotations"]["team"] = "blue"
    live["metadata"]["finalizers"] = ["example.com/x"]
    live["spec"]["minReadySeconds"] = 5
    pod = live["spec"]["template"]["spec"]
    pod["containers"].insert(0, {"name": "sidecar", "image": "proxy"})
    pod["containers"][1]["env"].insert(0, {"name": "EXTRA", "value": "1"})
    pod["dnsPolicy"] = "ClusterFirst"
    assert find_difference(deployment(), live) is None


@pytest.mark.parametrize(
    ("path", "change"),
    [
        ("spec.replicas", lambda live: live["spec"].update(replicas=5)),
        (
            "spec.template.spec.containers[runtime].image",
            lambda live: live["spec"]["template"]["spec"]["containers"][0].update(image="evil"),
        ),
        (
            "spec.template.spec.containers[runtime].env[ABIDE_MANIFEST]",
            lambda live: live["spec"]["template"]["spec"]["containers"][0].update(env=[]),
        ),
        (
            "spec.template.spec.containers[runtime].securityContext.capabilities.drop",
            lambda live: live["spec"]["template"]["spec"]["containers"][0]["securityContext"]["capabilities"].update(
                drop=[]
            ),
        ),
        ("metadata.labels.abide.dev/agent", lambda live: live["metadata"]["labels"].pop("abide.dev/agent")),
        ("metadata.ownerReferences", lambda live: live["metadata"].pop("ownerReferences")),
    ],
)
def test_a_changed_owned_field_is_named(path: str, change: Any) -> None:
    live = copy.deepcopy(deployment())
    change(live)
    found = find_difference(deployment(), live)
    assert found is not None
    assert found.startswith(path)


@pytest.mark.parametrize(
    ("desired", "live", "same"),
    [
        ("0.5", "500m", True),
        ("1024Mi", "1Gi", True),
        ("1", "1", True),
        ("1000m", "1", True),
        ("256Mi", "257Mi", False),
        ("1G", "1Gi", False),
    ],
)
def test_quantities_are_compared_by_value(desired: str, live: str, same: bool) -> None:
    found = find_difference({"limits": {"memory": desired}}, {"limits": {"memory": live}})
    assert (found is None) is same


def test_empty_mappings_may_be_left_out() -> None:
    assert find_difference({"resources": {}}, {}) is None
    assert find_difference({"resources": {}}, {"resources": None}) is None


def test_false_is_not_zero() -> None:
    assert find_difference({"a": False}, {"a": 0}) == "a"


def test_a_list_named_like_a_merged_one_may_hold_anything() -> None:
    for items in ([None], ["http"], [8080]):
        assert find_difference({"ports": items}, {"ports": list(items)}) is None
    assert find_difference({"ports": [None]}, {"ports": [1]}) == "ports"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(min_size=1, max_size=5), inner, max_size=3),
    max_leaves=12,
)


@given(value=st.dictionaries(st.text(min_size=1, max_size=5), json_values, max_size=4))
def test_everything_equals_its_copy(value: dict[str, Any]) -> None:
    assert find_difference(value, copy.deepcopy(value)) is None
