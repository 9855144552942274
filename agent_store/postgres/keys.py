"""The data keys of agents: made and read when a process registers, wrapped by keys that are not in the database.

Nothing is written for an agent whose keys cannot all be unwrapped. Processes that meet content under a key they do not
know (another one rotated it) read the keys again before they decode.
"""

import asyncio
import base64
import json
import secrets
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from agent_api.conditions import Reason
from agent_store.codec import PLAIN, Codec
from agent_store.codec_keys import KeysUnusable, WrappingKeys, read_wrapping_keys
from agent_store.errors import StoreUnavailable
from agent_store.ports import DataKey, KeyPass
from agent_store.postgres.base import Part
from agent_store.postgres.content import CONTENT, ContentTable
from agent_store.postgres.executor import Executor, Rows
from agent_store.settings import NO_KEYS, KeySettings

UNKNOWN_PAUSE: Final = 1.0
"""Seconds between two readings of keys because of content under a key that is not there."""
KEY_ID_LENGTH: Final = 6
ROWS_PER_STEP: Final = 200
"""Rows that one step of a pass looks at: their content is in memory at once."""
_LETTERS: Final = "abcdefghijkmnpqrstuvwxyz23456789"


class AgentKeys:
    """Codecs of agents with data keys, and of agents without any. Belongs to one event loop.

    Without a folder of wrapping keys content is written as it is, and agents that have data keys are refused.
    """

    def __init__(self, db: Executor, settings: KeySettings = NO_KEYS) -> None:
        self._db = db
        self._settings = settings
        self._codecs: dict[UUID, Codec] = {}
        self._secrets: dict[UUID, dict[str, bytes]] = {}
        self._agents: set[UUID] = set()
        self._known: set[str | None] = {None}
        self._broken: dict[UUID, StoreUnavailable] = {}
        self._columns: dict[str, tuple[str, ...]] = {}
        self._reading = asyncio.Lock()
        self._read_at = float("-inf")
        db.look_at_rows(self.has_unknown, self.learn)

    def of(self, agent_id: UUID) -> Codec:
        """Return the codec of the agent: the plain one before open()."""
        return self._codecs.get(agent_id, PLAIN)

    async def open(self, agent_id: UUID) -> None:
        """Read the agent's data keys; make the first one where content is to be encrypted.

        Raises StoreUnavailable with EncryptionKeyMismatch; nothing has been written then.
        """
        self._agents.add(agent_id)
        wrapping = self._read_folder()
        rows = await self._db.run("list_keys", agent_id, point="open_keys.1")
        if not rows and isinstance(wrapping, WrappingKeys) and self._encrypts(agent_id):
            made = _wrap_new_key(wrapping, agent_id)
            await self._db.run("make_first_key", agent_id, *made, point="open_keys.2")
            rows = await self._db.run("list_keys", agent_id, point="open_keys.3")
        self._take(agent_id, rows, wrapping)

    def check(self, agent_id: UUID) -> None:
        """Raise StoreUnavailable with EncryptionKeyMismatch if a data key of the agent cannot be used (any more)."""
        if agent_id in self._broken:
            raise self._broken[agent_id]

    def _encrypts(self, agent_id: UUID) -> bool:
        return agent_id not in self._settings.plain

    def _read_folder(self) -> WrappingKeys | str | None:
        """Return the wrapping keys, or why there are none; None where no folder is set."""
        if self._settings.folder is None:
            return None
        try:
            return read_wrapping_keys(self._settings.folder, self._settings.source)
        except KeysUnusable as error:
            return str(error)

    def _take(self, agent_id: UUID, rows: Rows, wrapping: WrappingKeys | str | None) -> None:
        """Use these keys from now on. Raises StoreUnavailable if one is not known and cannot be unwrapped."""
        try:
            keys = self._unwrap_all(agent_id, rows, wrapping)
        except StoreUnavailable as error:
            # Wrapping keys that are wrong or not there yet take nothing from a process that holds all data keys.
            held = self._secrets.get(agent_id, {})
            if not rows or any(row["key_id"] not in held for row in rows):
                self._broken[agent_id] = error
                raise
            keys = {row["key_id"]: held[row["key_id"]] for row in rows}
        self._broken.pop(agent_id, None)
        self._known.update(keys)
        if not keys and not isinstance(wrapping, WrappingKeys):
            self._codecs.pop(agent_id, None)
            return
        from agent_store.codec_aes import AesGcmCodec

        # One mapping for all codecs of the agent: a caller may have got its codec before its rows came with a new key.
        secret = self._secrets.setdefault(agent_id, {})
        secret.update(keys)
        current = rows[-1]["key_id"] if rows and self._encrypts(agent_id) else None
        self._codecs[agent_id] = AesGcmCodec(secret, current)

    def _unwrap_all(self, agent_id: UUID, rows: Rows, wrapping: WrappingKeys | str | None) -> dict[str, bytes]:
        if isinstance(wrapping, str) and (rows or self._encrypts(agent_id)):
            raise _mismatch(f"{wrapping}{_expected(rows)}")
        if rows and not isinstance(wrapping, WrappingKeys):
            raise _mismatch(
                "the state of this agent is encrypted and no keys are given; set ABIDE_ENCRYPTION_KEYS_DIR to the "
                f"folder with them{_expected(rows)}"
            )
        if not isinstance(wrapping, WrappingKeys):
            return {}
        return {row["key_id"]: self._unwrap(agent_id, row, wrapping) for row in rows}

    def _unwrap(self, agent_id: UUID, row: Any, wrapping: WrappingKeys) -> bytes:
        from agent_store.codec_aes import UndecryptableError, unwrap_key

        name, source = row["wrapping_key_id"], self._settings.source or f"folder {self._settings.folder}"
        key = wrapping.keys.get(name)
        if key is None:
            raise _mismatch(f'{source} has no key "{name}", which the state was encrypted with; put it back there')
        try:
            return unwrap_key(key, row["wrapped"], agent_id, row["key_id"])
        except UndecryptableError:
            raise _mismatch(
                f'key "{name}" of {source} is not the one that the state was encrypted with; put that one back'
            ) from None

    def has_unknown(self, name: str, rows: Rows) -> bool:
        """Whether rows of this statement hold content under a key that is not known."""
        columns = self._columns.get(name)
        if columns is None:
            found = () if name == "list_keys" else rows[0].keys()
            columns = self._columns[name] = tuple(column for column in found if column.endswith("key_id"))
        known = self._known
        return any(row[column] not in known for column in columns for row in rows)

    async def learn(self) -> None:
        """Read the keys of all agents again, soon after the last time not. Raises StoreUnavailable."""
        async with self._reading:
            now = asyncio.get_running_loop().time()
            if now - self._read_at < UNKNOWN_PAUSE:
                return
            for agent_id in list(self._agents):
                await self.reload(agent_id)
            # Only now: whoever comes after a reading that failed reads for itself.
            self._read_at = now

    async def reload(self, agent_id: UUID) -> None:
        """Read the agent's keys again. Raises StoreUnavailable, also if a new one cannot be unwrapped."""
        rows = await self._db.run("list_keys", agent_id, point="reload_keys.1")
        self._take(agent_id, rows, self._read_folder())

    async def look(self, agent_id: UUID) -> None:
        """Read the agent's keys again, and use them if all of them can be unwrapped.

        Nothing is broken by looking: keys that cannot be unwrapped matter when content under them is met.
        """
        rows = await self._db.run("list_keys", agent_id, point="reload_keys.1")
        wrapping = self._read_folder()
        with suppress(StoreUnavailable):
            self._unwrap_all(agent_id, rows, wrapping)
            self._take(agent_id, rows, wrapping)

    async def rotate(self, agent_id: UUID) -> None:
        """See agent_store.ports.KeyStore.rotate_key."""
        wrapping = self._read_folder()
        rows = await self._db.run("list_keys", agent_id, point="rotate_key.1")
        self._unwrap_all(agent_id, rows, wrapping)
        self._take(agent_id, rows, wrapping)
        if not isinstance(wrapping, WrappingKeys):
            raise _mismatch("this runtime has no encryption keys; set ABIDE_ENCRYPTION_KEYS_DIR")
        await self._rewrap(agent_id, rows, wrapping)
        new = _wrap_new_key(wrapping, agent_id)
        await self._db.run("add_key", agent_id, *new, point="rotate_key.3", repeatable=False)
        await self.reload(agent_id)

    async def _rewrap(self, agent_id: UUID, rows: Rows, wrapping: WrappingKeys) -> None:
        """Wrap older data keys with the newest wrapping key, so that older wrapping keys are no longer needed."""
        from agent_store.codec_aes import wrap_key

        for row in rows:
            if row["wrapping_key_id"] != wrapping.current:
                key = self._unwrap(agent_id, row, wrapping)
                again = wrap_key(wrapping.newest, key, agent_id, row["key_id"])
                await self._db.run(
                    "rewrap_key", agent_id, row["key_id"], row["wrapped"], wrapping.current, again, point="rotate_key.2"
                )


