"""Functions as tools, and calls into own code that are bounded in time."""

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Annotated, Any, Literal
from uuid import UUID

import pytest
from pydantic import BaseModel, Field

import abide
from agent_runtime.hooks.calls import MOST_THREADS, Caller, HookCrashed
from agent_runtime.hooks.functions import BadFunction, FunctionTool, to_text
from agent_runtime.tools.port import ToolContext

ONE = UUID(int=1)
CONTEXT = ToolContext(ONE, "ann", "s", ONE, ONE, "key-1")


class Item(BaseModel):
    """What an argument may be."""

    sku: str
    count: int = 1


class Shop(abide.Agent):
    """Tools of all kinds; the order of the methods is the order of the tools."""

    @abide.tool
    async def order(
        self,
        item: Item,
        call: abide.Call,
        currency: Literal["EUR", "USD"] = "EUR",
        schema: Annotated[int, Field(ge=1, description="How fast.")] = 1,
    ) -> str:
        """Order an item.

        It is sent at once.
        """
        return f"{item.count} {item.sku} {currency} {schema} {call.key}"

    @abide.tool(name="look-up", side_effects=False, timeout=5.0)
    def find(self, copy: list[str]) -> list[str]:
        """Look something up."""
        return copy

    def helper(self) -> None:
        """No tool."""


class Special(Shop):
    """Takes a tool away and has one more."""

    def find(self, copy: list[str]) -> list[str]:
        return copy

    @abide.tool(idempotency_argument="key")
    def pay(self, key: str) -> str:
        """Pay."""
        return key


def tools_of(agent: abide.Agent) -> dict[str, FunctionTool]:
    return {tool.name: tool for tool in map(FunctionTool, agent.tools())}


def test_marked_methods_are_tools_with_schema_and_description() -> None:
    tools = tools_of(Shop())
    assert list(tools) == ["order", "look-up"]
    offered = tools["order"].offered
    assert offered.description == "Order an item.\n\nIt is sent at once."
    properties = offered.parameters["properties"]
    assert set(properties) == {"item", "currency", "schema"}
    assert properties["currency"]["enum"] == ["EUR", "USD"]
    assert (properties["schema"]["minimum"], properties["schema"]["description"]) == (1, "How fast.")
    assert offered.parameters["required"] == ["item"]
    assert offered.parameters["additionalProperties"] is False
    assert (offered.side_effects, tools["look-up"].offered.side_effects) == (True, False)


def test_a_subclass_adds_and_takes_away() -> None:
    tools = tools_of(Special())
    assert list(tools) == ["order", "pay"]
    assert tools["pay"].offered.idempotency_argument == "key"


async def test_arguments_become_what_the_annotations_say() -> None:
    tool = tools_of(Shop())["order"]
    named = tool.bind({"item": {"sku": "a", "count": 2}, "schema": 3}, CONTEXT)
    assert await tool.function(**named) == "2 a EUR 3 key-1"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "item: Field required"),
        ({"item": {}}, "item.sku: Field required"),
        ({"item": {"sku": "a"}, "currency": "DKK"}, "currency: Input should be 'EUR' or 'USD'"),
        ({"item": {"sku": "a"}, "schema": 0}, "schema: Input should be greater"),
        ({"item": {"sku": "a"}, "colour": 1}, "colour: Extra inputs"),
        ({"item": {"sku": "a"}, "call": {}}, "call: Extra inputs"),
    ],
)
def test_arguments_that_do_not_fit_are_named(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(BadFunction, match=words):
        tools_of(Shop())["order"].bind(arguments, CONTEXT)


def without_docstring(x: int) -> int:
    return x


def without_type(x) -> int:  # type: ignore[no-untyped-def]
    """Lacks a type."""
    return int(x)


def with_star(*x: int) -> int:
    """Takes any number."""
    return len(x)


def with_unknown(x: "NoSuchType") -> int:  # type: ignore[name-defined]  # noqa: F821
    """Names what is not there."""
    return 0


def with_odd(x: threading.Thread) -> int:
    """Wants what JSON has not."""
    return 0


@abide.tool(idempotency_argument="nothing")
def with_wrong_key(x: int) -> int:
    """Names a parameter that is not there."""
    return x


@abide.tool(name="two words")
def with_wrong_name(x: int) -> int:
    """Has a name that providers refuse."""
    return x


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (without_docstring, "write a docstring"),
        (without_type, "parameter x has no type"),
        (with_star, "cannot be passed by name"),
        (with_unknown, "cannot be read"),
        (with_odd, "make no schema"),
        (with_wrong_key, "no parameter of it"),
        (with_wrong_name, "name it with letters"),
    ],
)
def test_what_cannot_be_a_tool_is_refused_with_a_remedy(function: Callable[..., Any], words: str) -> None:
    with pytest.raises(BadFunction, match=words):
        FunctionTool(function)


def test_results_are_texts() -> None:
    assert to_text("as it is") == "as it is"
    assert to_text(None) == "done"
    assert to_text({"a": [1, "ü"]}) == '{"a": [1, "ü"]}'
    assert to_text(Item(sku="a")) == '{"sku": "a", "count": 1}'
    with pytest.raises(BadFunction):
        to_text(threading.Lock())


async def test_plain_functions_run_in_a_thread_of_their_own() -> None:
    names = await asyncio.gather(
        *(Caller().call(lambda: threading.current_thread().name, timeout=5.0) for _ in range(3))
    )
    assert set(names) == {"own-code"}


async def test_whatever_it_raises_is_told() -> None:
    def stop() -> None:
        raise StopIteration("odd")

    async def fail() -> None:
        raise KeyError("x")

    with pytest.raises(HookCrashed, match="stop raised RuntimeError: StopIteration: odd"):
        await Caller().call(stop, timeout=5.0)
    with pytest.raises(HookCrashed, match="fail raised KeyError: 'x'") as caught:
        await Caller().call(fail, timeout=5.0)
    assert isinstance(caught.value.error, KeyError)


async def test_functions_that_never_return_do_not_keep_others_from_running() -> None:
    release = threading.Event()
    caller = Caller()

    def hang() -> None:
        release.wait(30)

    try:
        stuck = await asyncio.gather(
            *(caller.call(hang, timeout=0.05) for _ in range(MOST_THREADS - 1)), return_exceptions=True
        )
        assert all(isinstance(one, HookCrashed) and one.error is None for one in stuck)
        assert await caller.call(lambda: 7, timeout=5.0) == 7
        with pytest.raises(HookCrashed, match=r"longer than 0\.05 s"):
            await caller.call(hang, timeout=0.05)
        started = time.monotonic()
        with pytest.raises(HookCrashed, match=r"longer than 0\.05 s"):
            await caller.call(lambda: 8, timeout=0.05)
        assert time.monotonic() - started < 10
    finally:
        release.set()
    assert await caller.call(lambda: 9, timeout=10.0) == 9
