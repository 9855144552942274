"""What goes to a chat completions service, and what its errors and answers mean."""

import ssl
from typing import Any

import httpx2
import pytest
from pydantic_ai import messages as wire
from pydantic_ai.exceptions import ModelHTTPError

from agent_api.v1alpha1 import ModelParameters
from agent_runtime.llm.client import from_transport
from agent_runtime.llm.openai_chat import blamed_parameter, request_body, to_error, to_messages
from agent_runtime.llm.port import ChatMessage, FailureKind, ModelRequest, ToolCall


def test_a_conversation_keeps_its_order_roles_and_tool_calls() -> None:
    call = ToolCall("call-1", "search", {"q": "x"})
    request = ModelRequest(
        system="Be kind.",
        messages=(
            ChatMessage("user", "find x"),
            ChatMessage("assistant", "", (call,)),
            ChatMessage("tool", "nothing", tool_call_id="call-1"),
            ChatMessage("assistant", ""),
            ChatMessage("assistant", "There is none."),
        ),
        step=0,
    )
    system, user, asked, result, said = to_messages(request)
    assert isinstance(system.parts[0], wire.SystemPromptPart)
    assert isinstance(user.parts[0], wire.UserPromptPart)
    assert isinstance(asked.parts[0], wire.ToolCallPart)
    assert (asked.parts[0].tool_call_id, asked.parts[0].args) == ("call-1", {"q": "x"})
    assert isinstance(result.parts[0], wire.ToolReturnPart)
    assert (result.parts[0].tool_call_id, result.parts[0].tool_name) == ("call-1", "search")
    assert isinstance(said.parts[0], wire.TextPart)
    assert said.parts[0].content == "There is none."


def test_without_a_prompt_there_is_no_system_message() -> None:
    assert len(to_messages(ModelRequest("", (ChatMessage("user", "x"),), 0))) == 1


def test_only_what_is_set_is_sent() -> None:
    assert request_body("openai", ModelParameters()) == {}
    parameters = ModelParameters(temperature=0, max_output_tokens=5, top_p=0.5, extra={"seed": 1})
    assert request_body("openai", parameters) == {
        "temperature": 0,
        "max_completion_tokens": 5,
        "top_p": 0.5,
        "seed": 1,
    }
    assert request_body("openai-compatible", parameters)["max_tokens"] == 5


@pytest.mark.parametrize(
    ("body", "code", "blamed"),
    [
        ({"param": "seed"}, "unknown_parameter", "seed"),
        ({"error": {"param": "temperature"}}, "unsupported_value", "temperature"),
        ({"param": "messages"}, "unsupported_value", ""),
        ({"message": "Unrecognized request argument supplied: seed"}, "", "seed"),
        ({"detail": [{"msg": "Extra inputs are not permitted", "loc": ["body", "seed"]}]}, "", "seed"),
        ({"message": "Unknown role in messages"}, "", ""),
        ({"message": "the seed of doubt"}, "", ""),
        ("text", "", ""),
        (None, "unknown_parameter", ""),
    ],
)
def test_a_refusal_is_blamed_on_a_parameter_only_if_it_was_sent_and_is_named(body: Any, code: str, blamed: str) -> None:
    assert blamed_parameter(body, code, ("temperature", "seed")) == blamed


@pytest.mark.parametrize(
    ("status", "kind", "retryable", "about_message"),
    [
        (401, FailureKind.AUTH_FAILED, False, False),
        (402, FailureKind.RATE_LIMITED, False, False),
        (403, FailureKind.AUTH_FAILED, False, False),
        (404, FailureKind.NOT_FOUND, False, False),
        (408, FailureKind.TIMEOUT, True, False),
        (409, FailureKind.REFUSED, True, False),
        (413, FailureKind.REFUSED, False, True),
        (422, FailureKind.REFUSED, False, False),
        (429, FailureKind.RATE_LIMITED, True, False),
        (500, FailureKind.UNREACHABLE, True, False),
        (504, FailureKind.TIMEOUT, True, False),
    ],
)
def test_a_status_says_what_to_do_next(status: int, kind: FailureKind, retryable: bool, about_message: bool) -> None:
    secret = "sk-secret"
    error = to_error(ModelHTTPError(status, "m", {"message": secret, "code": secret}), ())
    assert (error.kind, error.retryable, error.about_message) == (kind, retryable, about_message)
    assert error.message == f"answered {status}"
    assert error.state == f"answers {status}"
    assert error.status == status


def chained(outer: Exception, inner: BaseException) -> Exception:
    outer.__cause__ = inner
    return outer


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (chained(httpx2.ConnectError("x"), ConnectionRefusedError()), FailureKind.UNREACHABLE, "refuses connections"),
        (chained(httpx2.ConnectError("x"), ssl.SSLError("bad")), FailureKind.UNREACHABLE, "TLS"),
        (httpx2.ConnectError("x"), FailureKind.UNREACHABLE, "cannot be connected to"),
        (httpx2.ConnectTimeout("x"), FailureKind.TIMEOUT, "takes no connection within 10 s"),
        (httpx2.ReadTimeout("x"), FailureKind.TIMEOUT, "does not answer in time"),
        (httpx2.RemoteProtocolError("x"), FailureKind.UNREACHABLE, "breaks connections"),
        (ExceptionGroup("both", [OSError("v6"), ConnectionRefusedError()]), FailureKind.UNREACHABLE, "refuses"),
    ],
)
def test_failed_connections_are_told_apart_by_their_causes(error: Exception, kind: FailureKind, words: str) -> None:
    found = from_transport(error)
    assert found.kind is kind
    assert words in found.state
