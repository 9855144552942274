"""One MCP server over streamable HTTP: connected to when the process runs, asked for its tools, looked at again.

A server that is away costs its tools and nothing else; it is back within 15 s of its return. Source: Model Context
Protocol, revision 2025-06-18, sections "Transports" and "Tools".
"""

import asyncio
import json
import logging
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, TypeVar

from agent_api.v1alpha1 import McpTool, ToolEntry
from agent_api.version import VERSION
from agent_api.wire import ToolCheck
from agent_runtime.clock import Clock
from agent_runtime.supervisor import Pulse
from agent_runtime.telemetry.logs import get_logger
from agent_runtime.tools.arguments import BadSchema, Checker
from agent_runtime.tools.headers import SecretHeaders
from agent_runtime.tools.port import ToolContext
from agent_runtime.tools.standing import (
    WELL_PAUSE,
    Standing,
    Unusable,
    after_failure,
    after_success,
    pause_before_look,
)
from agent_runtime.tools.toolset import Offered, ToolFailed, is_named, usable_name

if TYPE_CHECKING:
    from mcp import ClientSession, McpError, types

_LOG = get_logger("tools")
T = TypeVar("T")
ANSWER_TIMEOUT: Final = 8.0
"""For greetings, lists of tools and pings."""
SILENCE: Final = 3600.0 + 5.0
"""Beyond every timeoutSeconds."""
TICK: Final = 0.5
MOST_TOOLS: Final = 128
MOST_PAGES: Final = 32
MOST_DESCRIPTION: Final = 1024
MOST_SCHEMA: Final = 32_768
SHOWN: Final = 500
CONNECTION_CLOSED: Final = -32000
SESSION_ENDED: Final = 32600
METHOD_NOT_FOUND: Final = -32601
UNSURE: Final = "whether the call took effect is not known"
KEY_NAME: Final = "abide.dev/idempotency-key"


class _Held:
    """A session while it lasts; calls under way are counted, so that it does not end below them."""

    def __init__(self, session: "ClientSession") -> None:
        self.session = session
        self.ended = asyncio.Event()
        self.calls = 0
        self.idle = asyncio.Event()
        self.idle.set()

    @contextmanager
    def calling(self) -> Iterator[None]:
        """Count a call."""
        self.calls += 1
        self.idle.clear()
        try:
            yield
        finally:
            self.calls -= 1
            if not self.calls:
                self.idle.set()


