"""The texts of conditions: what · since · effect on users · remedy · link to the reason's page; never a secret."""

import re
from datetime import UTC, datetime
from typing import Final

from agent_api.conditions import Reason

DOCS_PLACE: Final = "{docs}"
"""Stands in composed texts for where the documentation is; `build_conditions` fills it in, like {since}."""
MESSAGE_LIMIT: Final = 2000

_SECRETS: Final = (
    # user:password@ in URLs
    (re.compile(r"(?P<scheme>[a-zA-Z][a-zA-Z0-9+.-]*://)[^/\s@\"']+@"), r"\g<scheme>…@"),
    # query strings may hold keys
    (re.compile(r"(?P<url>[a-zA-Z][a-zA-Z0-9+.-]*://[^\s?\"']+)\?[^\s\"')]*"), r"\g<url>?…"),
    (re.compile(r"(?i)(?P<what>bearer\s+)[^\s\"',;]+"), r"\g<what>…"),
    (
        re.compile(
            r"(?i)(?P<what>\b(?:pass(?:word|wd)?|pwd|secret|token|api[_-]?key|authorization)\b[\"']?\s*[=:]\s*[\"']?)"
            r"(?!bearer)[^\s\"',;}]+"
        ),
        r"\g<what>…",
    ),
    (re.compile(r"\b(?:sk|pk|ghp|gho|xox[abp])[-_][A-Za-z0-9_-]{8,}"), "…"),
    (re.compile(r"\b[A-Za-z0-9_-]{40,}\b"), "…"),
)
_SINCE: Final = re.compile(r"since (\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}Z)")


def scrub(text: str, *, limit: int = 300) -> str:
    """Return the text on one line without anything that looks like a secret, at most `limit` characters."""
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def instant(at: datetime) -> str:
    """Return an instant as Kubernetes writes it: UTC, whole seconds."""
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def find_since(message: str) -> datetime | None:
    """Return the instant an earlier message named, so that the next one about the same cause names it again."""
    found = _SINCE.search(message)
    return datetime.fromisoformat(found[1]).astimezone(UTC) if found else None


def compose(reason: Reason, *sentences: str) -> str:
    """Return the sentences and the link to the reason's page as one message."""
    text = " ".join(sentence.strip() for sentence in sentences if sentence)
    return f"{text[:MESSAGE_LIMIT]} {DOCS_PLACE}/reasons/{reason}.md"
