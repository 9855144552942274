"""Run single statements on pooled connections: deadlines, failpoints, one retry, translation of errors."""

import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

import asyncpg

from agent_store.errors import StoreUnavailable
from agent_store.failpoints import Failpoints
from agent_store.ports import OnStoreCall
from agent_store.postgres.errors import LOST, TRANSIENT, TRANSLATED, describe_address, translate
from agent_store.postgres.pool import Connection, Pool, PoolStatistics
from agent_store.postgres.queries import load_queries
from agent_store.settings import StoreSettings

Rows = list[Any]
HasUnknownKeys = Callable[[str, Rows], bool]
ReadKeys = Callable[[], Awaitable[None]]
_TRIES: Final = 3
PLAN_SECONDS: Final = 60
"""A statement is planned anew after this: a plan made while the tables were small or without statistics may be slow."""


class Executor:
    """The connections of one store. A statement is a transaction of its own."""

    def __init__(self, url: str, settings: StoreSettings, failpoints: Failpoints) -> None:
        self._url = url
        self._settings = settings
        self._failpoints = failpoints if failpoints.active else None
        self._queries = load_queries()
        self.address: Final = describe_address(url)
        self._pool = Pool(self._connect, settings.max_connections, settings.idle_seconds)
        self._on_call: OnStoreCall | None = None
        self._has_unknown_keys: HasUnknownKeys | None = None
        self._read_keys: ReadKeys | None = None

    @property
    def command_timeout(self) -> float:
        """Seconds after which a statement is given up."""
        return self._settings.command_timeout

    def statistics(self) -> PoolStatistics:
        """Return how many connections are open and idle."""
        return self._pool.statistics()

    async def run(self, name: str, *arguments: object, point: str, repeatable: bool = True) -> Rows:
        """Run the statement `name`; return its rows.

        `point` names its failpoints, as `<method>.<n>`. A `repeatable` statement is run once more if a connection
        that was used before turns out to be broken, which is how a restart of Postgres shows; others only if surely
        not sent. Raises StoreUnavailable; asyncpg.UniqueViolationError passes through, for the caller to explain.
        """
        if self._failpoints is not None:
            await self._failpoints.hit(f"store.{point}.before")
        rows = await self._observed(name, arguments, point, repeatable)
        if self._failpoints is not None:
            await self._failpoints.hit(f"store.{point}.after")
        if rows and self._has_unknown_keys is not None and self._has_unknown_keys(name, rows):
            await self._learn_keys()
        return rows

    def look_at_rows(self, has_unknown_keys: HasUnknownKeys, read_keys: ReadKeys) -> None:
        """Before rows of which `has_unknown_keys(statement, rows)` is true are returned, let `read_keys` end."""
        self._has_unknown_keys, self._read_keys = has_unknown_keys, read_keys

    async def _learn_keys(self) -> None:
        if self._read_keys is not None:
            await self._read_keys()

    def observe(self, on_call: OnStoreCall) -> None:
        """Tell `on_call` of every statement from now on."""
        self._on_call = on_call

    async def _observed(self, name: str, arguments: tuple[object, ...], point: str, repeatable: bool) -> Rows:
        if self._on_call is None:
            return await self._try(name, arguments, repeatable)
        started, failure = time.monotonic(), None
        try:
            return await self._try(name, arguments, repeatable)
        except StoreUnavailable as error:
            failure = error.reason.value
            raise
        finally:
            self._on_call(point, time.monotonic() - started, failure)

    async def _try(self, name: str, arguments: tuple[object, ...], repeatable: bool) -> Rows:
        sent = False
        for left in reversed(range(_TRIES)):
            try:
                connection, is_reused = await self._pool.acquire(self._settings.acquire_timeout)
            except TRANSLATED as error:
                raise translate(error, self.address, sent=sent) from error
            usable = False
            try:
                rows: Rows = await connection.fetch(
                    self._queries[name], *arguments, timeout=self._settings.command_timeout
                )
                usable = True
            except (asyncpg.UniqueViolationError, asyncpg.DataError, ValueError):
                # An argument that cannot be encoded, or a value its column does not take: a mistake here and nothing
                # about Postgres, so that trying again would not help.
                usable = True
                raise
            except TRANSLATED as error:
                if left and isinstance(error, TRANSIENT):
                    usable = True
                    continue
                if left and is_reused and repeatable and isinstance(error, LOST):
                    sent = True
                    continue
                # A server that answers with an error of its own has undone the statement.
                usable = isinstance(error, asyncpg.PostgresError) and not isinstance(error, LOST)
                raise translate(error, self.address, sent=sent or not usable) from error
            finally:
                self._pool.release(connection, usable=usable)
            return rows
        raise AssertionError("the last try returns or raises")

    async def _connect(self) -> Connection:
        return await asyncpg.connect(
            self._url,
            timeout=self._settings.connect_timeout,
            statement_cache_size=100 if self._settings.statement_cache else 0,
            max_cached_statement_lifetime=PLAN_SECONDS,
            server_settings={"application_name": self._settings.application_name},
        )

    async def aclose(self) -> None:
        """Close all connections within one `command_timeout`."""
        await self._pool.aclose(self._settings.command_timeout)
