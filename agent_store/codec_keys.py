"""Wrapping keys: files in a folder that a Secret is mounted to, and keys derived from a root key.

One file per key id, holding 32 bytes in base64. The newest one wraps new data keys: the one that the file `current`
names, else the last by name, numbers counted as numbers. Nothing here needs the encryption library.
"""

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

KEY_BYTES: Final = 32
CURRENT: Final = "current"
MOST_KEYS: Final = 100
_MOST_BYTES: Final = 1024
_KEY_ID: Final = re.compile(r"[-._A-Za-z0-9]{1,253}")
_NUMBERS: Final = re.compile(r"(\d+)")


class KeysUnusable(Exception):  # noqa: N818 - the state of the world, not a mistake
    """There are no wrapping keys that can be used; the text says what is wrong and holds no key."""


@dataclass(frozen=True, slots=True)
class WrappingKeys:
    """Keys of 32 bytes by key id, and the id of the one that wraps new data keys."""

    keys: Mapping[str, bytes] = field(repr=False)
    current: str

    @property
    def newest(self) -> bytes:
        """Return the key that wraps new data keys."""
        return self.keys[self.current]


def read_wrapping_keys(folder: Path, source: str = "") -> WrappingKeys:
    """Read the keys of a folder; `source` is how errors call it. Raises KeysUnusable."""
    name = source or f"folder {folder}"
    try:
        paths = sorted(path for path in folder.iterdir() if not path.name.startswith(".") and path.is_file())
        values = {path.name: path.read_bytes()[:_MOST_BYTES] for path in paths[: MOST_KEYS + 1]}
    except OSError as error:
        raise KeysUnusable(f"{name} with the encryption keys cannot be read: {error.strerror or error}") from error
    return parse_wrapping_keys(values, name)


def parse_wrapping_keys(values: Mapping[str, bytes], source: str) -> WrappingKeys:
    """Return the keys of a Secret's values, by their names. Raises KeysUnusable."""
    keys = {name: parse_key(value, name, source) for name, value in values.items() if name != CURRENT}
    if not keys:
        raise KeysUnusable(f"{source} holds no encryption key; put one there: 32 random bytes in base64")
    if len(keys) > MOST_KEYS:
        raise KeysUnusable(f"{source} holds more than {MOST_KEYS} encryption keys; remove those no longer used")
    current = values[CURRENT].decode("utf-8", "replace").strip() if CURRENT in values else max(keys, key=age_order)
    if current not in keys:
        raise KeysUnusable(f'{source} has no key "{current}", which its key "{CURRENT}" names')
    return WrappingKeys(keys, current)


def parse_key(value: bytes, name: str, source: str) -> bytes:
    """Return the 32 bytes written in base64 (of either alphabet). Raises KeysUnusable."""
    try:
        key = base64.b64decode(value.strip().translate(bytes.maketrans(b"-_", b"+/")), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != KEY_BYTES or not _KEY_ID.fullmatch(name):
        raise KeysUnusable(f'key "{name}" of {source} is not 32 bytes in base64; make one: openssl rand -base64 32')
    return key


def format_key(key: bytes) -> str:
    """Return a key as files and Secrets hold it."""
    return base64.b64encode(key).decode("ascii")


def age_order(name: str) -> tuple[tuple[int, str], ...]:
    """Return what sorts names of keys from old to new: k2 before k10, 2026-02 before 2026-11."""
    return tuple((int(part), "") if part.isdecimal() else (-1, part) for part in _NUMBERS.split(name) if part)


def derive_key(root: bytes, purpose: str) -> bytes:
    """Return a key of 32 bytes for one purpose: HKDF with SHA-256, without salt (RFC 5869)."""
    extracted = hmac.digest(bytes(hashlib.sha256().digest_size), root, "sha256")
    return hmac.digest(extracted, purpose.encode() + b"\x01", "sha256")


def derive_wrapping_key(root: bytes, state_id: str) -> bytes:
    """Return the wrapping key of one agent, from the installation's root key and the id of the agent's rows."""
    return derive_key(root, f"abide.dev/agent-wrapping-key/1/{state_id.lower()}")
