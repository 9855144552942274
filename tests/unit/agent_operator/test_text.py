"""Texts people read: no secrets, one line, bounded."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_api.conditions import Reason
from agent_operator.status.text import compose, find_since, instant, scrub
from tests.unit.agent_operator.makers import NOW


@pytest.mark.parametrize(
    "text",
    [
        "postgresql://abide:hunter2@pg:5432/x",
        "https://api.example/v1?key=hunter2",
        "password=hunter2",
        'password: "hunter2"',
        "{'api_key': 'hunter2'}",
        "Authorization: Bearer hunter2",
        "Authorization: hunter2",
        "token hunter2hunter2hunter2hunter2hunter2hunter2hunter2",
        "sk-hunter2abcdefgh",
    ],
)
def test_what_looks_like_a_secret_is_cut_out(text: str) -> None:
    assert "hunter2" not in scrub(text)


@pytest.mark.parametrize(
    "text",
    [
        "Postgres pg.shop:5432 refuses connections",
        "0/1 nodes are available: 1 Insufficient memory.",
        'secret "llm" not found',
        "exceeded quota: q, requested: pods=1, used: pods=0, limited: pods=0",
    ],
)
def test_ordinary_words_stay(text: str) -> None:
    assert scrub(text) == text


@given(text=st.text(max_size=2000))
def test_a_scrubbed_text_is_one_bounded_line(text: str) -> None:
    clean = scrub(text, limit=100)
    assert len(clean) <= 100
    assert "\n" not in clean


def test_the_instant_of_an_earlier_message_is_found_again() -> None:
    message = compose(Reason.CRASH_LOOP, f"It ends since {instant(NOW)}.", "", "Read its log.")
    assert find_since(message) == NOW
    assert message.endswith("https://abide.dev/docs/reasons/CrashLoop")
    assert find_since("since yesterday") is None
