"""Texts people read: no secrets, one line, bounded."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_api.conditions import Reason
from agent_api.v1alpha1 import AgentStatus
from agent_operator.settings import OperatorSettings
from agent_operator.status.conditions import build_conditions
from agent_operator.status.text import compose, find_since, instant, scrub
from tests.unit.agent_operator.makers import NOW, observe


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
    assert message.endswith("{docs}/reasons/CrashLoop.md")
    assert find_since("since yesterday") is None


def test_links_lead_where_the_setting_says() -> None:
    seen = observe(docs="https://git.example.com/abide/docs")
    messages = [condition.message for condition in build_conditions(seen, AgentStatus())]
    assert any(" https://git.example.com/abide/docs/reasons/Starting.md" in message for message in messages)
    assert not any("{docs}" in message for message in messages)


def test_a_docs_url_may_end_with_a_slash_and_may_be_left_out() -> None:
    url = {"ABIDE_POSTGRES_URL": "postgresql://localhost/abide"}
    given = OperatorSettings.from_environ({**url, "ABIDE_DOCS_URL": "https://x.example/docs/"})
    assert given.docs_url == "https://x.example/docs"
    assert OperatorSettings.from_environ(url).docs_url == "docs"
