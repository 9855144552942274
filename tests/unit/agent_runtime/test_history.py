"""What a model is given of a long conversation: estimates, cuts, and the material of summaries."""

from datetime import UTC, datetime
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_runtime.history.compaction import LINE_CHARS, after_summary, plan_cut, with_summary, write_material
from agent_runtime.history.tokens import BOUNDS, CHARS_PER_TOKEN, TokenGauge, chars_of, newest_within
from agent_runtime.llm.port import ChatMessage, ToolCall
from agent_runtime.state import SessionDocument
from agent_store.ports import StoredMessage

ROLES = {"u": "user", "a": "assistant", "t": "tool"}


def lines(roles: str, content: str = "hello") -> list[StoredMessage]:
    """Return stored lines, one for each letter: u, a, t."""
    at = datetime(2026, 1, 1, tzinfo=UTC)
    return [StoredMessage(seq, UUID(int=1), ROLES[role], content, at) for seq, role in enumerate(roles, 1)]


def test_estimates_follow_what_providers_count() -> None:
    gauge = TokenGauge()
    assert gauge.chars_for(100) == 100 * CHARS_PER_TOKEN
    for _ in range(100):
        gauge.observe(2500, 1000)
    assert gauge.chars_per_token == pytest.approx(2.5, abs=0.01)


@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 10**6))))
def test_no_count_leads_far_astray(counts: list[tuple[int, int]]) -> None:
    gauge = TokenGauge()
    for chars, tokens in counts:
        gauge.observe(chars, tokens)
    assert BOUNDS[0] <= gauge.chars_per_token <= BOUNDS[1]


def test_short_requests_teach_nothing() -> None:
    gauge = TokenGauge()
    gauge.observe(1, 49)
    assert gauge.chars_per_token == CHARS_PER_TOKEN


@given(st.lists(st.text(max_size=30), max_size=20), st.integers(0, 500))
def test_the_newest_messages_that_fit_are_kept(texts: list[str], most: int) -> None:
    messages = [ChatMessage("user", text) for text in texts]
    kept = newest_within(messages, most)
    assert list(kept) == messages[len(messages) - len(kept) :]
    assert sum(map(chars_of, kept)) <= most
    if len(kept) < len(messages):
        assert sum(map(chars_of, messages[len(messages) - len(kept) - 1 :])) > most


def test_tool_calls_count() -> None:
    call = ToolCall("1", "look", {"where": "x" * 100})
    assert chars_of(ChatMessage("assistant", "", (call,))) > 100


@given(st.text("uat", max_size=40), st.integers(1, 20), st.integers(1, 200))
def test_a_cut_leaves_whole_turns_that_fit_or_the_last_one(roles: str, most_lines: int, most_chars: int) -> None:
    told = lines(roles)
    cut = plan_cut(told, most_lines=most_lines, most_chars=most_chars)
    if roles.count("u") < 2:
        assert cut is None
        return
    assert cut is not None
    rest = told[len(cut.lines) :]
    assert cut.lines
    assert cut.seq == cut.lines[-1].seq
    assert rest[0].role == "user"
    fits = len(rest) <= most_lines and sum(len(line.content) for line in rest) <= most_chars
    assert fits or sum(line.role == "user" for line in rest) == 1


def test_the_lines_after_a_summary_are_those_it_does_not_cover() -> None:
    told = lines("uaua")
    assert after_summary(SessionDocument(summary="s", summary_seq=2), told) == told[2:]
    assert after_summary(SessionDocument(summary_seq=2), told) == told


def test_material_holds_the_earlier_summary_and_the_newest_lines_that_fit() -> None:
    told = [*lines("u", "first"), *lines("a", "second"), *lines("u", "third")]
    assert write_material("They met.", told, 1000) == (
        "Summary of the earlier conversation:\nThey met.\n\nWhat was said since:\n"
        "user: first\nassistant: second\nuser: third\n\nWrite the summary now."
    )
    assert write_material(None, told, 30) == (
        "[earlier messages are left out]\nassistant: second\nuser: third\n\nWrite the summary now."
    )


def test_of_long_lines_the_middle_is_left_out() -> None:
    (line,) = lines("u", "a" * LINE_CHARS + "z" * LINE_CHARS)
    material = write_material(None, [line], 10**6)
    assert len(material) < LINE_CHARS + 100
    assert "a […] z" in material


@pytest.mark.parametrize(
    ("system", "summary", "expected"),
    [
        ("Be kind.", None, "Be kind."),
        ("Be kind.", "They met.", "Be kind.\n\nSummary of the earlier conversation:\nThey met."),
        ("", "They met.", "Summary of the earlier conversation:\nThey met."),
    ],
)
def test_the_summary_stands_below_the_system_prompt(system: str, summary: str | None, expected: str) -> None:
    assert with_summary(system, summary) == expected
