"""HTTP/1.1 with bounds: uvicorn's protocol counts neither the bytes of headers nor the time they take."""

import asyncio
import json
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEADER_SECONDS: Final = 30.0
MOST_HEADERS: Final = 200
LARGEST_READ: Final = 262_144
"""What uvloop reads at once."""


def bounded_protocol(header_bytes: int) -> type[asyncio.Protocol]:
    """Return a protocol class that refuses requests whose line and headers exceed `header_bytes` in all."""

    class BoundedProtocol(_BoundedProtocol):
        header_limit = header_bytes

    return BoundedProtocol


class _BoundedProtocol(HttpToolsProtocol):
    """Closes connections that send too many header bytes (431), or none in time (408)."""

    header_limit = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._header_bytes = 0
        self._header_timer: asyncio.TimerHandle | None = None
        self._refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        super().data_received(data)
        if self._header_timer is None or self._refused:
            return
        # Headers without an end never reach the parser's callbacks. The chunk may have begun with another request.
        self._header_bytes += len(data)
        if self._header_bytes > self.header_limit + LARGEST_READ:
            self._too_large()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._parsed_bytes = 0
        self._arm()

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self._count(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        self._count(len(name) + len(value) + 4)
        if len(self.headers) > MOST_HEADERS:
            self._too_large()

    def on_headers_complete(self) -> None:
        self._disarm()
        if not self._refused:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if not self._refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if not self._refused:
            super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP with a problem, like everything else."""
        self._refuse(400, "This is not a valid HTTP request.")

    def _count(self, size: int) -> None:
        self._parsed_bytes += size
        if self._parsed_bytes > self.header_limit:
            self._too_large()

    def _too_large(self) -> None:
        self._refuse(431, f"The request's headers are larger than {self.header_limit} bytes.")

    def _arm(self) -> None:
        self._disarm()
        self._header_bytes = 0
        self._header_timer = self.loop.call_later(HEADER_SECONDS, self._on_slow)

    def _disarm(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _on_slow(self) -> None:
        self._header_timer = None
        if self.cycle is None or self.cycle.response_complete:
            self._refuse(408, "The request's headers did not come in time.")

    def _refuse(self, status: int, title: str) -> None:
        if self._refused or self.transport is None or self.transport.is_closing():
            return
        self._refused = True
        kind = {400: "bad-request", 408: "request-timeout", 431: "headers-too-large"}[status]
        problem = {"type": f"https://abide.dev/problems/{kind}", "title": title, "status": status}
        body = json.dumps(problem).encode()
        self.transport.write(
            b"HTTP/1.1 %d Refused\r\ncontent-type: application/problem+json\r\ncontent-length: %d\r\n"
            b"connection: close\r\n\r\n%b" % (status, len(body), body)
        )
        self.transport.close()
