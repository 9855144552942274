"""replace() is dataclasses.replace(), only faster."""

import dataclasses

import pytest

from agent_runtime.loop.machine import Plan, TurnState
from agent_runtime.records import replace


@dataclasses.dataclass(frozen=True, slots=True)
class One:
    value: int = 0


def test_it_does_what_the_standard_library_does() -> None:
    state = TurnState(Plan(models=("a", "b"), max_steps=3, fallback="x"))
    for changes in ({}, {"tries": 2}, {"model": 1, "text": "said", "results": {"c": "r"}}):
        assert replace(state, **changes) == dataclasses.replace(state, **changes)
    assert replace(One(1), value=2) == One(2)


def test_a_field_that_does_not_exist_is_refused() -> None:
    with pytest.raises(TypeError):
        replace(One(1), other=2)