class McpToolset:
    """One entry of type MCP. `watch` holds the connection; calls use it."""

    def __init__(self, entry: ToolEntry, headers: SecretHeaders, clock: Clock, on_change: Callable[[], None]) -> None:
        assert entry.mcp is not None  # noqa: S101 - the entry's type says so
        self.name = entry.name
        self.discovered = False
        self._mcp: McpTool = entry.mcp
        self._allow = tuple(entry.allow)
        self._headers = headers
        self._clock = clock
        self._on_change = on_change
        self._standing = Standing()
        self._tools: tuple[Offered, ...] = ()
        self._names: dict[str, str] = {}
        self._outputs: dict[str, Checker] = {}
        self._held: _Held | None = None
        self._connected = asyncio.Event()
        self._wake = asyncio.Event()
        self._stale = False
        self._restart = False

    @property
    def is_up(self) -> bool:
        """Whether its tools can be called."""
        return self._standing.ok is True

    def tools(self) -> Sequence[Offered]:
        """Return its tools as last discovered."""
        return self._tools

    def check(self) -> ToolCheck:
        """Return what is known of it."""
        return self._standing.to_check(self.name, "MCP", [tool.name for tool in self._tools])

    async def aclose(self) -> None:
        """The connection ends with `watch`."""

    # ---- calling

    async def call(self, tool: str, arguments: Mapping[str, Any], context: ToolContext, *, timeout: float) -> str:
        """Call a tool of the server. Raises ToolFailed."""
        for last in (False, True):
            held = await self._wait_session(min(timeout, ANSWER_TIMEOUT))
            with held.calling():
                result = await self._ask(held, tool, arguments, context, last)
            if result is not None:
                return self._read(tool, result)
        raise AssertionError("unreachable")

    async def _wait_session(self, timeout: float) -> _Held:
        if self._held is None:
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await self._connected.wait()
        if self._held is None:
            since = f" since {self._standing.since:%H:%M:%SZ}" if self._standing.since else ""
            raise ToolFailed(f"its server {self._standing.phrase or 'cannot be reached'}{since}; answer without it")
        return self._held

    async def _ask(
        self, held: _Held, tool: str, arguments: Mapping[str, Any], context: ToolContext, last: bool
    ) -> "types.CallToolResult | None":
        """Return the answer; None if the session was over before the call could begin."""
        from mcp import McpError, types

        meta = types.RequestParams.Meta(**{KEY_NAME: context.key}) if context.key else None
        params = types.CallToolRequestParams(name=self._names.get(tool, tool), arguments=dict(arguments), _meta=meta)
        try:
            # Not call_tool(): it runs regular expressions of the server's schema, and one may take for ever.
            request = held.session.send_request(
                types.ClientRequest(types.CallToolRequest(params=params)), types.CallToolResult
            )
            return await _unless_ended(request, held)
        except McpError as error:
            if error.error.code == SESSION_ENDED and not last:
                self._reconnect(held)
                return None
            raise self._failed(error) from None
        except (asyncio.CancelledError, ToolFailed):
            raise
        except Exception as error:
            # The streams of a session that just ended raise errors of many types.
            _LOG.info("tool_call_broken", tool=self.name, error=type(error).__name__)
            self._look_soon()
            raise ToolFailed(f"its server broke the connection; {UNSURE}") from None

    def _failed(self, error: "McpError") -> ToolFailed:
        from agent_runtime.tools.mcp_transport import BROKEN

        code, message, data = error.error.code, error.error.message, error.error.data
        if code == BROKEN and isinstance(data, dict):
            self._note(Unusable(message, passing=bool(data.get("passing"))))
            return ToolFailed(f"its server {message}{'; ' + UNSURE if data.get('sent') else ''}")
        if code == CONNECTION_CLOSED:
            self._look_soon()
            return ToolFailed(f"its server broke the connection; {UNSURE}")
        return ToolFailed(f"its server refused the call: {message[:SHOWN]}")

    def _read(self, tool: str, result: "types.CallToolResult") -> str:
        text = read_content(result)
        if result.isError:
            raise ToolFailed(text or "the tool failed and did not say why")
        checker = self._outputs.get(tool)
        if checker is not None and result.structuredContent is not None:
            misfits = checker.misfits(result.structuredContent)
            if misfits:
                raise ToolFailed(f"the tool gave a result that does not fit its own schema: {misfits[0]}")
        return text or "done: the tool gave no content"

    # ---- the connection

    async def watch(self, pulse: Pulse) -> None:
        """Keep a session with the server, for ever."""
        await asyncio.to_thread(_load)  # a quarter of a second, in which turns go on
        while True:
            pulse()
            try:
                await self._hold_session(pulse)
            except asyncio.CancelledError:
                if (task := asyncio.current_task()) is not None and task.cancelling():
                    raise
                # The library cancels its own scope when one of its tasks fails.
                self._note(Unusable("breaks connections", passing=True))
            except Exception as error:
                self._note(_to_unusable(error))
            finally:
                self._held = None
                self._connected.clear()
            if not self._restart:
                await self._pause(pause_before_look(self._standing), pulse)
            self._restart = False

    async def _hold_session(self, pulse: Pulse) -> None:
        """Connect, discover, and stay until something is wrong. Raises Unusable, and whatever the library raises."""
        import httpx
        from mcp import ClientSession, types
        from mcp.client.streamable_http import streamable_http_client

        from agent_runtime.tools.mcp_transport import McpHttp
        from agent_runtime.tools.net import CONNECT_TIMEOUT, make_transport

        self._headers.values()
        transport = McpHttp(make_transport(self._headers.values, allow_private=self._mcp.allow_private_addresses))
        timeout = httpx.Timeout(SILENCE, connect=CONNECT_TIMEOUT)
        async with (
            httpx.AsyncClient(transport=transport, timeout=timeout, trust_env=False) as client,
            streamable_http_client(self._mcp.url, http_client=client) as (incoming, outgoing, _),
            ClientSession(
                incoming,
                outgoing,
                message_handler=self._on_message,
                client_info=types.Implementation(name="abide", version=VERSION),
            ) as session,
        ):
            async with asyncio.timeout(ANSWER_TIMEOUT):
                await session.initialize()
            pulse()
            await self._discover(session)
            held = self._held = _Held(session)
            self._connected.set()
            try:
                await self._stay(session, pulse)
                # Calls that are under way on a session the server has forgotten are told so one by one.
                with suppress(TimeoutError):
                    async with asyncio.timeout(ANSWER_TIMEOUT):
                        await held.idle.wait()
            finally:
                held.ended.set()

    async def _stay(self, session: "ClientSession", pulse: Pulse) -> None:
        while not self._restart:
            await self._pause(WELL_PAUSE, pulse)
            if self._restart:
                return
            if self._stale:
                self._stale = False
                await self._discover(session)
            else:
                await self._ping(session)

    async def _pause(self, seconds: float, pulse: Pulse) -> None:
        """Wait, but not when woken or when a header changes."""
        until = self._clock.monotonic() + seconds
        while (left := until - self._clock.monotonic()) > 0 and not self._wake.is_set():
            pulse()
            if self._headers.changed():
                break  # a session that is there sends the new values already: a look shows whether they are right
            with suppress(TimeoutError):
                async with asyncio.timeout(min(left, TICK)):
                    await self._wake.wait()
        self._wake.clear()

    async def _ping(self, session: "ClientSession") -> None:
        from mcp import McpError

        try:
            async with asyncio.timeout(ANSWER_TIMEOUT):
                await session.send_ping()
        except McpError as error:
            if error.error.code == SESSION_ENDED:
                # The server was restarted and is there again.
                self._restart = True
                return
            if error.error.code != METHOD_NOT_FOUND:
                raise
        self._update(after_success(self._standing, self._clock.now()))

    async def _discover(self, session: "ClientSession") -> None:
        from mcp import types

        found: list[types.Tool] = []
        cursor: str | None = None
        async with asyncio.timeout(2 * ANSWER_TIMEOUT):
            for _ in range(MOST_PAGES):
                page = await session.list_tools(params=types.PaginatedRequestParams(cursor=cursor))
                found += page.tools
                cursor = page.nextCursor
                if not cursor or len(found) >= MOST_TOOLS:
                    break
        wanted = [tool for tool in found if not self._allow or is_named(self.name, usable_name(tool.name), self._allow)]
        before = self._tools
        self._take(wanted[:MOST_TOOLS])
        self.discovered = True
        self._update(after_success(self._standing, self._clock.now()))
        if before != self._tools:
            _LOG.info("tools_discovered", tool=self.name, tools=[tool.name for tool in self._tools])
            self._on_change()

    def _take(self, found: "Sequence[types.Tool]") -> None:
        tools: list[Offered] = []
        names: dict[str, str] = {}
        outputs: dict[str, Checker] = {}
        for tool in found:
            name = usable_name(tool.name)
            if not name or name in names or len(json.dumps(tool.inputSchema)) > MOST_SCHEMA:
                _LOG.warning("tool_left_out", tool=self.name, why="no usable name, or a schema that is too long")
                continue
            read_only = tool.annotations is not None and tool.annotations.readOnlyHint is True
            description = (tool.description or tool.title or tool.name)[:MOST_DESCRIPTION]
            tools.append(Offered(name, description, tool.inputSchema, side_effects=not read_only, trusted=False))
            names[name] = tool.name
            if tool.outputSchema:
                with suppress(BadSchema):
                    outputs[name] = Checker(tool.outputSchema, trusted=False)
        self._tools, self._names, self._outputs = tuple(tools), names, outputs

    async def _on_message(self, message: Any) -> None:
        from mcp import types

        if isinstance(message, types.ServerNotification) and isinstance(
            message.root, types.ToolListChangedNotification
        ):
            self._stale = True
            self._wake.set()

    # ---- what is known

    def _reconnect(self, held: _Held) -> None:
        if self._held is held:
            self._held = None
            self._connected.clear()
            self._restart = True
            self._wake.set()

    def _look_soon(self) -> None:
        self._wake.set()

    def _note(self, failure: Unusable) -> None:
        self._update(after_failure(self._standing, failure, self._clock.now()))
        if self._held is not None:
            self._look_soon()

    def _update(self, standing: Standing) -> None:
        before, self._standing = self._standing, standing
        if (before.ok, before.phrase) != (standing.ok, standing.phrase):
            self._on_change()


