"""From entries to names, policies and calls: nothing is called by mistake, and whatever happens is readable."""

import asyncio
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from agent_api.v1alpha1 import ToolEntry
from agent_api.wire import MemoryType, ToolCheck
from agent_runtime.clock import ManualClock, SystemClock
from agent_runtime.llm.port import ToolCall
from agent_runtime.memory.port import InvalidMemory, Memory
from agent_runtime.supervisor import Pulse
from agent_runtime.tools.catalog import MOST_OFFERED, PREPARE_SECONDS, AgentTools, Source, build_tools
from agent_runtime.tools.http_request import build_request, header_key
from agent_runtime.tools.port import Approval, ToolContext, ToolPolicy
from agent_runtime.tools.standing import Standing, Unusable, after_failure, after_success, pause_before_look
from agent_runtime.tools.toolset import Offered, ToolFailed

ANYTHING: dict[str, Any] = {"type": "object"}


class Observer:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []
        self.defects: list[BaseException] = []

    def tool_called(self, entry: str, outcome: str, seconds: float) -> None:
        self.calls.append((entry, str(outcome)))

    def broke(self, error: BaseException, trace: str) -> None:
        self.defects.append(error)


class Own:
    """Tools of own code: `handler` gets (tool, arguments)."""

    def __init__(self, name: str, *tools: Offered, handler: Any = None) -> None:
        self.name = name
        self.discovered = True
        self.is_up = True
        self.offered: Sequence[Offered] = tools
        self.handler = handler or (lambda tool, arguments: json.dumps([tool, dict(arguments)]))

    def tools(self) -> Sequence[Offered]:
        return self.offered

    async def call(self, tool: str, arguments: Mapping[str, Any], context: ToolContext, *, timeout: float) -> str:
        result = self.handler(tool, arguments)
        return await result if asyncio.iscoroutine(result) else str(result)

    def check(self) -> ToolCheck:
        return ToolCheck(name=self.name, type="MCP", ok=self.is_up if self.discovered else None)

    async def watch(self, pulse: Pulse) -> None:
        pulse()

    async def aclose(self) -> None:
        return


def entry(name: str, **more: Any) -> ToolEntry:
    """Return an entry of type MCP."""
    return ToolEntry.model_validate({"name": name, "type": "MCP", "mcp": {"url": "https://x/mcp"}, **more})


def catalog(*sources: Source, observer: Observer | None = None, clock: Any = None) -> AgentTools:
    """Return the tools of an agent."""
    return AgentTools(sources, clock or SystemClock(), observer or Observer())


def context(key: str = "key-1", user: str = "alice") -> ToolContext:
    """Return for whom a tool is called."""
    return ToolContext(uuid4(), user, "s", uuid4(), uuid4(), key)


def offered(name: str, **more: Any) -> Offered:
    """Return a tool that takes anything."""
    return Offered(name, name, more.pop("parameters", ANYTHING), **more)


# ---- names


def test_a_tool_keeps_its_name_unless_two_entries_have_it() -> None:
    a, b = Own("a", offered("find"), offered("put")), Own("b", offered("find"))
    tools = catalog(Source(a, entry("a")), Source(b, entry("b")))
    assert [spec.name for spec in tools.specs()] == ["a_find", "put", "b_find"]
    b.is_up = False
    assert [spec.name for spec in tools.specs()] == ["a_find", "put"], "no name changes because a server is away"
    b.offered = ()
    assert [spec.name for spec in tools.specs()] == ["find", "put"]


async def test_the_long_name_always_works_and_a_name_of_two_tools_never_does() -> None:
    a, b = Own("a", offered("find")), Own("b")
    tools = catalog(Source(a, entry("a")), Source(b, entry("b")))
    assert not (await tools.call(ToolCall("1", "a_find"), context())).is_error
    b.offered = (offered("find"),)
    result = await tools.call(ToolCall("1", "find"), context())
    assert (result.is_error, result.content) == (True, "unknown tool 'find'; there are: a_find, b_find")


