"""Real servers for tools on loopback: a small HTTP service that remembers its requests, and MCP servers."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from mcp.server.fastmcp import Context, FastMCP
from mcp.types import ToolAnnotations
from starlette.types import ASGIApp, Receive, Scope, Send

from tests.integration.agent_runtime.harness import free_port


@dataclass
class Seen:
    """One request as it arrived."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


Answer = tuple[int, dict[str, str], bytes]
Handler = Callable[[Seen], Awaitable[Answer]]


def answer_json(value: Any, status: int = 200, **headers: str) -> Answer:
    """Return an answer with a JSON body."""
    return status, {"content-type": "application/json", **headers}, json.dumps(value).encode()


@dataclass
class Service:
    """A small HTTP service; `handler` decides what it answers."""

    port: int
    handler: Handler
    requests: list[Seen] = field(default_factory=list)

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.port}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
        headers = {name.decode().lower(): value.decode() for name, value in scope["headers"]}
        seen = Seen(scope["method"], scope["raw_path"].decode(), scope["query_string"].decode(), headers, body)
        self.requests.append(seen)
        status, answered, content = await self.handler(seen)
        await send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": [(name.encode(), value.encode()) for name, value in answered.items()],
            }
        )
        with suppress(OSError):
            await send({"type": "http.response.body", "body": content})


@asynccontextmanager
async def listening(app: ASGIApp, port: int, *, lifespan: bool = False) -> AsyncIterator[None]:
    """Serve an app on a loopback port until the block ends; what is open then is cut."""
    config = uvicorn.Config(
        app,
        host="127.0.0.1",
        port=port,
        log_config=None,
        access_log=False,
        lifespan="on" if lifespan else "off",
        timeout_graceful_shutdown=1,
        ws="none",
    )
    server = uvicorn.Server(config)
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    task = asyncio.create_task(server._serve())
    async with asyncio.timeout(10):
        while not server.started:
            assert not task.done(), "the server did not start"
            await asyncio.sleep(0.01)
    try:
        yield
    finally:
        server.should_exit = True
        with suppress(asyncio.CancelledError):
            await task


@asynccontextmanager
async def http_service(handler: Handler, port: int | None = None) -> AsyncIterator[Service]:
    """Serve a small HTTP service."""
    service = Service(port or free_port(), handler)
    async with listening(service, service.port):
        yield service


@dataclass
class McpServer:
    """A real MCP server, with what its tools were called with."""

    port: int
    app: ASGIApp
    server: FastMCP
    calls: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    token: str = ""
    """What Authorization must say, if anything."""

    @property
    def url(self) -> str:
        """Its endpoint."""
        return f"http://127.0.0.1:{self.port}/mcp"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self.token:
            headers = {name.decode().lower(): value.decode() for name, value in scope["headers"]}
            if headers.get("authorization") != self.token:
                await send({"type": "http.response.start", "status": 401, "headers": []})
                await send({"type": "http.response.body", "body": b"wrong token"})
                return
        await self.app(scope, receive, send)


def make_mcp(port: int, name: str = "tests", *, json_response: bool = False, token: str = "") -> McpServer:
    """Return an MCP server with tools to look, to change, to fail and to take long."""
    server = FastMCP(name, host="127.0.0.1", port=port, json_response=json_response, log_level="CRITICAL")
    made = McpServer(port, server.streamable_http_app(), server, token=token)

    @server.tool(annotations=ToolAnnotations(readOnlyHint=True))
    def get_diff(number: int) -> str:
        """Return the diff of a pull request."""
        made.calls.append(("get_diff", {"number": number}))
        return f"diff of {number}"

    @server.tool()
    def create_review(number: int, text: str, ctx: Context[Any, Any, Any], client_id: str = "") -> dict[str, Any]:
        """Write a review."""
        made.calls.append(("create_review", {"number": number, "text": text, "client_id": client_id}))
        meta = ctx.request_context.meta
        made.keys.append(str((meta.model_extra or {}).get("abide.dev/idempotency-key")) if meta else "")
        return {"review": number}

    @server.tool()
    def fail(why: str) -> str:
        """Fail."""
        raise ValueError(why)

    @server.tool()
    async def slow(seconds: float) -> str:
        """Take long."""
        await asyncio.sleep(seconds)
        return "at last"

    @server.tool()
    def long(length: int) -> str:
        """Say much."""
        return "x" * length

    return made


@asynccontextmanager
async def mcp_server(port: int | None = None, **options: Any) -> AsyncIterator[McpServer]:
    """Serve an MCP server over streamable HTTP."""
    made = make_mcp(port or free_port(), **options)
    async with listening(made, made.port, lifespan=True):
        yield made
