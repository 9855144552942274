"""How content is written to Postgres: the one place where it is encrypted and decrypted.

Without keys content is stored as plain UTF-8 with key id null. With keys AesGcmCodec takes PlainCodec's place; it
authenticates each value together with its logical place (table and ids that survive restore and clone), so that a value
moved elsewhere does not decrypt.
"""

import json
from typing import Any, Final, Protocol
from uuid import UUID


class Codec(Protocol):
    """Turns content into what is stored, and back."""

    @property
    def key_id(self) -> str | None:
        """Id of the key that encode() uses; None: not encrypted."""
        ...

    def encode(self, plain: bytes, *place: object) -> bytes:
        """Return what to store for `plain` at its logical place."""
        ...

    def decode(self, stored: bytes, key_id: str | None, *place: object) -> bytes:
        """Return what was given to encode() with the same place."""
        ...


class PlainCodec:
    """Stores content as it is."""

    key_id: str | None = None

    def encode(self, plain: bytes, *place: object) -> bytes:
        """Return `plain`."""
        return plain

    def decode(self, stored: bytes, key_id: str | None, *place: object) -> bytes:
        """Return `stored`; raises ValueError for content that some other codec encrypted."""
        if key_id is not None:
            raise ValueError(f"content is encrypted with key {key_id!r}, which this process does not have")
        return stored


PLAIN: Final[Codec] = PlainCodec()


class Codecs(Protocol):
    """The codec of each agent: agents have keys of their own."""

    def of(self, agent_id: UUID) -> Codec:
        """Return the codec for the agent's content; never blocks."""
        ...

    async def open(self, agent_id: UUID) -> None:
        """Get the agent's keys, before anything is written for it. Raises StoreUnavailable if they cannot be used."""
        ...

    def check(self, agent_id: UUID) -> None:
        """Raise StoreUnavailable if the agent's keys cannot be used any more."""
        ...

    async def reload(self, agent_id: UUID) -> None:
        """Get the agent's keys as they are now. Raises StoreUnavailable if they cannot be used."""
        ...

    async def look(self, agent_id: UUID) -> None:
        """Read the agent's keys again, for a report: keys that cannot be unwrapped are left alone."""
        ...

    async def rotate(self, agent_id: UUID) -> None:
        """Make a new key that encrypts from now on. Raises StoreUnavailable if there is nothing to wrap it with."""
        ...


class PlainCodecs:
    """Stores the content of every agent as it is."""

    def of(self, agent_id: UUID) -> Codec:
        """Return the plain codec."""
        return PLAIN

    async def open(self, agent_id: UUID) -> None:
        """Do nothing."""

    def check(self, agent_id: UUID) -> None:
        """Do nothing."""

    async def reload(self, agent_id: UUID) -> None:
        """Do nothing."""

    async def look(self, agent_id: UUID) -> None:
        """Do nothing."""

    async def rotate(self, agent_id: UUID) -> None:
        """Raise NotImplementedError: there is no key."""
        raise NotImplementedError("this store has no keys")


PLAIN_CODECS: Final[Codecs] = PlainCodecs()


# Half a surrogate pair is not text that UTF-8 can hold, but JSON can carry it; it must come back as it came.
def encode_text(text: str) -> bytes:
    """Return the bytes of a text; any str is allowed."""
    return text.encode("utf-8", "surrogatepass")


def decode_text(data: bytes) -> str:
    """Return the text of encode_text()."""
    return data.decode("utf-8", "surrogatepass")


def encode_json(value: Any) -> bytes:
    """Return a JSON value as bytes, keys in the given order."""
    return json.dumps(value, ensure_ascii=True, separators=(",", ":")).encode("ascii")


def decode_json(data: bytes | str) -> Any:
    """Return the value of encode_json() or jsonb()."""
    return json.loads(data)


def jsonb(value: Any) -> str:
    """Return a JSON value as Postgres' jsonb takes it: it holds neither NUL characters nor NaN."""
    return json.dumps(_clean(value), ensure_ascii=False, default=str, allow_nan=False)


def text(value: str) -> str:
    """Return a text as a text column takes it: NUL and halves of surrogate pairs are replaced."""
    return value.replace("\0", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace").decode("utf-8")


def _clean(value: Any) -> Any:
    match value:
        case str():
            return text(value)
        case float() if value != value or value in (float("inf"), float("-inf")):
            return None
        case dict():
            return {text(str(key)): _clean(item) for key, item in value.items()}
        case list() | tuple():
            return [_clean(item) for item in value]
        case _:
            return value