def test_neither_models_nor_health_get_more_tools_than_anybody_can_use() -> None:
    a = Own("a", *(offered(f"a_{n}".ljust(60, "_")) for n in range(100)))
    b = Own("b", *(offered(f"b_{n}".ljust(60, "_")) for n in range(100)))
    tools = catalog(Source(a, entry("a")), Source(b, entry("b")))
    assert len(tools.specs()) == MOST_OFFERED
    assert sum(len(check.tools) for check in tools.checks()) == MOST_OFFERED


# ---- policies


def test_policies_come_from_the_spec_first_and_from_the_source_then() -> None:
    spec = entry(
        "a",
        sideEffects={"put": {"idempotencyArgument": "key"}, "search": {"repeatable": True}},
        approval={"for": ["drop"], "timeoutSeconds": 60, "onTimeout": "Approve"},
    )
    own = Own("a", offered("put"), offered("search"), offered("look", side_effects=False), offered("drop"))
    tools = catalog(Source(own, spec))
    assert tools.policy("put") == ToolPolicy(True, "key")
    assert tools.policy("search") == ToolPolicy(False)
    assert tools.policy("look") == ToolPolicy(False)
    assert tools.policy("drop") == ToolPolicy(True, None, Approval(60.0, "Approve"))
    assert tools.policy("nothing") == ToolPolicy(side_effects=False)


def test_policies_are_found_by_every_name_a_tool_has() -> None:
    for said in ("orders_refund", "orders.refund", "a_orders_refund"):
        spec = entry("a", approval={"for": [said]}, sideEffects={said: {"repeatable": True}}, allow=[said])
        tools = catalog(Source(Own("a", offered("orders_refund"), offered("other")), spec))
        assert [one.name for one in tools.specs()] == ["orders_refund"]
        assert tools.policy("orders_refund") == ToolPolicy(False, None, Approval(86400.0, "Reject"))


def test_what_is_not_discovered_yet_counts_as_dangerous() -> None:
    own = Own("a")
    own.discovered = False
    tools = catalog(Source(own, entry("a", approval={"for": ["drop"]})))
    assert tools.policy("look") == ToolPolicy(side_effects=True)
    for name in ("drop", "a_drop"):
        assert tools.policy(name).approval == Approval(86400.0, "Reject")


# ---- calls


async def test_the_key_is_filled_in_by_the_runtime_and_the_same_each_time() -> None:
    takes = {"type": "object", "properties": {"key": {"type": "string"}, "n": {}}, "required": ["key"]}
    own = Own("a", offered("put", parameters=takes))
    tools = catalog(Source(own, entry("a", sideEffects={"put": {"idempotencyArgument": "key"}})))
    assert "key" not in tools.specs()[0].parameters["properties"]
    for given in ({"n": 1}, {"n": 1, "key": "mine"}):
        result = await tools.call(ToolCall("1", "put", given), context("key-7"))
        assert json.loads(result.content) == ["put", {"n": 1, "key": "key-7"}]


@pytest.mark.parametrize(
    ("raised", "words", "outcome"),
    [
        (ToolFailed("the server is on fire"), "put: the server is on fire", "error"),
        (ValueError("a defect with secrets"), "put: could not be called because of an internal error", "error"),
    ],
)
async def test_failures_are_results(raised: Exception, words: str, outcome: str) -> None:
    def fail(tool: str, arguments: Any) -> str:
        raise raised

    observer = Observer()
    tools = catalog(Source(Own("a", offered("put"), handler=fail)), observer=observer)
    result = await tools.call(ToolCall("1", "put"), context())
    assert result.is_error
    assert result.content.startswith(words)
    assert "secrets" not in result.content
    assert observer.calls == [("a", outcome)]
    assert len(observer.defects) == (not isinstance(raised, ToolFailed))


