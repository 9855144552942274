"""HTTP below the MCP client: whatever fails becomes the JSON-RPC error of the one request that failed.

The library ends a whole session, with every call under way in it, when one request gets an HTTP error, and lets a call
wait for ever whose answer breaks off. Imported only by agents that have an MCP server.
"""

import json
from collections.abc import AsyncIterator
from typing import Any, Final

import httpx

from agent_runtime.tools.net import explain, from_status
from agent_runtime.tools.standing import Unusable

BROKEN: Final = -32099
"""Code of the errors made here (JSON-RPC 2.0, section 5.1: reserved for implementations); data: {passing, sent}."""
EVENT_STREAM: Final = "text/event-stream"
DELETE_SECONDS: Final = 1.0
"""What saying good-bye may take."""


class McpHttp(httpx.AsyncBaseTransport):
    """Wraps the transport that does the work."""

    def __init__(self, inner: httpx.AsyncBaseTransport) -> None:
        self._inner = inner

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if request.method == "DELETE":
            request.extensions["timeout"] = dict.fromkeys(("connect", "read", "write", "pool"), DELETE_SECONDS)
        if request.method != "POST":
            return await self._inner.handle_async_request(request)
        number = _request_id(await request.aread())
        try:
            response = await self._inner.handle_async_request(request)
        except Exception as error:
            return _answer(number, explain(error), sent=not _never_sent(error))
        # 404 says that the session is gone, which the library understands.
        if response.status_code >= 300 and response.status_code != 404:
            await response.aclose()
            return _answer(number, from_status(response.status_code), sent=False)
        if number is None or response.status_code == 404:
            return response
        return await self._unbroken(number, response)

    async def _unbroken(self, number: int | str, response: httpx.Response) -> httpx.Response:
        kind = response.headers.get("content-type", "").lower()
        if kind.startswith(EVENT_STREAM):
            stream = _Ended(response.stream, number)
            return httpx.Response(
                response.status_code, headers=response.headers, stream=stream, extensions=response.extensions
            )
        if not kind.startswith("application/json"):
            await response.aclose()
            return _answer(number, Unusable("does not speak MCP at this address"), sent=True)
        try:
            content = await response.aread()
            json.loads(content)
        except Exception as error:
            problem = Unusable("answers no JSON") if isinstance(error, ValueError) else explain(error)
            return _answer(number, problem, sent=True)
        finally:
            await response.aclose()
        headers = [(name, value) for name, value in response.headers.raw if name.lower() != b"content-length"]
        return httpx.Response(response.status_code, headers=headers, content=content)

    async def aclose(self) -> None:
        await self._inner.aclose()


class _Ended(httpx.AsyncByteStream):
    """An event stream that ends with an error if it ends before the answer came.

    Whoever got the answer has closed the stream by then. A stream whose events have ids is resumed by the library.
    """

    def __init__(self, inner: Any, number: int | str) -> None:
        self._inner = inner
        self._number = number

    async def __aiter__(self) -> AsyncIterator[bytes]:
        failure = Unusable("ended its answer early", passing=True)
        resumable = False
        tail = b"\n"
        try:
            async for chunk in self._inner:
                resumable = resumable or b"\nid:" in tail + chunk
                tail = chunk[-4:]
                yield chunk
        except Exception as error:
            failure = explain(error)
        if not resumable:
            text = json.dumps(_error(self._number, failure, sent=True))
            yield f"\n\nevent: message\ndata: {text}\n\n".encode()

    async def aclose(self) -> None:
        await self._inner.aclose()


def _request_id(body: bytes) -> int | str | None:
    """Return the id of a request, None for a notification or an answer."""
    message = json.loads(body)
    return message["id"] if "method" in message and "id" in message else None


def _answer(number: int | str | None, failure: Unusable, *, sent: bool) -> httpx.Response:
    if number is None:
        return httpx.Response(202)
    return httpx.Response(200, json=_error(number, failure, sent=sent))


def _error(number: int | str, failure: Unusable, *, sent: bool) -> dict[str, Any]:
    data = {"passing": failure.passing, "sent": sent}
    return {"jsonrpc": "2.0", "id": number, "error": {"code": BROKEN, "message": failure.phrase, "data": data}}


def _never_sent(error: Exception) -> bool:
    """Whether the request certainly did not reach the server."""
    import httpcore

    return isinstance(error, httpcore.ConnectError | httpcore.ConnectTimeout | httpcore.PoolTimeout | Unusable)
