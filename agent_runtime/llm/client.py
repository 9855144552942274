"""The HTTP client of providers: bounded in time and size, with the key put on at the last moment.

Imported only where a provider is reached through the network. Redirects are not followed: a key is for one host.
"""

import socket
import ssl
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

import httpx2

from agent_runtime.llm.dialects import COMPATIBLE, KEY_HEADERS, Dialect
from agent_runtime.llm.port import FailureKind, ModelError

MOST_BYTES: Final = 16 * 1024 * 1024
"""Of one answer: longer than any reply, also where every letter comes in an event of its own."""
CONNECT_TIMEOUT: Final = 10.0
MOST_CONNECTIONS: Final = 1024
"""More than turns run at once: none should wait here, out of sight."""
MOST_CAUSES: Final = 16


class AnswerTooLongError(Exception):
    """A provider sent more than MOST_BYTES."""


class RedirectedError(Exception):
    """A provider sent us elsewhere; `args[0]` is the status."""


class ProviderClient(httpx2.AsyncClient):
    """Sends with the key that is valid now, whatever the request says; without one if there is none.

    `silence` is the longest wait for bytes, in seconds: a backstop behind the deadlines of whoever asks.
    """

    def __init__(self, key: Callable[[], str], silence: float, dialect: Dialect = COMPATIBLE) -> None:
        super().__init__(
            timeout=httpx2.Timeout(silence, connect=CONNECT_TIMEOUT),
            limits=httpx2.Limits(max_connections=MOST_CONNECTIONS, max_keepalive_connections=16, keepalive_expiry=30),
            follow_redirects=False,
        )
        self._dialect = dialect
        self._key = key

    async def send(self, request: httpx2.Request, *, stream: bool = False, **options: Any) -> httpx2.Response:
        """Send with the present key. Raises AnswerTooLongError and RedirectedError besides the client's own."""
        for name in KEY_HEADERS:
            request.headers.pop(name, None)
        for name, value in self._dialect.headers:
            request.headers.setdefault(name, value)
        if key := self._key():
            request.headers[self._dialect.key_header] = f"{self._dialect.key_prefix}{key}"
        response = await super().send(request, stream=True, **options)
        if response.is_redirect:
            await response.aclose()
            raise RedirectedError(response.status_code)
        response.stream = _Bounded(response.stream)
        if not stream:
            await response.aread()
        return response


class _Bounded(httpx2.AsyncByteStream):
    def __init__(self, inner: Any) -> None:
        self._inner = inner

    async def __aiter__(self) -> AsyncIterator[bytes]:
        left = MOST_BYTES
        async for chunk in self._inner:
            left -= len(chunk)
            if left < 0:
                raise AnswerTooLongError
            yield chunk

    async def aclose(self) -> None:
        await self._inner.aclose()


def from_transport(error: BaseException) -> ModelError:
    """Return what a failed connection means, read from the chain of its causes."""
    causes = _causes(error)

    def has(*kinds: type[BaseException]) -> bool:
        return any(isinstance(cause, kinds) for cause in causes)

    if has(AnswerTooLongError):
        return ModelError(FailureKind.REFUSED, f"did not stop after {MOST_BYTES} bytes", state="does not stop")
    if has(RedirectedError):
        return ModelError(
            FailureKind.UNREACHABLE, "answered with a redirect, which is not followed", state="answers with redirects"
        )
    if has(ssl.SSLError):
        return _unreachable("made no trusted TLS connection", "makes no trusted TLS connection")
    if has(socket.gaierror):
        return _unreachable("was not found: its host name has no address", "has a host name without an address")
    if has(ConnectionRefusedError):
        return _unreachable("refused the connection", "refuses connections")
    if has(httpx2.ConnectTimeout, httpx2.PoolTimeout):
        return ModelError(
            FailureKind.TIMEOUT,
            f"took no connection within {CONNECT_TIMEOUT:g} s",
            state=f"takes no connection within {CONNECT_TIMEOUT:g} s",
        )
    if has(httpx2.TimeoutException, TimeoutError):
        return ModelError(FailureKind.TIMEOUT, "did not answer in time", state="does not answer in time")
    if has(httpx2.ConnectError):
        return _unreachable("could not be connected to", "cannot be connected to")
    return _unreachable("broke the connection", "breaks connections")


def _unreachable(message: str, state: str) -> ModelError:
    return ModelError(FailureKind.UNREACHABLE, message, state=state, retryable=True)


def _causes(error: BaseException) -> list[BaseException]:
    found: list[BaseException] = []
    waiting: list[BaseException | None] = [error]
    while waiting and len(found) < MOST_CAUSES:
        cause = waiting.pop()
        if cause is None or cause in found:
            continue
        found.append(cause)
        waiting += [cause.__context__, cause.__cause__]
        if isinstance(cause, BaseExceptionGroup):
            waiting += cause.exceptions
    return found
