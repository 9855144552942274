"""Keeps secrets out of everything that is written down.

The values of all mounted keys and the Postgres password are known, so they are searched for; what only looks like a
secret (a password in a URL, a bearer token) is removed by its shape.
"""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final
from urllib.parse import quote, unquote, urlsplit

from agent_runtime.clock import Clock
from agent_runtime.files import Signature, list_files, signature_of

REDACTED: Final = "[redacted]"
SHORTEST_SECRET: Final = 4
"""Shorter values occur in ordinary words; blanking those would hide more than it protects."""
RELOAD_SECONDS: Final = 1.0
_SHAPES: Final = (
    (("://",), re.compile(r"(?i)(\b[a-z][a-z0-9+.-]*://[^\s/:@]*:)[^\s/@]+(?=@)")),
    (("bearer",), re.compile(r"(?i)(\bbearer\s+)[A-Za-z0-9._~+/=-]{6,}")),
    (
        ("passw", "pwd", "api", "secret", "token"),
        re.compile(r"(?i)(\b(?:password|passwd|pwd|api[_-]?key|secret|token)\b[\"']?\s*[=:]\s*[\"']?)[^\s\"',;&]{4,}"),
    ),
)
"""Each with signs, in lower case, one of which is in every text it matches: looking for these is many times as fast."""
_FOLDED: Final = {0x0130: "i", 0x0131: "i", 0x017F: "s", 0x212A: "k"}
"""What regular expressions that ignore case take for an ASCII letter, and str.lower() does not turn into one."""
_WITHOUT_SECRET: Final = rf"\g<1>{REDACTED}"


class Scrubber:
    """Replaces secrets in texts. Reads the folders again when they change, at most once a second."""

    def __init__(self, clock: Clock, folders: Sequence[Path], *, values: Iterable[str] = ()) -> None:
        self._clock = clock
        self._folders = folders
        self._fixed = frozenset(values)
        self._signature: Signature | None = None
        self._checked_at = -RELOAD_SECONDS
        self._seen: set[str] = set()
        self._pattern: re.Pattern[str] | None = None

    def scrub(self, text: str) -> str:
        """Return the text without secrets."""
        self._reload()
        if self._pattern is not None:
            text = self._pattern.sub(REDACTED, text)
        folded = (text if text.isascii() else text.translate(_FOLDED)).lower()
        for signs, shape in _SHAPES:
            if any(sign in folded for sign in signs):
                text = shape.sub(_WITHOUT_SECRET, text)
        return text

    def _reload(self) -> None:
        now = self._clock.monotonic()
        if self._pattern is not None and now - self._checked_at < RELOAD_SECONDS:
            return
        self._checked_at = now
        signature = signature_of(self._folders)
        if signature == self._signature and self._pattern is not None:
            return
        self._signature = signature
        # A key that was replaced may still be in flight, for example in a provider's echo: it stays a secret.
        self._seen |= {text for folder in self._folders for text in list_files(folder).values()}
        self._pattern = build_pattern(self._fixed | self._seen)


def build_pattern(secrets: Iterable[str]) -> re.Pattern[str] | None:
    """Return a pattern that finds the secrets, also as URLs and JSON write them; None if there are none."""
    forms = {form for secret in secrets for form in _forms(secret.strip())}
    usable = sorted((form for form in forms if len(form) >= SHORTEST_SECRET), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, usable))) if usable else None


def _forms(secret: str) -> set[str]:
    return {secret, quote(secret, safe=""), quote(secret), json.dumps(secret)[1:-1], *secret.splitlines()}


def url_secrets(url: str) -> set[str]:
    """Return the password of a connection URL, as written and decoded."""
    try:
        password = urlsplit(url).password or ""
    except ValueError:
        return {url}
    query_passwords = re.findall(r"[?&](?:password|sslpassword)=([^&]*)", url)
    return {form for text in (password, *query_passwords) if text for form in (text, unquote(text))}
