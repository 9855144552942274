"""Revisions: which there are, what changed between them, where a rollback goes and what it writes."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_cli.errors import CliError
from agent_cli.operate.history import choose_pair, describe_history, unified_diff
from agent_cli.operate.revisions import (
    Change,
    Revision,
    current_revision,
    find_changes,
    find_revision,
    parse_revisions,
    rollback_target,
    summarize,
)
from agent_cli.operate.rollback import plan_rollback

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(min_size=1, max_size=3), inner, max_size=3),
    max_leaves=8,
)


def revision(number: int, name: str, **spec: Any) -> Revision:
    full = {"systemPrompt": "Be kind.", "models": [{"provider": "echo"}], "replicas": 1, **spec}
    return Revision(number, name, None, full, {**full, "systemPrompt": full.get("systemPrompt", "Be kind.")})


def agent(current: str = "", ready: str = "", **spec: Any) -> dict[str, Any]:
    status = {"revision": {"current": current, "ready": ready}}
    return {"metadata": {"name": "bot", "namespace": "shop"}, "spec": spec, "status": status}


THREE = [revision(3, "cccc", history={"limit": 3}), revision(2, "bbbb"), revision(1, "aaaa", replicas=5)]


def config_map(name: str, number: str | None, created: str, **data: str) -> dict[str, Any]:
    return {
        "metadata": {
            "name": f"agent-bot-{name}",
            "creationTimestamp": created,
            "labels": {"abide.dev/revision": name},
            "annotations": {"abide.dev/revision-number": number} if number else {},
        },
        "data": {"agent.json": json.dumps({"spec": {"systemPrompt": "p"}}), **data},
    }


def test_config_maps_become_revisions_and_what_is_none_is_passed_over() -> None:
    found = list(
        parse_revisions(
            [
                config_map("bbbb", None, "2026-01-02T00:00:00Z"),
                config_map("aaaa", "7", "2026-01-01T00:00:00Z", **{"spec.json": '{"replicas": 2}'}),
                {"metadata": {"name": "other"}, "data": {"agent.json": "{}"}},
                {**config_map("cccc", "1", "2026-01-03T00:00:00Z"), "data": {"agent.json": "no json"}},
            ]
        )
    )
    assert [(one.number, one.name, one.spec) for one in found] == [(7, "aaaa", {"replicas": 2}), (2, "bbbb", None)]
    assert found[1].comparable == {"systemPrompt": "p"}


def test_a_revision_is_found_by_number_name_or_the_start_of_a_name() -> None:
    for wanted in ("2", "#2", "bbbb"):
        assert find_revision(THREE, wanted, agent()).number == 2
    long = [revision(1, "abcdef0123"), revision(2, "abcd999999")]
    assert find_revision(long, "abcde", agent()).number == 1
    for wanted in ("abcd", "zz", "9"):
        with pytest.raises(CliError, match="kept are: 1"):
            find_revision(long, wanted, agent())


def test_a_rollback_goes_to_what_serves_else_one_back() -> None:
    assert rollback_target(THREE, agent("cccc", "cccc")).number == 2
    assert rollback_target(THREE, agent("cccc", "aaaa")).number == 1
    assert rollback_target(THREE, agent("bbbb", "bbbb")).number == 1
    with pytest.raises(CliError, match="no older revision"):
        rollback_target(THREE, agent("aaaa", "aaaa"))
    assert current_revision(THREE, agent("gone")) == THREE[0]
    assert current_revision([], agent()) is None


def test_a_rollback_keeps_replicas_and_suspend() -> None:
    plan = plan_rollback(THREE[2], agent(replicas=9, suspend=True), None)
    assert (plan.spec["replicas"], plan.spec["suspend"], plan.inlined) == (9, True, "")
    assert "replicas" not in plan_rollback(THREE[2], agent(), None).spec


def test_a_rollback_keeps_what_is_to_become_of_the_state() -> None:
    old = Revision(1, "aaaa", None, {"state": {"deletionPolicy": "Delete", "autoSaveEveryMessages": 2}}, {})
    kept = plan_rollback(old, agent(state={"deletionPolicy": "Retain"}, revisionHistoryLimit=9), None).spec
    assert kept == {"state": {"deletionPolicy": "Retain", "autoSaveEveryMessages": 2}, "revisionHistoryLimit": 9}
    assert plan_rollback(old, agent(), None).spec["state"] == {"autoSaveEveryMessages": 2}


@pytest.mark.parametrize(
    ("present", "words"), [("Be kind.", ""), ("Other.", "has another text now"), (None, "is gone")]
)
def test_a_prompt_that_is_not_there_as_it_ran_is_written_inline(present: str | None, words: str) -> None:
    source = {"configMapKeyRef": {"name": "prompts", "key": "bot"}}
    old = Revision(1, "aaaa", None, {"systemPromptFrom": source}, {"systemPrompt": "Be kind."})
    plan = plan_rollback(old, agent(), present)
    assert plan.spec == ({"systemPrompt": "Be kind."} if words else {"systemPromptFrom": source})
    assert words in plan.inlined


def test_a_revision_without_a_kept_spec_cannot_be_written_back() -> None:
    with pytest.raises(CliError, match="apply its manifest again"):
        plan_rollback(Revision(1, "aaaa", None, None, {"systemPrompt": "x"}), agent(), None)


def test_history_says_what_changed_and_marks_what_runs() -> None:
    items = describe_history(THREE, agent("cccc", "bbbb"))
    assert [(one["current"], one["ready"]) for one in items] == [(True, False), (False, True), (False, False)]
    assert items[0]["summary"] == 'history: unset → {"limit": 3}'
    assert items[1]["summary"].startswith("the spec is the same")  # replicas make no revision
    assert items[2]["summary"] == "the oldest one that is kept"


def test_the_pair_to_compare() -> None:
    def pair(*wanted: str) -> tuple[int, int]:
        before, after = choose_pair(THREE, wanted, agent("cccc"))
        return before.number, after.number

    assert (pair(), pair("1"), pair("3", "1")) == ((2, 3), (1, 3), (3, 1))
    with pytest.raises(CliError, match="one revision only"):
        choose_pair(THREE[2:], [], agent("aaaa"))
    with pytest.raises(CliError, match="no revisions yet"):
        choose_pair([], [], agent())


def test_lists_are_compared_by_position_and_long_summaries_are_cut() -> None:
    before = {"models": [{"model": "a"}, {"model": "b"}], "x": 1}
    after = {"models": [{"model": "c"}], "x": "long " * 50, "y": True, "z": 2}
    changes = list(find_changes(before, after))
    assert changes[:2] == [Change("models[0].model", "a", "c"), Change("models[1]", {"model": "b"}, None)]
    assert summarize(changes).endswith("; 2 more")
    assert len(summarize(changes)) < 250


@given(JSON, JSON)
def test_what_is_equal_has_no_changes_and_what_differs_has_some(one: Any, other: Any) -> None:
    assert list(find_changes(one, one)) == []
    before, after = {"a": one}, {"a": other}
    assert bool(list(find_changes(before, after))) == (_seen(before) != _seen(after))


def _seen(value: Any) -> Any:
    """What a comparison sees: a field that is null is absent, and 1 is not told from true."""
    if isinstance(value, dict):
        return {name: _seen(item) for name, item in value.items() if item is not None}
    return [_seen(item) for item in value] if isinstance(value, list) else value


def test_a_changed_line_of_a_prompt_is_one_line_of_the_diff() -> None:
    lines = unified_diff({"systemPrompt": "One.\nTwo.\n"}, {"systemPrompt": "One.\nThree.\n"}, "a", "b")
    changed = [line for line in lines if line[:1] in "+-" and line[:3] not in ("+++", "---")]
    assert changed == ["-    Two.", "+    Three."]
