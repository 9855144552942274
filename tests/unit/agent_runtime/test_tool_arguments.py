"""Checking values against schemas: complete, bounded, readable, and never a request to anywhere."""

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_runtime.tools.arguments import BadSchema, Checker, JsonContent, unfence, without_property

CITY: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "minLength": 2},
        "unit": {"enum": ["c", "f"]},
        "days": {"type": "array", "items": {"type": "integer", "minimum": 1}},
    },
    "required": ["city"],
    "additionalProperties": False,
}


def misfits(value: Any, schema: dict[str, Any] = CITY, *, trusted: bool = True) -> list[str]:
    """Return what does not fit, as texts."""
    return [str(one) for one in Checker(schema, trusted=trusted).misfits(value)]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"city": "Oslo", "unit": "c", "days": [1, 2]}, []),
        ({}, ["city: required but missing"]),
        ({"city": 7}, ["city: must be of type string, not integer"]),
        ({"city": "Oslo", "unit": "k"}, ['unit: must be one of ["c", "f"], not "k"']),
        ({"city": "Oslo", "days": [1, "2"]}, ["days[1]: must be of type integer, not string"]),
        ({"city": "Oslo", "town": 1}, ["town: unknown; known here: city, days, unit"]),
        ([], ["must be of type object, not array"]),
    ],
)
def test_words_name_the_field_and_the_remedy(value: Any, words: list[str]) -> None:
    assert misfits(value) == words


def test_at_most_five_things_are_told() -> None:
    assert len(misfits({"city": "Oslo", "days": ["x"] * 100})) == 5


def test_a_schema_that_is_none_is_refused() -> None:
    with pytest.raises(BadSchema):
        Checker({"type": "strng"})


def test_references_lead_nowhere_else() -> None:
    outside = {"$ref": "http://127.0.0.1:9/schema.json"}
    assert "refers to something that is not in it" in misfits({}, outside)[0]
    assert misfits({"a": "x"}, {"$defs": {"t": {"type": "string"}}, "properties": {"a": {"$ref": "#/$defs/t"}}}) == []


def test_a_schema_that_goes_in_circles_ends() -> None:
    circle = {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}
    assert misfits({}, circle)


def test_regular_expressions_of_other_servers_are_not_run() -> None:
    evil = {"type": "object", "properties": {"a": {"type": "string", "pattern": "^(a+)+$"}}}
    started = time.monotonic()
    assert misfits({"a": "a" * 60 + "!"}, evil, trusted=False) == []
    assert time.monotonic() - started < 5


def test_the_argument_that_the_runtime_fills_in_is_not_shown() -> None:
    shown = without_property({**CITY, "required": ["city", "unit"]}, "unit")
    assert "unit" not in shown["properties"]
    assert shown["required"] == ["city"]
    assert "unit" in CITY["properties"]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)


@given(json_values)
def test_every_value_gets_an_answer(value: Any) -> None:
    found = Checker(CITY).misfits(value)
    assert len(found) <= 5
    assert all(len(str(one)) <= 1000 for one in found)


@given(st.text(max_size=200))
def test_every_text_is_read_as_content(text: str) -> None:
    content = JsonContent(CITY)
    assert isinstance(content.misfits(text), list)
    assert isinstance(unfence(text), str)


def test_code_fences_around_a_reply_are_taken_off() -> None:
    assert unfence('```json\n{"a": 1}\n```\n') == '{"a": 1}'
    assert unfence('```\n{"a": 1}\n```') == '{"a": 1}'
    assert unfence('  {"a": "```"}  ') == '{"a": "```"}'
