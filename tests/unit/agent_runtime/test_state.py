"""The state document: inverse encoding, and clear words about what is wrong."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_runtime.errors import InvalidState
from agent_runtime.state import MOST_BYTES, MOST_DEPTH, SessionDocument, decode, encode

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=10,
)
DOCUMENTS = st.builds(
    SessionDocument,
    turn_seq=st.integers(0, 2**31),
    accepted_messages=st.integers(0, 2**31),
    variables=st.dictionaries(TEXTS, JSON, max_size=5),
    summary=st.none() | TEXTS,
    summary_seq=st.integers(0, 2**31),
)


@settings(max_examples=200, derandomize=True)
@given(DOCUMENTS)
def test_decoding_what_was_encoded_gives_the_same(document: SessionDocument) -> None:
    assert decode(encode(document)) == document


def test_a_document_of_the_first_format_version_loads() -> None:
    stored = {
        "format": "abide.dev/session-state",
        "formatVersion": 1,
        "cursor": {"turnSeq": 12, "acceptedMessages": 12},
        "variables": {"language": "en"},
        "summary": "They met.",
    }
    assert decode(stored) == SessionDocument(12, 12, {"language": "en"}, "They met.")


def test_a_document_of_the_second_format_version_loads() -> None:
    stored = {
        "format": "abide.dev/session-state",
        "formatVersion": 2,
        "cursor": {"turnSeq": 12, "acceptedMessages": 12, "summarySeq": 17},
        "variables": {},
        "summary": "They met.",
    }
    assert decode(stored) == SessionDocument(12, 12, {}, "They met.", 17)


def test_everything_but_the_variables_may_be_left_out() -> None:
    assert decode({"variables": {"a": 1}}) == SessionDocument(variables={"a": 1})
    assert decode({}) == SessionDocument()


def nested(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("document", "field"),
    [
        ([], ""),
        ({"format": "other"}, "format"),
        ({"formatVersion": 3}, "formatVersion"),
        ({"formatVersion": True}, "formatVersion"),
        ({"formatVersion": 0}, "formatVersion"),
        ({"colour": 1}, "colour"),
        ({"cursor": 1}, "cursor"),
        ({"cursor": {"turnSeq": -1}}, "cursor.turnSeq"),
        ({"cursor": {"turnSeq": 2**63}}, "cursor.turnSeq"),
        ({"cursor": {"acceptedMessages": "1"}}, "cursor.acceptedMessages"),
        ({"cursor": {"place": 1}}, "cursor.place"),
        ({"cursor": {"summarySeq": 1.5}}, "cursor.summarySeq"),
        ({"variables": []}, "variables"),
        ({"variables": {"a": nested(MOST_DEPTH)}}, "variables"),
        ({"variables": {"a": "x" * MOST_BYTES}}, "variables"),
        ({"variables": {"a": "\ud800"}}, "variables"),
        ({"variables": {"a": float("nan")}}, "variables"),
        ({"summary": 1}, "summary"),
    ],
)
def test_what_cannot_be_kept_is_refused_by_the_fields_name(document: Any, field: str) -> None:
    with pytest.raises(InvalidState) as caught:
        decode(document)
    assert field in [name for name, _ in caught.value.problems]
    assert all(message for _, message in caught.value.problems)