async def test_a_slow_tool_is_given_up() -> None:
    observer = Observer()
    own = Own("a", offered("put"), handler=lambda tool, arguments: asyncio.sleep(60))
    tools = catalog(Source(own, timeout=0.05), observer=observer)
    result = await tools.call(ToolCall("1", "put"), context())
    assert result.content == "put: no answer within 0.05 s; whether it took effect is not known"
    assert observer.calls == [("a", "timeout")]


@pytest.mark.parametrize("arguments", [{"n": "\ud800"}, {"n": float("inf")}])
async def test_arguments_that_are_no_text_are_refused(arguments: dict[str, Any]) -> None:
    tools = catalog(Source(Own("a", offered("put", parameters={"type": "object", "properties": {}}))))
    result = await tools.call(ToolCall("1", "put", arguments), context())
    assert isinstance(result.content, str)


async def test_a_tool_whose_schema_is_wrong_cannot_be_called_and_harms_nobody() -> None:
    tools = catalog(Source(Own("a", offered("bad", parameters={"type": 7}), offered("good"))))
    assert "its schema is wrong" in (await tools.call(ToolCall("1", "bad"), context())).content
    assert not (await tools.call(ToolCall("1", "good"), context())).is_error


async def test_the_first_turn_waits_for_discovery_but_not_for_long() -> None:
    own = Own("a")
    own.discovered = False
    clock = ManualClock()
    tools = catalog(Source(own), clock=clock)
    waiting = asyncio.create_task(tools.prepare())
    await asyncio.sleep(0)
    await clock.advance(PREPARE_SECONDS / 2)
    assert not waiting.done()
    await clock.advance(PREPARE_SECONDS)
    await asyncio.wait_for(waiting, 5)
    await tools.prepare()


# ---- HTTP requests


def http(url: str, method: str = "GET") -> Any:
    """Return an entry's request; every name in the address is a required parameter."""
    made = ToolEntry.model_validate(
        {
            "name": "t",
            "type": "HTTP",
            "http": {
                "url": url,
                "method": method,
                "description": "d",
                "parameters": {"type": "object", "properties": {"id": {}}, "required": ["id"]},
            },
        }
    ).http
    assert made is not None
    return made


@pytest.mark.parametrize("value", ["../admin", "a/b", "a?b#c", "é {x}", "%2e%2e"])
def test_an_argument_stays_within_its_segment(value: str) -> None:
    url, query, body = build_request(http("https://x/orders/{id}/lines"), {"id": value})
    assert url.startswith("https://x/orders/")
    assert url.endswith("/lines")
    assert url.count("/") == 5
    assert not {"?", "#", "{"} & set(url)
    assert (query, body) == ("", None)


@pytest.mark.parametrize("value", ["", ".", ".."])
def test_an_argument_that_would_change_the_path_is_refused(value: str) -> None:
    with pytest.raises(ToolFailed):
        build_request(http("https://x/orders/{id}"), {"id": value})


def test_the_rest_goes_into_query_or_body() -> None:
    arguments = {"id": 7, "tags": ["a", "b"], "deep": {"x": 1}, "none": None}
    url, query, body = build_request(http("https://x/o/{id}"), arguments)
    assert (url, query, body) == ("https://x/o/7", "tags=a&tags=b&deep=%7B%22x%22%3A+1%7D", None)
    assert build_request(http("https://x/o/{id}", "POST"), arguments)[2] == {
        "tags": ["a", "b"],
        "deep": {"x": 1},
        "none": None,
    }


def test_keys_in_headers_hold_nothing_strange() -> None:
    assert header_key("0190-3-call-1") == "0190-3-call-1"
    assert header_key("a\r\nb") == header_key("a\r\nb")
    assert header_key("a\r\nb").isalnum()


# ---- built-in ones


