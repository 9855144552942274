"""The line between one process and Postgres, which a test can hold: what was sent arrives later, or never."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit, urlunsplit

CHUNK_BYTES = 65536


class Line:
    """Forwards bytes between clients and one server; while held, nothing passes in either direction."""

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port
        self._open = asyncio.Event()
        self._open.set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.held_back = b""
        """What clients sent since the line was last held, whether it has passed meanwhile or not."""
        self.answered_bytes = 0

    def hold(self) -> None:
        """Let nothing pass from now on; connections stay open."""
        self.held_back = b""
        self._open.clear()

    def release(self) -> None:
        """Let everything pass, first what was held back."""
        self._open.set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Forward one connection until either side ends it."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            with suppress(OSError):
                server_reader, server_writer = await asyncio.open_connection(self._host, self._port)
                try:
                    pumps = [
                        asyncio.create_task(self._pump(reader, server_writer, to_server=True)),
                        asyncio.create_task(self._pump(server_reader, writer, to_server=False)),
                    ]
                    try:
                        await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
                    finally:
                        for pump in pumps:
                            pump.cancel()
                        await asyncio.gather(*pumps, return_exceptions=True)
                finally:
                    server_writer.transport.abort()
        finally:
            writer.transport.abort()
            self._tasks.discard(task)

    async def aclose(self) -> None:
        """Cut every connection."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, to_server: bool) -> None:
        with suppress(OSError):
            while chunk := await reader.read(CHUNK_BYTES):
                if to_server:
                    self.held_back += chunk if not self._open.is_set() else b""
                else:
                    self.answered_bytes += len(chunk)
                await self._open.wait()
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
