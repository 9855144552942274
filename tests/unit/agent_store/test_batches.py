"""Sharing statements: who goes along, in which order, and who hears of what went wrong."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from agent_store.postgres.batches import MOST_BYTES, MOST_TOGETHER, SLOW_SECONDS, Batches


@dataclass(frozen=True)
class Part:
    name: str
    size: int = 1
    text: str = ""

    @property
    def place(self) -> tuple[str, str]:
        return "u", self.name


@dataclass
class Server:
    """Answers with the parts' names in upper case; each statement waits until it is let go."""

    sent: list[list[str]] = field(default_factory=list)
    gates: list[asyncio.Event] = field(default_factory=list)
    open: bool = False
    bad: frozenset[str] = frozenset()
    error: Exception = field(default_factory=lambda: ValueError("bad"))

    async def run(self, key: str, parts: Sequence[Part]) -> Sequence[str | None]:
        self.sent.append([part.name for part in parts])
        gate = asyncio.Event()
        self.gates.append(gate)
        if not self.open:
            await gate.wait()
        if any(part.name in self.bad for part in parts):
            raise self.error
        return [None if part.name == "none" else f"{key}:{part.name.upper()}{part.text}" for part in parts]

    def let_go(self) -> None:
        self.open = True
        for gate in self.gates:
            gate.set()


def batches(server: Server) -> Batches[str, Part, str]:
    return Batches(server.run, lambda error: isinstance(error, ValueError))


async def settle() -> None:
    """Let everything that can go on do so."""
    for _ in range(10):
        await asyncio.sleep(0)


def start(shared: Batches[str, Part, str], *parts: Part | str, key: str = "k") -> list["asyncio.Task[str | None]"]:
    made = [Part(part) if isinstance(part, str) else part for part in parts]
    return [asyncio.create_task(shared.call(key, part)) for part in made]


async def test_a_lone_call_is_sent_at_once_and_what_comes_meanwhile_shares_the_next_in_order_of_place() -> None:
    server = Server()
    shared = batches(server)
    first = start(shared, "m")
    await settle()
    assert server.sent == [["m"]]
    later = start(shared, "z", "a", "none", "b")
    await settle()
    assert server.sent == [["m"]]
    server.let_go()
    assert await asyncio.gather(*first, *later) == ["k:M", "k:Z", "k:A", None, "k:B"]
    assert server.sent == [["m"], ["a", "b", "none", "z"]]


async def test_a_place_comes_once_in_a_statement_and_keeps_its_order() -> None:
    server = Server()
    shared = batches(server)
    calls = start(shared, "x", Part("a", text="1"), Part("a", text="2"), "b", Part("a", text="3"))
    server.let_go()
    assert await asyncio.gather(*calls) == ["k:X", "k:A1", "k:A2", "k:B", "k:A3"]
    assert server.sent == [["a", "b", "x"], ["a"], ["a"]]


async def test_different_keys_do_not_share_and_do_not_wait_for_each_other() -> None:
    server = Server()
    shared = batches(server)
    calls = [*start(shared, "a", key="k"), *start(shared, "a", key="l")]
    await settle()
    assert server.sent == [["a"], ["a"]]
    server.let_go()
    assert await asyncio.gather(*calls) == ["k:A", "l:A"]


async def test_statements_are_bounded_in_calls_and_bytes() -> None:
    server = Server(open=True)
    shared = batches(server)
    await asyncio.gather(*start(shared, *(f"n{number:03}" for number in range(MOST_TOGETHER + 1))))
    assert [len(names) for names in server.sent] == [MOST_TOGETHER, 1]
    server.sent.clear()
    half = MOST_BYTES // 2
    await asyncio.gather(*start(shared, Part("a", half), Part("b", half), Part("c", half), Part("d", 2 * MOST_BYTES)))
    assert server.sent == [["a", "b"], ["c"], ["d"]]


async def test_only_the_culprit_hears_of_a_refusal() -> None:
    server = Server(open=True, bad=frozenset({"b"}))
    shared = batches(server)
    answers = await asyncio.gather(*start(shared, "a", "b", "c"), return_exceptions=True)
    assert [answers[0], answers[2]] == ["k:A", "k:C"]
    assert isinstance(answers[1], ValueError)
    assert server.sent == [["a", "b", "c"], ["a"], ["b"], ["c"]]


async def test_everybody_hears_of_an_unknown_outcome_and_nothing_is_sent_again() -> None:
    server = Server(open=True, bad=frozenset({"b"}), error=ConnectionError("gone"))
    shared = batches(server)
    answers = await asyncio.gather(*start(shared, "a", "b"), return_exceptions=True)
    assert [type(answer) for answer in answers] == [ConnectionError, ConnectionError]
    assert server.sent == [["a", "b"]]
    server.bad = frozenset()
    assert await asyncio.gather(*start(shared, "a")) == ["k:A"]


async def test_a_call_that_is_cancelled_before_it_was_sent_is_not_sent() -> None:
    server = Server()
    shared = batches(server)
    first = start(shared, "a")
    await settle()
    later = start(shared, "b", "c")
    await settle()
    later[0].cancel()
    server.let_go()
    assert await asyncio.gather(*first, later[1]) == ["k:A", "k:C"]
    assert server.sent == [["a"], ["c"]]


async def test_a_statement_that_hangs_does_not_hold_up_the_next_one() -> None:
    server = Server()
    shared = batches(server)
    stuck = start(shared, "a")
    await settle()
    later = start(shared, "b")
    server.open = True
    async with asyncio.timeout(SLOW_SECONDS + 5):
        assert await later[0] == "k:B"
    assert not stuck[0].done()
    server.let_go()
    assert await stuck[0] == "k:A"


async def test_closing_gives_up_what_is_under_way() -> None:
    server = Server()
    shared = batches(server)
    calls = start(shared, "a", "b")
    await settle()
    await shared.aclose(0.01)
    with pytest.raises(asyncio.CancelledError):
        await calls[0]
