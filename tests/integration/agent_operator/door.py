"""Postgres behind a door that a test opens and shuts: shut, it refuses connections as a stopped server does."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit, urlunsplit

from tests.faults.line import Line


class Door:
    """See the module. `url` leads through the door."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        self._parts = parts
        self._line = Line(parts.hostname, parts.port or 5432)
        self._server: asyncio.Server | None = None
        self._port = 0

    @property
    def url(self) -> str:
        user, _, _ = self._parts.netloc.rpartition("@")
        return urlunsplit(self._parts._replace(netloc=f"{user}@127.0.0.1:{self._port}"))

    async def open(self) -> None:
        """Let connections through, on the same port each time."""
        self._server = await asyncio.start_server(self._line.serve, "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]

    async def shut(self) -> None:
        """Cut every connection and refuse new ones."""
        if self._server is not None:
            self._server.close()
            self._server = None
            await self._line.aclose()


@asynccontextmanager
async def door_to(url: str) -> AsyncIterator[Door]:
    """Return an open door to a Postgres."""
    door = Door(url)
    await door.open()
    try:
        yield door
    finally:
        await door.shut()
