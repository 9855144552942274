"""What goes to a provider, and what its errors and answers mean."""

import ssl
from typing import Any

import httpx2
import pytest
from pydantic_ai import messages as wire
from pydantic_ai.exceptions import ModelHTTPError

from agent_api.v1alpha1 import ModelParameters
from agent_runtime.llm.client import from_transport
from agent_runtime.llm.dialects import ANTHROPIC, COMPATIBLE, GOOGLE, OPENAI
from agent_runtime.llm.direct import blamed_parameter, request_body, sent_parameters, to_error, to_messages
from agent_runtime.llm.port import ChatMessage, FailureKind, ModelEnd, ModelRequest, ToolCall
from agent_runtime.llm.provider import counted


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
    assert request_body(OPENAI, ModelParameters()) == {}
    assert request_body(GOOGLE, ModelParameters()) == {}
    parameters = ModelParameters(temperature=0, max_output_tokens=5, top_p=0.5, extra={"seed": 1})
    assert request_body(OPENAI, parameters) == {
        "temperature": 0,
        "max_completion_tokens": 5,
        "top_p": 0.5,
        "seed": 1,
    }
    assert request_body(COMPATIBLE, parameters)["max_tokens"] == 5
    assert request_body(ANTHROPIC, parameters) == {"temperature": 0, "max_tokens": 5, "top_p": 0.5, "seed": 1}


def test_what_google_wants_in_a_member_of_the_request_stands_there() -> None:
    extra = {"generationConfig": {"topK": 3}, "safetySettings": []}
    body = request_body(GOOGLE, ModelParameters(temperature=1, max_output_tokens=9, extra=extra))
    assert body == {"generationConfig": {"temperature": 1, "maxOutputTokens": 9, "topK": 3}, "safetySettings": []}
    assert sent_parameters(GOOGLE, body) == ("temperature", "maxOutputTokens", "topK", "safetySettings")
    assert sent_parameters(OPENAI, {"seed": 1}) == ("seed",)


def test_tokens_are_guessed_where_a_service_does_not_count() -> None:
    request = ModelRequest("12345678", (ChatMessage("user", "1234"),), 0)
    assert counted(ModelEnd(), request, 5) == ModelEnd((), 3, 2)
    assert counted(ModelEnd((), 7, 0), request, 5) == ModelEnd((), 7, 0)


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
        ({"error": {"message": "temperature: Input should be less than or equal to 1"}}, "", "temperature"),
        ({"error": {"message": "`temperature` and `top_p` cannot both be specified"}}, "", "temperature"),
        ({"error": {"message": 'Invalid JSON payload received. Unknown name "seed": Cannot find field.'}}, "", "seed"),
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


@pytest.mark.parametrize(
    "words",
    [
        "prompt is too long: 210000 tokens > 200000 maximum",
        "input length and `max_tokens` exceed context limit: 190000 + 32000 > 200000",
        "The input token count (1200000) exceeds the maximum number of tokens allowed (1048576).",
        "This model's maximum context length is 8192 tokens.",
        "Requested tokens (9000) exceed context window of 8192",
    ],
)
def test_a_conversation_too_long_is_known_by_the_words_of_each_provider(words: str) -> None:
    error = to_error(ModelHTTPError(400, "m", {"error": {"message": words}}), ())
    assert (error.too_long, error.about_message, error.kind) == (True, True, FailureKind.REFUSED)


def test_a_key_that_google_refuses_is_known_by_its_reason() -> None:
    body = {"error": {"code": 400, "message": "API key not valid.", "details": [{"reason": "API_KEY_INVALID"}]}}
    error = to_error(ModelHTTPError(400, "m", body), ())
    assert (error.kind, error.key_refused, error.retryable) == (FailureKind.AUTH_FAILED, True, False)


def test_the_pause_a_provider_wants_is_told_where_trying_again_may_help() -> None:
    assert to_error(ModelHTTPError(429, "m", None, headers={"Retry-After": "7"}), ()).retry_after == 7
    assert to_error(ModelHTTPError(503, "m", None, headers={"Retry-After": "7"}), ()).retry_after == 7
    assert to_error(ModelHTTPError(400, "m", None, headers={"Retry-After": "7"}), ()).retry_after is None
    assert to_error(ModelHTTPError(429, "m", None, headers={"Retry-After": "soon"}), ()).retry_after is None


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
