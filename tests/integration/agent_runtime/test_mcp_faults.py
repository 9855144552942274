"""MCP servers that are broken in every way: each costs its own calls, and nothing else."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from mcp.server.fastmcp import Context

from agent_api.v1alpha1 import ToolEntry
from agent_runtime.clock import SystemClock
from agent_runtime.llm.port import ToolCall
from agent_runtime.tools.catalog import AgentTools, build_tools
from agent_runtime.tools.port import ToolContext, ToolResult
from tests.integration.agent_runtime.harness import until
from tests.integration.agent_runtime.toolserver import (
    Answer,
    McpServer,
    Seen,
    answer_json,
    http_service,
    listening,
    make_mcp,
    mcp_server,
)


class Observer:
    """Keeps defects: there must be none."""

    def __init__(self) -> None:
        self.defects: list[BaseException] = []

    def tool_called(self, entry: str, outcome: str, seconds: float) -> None:
        """Count nothing."""

    def broke(self, error: BaseException, trace: str) -> None:
        """Keep it."""
        self.defects.append(error)


@asynccontextmanager
async def watched(url: str, **more: Any) -> AsyncIterator[AgentTools]:
    """Return the tools of one MCP server while its loop runs; no defect may come of it."""
    observer = Observer()
    entry = ToolEntry.model_validate({"name": "github", "type": "MCP", "mcp": {"url": url}, **more})
    tools = build_tools([entry], Path("/nowhere"), SystemClock(), observer, lambda: None)
    loops = [asyncio.create_task(toolset.watch(lambda: None)) for toolset in tools.toolsets]
    try:
        yield tools
    finally:
        for loop in loops:
            loop.cancel()
            with suppress(asyncio.CancelledError):
                async with asyncio.timeout(5):
                    await loop
        await tools.aclose()
    assert observer.defects == []


async def until_ok(tools: AgentTools, ok: bool, timeout: float = 15.0) -> str:
    """Wait until this is known of the server; return what is wrong with it."""

    async def known() -> bool:
        return tools.checks()[0].ok is ok

    await until(known, f"the server is ok={ok}", timeout)
    return tools.checks()[0].message


async def call(tools: AgentTools, name: str, **arguments: Any) -> ToolResult:
    """Call a tool."""
    context = ToolContext(uuid4(), "u", "s", uuid4(), uuid4(), "key")
    return await tools.call(ToolCall("1", name, arguments), context)


async def answer(what: Answer) -> Answer:
    return what


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ((200, {"content-type": "text/html"}, b"<html>hello</html>"), "does not speak MCP at this address"),
        ((200, {"content-type": "application/json"}, b"{not json"), "answers no JSON"),
        ((200, {"content-type": "application/json"}, b'{"jsonrpc": "2.0", "id": 0, "result": {"a": 1}}'), "MCP"),
        (
            answer_json({"jsonrpc": "2.0", "id": 0, "error": {"code": -32603, "message": "no"}}),
            "greeting with an error",
        ),
        ((200, {"content-type": "text/event-stream"}, b"data: nonsense\n\n"), "ended its answer early"),
        ((401, {}, b""), "answers 401"),
        ((404, {}, b""), "answers 404"),
        ((500, {}, b"secret words of the server"), "answers 500"),
        ((302, {"location": "http://localhost:1/mcp"}, b""), "answers with redirects to elsewhere"),
    ],
)
async def test_a_server_that_is_none_is_told_in_words_of_ours(given: Answer, words: str) -> None:
    async with http_service(lambda seen: answer(given)) as service, watched(f"{service.url}/mcp") as tools:
        assert words in await until_ok(tools, False)
        result = await call(tools, "get_diff", number=1)
        assert result.is_error
        assert "secret words" not in result.content


async def test_a_server_that_says_nothing_is_given_up() -> None:
    release = asyncio.Event()

    async def hang(seen: Seen) -> Answer:
        await release.wait()
        return answer_json({})

    async with http_service(hang) as service, watched(f"{service.url}/mcp") as tools:
        assert "does not answer within" in await until_ok(tools, False, timeout=20)
        release.set()


Breaker = Callable[[dict[str, Any]], Awaitable[Answer | None]]


class Broken:
    """A real MCP server whose answers to calls `breaker` may replace: None lets the server answer."""

    def __init__(self, server: McpServer, breaker: Breaker) -> None:
        self._server = server
        self._breaker = breaker

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._server(scope, receive, send)
            return
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        request = json.loads(body)
        given = await self._breaker(request) if request.get("method") == "tools/call" else None
        if given is not None:
            status, headers, content = given
            raw = [(name.encode(), value.encode()) for name, value in headers.items()]
            await send({"type": "http.response.start", "status": status, "headers": raw})
            await send({"type": "http.response.body", "body": content})
            return
        told = False

        async def again() -> Any:
            nonlocal told
            if told:
                return await receive()
            told = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._server(scope, again, send)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ((503, {}, b""), "get_diff: its server answers 503"),
        (
            (200, {"content-type": "text/event-stream"}, b": nothing\n\n"),
            "ended its answer early; whether the call took",
        ),
        (
            (200, {"content-type": "application/json"}, b"{"),
            "get_diff: its server answers no JSON; whether the call took",
        ),
    ],
)
async def test_a_call_that_fails_leaves_the_others_alone(unused_port: int, given: Answer, words: str) -> None:
    async def break_diffs(request: dict[str, Any]) -> Answer | None:
        return given if request["params"]["name"] == "get_diff" else None

    server = make_mcp(unused_port)
    async with (
        listening(Broken(server, break_diffs), server.port, lifespan=True),
        watched(server.url, timeoutSeconds=5) as tools,
    ):
        await until_ok(tools, True)
        slow, failed = await asyncio.gather(call(tools, "slow", seconds=0.5), call(tools, "get_diff", number=1))
        assert words in failed.content
        assert (slow.is_error, slow.content) == (False, "at last")


async def test_servers_that_answer_in_plain_json_work_too() -> None:
    async with mcp_server(json_response=True) as server, watched(server.url) as tools:
        await until_ok(tools, True)
        assert (await call(tools, "get_diff", number=2)).content == "diff of 2"
        assert (await call(tools, "fail", why="no such branch")).content.endswith("no such branch")
        long = await call(tools, "long", length=200_000)
        assert long.content.endswith("[cut: only the first 65536 characters are shown]")


async def test_a_restarted_server_is_called_in_a_new_session_without_an_error(unused_port: int) -> None:
    async with mcp_server(unused_port) as server, watched(server.url) as tools:
        await until_ok(tools, True)
        sessions = server.server.session_manager._server_instances
        sessions.clear()  # as after a restart: the server knows no session any more
        results = await asyncio.gather(*(call(tools, "get_diff", number=number) for number in range(5)))
        assert [result.content for result in results] == [f"diff of {number}" for number in range(5)]
        assert sorted(numbers["number"] for _, numbers in server.calls) == list(range(5)), "nothing was called twice"


async def test_a_server_that_says_that_its_tools_changed_is_asked_at_once(unused_port: int) -> None:
    made = make_mcp(unused_port)

    @made.server.tool()
    async def grow(ctx: Context[Any, Any, Any]) -> str:
        """Have other tools from now on, and say so."""
        made.server.add_tool(lambda: "new", name="grown", description="New.")
        made.server.remove_tool("fail")
        await ctx.session.send_tool_list_changed()
        return "done"

    async with listening(made, made.port, lifespan=True), watched(made.url) as tools:
        await until_ok(tools, True)
        assert (await call(tools, "grow")).content == "done"

        async def noticed() -> bool:
            names = {spec.name for spec in tools.specs()}
            return "grown" in names and "fail" not in names

        # Far sooner than the look every ten seconds.
        await until(noticed, "the new tool is offered", 5)
        assert (await call(tools, "grown")).content == "new"
