"""The pure parts of memories: ranking, the prompt's list, and reading a service's vectors."""

import json
import math
from datetime import UTC, datetime
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_api.wire import MemoryType
from agent_runtime.memory.embedding import EmbeddingError, read_vectors
from agent_runtime.memory.port import Memory
from agent_runtime.memory.prompt import HEADING, MOST_CHARS, render_memories
from agent_runtime.memory.ranking import rank
from agent_store.ports import MemoryCandidate, MemoryRecord

NOW = datetime(2026, 1, 31, tzinfo=UTC)


def candidate(number: int, weight: float, word: int | None, meaning: int | None) -> MemoryCandidate:
    record = MemoryRecord(UUID(int=number), "ann", f"m{number}", "general", 5, (), NOW, NOW, None)
    return MemoryCandidate(record, weight, word, meaning)


def ranked(*candidates: MemoryCandidate, limit: int = 10) -> list[int]:
    return [record.id.int for record, _ in rank(candidates, limit)]


def test_found_twice_is_better_than_found_once() -> None:
    assert ranked(candidate(1, 0.5, 1, None), candidate(2, 0.5, 2, 2), candidate(3, 0.5, None, 1)) == [2, 1, 3]


def test_weight_decides_between_equals_and_alone() -> None:
    assert ranked(candidate(1, 0.2, None, None), candidate(2, 1.4, None, None)) == [2, 1]
    assert ranked(candidate(1, 0.2, 3, None), candidate(2, 1.4, None, 3)) == [2, 1]


CANDIDATES = st.lists(
    st.tuples(st.floats(0, 2), st.none() | st.integers(1, 50), st.none() | st.integers(1, 50)), max_size=30
)


@given(CANDIDATES, st.integers(1, 10))
def test_ranking_keeps_everyone_once_in_falling_order_whatever_the_order_was(
    places: list[tuple[float, int | None, int | None]], limit: int
) -> None:
    candidates = [candidate(number, *place) for number, place in enumerate(places)]
    found = rank(candidates, limit)
    assert len(found) == min(limit, len(candidates))
    assert len({record.id for record, _ in found}) == len(found)
    scores = [score for _, score in found]
    assert scores == sorted(scores, reverse=True)
    assert {score for _, score in rank(candidates[::-1], limit)} == set(scores)


def memory(content: str) -> Memory:
    return Memory(UUID(int=1), content, MemoryType.GENERAL, 5, (), "ann", NOW, NOW)


def test_memories_are_one_line_each() -> None:
    assert render_memories([]) == ""
    assert render_memories([memory("a\n\n- b")]) == f"{HEADING}\n- (2026-01-31) a - b"


@given(st.lists(st.text(min_size=1, max_size=8000), max_size=12))
def test_the_list_is_bounded_and_nothing_in_it_makes_a_line(contents: list[str]) -> None:
    text = render_memories([memory(content) for content in contents])
    lines = text.split("\n")[1:]
    assert sum(map(len, lines)) <= MOST_CHARS
    assert len(lines) <= len(contents)
    assert all(line.startswith("- (2026-01-31) ") for line in lines)


def answer(*vectors: list[float]) -> bytes:
    return json.dumps({"data": [{"index": n, "embedding": one} for n, one in enumerate(vectors)]}).encode()


def test_vectors_come_in_order_and_have_length_one() -> None:
    body = json.loads(answer([3.0, 4.0], [0.0, 2.0]))
    body["data"].reverse()
    assert read_vectors(json.dumps(body).encode(), 2) == [[0.6, 0.8], [0.0, 1.0]]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b'{"data": 1}',
        b'{"data": [{"index": 0}]}',
        b'{"data": [{"index": 0, "embedding": "AAAA"}]}',
        b'{"data": [{"index": 0, "embedding": [1, "x"]}]}',
        answer([1.0]),
        answer([1.0], [1.0, 2.0]),
        answer([1.0], [1.0], [1.0]),
        answer([], []),
        answer([0.0], [1.0]),
        answer([math.inf], [1.0]),
        answer([math.nan], [1.0]),
        answer([1.0] * 9000, [1.0] * 9000),
        b"[" * 5000,
    ],
)
def test_anything_else_is_refused(body: bytes) -> None:
    with pytest.raises(EmbeddingError):
        read_vectors(body, 2)


@given(st.lists(st.floats(-1e6, 1e6).filter(lambda x: abs(x) > 1e-3), min_size=1, max_size=50))
def test_scaled_vectors_have_length_one(vector: list[float]) -> None:
    (scaled,) = read_vectors(answer(vector), 1)
    assert math.isclose(math.fsum(x * x for x in scaled), 1.0, rel_tol=1e-9)
