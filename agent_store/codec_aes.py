"""Content encrypted with AES-256-GCM under an agent's data keys, each value bound to its logical place.

A stored value is `salt (8 bytes) · nonce (12 bytes) · ciphertext and tag (16 bytes more than the content)`. Values are
encrypted with a key derived from data key and salt, and a salt serves one process for a bounded number of values:
random nonces of one key alone would become unsafe after some 2^32 values, which a busy agent writes within weeks.
The additional data names table and logical ids, so that a value moved to another row, or changed, does not decrypt.
"""

import hashlib
import hmac
import os
from collections.abc import Mapping
from functools import lru_cache
from typing import Final
from uuid import UUID

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_BYTES: Final = 32
SALT_BYTES: Final = 8
NONCE_BYTES: Final = 12
TAG_BYTES: Final = 16
OVERHEAD: Final = SALT_BYTES + NONCE_BYTES + TAG_BYTES
"""Bytes that a stored value is longer than its content."""
VALUES_PER_SALT: Final = 2**30
MOST_DERIVED: Final = 1024
"""Derived keys kept for reading; each process start wrote under one of its own."""
_PURPOSE: Final = b"abide.dev/value-key/1"
_HEAD: Final = SALT_BYTES + NONCE_BYTES


class UndecryptableError(ValueError):
    """A value was not written at this place with any key of this agent: it was changed, moved, or the key is gone."""


class AesGcmCodec:
    """Encrypts with the current data key and decrypts with all of them.

    `keys` are 32 bytes by key id; keys may be added to the mapping later, so that whoever holds this codec can read
    what was written after a rotation. `current` is one of the ids, or None: new content is stored as it is. It never
    changes, so what is encoded and the `key_id` that is stored with it belong together.
    """

    def __init__(self, keys: Mapping[str, bytes], current: str | None) -> None:
        if current is not None and current not in keys:
            raise ValueError(f"there is no key {current!r}")
        self._keys = keys
        self.key_id: str | None = current
        self._derive = lru_cache(maxsize=MOST_DERIVED)(self._derive_cipher)
        self._salt = b""
        self._cipher: AESGCM | None = None
        self._left = 0

    def encode(self, plain: bytes, *place: object) -> bytes:
        """Return what to store for `plain` at its logical place (strings, whole numbers, UUIDs)."""
        if self.key_id is None:
            return plain
        if self._left == 0 or self._cipher is None:
            self._salt = os.urandom(SALT_BYTES)
            self._cipher = self._derive_cipher(self.key_id, self._salt)
            self._left = VALUES_PER_SALT
        self._left -= 1
        nonce = os.urandom(NONCE_BYTES)
        return self._salt + nonce + self._cipher.encrypt(nonce, plain, bind(place))

    def decode(self, stored: bytes, key_id: str | None, *place: object) -> bytes:
        """Return what was given to encode() with the same place; content without key id comes back as it is.

        A row has one key id and may hold values written before and after a rotation, so the other keys are tried too.
        Raises UndecryptableError.
        """
        if key_id is None:
            return stored
        salt, nonce, sealed, bound = stored[:SALT_BYTES], stored[SALT_BYTES:_HEAD], stored[_HEAD:], bind(place)
        if len(sealed) >= TAG_BYTES:
            for candidate in (key_id, *self._keys):
                if candidate in self._keys:
                    try:
                        return self._derive(candidate, salt).decrypt(nonce, sealed, bound)
                    except InvalidTag:
                        continue
        known = "" if key_id in self._keys else ", which is not among the agent's keys"
        raise UndecryptableError(
            f"a value of {place[0] if place else 'no table'} under key {key_id!r}{known} does not decrypt here"
        )

    def _derive_cipher(self, key_id: str, salt: bytes) -> AESGCM:
        return AESGCM(hmac.digest(self._keys[key_id], _PURPOSE + salt, hashlib.sha256))


def bind(place: tuple[object, ...]) -> bytes:
    """Return the additional data of a place; different places never have the same. Raises TypeError for other parts."""
    return b"".join([_bind_part(part) for part in place])


def _bind_part(part: object) -> bytes:
    if isinstance(part, UUID):
        return b"u" + part.bytes
    if isinstance(part, str):
        return _bind_text(part)
    if isinstance(part, int):
        return b"i" + part.to_bytes(8, "big", signed=True)
    raise TypeError(f"a place consists of strings, whole numbers and UUIDs, not {type(part).__name__}")


@lru_cache(maxsize=256)
def _bind_text(text: str) -> bytes:
    data = text.encode("utf-8", "surrogatepass")
    return b"s" + len(data).to_bytes(4, "big") + data


def new_key() -> bytes:
    """Return a new random key."""
    return os.urandom(KEY_BYTES)


def wrap_key(wrapping: bytes, key: bytes, agent_id: UUID, key_id: str) -> bytes:
    """Return a data key encrypted with a wrapping key, bound to agent and key id."""
    nonce = os.urandom(NONCE_BYTES)
    return nonce + AESGCM(wrapping).encrypt(nonce, key, bind(("agent_keys", agent_id, key_id)))


def unwrap_key(wrapping: bytes, wrapped: bytes, agent_id: UUID, key_id: str) -> bytes:
    """Return the data key of wrap_key(). Raises UndecryptableError for another wrapping key, agent or key id."""
    nonce, sealed = wrapped[:NONCE_BYTES], wrapped[NONCE_BYTES:]
    try:
        return AESGCM(wrapping).decrypt(nonce, sealed, bind(("agent_keys", agent_id, key_id)))
    except (InvalidTag, ValueError) as error:
        raise UndecryptableError(f"data key {key_id!r} was not wrapped with this key for this agent") from error