class PostgresKeys(Part):
    """KeyStore over abide.agent_keys."""

    async def list_keys(self, agent_id: UUID) -> Sequence[DataKey]:
        """See agent_store.ports.KeyStore.list_keys."""
        # Another process may have rotated them without this one having met the new key.
        await self._codecs.look(agent_id)
        rows = await self._db.run("list_keys", agent_id, point="list_keys.1")
        current = self._codecs.of(agent_id).key_id
        return [
            DataKey(row["key_id"], row["created_at"], row["wrapping_key_id"], row["key_id"] == current) for row in rows
        ]

    async def rotate_key(self, agent_id: UUID) -> Sequence[DataKey]:
        """See agent_store.ports.KeyStore.rotate_key."""
        await self._codecs.rotate(agent_id)
        return await self.list_keys(agent_id)

    async def pass_keys(self, agent_id: UUID, cursor: str | None, *, rewrite: bool) -> KeyPass:
        """See agent_store.ports.KeyStore.pass_keys."""
        number, place = _read_cursor(cursor)
        await self._codecs.reload(agent_id)
        codec = self._codecs.of(agent_id)
        table = CONTENT[number]
        rows = await self._db.run(
            table.read_statement, agent_id, *place, ROWS_PER_STEP, codec.key_id, rewrite, point="pass_keys.1"
        )
        values = Counter(row["key_id"] for row in rows if row["has_content"])
        stale = [row for row in rows if row["has_content"] and row["key_id"] != codec.key_id] if rewrite else []
        fresh = [(row, _encode_again(codec, table, row)) for row in stale]
        readable = [(row, columns) for row, columns in fresh if columns is not None]
        written = await self._rewrite(agent_id, codec.key_id, table, readable) if readable else 0
        if len(rows) == ROWS_PER_STEP:
            after: str | None = _write_cursor(number, [rows[-1][column] for column in table.identity])
        else:
            after = _write_cursor(number + 1, []) if number + 1 < len(CONTENT) else None
        return KeyPass(after, values, written, unreadable=len(fresh) - len(readable))

    async def _rewrite(
        self, agent_id: UUID, key_id: str | None, table: ContentTable, fresh: Sequence[tuple[Any, list[bytes | None]]]
    ) -> int:
        known = [[row[name] for row, _ in fresh] for name in (*table.identity, "key_id", *table.guards)]
        content = [list(column) for column in zip(*(columns for _, columns in fresh), strict=True)]
        done = await self._db.run(table.rewrite_statement, agent_id, key_id, *known, *content, point="pass_keys.2")
        return len(done)


