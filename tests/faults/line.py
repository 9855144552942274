"""The line between one process and Postgres; held or slowed down, what was sent arrives later, or never."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from urllib.parse import urlsplit, urlunsplit

CHUNK_BYTES = 65536


@dataclass(slots=True)
class Connection:
    """One connection: what its client sent since the line was last held, and how much the server ever answered."""

    client: asyncio.StreamWriter
    held_back: bytes = b""
    answered_bytes: int = 0


class Line:
    """Forwards bytes between clients and one server; while held, nothing passes in either direction."""

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port
        self._open = asyncio.Event()
        self._open.set()
        self._connections: dict[asyncio.Task[None], Connection] = {}
        self.delay = 0.0
        """Seconds that whatever passes takes, in either direction."""

    def hold(self) -> None:
        """Let nothing pass from now on; connections stay open."""
        for connection in self._connections.values():
            connection.held_back = b""
        self._open.clear()

    def release(self) -> None:
        """Let everything pass, first what was held back."""
        self._open.set()

    def holding(self, *texts: bytes) -> Connection | None:
        """Return the connection that held all these texts back, if one did."""
        connections = self._connections.values()
        return next((found for found in connections if all(text in found.held_back for text in texts)), None)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Forward one connection until either side ends it."""
        task = asyncio.current_task()
        assert task is not None
        connection = self._connections[task] = Connection(writer)
        try:
            server_reader, server_writer = await asyncio.open_connection(self._host, self._port)
        except OSError:
            return
        else:
            pumps = [
                asyncio.create_task(self._pump(reader, server_writer, connection, to_server=True)),
                asyncio.create_task(self._pump(server_reader, writer, connection, to_server=False)),
            ]
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            server_writer.transport.abort()
        finally:
            writer.transport.abort()
            del self._connections[task]

    async def aclose(self) -> None:
        """Cut every connection."""
        tasks = list(self._connections)
        self._open.set()
        for connection in self._connections.values():
            connection.client.transport.abort()
        await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 10)

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, connection: Connection, *, to_server: bool
    ) -> None:
        with suppress(OSError):
            while chunk := await reader.read(CHUNK_BYTES):
                if not to_server:
                    connection.answered_bytes += len(chunk)
                elif not self._open.is_set():
                    connection.held_back += chunk
                await self._open.wait()
                if self.delay:
                    await asyncio.sleep(self.delay)
                writer.write(chunk)
                await writer.drain()


@asynccontextmanager
async def line_to(postgres_url: str) -> AsyncIterator[tuple[Line, str]]:
    """Yield a Line to the server of the URL, and the URL through it."""
    parts = urlsplit(postgres_url)
    line = Line(parts.hostname or "127.0.0.1", parts.port or 5432)
    server = await asyncio.start_server(line.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    credentials = parts.netloc.rpartition("@")[0]
    try:
        yield line, urlunsplit(parts._replace(netloc=f"{credentials}@127.0.0.1:{port}"))
    finally:
        server.close()
        await line.aclose()
        await server.wait_closed()
