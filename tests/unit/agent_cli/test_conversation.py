"""The chat in the terminal: what is typed, what is shown."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from agent_api.wire import TurnError, TurnStatus
from agent_cli.cluster.targets import UrlTarget
from agent_cli.errors import UsageError
from agent_cli.talk.chat import ChatOptions, send_one
from agent_cli.talk.client import AgentClient, AgentRef, Clock
from agent_cli.talk.conversation import Chat, Screen, clean, new_session_name, outcome_note
from tests.unit.agent_cli.scripted_server import Script, Step, answer, problem, serve, stream, turn


class Talk:
    """A chat that reads the given lines, and what it wrote."""

    def __init__(self, script: Script, lines: str, names: tuple[str, ...]) -> None:
        self.script = script
        self.screen = Screen(source=io.StringIO(lines), out=io.StringIO(), err=io.StringIO())
        hurry = Clock(monotonic=lambda: 0.0, sleep=lambda _: None)
        agents = [AgentRef("shop", name) for name in names]
        self.clients = [AgentClient(UrlTarget(script.url, a, trust_env=False), a, clock=hurry) for a in agents]

    def run(self, timeout: float = 300) -> bool:
        try:
            return Chat(self.screen, self.clients, timeout=timeout).run()
        finally:
            for client in self.clients:
                client.__exit__(None, None, None)

    @property
    def out(self) -> str:
        return str(self.screen.out.getvalue())  # type: ignore[attr-defined]

    @property
    def err(self) -> str:
        return str(self.screen.err.getvalue())  # type: ignore[attr-defined]

    @property
    def contents(self) -> list[Any]:
        return [request.body["content"] for request in self.script.requests if request.body]

    @property
    def sessions(self) -> list[str]:
        return [request.path.split("/")[6] for request in self.script.requests]


@contextmanager
def talk(lines: str, *steps: Step, names: tuple[str, ...] = ("assistant",)) -> Iterator[Talk]:
    with serve(*steps) as script:
        yield Talk(script, lines, names)


def test_lines_of_a_pipe_are_messages_and_replies_come_on_stdout_alone() -> None:
    with talk("one\n\n  two  \n", stream("ONE", final=turn("ONE")), stream(final=turn("TWO"))) as it:
        assert it.run() is True
    assert it.out == "ONE\nTWO\n"
    assert it.err == ""
    assert it.contents == ["one", "two"]
    assert it.sessions == ["default", "default"]


def test_every_message_has_a_key_of_its_own() -> None:
    with talk("a\na\n", stream(final=turn("A"))) as it:
        it.run()
    keys = [request.headers["idempotency-key"] for request in it.script.requests]
    assert len(set(keys)) == 2
    assert all(1 <= len(key) <= 255 for key in keys)


def test_quit_ends_the_chat_before_the_rest() -> None:
    with talk("a\n/quit\nb\n", stream(final=turn("A"))) as it:
        it.run()
    assert it.contents == ["a"]


def test_a_doubled_slash_is_a_message_and_an_unknown_command_is_not() -> None:
    with talk("//etc/hosts\n/etc\n", stream(final=turn("A"))) as it:
        it.run()
    assert it.contents == ["/etc/hosts"]
    assert "unknown command /etc" in it.err


def test_new_changes_the_session() -> None:
    with talk("a\n/new\nb\n/new trip\nc\n/new b/d\nd\n", stream(final=turn("A"))) as it:
        it.run()
    first, second, third, fourth = it.sessions
    assert (first, third, fourth) == ("default", "trip", "trip")
    assert second not in ("default", "trip")
    assert "a session name has 1 to 128 characters" in it.err


def test_history_shows_who_said_what() -> None:
    items = [
        {"seq": n, "role": role, "content": text, "turnId": turn("")["turn"]["id"], "createdAt": "2026-01-01T00:00:00Z"}
        for n, (role, text) in enumerate([("user", "hi"), ("assistant", "hello\x1b[2J")], start=1)
    ]
    with talk("/history\n", answer(200, {"items": items, "nextCursor": None})) as it:
        it.run()
    assert it.out == "you> hi\nassistant> hello[2J\n"


def test_a_lost_message_can_be_sent_again_under_its_own_key() -> None:
    down = problem(503, "Store down")
    with talk("hello\n/retry\n/retry\n", down, stream(final=turn("A"))) as it:
        assert it.run(timeout=0.0001) is False
    assert it.contents == ["hello", "hello"]
    assert len({request.headers["idempotency-key"] for request in it.script.requests}) == 1
    assert "Store down" in it.err
    assert "nothing to send again" in it.err


def test_a_message_that_is_too_long_is_not_sent() -> None:
    with talk("x" * 100_001 + "\n", stream(final=turn("A"))) as it:
        assert it.run() is False
    assert it.script.requests == []


def test_several_agents_can_be_talked_to_in_turn() -> None:
    with talk("a\n/agent second\nb\n/agent third\n", stream(final=turn("A")), names=("first", "second")) as it:
        it.run()
    assert [request.path.split("/")[4] for request in it.script.requests] == ["first", "second"]
    assert "agents: first, second *" in it.err
    assert "no agent 'third' here" in it.err


@pytest.mark.parametrize(
    ("status", "note", "replied"),
    [
        (TurnStatus.FALLBACK, "[fallback reply, no model answered: ModelUnavailable: all gone]", True),
        (TurnStatus.FAILED, "[the turn failed: ModelUnavailable: all gone]", False),
        (TurnStatus.CANCELLED, "[the turn was cancelled: ModelUnavailable: all gone]", False),
    ],
)
def test_a_turn_that_was_not_completed_says_so(status: TurnStatus, note: str, replied: bool) -> None:
    final = turn("Sorry.", status, error=TurnError(type="ModelUnavailable", message="all gone"))
    with talk("a\n", stream(final=final)) as it:
        assert it.run() is replied
    assert it.out == "Sorry.\n"
    assert note in it.err


def test_one_message_prints_its_reply_whole_and_once() -> None:
    reset_and_final = stream("wro", final=turn("right [1]"))
    with talk("", reset_and_final) as it, it.clients[0] as client:
        assert send_one(it.screen, client, ChatOptions("hi", "s", "ann", 10)) is True
    assert it.out == "right [1]\n"


def test_an_empty_message_is_refused() -> None:
    with talk("", stream(final=turn("A"))) as it, pytest.raises(UsageError):
        send_one(it.screen, it.clients[0], ChatOptions("", "s", "ann", 10))


def test_control_characters_never_reach_the_terminal() -> None:
    assert clean("a\x1b]0;title\x07b\r\n\tc\x9b31m\u2028é") == "a]0;titleb\n\tc31m\u2028é"


def test_a_completed_turn_needs_no_note() -> None:
    from agent_api.wire import TurnOut

    assert outcome_note(TurnOut(id=turn("")["turn"]["id"], status=TurnStatus.COMPLETED)) == ""


def test_new_session_names_differ_within_a_second() -> None:
    from datetime import UTC, datetime

    now = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    names = {new_session_name(now) for _ in range(20)}
    assert len(names) > 1
    assert all(name.startswith("20260102-030405-") for name in names)