def _wrap_new_key(wrapping: WrappingKeys, agent_id: UUID) -> tuple[str, str, bytes]:
    """Return id, wrapping key's id and wrapped form of a new data key."""
    from agent_store.codec_aes import new_key, wrap_key

    # Random, not counted: after a restore from a backup a number would come again for another key. Every row holds it.
    key_id = "".join(secrets.choice(_LETTERS) for _ in range(KEY_ID_LENGTH))
    return key_id, wrapping.current, wrap_key(wrapping.newest, new_key(), agent_id, key_id)


def _encode_again(codec: Codec, table: ContentTable, row: Any) -> list[bytes | None] | None:
    """Return the content of a row's columns under the current key; None if it does not decrypt."""
    from agent_store.codec_aes import UndecryptableError

    def encode(stored: bytes | None, place: tuple[object, ...]) -> bytes | None:
        return None if stored is None else codec.encode(codec.decode(stored, row["key_id"], *place), *place)

    try:
        return [encode(row[column.name], column.place(row)) for column in table.columns]
    except UndecryptableError:
        return None


def _write_cursor(number: int, place: Sequence[object]) -> str:
    parts = [part.isoformat() if isinstance(part, datetime) else part for part in place]
    text = json.dumps([number, *(part if isinstance(part, int) else str(part) for part in parts)])
    return base64.urlsafe_b64encode(text.encode()).decode("ascii")


def _read_cursor(cursor: str | None) -> tuple[int, list[object]]:
    """Return which table to go on with, and after which row: nulls for its beginning. Raises ValueError."""
    if cursor is None:
        return 0, [None] * len(CONTENT[0].identity)
    try:
        number, *parts = json.loads(base64.urlsafe_b64decode(cursor.encode("ascii")))
        table = CONTENT[number] if isinstance(number, int) and number >= 0 else None
        if table is None or len(parts) not in (0, len(table.identity)):
            raise ValueError
        kinds = zip(table.kinds, parts, strict=True) if parts else ()
        return number, [kind(part) for kind, part in kinds] or [None] * len(table.identity)
    except (ValueError, TypeError, LookupError, AttributeError):
        raise ValueError("the cursor is none of a pass over keys; begin without one") from None


def _expected(rows: Rows) -> str:
    names = sorted({row["wrapping_key_id"] for row in rows})
    if not names:
        return ""
    quoted = ", ".join(f'"{name}"' for name in names)
    return f" (expected key: {quoted})" if len(names) == 1 else f" (expected keys: {quoted})"


def _mismatch(message: str) -> StoreUnavailable:
    return StoreUnavailable(Reason.ENCRYPTION_KEY_MISMATCH, message, sent=False)
