"""A load generator for one runtime process: SESSIONS connections that always have a message under way.

    python -m benchmarks.workers.http_load PORT PID SESSIONS TURNS_PER_SESSION

A bare HTTP/1.1 client on asyncio's protocols, so that it takes as little as possible of the machine it shares with
what it measures. The CPU time it reports is that of the runtime, PID.
"""

import asyncio
import itertools
import json
import sys
import time
from typing import cast

import uvloop

from benchmarks.common import CONTENT, NAMESPACE, REPLY
from benchmarks.contest import cpu_seconds, serve_rounds

TIMEOUT = 60.0
AGENT = "http"


class Connection(asyncio.Protocol):
    """One keep-alive connection with at most one request under way."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[bytes] | None = None
        self._buffer = b""
        self._expected = -1

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail the request under way."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(exc or ConnectionResetError("the runtime closed the connection"))

    def data_received(self, data: bytes) -> None:
        """Collect the response: headers with Content-Length, then the body."""
        self._buffer += data
        if self._expected < 0:
            head, found, _ = self._buffer.partition(b"\r\n\r\n")
            if not found:
                return
            length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
            self._expected = len(head) + 4 + int(length.split(b":")[1])
        if len(self._buffer) >= self._expected and self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(self._buffer)

    async def request(self, request: bytes) -> bytes:
        """Send a request and return the whole response."""
        assert self._transport is not None
        self._buffer, self._expected = b"", -1
        self._waiter = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._waiter

    def close(self) -> None:
        """Close the connection."""
        if self._transport is not None:
            self._transport.close()


def build_request(session: str) -> bytes:
    """Return the bytes of a message to a session."""
    body = json.dumps({"content": CONTENT}).encode()
    path = f"/v1/agents/{NAMESPACE}/{AGENT}/sessions/{session}/messages"
    lines = [f"POST {path} HTTP/1.1", "Host: bench", "Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode() + body


def check(response: bytes) -> None:
    """Raise RuntimeError unless the response is the reply."""
    if not response.startswith(b"HTTP/1.1 200") or REPLY.encode() not in response:
        raise RuntimeError(response[-1000:].decode(errors="replace"))


async def main() -> None:
    """Serve rounds."""
    port, pid, sessions, turns = (int(argument) for argument in sys.argv[1:5])
    loop = asyncio.get_running_loop()
    connections = [(await loop.create_connection(Connection, "127.0.0.1", port))[1] for _ in range(sessions)]
    names = itertools.count()

    async def client(connection: Connection, deadline: float) -> int:
        done = 0
        while True:
            request = build_request(f"h{next(names)}")
            for _ in range(turns):
                if time.perf_counter() >= deadline:
                    return done
                check(await connection.request(request))
                done += 1

    async def run(seconds: float) -> int:
        deadline = time.perf_counter() + seconds
        async with asyncio.timeout(seconds + TIMEOUT):
            return sum(await asyncio.gather(*(client(connection, deadline) for connection in connections)))

    await serve_rounds(run, cpu=lambda: cpu_seconds(pid))
    for connection in connections:
        connection.close()


if __name__ == "__main__":
    uvloop.run(main())
