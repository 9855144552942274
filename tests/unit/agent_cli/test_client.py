"""Sending a message until its outcome is known, against a server that breaks in every way."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from agent_api.wire import TurnResponse, TurnStatus
from agent_cli.cluster.targets import UrlTarget
from agent_cli.errors import CliError
from agent_cli.talk.client import PATIENCE, AgentClient, AgentRef, Clock
from agent_cli.talk.streamed import Final, Output, Text
from tests.unit.agent_cli.scripted_server import Script, Step, answer, hang_up, problem, serve, stream, turn

AGENT = AgentRef("shop", "assistant")
PATH = "/v1/agents/shop/assistant/sessions/s1/messages"


class Rig:
    """A client with time of its own, and what it showed and noted."""

    def __init__(self, script: Script, key: str | None = None) -> None:
        self.script = script
        self.now = 0.0
        self.pauses: list[float] = []
        self.outputs: list[Output] = []
        self.notes: list[str] = []
        target = UrlTarget(script.url, AGENT, key=key, trust_env=False)
        clock = Clock(monotonic=lambda: self.now, sleep=self.sleep)
        self.client = AgentClient(target, AGENT, user="ann", clock=clock, note=self.notes.append)

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds

    def send(self, timeout: float = 300.0) -> TurnResponse:
        with self.client:
            return self.client.send("s1", "hello", key="k1", timeout=timeout, sink=self.outputs.append)

    @property
    def text(self) -> str:
        return "".join(output.text for output in self.outputs if isinstance(output, Text))


@contextmanager
def rig(*steps: Step, key: str | None = None) -> Iterator[Rig]:
    with serve(*steps) as script:
        yield Rig(script, key)


def test_a_message_goes_out_with_user_key_and_body_and_its_reply_is_streamed() -> None:
    with rig(stream("hel", "lo", final=turn("hello [1]")), key="secret") as it:
        response = it.send()
    assert response.turn.status is TurnStatus.COMPLETED
    assert it.text == "hello [1]"
    assert isinstance(it.outputs[-1], Final)
    (request,) = it.script.requests
    assert (request.method, request.path, request.body) == ("POST", PATH, {"content": "hello"})
    assert request.headers["abide-user"] == "ann"
    assert request.headers["idempotency-key"] == "k1"
    assert request.headers["authorization"] == "Bearer secret"
    assert request.headers["accept"] == "text/event-stream"
    assert it.notes == []


@pytest.mark.parametrize("breaks", [[hang_up], [stream("hel", final=None)], [stream(final=None), hang_up, hang_up]])
def test_a_broken_connection_is_tried_again_under_the_same_key_and_shows_nothing_twice(breaks: list[Step]) -> None:
    with rig(*breaks, stream("hel", "lo", final=turn("hello"))) as it:
        it.send()
    assert it.text == "hello"
    assert {request.headers["idempotency-key"] for request in it.script.requests} == {"k1"}
    assert len(it.script.requests) == len(breaks) + 1
    assert len(it.notes) == 1


def test_a_stream_that_ends_politely_without_an_outcome_is_tried_again() -> None:
    def polite(handler: Any) -> None:
        handler.start_stream()

    with rig(polite, stream(final=turn("hello"))) as it:
        it.send()
    assert it.notes == ["the stream ended before the reply; trying again …"]


def test_unavailable_is_tried_again_when_the_server_says() -> None:
    with rig(problem(503, "Store down", Retry_After="2"), stream(final=turn("hello"))) as it:
        it.send()
    assert it.pauses == [2.0]
    assert it.notes == ["Store down; trying again …"]


def test_a_message_not_known_to_be_accepted_is_given_up_before_the_deadline() -> None:
    with rig(problem(503, "Store down", "Postgres refuses connections.")) as it, pytest.raises(CliError) as caught:
        it.send()
    assert str(caught.value) == (
        f"Agent shop/assistant does not answer at {it.script.url}: Store down: Postgres refuses connections."
    )
    assert it.now <= PATIENCE


def test_an_accepted_message_is_waited_for_until_the_deadline_and_then_named() -> None:
    expected = r"accepted the message \(turn 0+-0.*7\).* The reply will be in the session"
    with rig(stream("hel", final=None)) as it, pytest.raises(CliError, match=expected) as caught:
        it.send(timeout=200)
    assert caught.value.exit_code == 1
    assert PATIENCE < it.now <= 200


def test_a_server_that_answers_json_instead_of_a_stream_is_understood() -> None:
    running = answer(202, turn(None, TurnStatus.RUNNING))
    with rig(running, running, answer(200, turn("hello"))) as it:
        assert it.send().turn.status is TurnStatus.COMPLETED
    assert it.text == "hello"
    assert it.notes == []


def test_a_wrong_message_is_refused_with_its_fields_and_not_tried_again() -> None:
    refusal = problem(422, "Invalid request", errors=[{"field": "content", "message": "too short"}])
    with rig(refusal) as it, pytest.raises(CliError) as caught:
        it.send()
    assert caught.value.lines == ["Invalid request (HTTP 422)", "  content: too short"]
    assert len(it.script.requests) == 1


@pytest.mark.parametrize(("key", "hint"), [(None, "an API key is needed"), ("wrong", "an API key is not valid there")])
def test_a_refused_key_is_one_sentence(key: str | None, hint: str) -> None:
    with rig(problem(401, "Unauthorized"), key=key) as it, pytest.raises(CliError, match=hint) as caught:
        it.send()
    assert "wrong" not in str(caught.value)


def test_a_key_that_was_just_replaced_is_read_again_once() -> None:
    with rig(problem(401, "Unauthorized"), stream(final=turn("hello")), key="k") as it:
        it.send()
    assert it.text == "hello"


def test_an_address_nobody_listens_on_is_an_error_at_once() -> None:
    with serve(hang_up) as script:
        pass
    it = Rig(script)
    with pytest.raises(CliError, match=r"does not answer at http://127\.0\.0\.1:\d+: the connection was refused\.$"):
        it.send()
    assert it.pauses == []


def test_something_that_is_not_an_agent_is_recognised() -> None:
    with (
        rig(answer(200, {"hello": "world"})) as it,
        pytest.raises(CliError, match="did not answer as an Abide agent does"),
    ):
        it.send()


def test_an_error_without_problem_details_still_has_its_status() -> None:
    with rig(answer(418, "tea")) as it, pytest.raises(CliError, match=r"\(HTTP 418\)"):
        it.send()


def message(seq: int) -> dict[str, Any]:
    turn_id = "00000000-0000-0000-0000-000000000007"
    return {"seq": seq, "role": "user", "content": f"m{seq}", "turnId": turn_id, "createdAt": "2026-01-01T00:00:00Z"}


def test_history_follows_the_cursor_and_keeps_the_newest() -> None:
    pages = [{"items": [message(1), message(2)], "nextCursor": "c2"}, {"items": [message(3)], "nextCursor": None}]
    with rig(*(answer(200, page) for page in pages)) as it, it.client:
        page = it.client.history("s1", newest=2, timeout=5)
    assert [item.seq for item in page.items] == [2, 3]
    assert [request.path for request in it.script.requests] == [f"{PATH}?limit=200", f"{PATH}?limit=200&cursor=c2"]


def test_names_are_quoted_in_paths() -> None:
    page: Callable[[], Step] = lambda: answer(200, {"items": [], "nextCursor": None})  # noqa: E731
    with serve(page()) as script:
        agent = AgentRef("a/b", "c?d")
        with AgentClient(UrlTarget(script.url, agent, trust_env=False), agent) as client:
            client.sessions(limit=500, timeout=5)
    assert script.requests[0].path == "/v1/agents/a%2Fb/c%3Fd/sessions?limit=200"
