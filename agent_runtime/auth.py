"""API keys as mounted files: each file of a folder holds one valid key, and may change at any time."""

import hashlib
import hmac
from pathlib import Path
from typing import Final

from agent_runtime.clock import Clock
from agent_runtime.files import Signature, list_files, signature_of

RELOAD_SECONDS: Final = 1.0


class KeyRing:
    """Knows which keys are valid. Looks at the folder again at most once a second, and reads it when it changed."""

    def __init__(self, folder: Path, clock: Clock) -> None:
        self._folder = folder
        self._clock = clock
        self._checked_at: float | None = None
        self._signature: Signature = ()
        self._digests: tuple[bytes, ...] = ()

    def is_valid(self, key: str) -> bool:
        """Whether `key` is one of the keys. Takes the same time whichever matches, and wherever a wrong one differs."""
        self._reload()
        digest = _digest(key)
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        return any(matches)

    def __len__(self) -> int:
        """Return how many keys are valid."""
        self._reload()
        return len(self._digests)

    def _reload(self) -> None:
        now = self._clock.monotonic()
        if self._checked_at is not None and now - self._checked_at < RELOAD_SECONDS:
            return
        signature = signature_of((self._folder,))
        if self._checked_at is None or signature != self._signature:
            self._digests = tuple(sorted({_digest(text) for text in list_files(self._folder).values()}))
            self._signature = signature
        self._checked_at = now


def bearer_token(authorization: str) -> str | None:
    """Return the token of an `Authorization: Bearer` header (RFC 6750, section 2.1), or None."""
    scheme, _, token = authorization.partition(" ")
    token = token.strip()
    return token if scheme.lower() == "bearer" and token else None


def _digest(text: str) -> bytes:
    # Equal lengths are what compare_digest needs to tell nothing.
    return hashlib.sha256(text.encode("utf-8", errors="surrogateescape")).digest()
