"""The HTTP client of tools: pinned to addresses that were checked, bounded in time and size, never redirected.

Imported only by agents that have a tool behind the network. A proxy of the environment is not used: the proxy would
resolve the name, and nobody could say where a request ends.
"""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import suppress
from functools import cache
from typing import Any, Final

import httpcore
import httpx

from agent_runtime.tools.addresses import refuse
from agent_runtime.tools.standing import Unusable

CONNECT_TIMEOUT: Final = 5.0
MOST_BYTES: Final = 16 * 1024 * 1024
"""Of one answer, event streams included: beyond it a server does not stop."""
MOST_CONNECTIONS: Final = 64
MOST_CAUSES: Final = 24
MOST_ADDRESSES: Final = 4
"""Of one host name, tried one after the other."""
Headers = Callable[[], dict[str, str]]


class TooLong(Exception):  # noqa: N818 - said of the server
    """A server sent more than MOST_BYTES, or packed its answer so that nobody knows how much it is."""


class _PinnedBackend(httpcore.AsyncNetworkBackend):
    """Resolves a name once, connects to an address that was checked. TLS still asks for the name."""

    def __init__(self, allow_private: bool) -> None:
        self._allow_private = allow_private
        self._inner = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect to the first address that may be used. Raises Unusable if none may."""
        addresses = await find_addresses(host, port, allow_private=self._allow_private)
        failure: Exception | None = None
        for address in addresses[:MOST_ADDRESSES]:
            try:
                return await self._inner.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = failure or error
        assert failure is not None  # noqa: S101 - there was an address
        raise failure

    async def sleep(self, seconds: float) -> None:
        """Wait, between two tries."""
        await asyncio.sleep(seconds)


async def find_addresses(host: str, port: int, *, allow_private: bool) -> list[str]:
    """Return the addresses a host may be reached at. Raises Unusable: it has none, or none that may be used."""
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT):
            found = await asyncio.get_running_loop().getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError):
        raise Unusable("has a host name without an address") from None
    except TimeoutError:
        raise Unusable("has a host name that is not resolved in time", passing=True) from None
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    problems = {address: refuse(host, address, allow_private=allow_private) for address in addresses}
    allowed = [address for address, problem in problems.items() if not problem]
    if not allowed:
        raise Unusable(next(iter(problems.values()), "has a host name without an address"))
    return allowed


@cache
def _tls() -> ssl.SSLContext:
    return httpx.create_ssl_context()


class _Transport(httpx.AsyncBaseTransport):
    """httpx over the pinned backend. Errors keep httpcore's types; `explain` knows both."""

    def __init__(self, headers: Headers, *, allow_private: bool) -> None:
        self._headers = headers
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=_tls(),
            max_connections=MOST_CONNECTIONS,
            max_keepalive_connections=8,
            keepalive_expiry=30.0,
            network_backend=_PinnedBackend(allow_private),
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        for name, value in self._headers().items():
            request.headers[name] = value
        request.headers["Accept-Encoding"] = "identity"
        response = await self._pool.handle_async_request(
            httpcore.Request(
                method=request.method,
                url=httpcore.URL(
                    scheme=request.url.raw_scheme,
                    host=request.url.raw_host,
                    port=request.url.port,
                    target=request.url.raw_path,
                ),
                headers=request.headers.raw,
                content=request.stream,
                extensions=request.extensions,
            )
        )
        answer = httpx.Response(
            response.status,
            headers=response.headers,
            stream=_Bounded(response.stream),
            extensions=response.extensions,
        )
        if answer.headers.get("content-encoding", "identity").lower() != "identity":
            await answer.aclose()
            raise TooLong("packed although asked not to")
        return answer

    async def aclose(self) -> None:
        await self._pool.aclose()


class _Bounded(httpx.AsyncByteStream):
    def __init__(self, inner: Any) -> None:
        self._inner = inner

    async def __aiter__(self) -> AsyncIterator[bytes]:
        left = MOST_BYTES
        async for chunk in self._inner:
            left -= len(chunk)
            if left < 0:
                raise TooLong
            yield chunk

    async def aclose(self) -> None:
        with suppress(Exception):  # what is given up may be broken
            await self._inner.aclose()


def make_transport(headers: Headers, *, allow_private: bool) -> httpx.AsyncBaseTransport:
    """Return the transport alone, for clients that wrap it."""
    return _Transport(headers, allow_private=allow_private)


def make_client(headers: Headers, *, allow_private: bool, silence: float) -> httpx.AsyncClient:
    """Return a client that puts `headers()` on every request; `silence` is the longest wait for bytes, in seconds.

    `headers` may raise Unusable, which then ends the request.
    """
    return httpx.AsyncClient(
        transport=make_transport(headers, allow_private=allow_private),
        timeout=httpx.Timeout(silence, connect=CONNECT_TIMEOUT),
        follow_redirects=False,
        trust_env=False,
    )


def explain(error: BaseException) -> Unusable:
    """Return what a failed request says of the server, from the chain of its causes."""
    causes = _causes(error)

    def has(*kinds: type[BaseException]) -> bool:
        return any(isinstance(cause, kinds) for cause in causes)

    known = next((cause for cause in causes if isinstance(cause, Unusable)), None)
    if known is not None:
        return known
    status = next((one.response.status_code for one in causes if isinstance(one, httpx.HTTPStatusError)), None)
    if status is not None:
        return from_status(status)
    if has(TooLong):
        return Unusable("sends answers that are too long or packed")
    if has(ssl.SSLError) or any("certificate" in str(cause).lower() for cause in causes):
        return Unusable("makes no trusted TLS connection")
    if has(ConnectionRefusedError):
        return Unusable("refuses connections")
    if has(httpcore.ConnectTimeout, httpx.ConnectTimeout):
        return Unusable(f"takes no connection within {CONNECT_TIMEOUT:g} s", passing=True)
    if has(httpcore.TimeoutException, httpx.TimeoutException, TimeoutError):
        return Unusable("does not answer in time", passing=True)
    if has(httpcore.ConnectError, httpx.ConnectError):
        return Unusable("cannot be connected to")
    return Unusable("breaks connections", passing=True)


def from_status(status: int) -> Unusable:
    """Return what an HTTP status of a server says of it (RFC 9110, section 15)."""
    if 300 <= status < 400:
        return Unusable("answers with redirects to elsewhere, which are not followed")
    return Unusable(f"answers {status}", passing=status >= 500 or status in (408, 429))


def _causes(error: BaseException) -> list[BaseException]:
    found: list[BaseException] = []
    waiting: list[BaseException | None] = [error]
    while waiting and len(found) < MOST_CAUSES:
        cause = waiting.pop(0)
        if cause is None or cause in found:
            continue
        found.append(cause)
        if isinstance(cause, BaseExceptionGroup):
            waiting += cause.exceptions
        waiting += [cause.__cause__, cause.__context__]
    return found