class Memories:
    """Memories of a test."""

    def __init__(self) -> None:
        self.kept: dict[UUID, tuple[str, str]] = {}

    async def remember(self, user: str, content: str, *, kind: str = "general", importance: int = 5,
                       tags: Sequence[str] = (), key: str | None = None) -> Memory:  # fmt: skip
        if "bad" in content:
            raise InvalidMemory([("content", "write something good")])
        made = uuid4()
        self.kept[made] = (user, content)
        return self._memory(made, kind, importance, tags)

    def _memory(self, one: UUID, kind: str = "general", importance: int = 5, tags: Sequence[str] = ()) -> Memory:
        now = ManualClock().now()
        return Memory(one, self.kept[one][1], MemoryType(kind), importance, tags, self.kept[one][0], now, now)

    async def recall(self, user: str, query: str = "", *, kind: str | None = None, tags: Sequence[str] = (),
                     least_importance: int = 1, limit: int = 5) -> list[Memory]:  # fmt: skip
        return [self._memory(one) for one, (owner, _) in self.kept.items() if owner == user][:limit]

    async def forget(self, user: str, memory_id: UUID) -> bool:
        return self.kept.get(memory_id, ("", ""))[0] == user and bool(self.kept.pop(memory_id))


def builtin(name: str, memory: Memories | None = None) -> AgentTools:
    """Return a built-in entry."""
    spec = ToolEntry.model_validate({"name": "own", "type": "Builtin", "builtin": {"name": name}})
    return build_tools([spec], Path(), ManualClock(), Observer(), lambda: None, memory=memory)


async def test_the_clock_tells_the_time_in_any_zone() -> None:
    tools = builtin("Clock")
    assert json.loads((await tools.call(ToolCall("1", "current_time"), context())).content) == {
        "time": "2026-01-01T00:00:00+00:00",
        "weekday": "Thursday",
        "timeZone": "UTC",
    }
    result = await tools.call(ToolCall("1", "current_time", {"time_zone": "America/New_York"}), context())
    assert json.loads(result.content)["time"] == "2025-12-31T19:00:00-05:00"
    for zone in ("Nowhere/Atall", "../../etc/passwd", "\x00"):
        result = await tools.call(ToolCall("1", "current_time", {"time_zone": zone}), context())
        assert result.is_error
        assert "is not known" in result.content


async def test_memories_are_kept_found_and_deleted_for_the_user_who_asks() -> None:
    memories = Memories()
    tools = builtin("Memory", memories)

    async def call(name: str, user: str = "alice", **arguments: Any) -> Any:
        result = await tools.call(ToolCall("1", name, arguments), context(user=user))
        return result.content if result.is_error else json.loads(result.content)

    kept = (await call("remember", content="likes tea"))["remembered"]
    assert [one["content"] for one in (await call("recall", query="drink"))["memories"]] == ["likes tea"]
    assert (await call("recall", user="bob"))["memories"] == []
    assert "no memory of this id" in await call("forget", user="bob", id=kept)
    assert await call("forget", id=kept) == {"forgotten": kept}
    assert await call("remember", content="bad") == "remember: content: write something good"
    assert "importance" in await call("remember", content="x", importance=11)


def test_memory_tools_without_memories_say_what_is_missing() -> None:
    tools = builtin("Memory")
    assert tools.specs() == []
    (check,) = tools.checks()
    assert (check.ok, check.message) == (False, "needs memories: set spec.memories.enabled")


# ---- what is known


def test_what_may_pass_counts_twice_and_recovery_at_once() -> None:
    now = ManualClock().now()
    passing, lasting = Unusable("breaks connections", passing=True), Unusable("refuses connections")
    known = after_success(Standing(), now)
    assert after_failure(known, passing, now).ok is True
    assert after_failure(after_failure(known, passing, now), passing, now).ok is False
    down = after_failure(known, lasting, now)
    assert (down.ok, down.phrase) == (False, "refuses connections")
    assert after_success(down, now) == Standing(True, "", now)
    pauses = []
    for _ in range(8):
        pauses.append(pause_before_look(down))
        down = after_failure(down, lasting, now)
    assert max(pauses) <= 10, "back within 15 s"
