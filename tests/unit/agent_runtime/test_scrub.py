"""Secrets never reach what is written down."""

import json
from pathlib import Path

import pytest

from agent_runtime.clock import ManualClock
from agent_runtime.telemetry import logs
from agent_runtime.telemetry.scrub import REDACTED, Scrubber, url_secrets


def scrubber(*folders: Path, values: set[str] = frozenset(), clock: ManualClock | None = None) -> Scrubber:  # type: ignore[assignment]
    return Scrubber(clock or ManualClock(), folders, values=values)


def test_the_values_of_mounted_keys_are_removed_in_every_spelling(tmp_path: Path) -> None:
    (tmp_path / "llm").mkdir()
    (tmp_path / "llm" / "openai").write_text('sk live/"42"\n')
    scrub = scrubber(tmp_path).scrub
    assert scrub('provider said: bad key sk live/"42"!') == f"provider said: bad key {REDACTED}!"
    assert "42" not in scrub("GET /v1?key=sk%20live%2F%2242%22")
    assert "42" not in scrub(json.dumps({"key": 'sk live/"42"'}))


async def test_replaced_keys_stay_secret_and_new_ones_become_so(tmp_path: Path) -> None:
    clock = ManualClock()
    (tmp_path / "key").write_text("old-value")
    made = scrubber(tmp_path, clock=clock)
    assert made.scrub("old-value new-value") == f"{REDACTED} new-value"
    (tmp_path / "key").write_text("new-value")
    await clock.advance(1)
    assert made.scrub("old-value new-value") == f"{REDACTED} {REDACTED}"


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://abide:p%40ss-word@db.shop:5432/abide",
        "postgresql://abide@db.shop/abide?sslmode=require&password=p%40ss-word",
    ],
)
def test_the_postgres_password_is_removed_encoded_and_decoded(url: str) -> None:
    scrub = scrubber(values=url_secrets(url)).scrub
    for text in (url, "failed for p@ss-word", "p%40ss-word"):
        assert "ss-word" not in scrub(text)


@pytest.mark.parametrize(
    "text",
    [
        "connect to redis://user:hunter22@cache:6379 failed",
        "sent Authorization: Bearer hunter22hunter22",
        'body was {"api_key": "hunter22"}',
        "password=hunter22 host=db",
        "PASSWD: hunter22",
        "pa\N{LATIN SMALL LETTER LONG S}\N{LATIN SMALL LETTER LONG S}word=hunter22",
        "to\N{KELVIN SIGN}en=hunter22",
        "ap\N{LATIN SMALL LETTER DOTLESS I}-key=hunter22",
    ],
)
def test_what_looks_like_a_secret_is_removed_too(text: str) -> None:
    cleaned = scrubber().scrub(text)
    assert "hunter22" not in cleaned
    assert REDACTED in cleaned


def test_ordinary_text_stays_as_it_is() -> None:
    text = "Postgres pg.shop:5432 refuses connections; see https://abide.dev/problems/x and a secret is no secret"
    assert scrubber(values={"abc", ""}).scrub(text) == text


def test_log_lines_and_tracebacks_pass_the_scrubber(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("json", "info", scrubber(values={"hunter22"}).scrub)
    try:
        raise ValueError("it was hunter22")
    except ValueError:
        logs.get_logger("test").error("failed", url="http://x/?k=hunter22", exc_info=True)
    line = capsys.readouterr().out
    assert "hunter22" not in line
    event = json.loads(line)
    assert (event["event"], event["part"], event["level"]) == ("failed", "test", "error")
    assert "ValueError" in event["exception"]


def test_console_lines_are_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("console", "warning", str)
    logs.get_logger("test").info("quiet")
    logs.get_logger("test").warning("loud", turn="t1")
    out = capsys.readouterr().err
    assert "quiet" not in out
    assert "loud" in out
    assert "turn=t1" in out
