"""What goes into Postgres comes out again, and what Postgres cannot hold is replaced."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_store.codec import PLAIN, decode_json, decode_text, encode_json, encode_text, jsonb, text

ANY_TEXT = st.text(st.characters(codec=None))
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | ANY_TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(ANY_TEXT, inner),
    max_leaves=20,
)


@given(ANY_TEXT)
def test_any_text_comes_back(value: str) -> None:
    assert decode_text(PLAIN.decode(PLAIN.encode(encode_text(value), "t", 1), PLAIN.key_id, "t", 1)) == value


@given(ANY_JSON)
def test_any_json_comes_back(value: object) -> None:
    assert decode_json(encode_json(value)) == value


def test_encrypted_content_is_not_taken_for_plain() -> None:
    with pytest.raises(ValueError, match="key 'k1'"):
        PLAIN.decode(b"", "k1")


@given(ANY_TEXT)
def test_text_columns_get_nothing_they_refuse(value: str) -> None:
    stored = text(value)
    assert "\0" not in stored
    stored.encode("utf-8")  # raises for half a surrogate pair
    assert len(stored) == len(value)


@given(ANY_JSON)
def test_jsonb_gets_nothing_it_refuses(value: object) -> None:
    stored = jsonb(value)
    assert "\\u0000" not in stored.replace("\\\\", "")
    stored.encode("utf-8")  # raises for half a surrogate pair
    json.loads(stored)


def test_numbers_that_json_does_not_know_become_null_and_objects_text() -> None:
    class Thing:
        def __str__(self) -> str:
            return "thing"

    value = {"a": float("nan"), "b": [float("inf")], "c": Thing(), 1: "one"}
    assert json.loads(jsonb(value)) == {"a": None, "b": [None], "c": "thing", "1": "one"}
