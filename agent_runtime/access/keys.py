"""API keys with rights: each is a file that Kubernetes mounts from a Secret and replaces at any time."""

import hashlib
import hmac
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Final

from agent_api.v1alpha1 import AccessKey
from agent_runtime.access.principal import Principal, Right
from agent_runtime.auth import RELOAD_SECONDS
from agent_runtime.clock import Clock

MOST_BYTES: Final = 65_536

Mark = tuple[int, int, int] | None


def rights_of(names: Collection[str]) -> frozenset[Right]:
    """Return rights by the names that the resource gives them (`Chat`)."""
    return frozenset(Right(name.lower()) for name in names)


class NamedKeys:
    """The keys of `spec.access.keys` of one agent. Looks at their files at most once a second.

    `agent` is `namespace/name`: what the keys are for.
    """

    def __init__(self, folder: Path, keys: Sequence[AccessKey], agent: str, clock: Clock) -> None:
        self._keys = [(folder / key.secret_key_ref.name / key.secret_key_ref.key, _holder(key, agent)) for key in keys]
        self._clock = clock
        self._checked_at: float | None = None
        self._marks: list[Mark] = [None] * len(self._keys)
        self._digests: list[bytes | None] = [None] * len(self._keys)

    def find(self, token: str) -> Principal | None:
        """Return who holds this key, or None. Where two entries have the same key the first one counts."""
        if not self._keys:
            return None
        self._reload()
        digest = _digest(token.encode("utf-8", "surrogateescape"))
        matches = [known is not None and hmac.compare_digest(digest, known) for known in self._digests]
        return next((holder for (_, holder), match in zip(self._keys, matches, strict=True) if match), None)

    def _reload(self) -> None:
        now = self._clock.monotonic()
        if self._checked_at is not None and now - self._checked_at < RELOAD_SECONDS:
            return
        first, self._checked_at = self._checked_at is None, now
        for index, (path, _) in enumerate(self._keys):
            # The mark first: a file that is replaced in between is then read once more, instead of never.
            mark = _mark(path)
            if first or mark != self._marks[index]:
                self._marks[index], self._digests[index] = mark, _read(path)


def _holder(key: AccessKey, agent: str) -> Principal:
    return Principal(f"key:{key.name}", rights_of(key.rights), key.user or None, frozenset((agent,)))


def _mark(path: Path) -> Mark:
    try:
        status = path.stat()
    except OSError:
        return None
    return (status.st_ino, status.st_size, status.st_mtime_ns)


def _read(path: Path) -> bytes | None:
    """Return the digest of a file's key, None where there is none."""
    try:
        if path.stat().st_size > MOST_BYTES:
            return None
        text = path.read_bytes().strip()
    except OSError:
        return None
    return _digest(text) if text else None


def _digest(text: bytes) -> bytes:
    # Equal lengths are what compare_digest needs to tell nothing.
    return hashlib.sha256(text).digest()