async def _unless_ended(request: Coroutine[Any, Any, T], held: _Held) -> T:
    """Return the answer. Raises ToolFailed when the session ends first: the library lets such a call wait for ever."""
    answering = asyncio.ensure_future(request)
    ending = asyncio.ensure_future(held.ended.wait())
    try:
        await asyncio.wait((answering, ending), return_when=asyncio.FIRST_COMPLETED)
        if not answering.done():
            raise ToolFailed(f"its server broke the connection; {UNSURE}")
        return answering.result()
    finally:
        ending.cancel()
        if not answering.done():
            answering.cancel()
            await asyncio.gather(answering, return_exceptions=True)


def _load() -> None:
    """Import the library, and keep it from logging: it quotes messages."""
    for module in ("mcp.client.streamable_http", "agent_runtime.tools.mcp_transport"):
        import_module(module)
    logging.getLogger("mcp").setLevel(logging.CRITICAL + 1)


def _to_unusable(error: BaseException) -> Unusable:
    """Return what a failed session says of the server."""
    from mcp import McpError

    from agent_runtime.tools.mcp_transport import BROKEN
    from agent_runtime.tools.net import explain

    if isinstance(error, BaseExceptionGroup) and len(error.exceptions) >= 1:
        return _to_unusable(error.exceptions[0])
    if isinstance(error, McpError):
        data = error.error.data
        if error.error.code == BROKEN and isinstance(data, dict):
            return Unusable(error.error.message, passing=bool(data.get("passing")))
        if error.error.code == SESSION_ENDED:
            return Unusable("answers 404")
        return Unusable("answers the protocol's greeting with an error")
    if isinstance(error, TimeoutError):
        return Unusable(f"does not answer within {ANSWER_TIMEOUT:g} s")
    if isinstance(error, ValueError | RuntimeError):
        return Unusable("does not speak MCP at this address")
    return explain(error)


def read_content(result: "types.CallToolResult") -> str:
    """Return a result as text; what is no text is named."""
    from mcp import types

    parts: list[str] = []
    for block in result.content:
        match block:
            case types.TextContent():
                parts.append(block.text)
            case types.EmbeddedResource(resource=types.TextResourceContents() as resource):
                parts.append(resource.text)
            case types.ResourceLink():
                parts.append(f"[{block.name}: {block.uri}]")
            case types.ImageContent() | types.AudioContent():
                parts.append(f"[{block.mimeType}, which is no text]")
            case _:
                parts.append("[content that is no text]")
    if not parts and result.structuredContent is not None:
        return json.dumps(result.structuredContent, ensure_ascii=False)
    return "\n".join(parts)
