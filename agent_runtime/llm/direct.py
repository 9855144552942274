"""What all providers share of pydantic-ai's direct requests: messages out, text and tool calls in, errors translated.

Importing this module costs half a second and 20 MB: see agent_runtime.llm.provider. Nothing is retried here, nothing
traced, and no word of the provider gets into an error: it may hold the key or what users said.
"""

import re
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final

from genai_prices.data_snapshot import DataSnapshot, set_custom_snapshot
from genai_prices.types import Provider, UsageExtractor, UsageExtractorMapping
from pydantic_ai import messages as wire
from pydantic_ai.direct import model_request_stream
from pydantic_ai.exceptions import (
    ModelAPIError,
    ModelConnectionError,
    ModelContextWindowExceededError,
    ModelHTTPError,
    ModelQuotaExceededError,
    ModelTimeoutError,
    UnexpectedModelBehavior,
)
from pydantic_ai.models import Model, ModelRequestParameters, StreamedResponse
from pydantic_ai.settings import ModelSettings
from pydantic_ai.tools import ToolDefinition

from agent_api.v1alpha1 import ModelParameters
from agent_runtime.llm.client import from_transport
from agent_runtime.llm.dialects import Dialect, invalid_key, key_is_invalid
from agent_runtime.llm.port import (
    ChatMessage,
    FailureKind,
    ModelEnd,
    ModelError,
    ModelRequest,
    TextDelta,
    ToolCall,
)

KNOWN_CODES: Final = frozenset(
    (
        "insufficient_quota", "billing_hard_limit_reached", "rate_limit_exceeded", "model_not_found",
        "invalid_api_key", "context_length_exceeded", "unknown_parameter", "unsupported_parameter",
        "unsupported_value", "content_policy_violation", "content_filter", "server_error", "overloaded",
        "overloaded_error", "billing_error", "rate_limit_error", "request_too_large", "RESOURCE_EXHAUSTED",
        "FAILED_PRECONDITION", "PERMISSION_DENIED", "UNAUTHENTICATED", "UNAVAILABLE",
    )
)  # fmt: skip
"""Words of providers that may be repeated; any other could be anything."""
PARAMETER_CODES: Final = frozenset(("unknown_parameter", "unsupported_parameter", "unsupported_value"))
PARAMETER_WORDS: Final = re.compile(
    r"(?i)unknown|unsupported|not supported|unrecogni[sz]ed|not permitted|unexpected|deprecated|cannot both|"
    r"input should be|may only be|supported range|maximum allowed|out of range"
)
TOO_LONG_WORDS: Final = re.compile(
    r"(?i)prompt is too long|exceeds? (the )?(model'?s )?(maximum )?context (limit|length|window)|"
    r"maximum context length|input token count.{0,40} exceeds"
)
CONTENT_CODES: Final = frozenset(("context_length_exceeded", "content_policy_violation", "content_filter"))
QUOTA_CODES: Final = frozenset(("insufficient_quota", "billing_hard_limit_reached"))


PLACEHOLDER: Final = "set-by-the-client"
"""The libraries insist on having a key; the real one is put on by the client at the last moment."""


def _reads(provider: str, root: str, **fields: str) -> Provider:
    """Return how the library reads token counts of a provider: for each field of its answer what it counts."""
    mappings = [UsageExtractorMapping(path=path, dest=counts, required=False) for path, counts in fields.items()]
    flavors = [UsageExtractor(root, mappings, api_flavor=flavor) for flavor in ("default", "chat")]
    return Provider(id=provider, name=provider, api_pattern="^$", extractors=flavors)


# Instead of the list of all models of the world with their prices: 5 MB that nothing here asks for.
set_custom_snapshot(
    DataSnapshot(
        [
            _reads("openai", "usage", prompt_tokens="input_tokens", completion_tokens="output_tokens"),
            _reads(
                "anthropic",
                "usage",
                input_tokens="input_tokens",
                cache_creation_input_tokens="input_tokens",
                cache_read_input_tokens="input_tokens",
                output_tokens="output_tokens",
            ),
            _reads(
                "google",
                "usageMetadata",
                promptTokenCount="input_tokens",
                toolUsePromptTokenCount="input_tokens",
                candidatesTokenCount="output_tokens",
                thoughtsTokenCount="output_tokens",
            ),
        ],
        from_auto_update=False,
    )
)


class DirectChat:
    """One model of pydantic-ai, called directly. Holds no state between calls.

    `sent` names the parameters of the spec, which a refusal may be blamed on.
    """

    begins_with_user = False
    """Whether the provider takes no conversation that begins in the middle, with words of its model."""

    def __init__(self, model: Model[Any], settings: ModelSettings | None, sent: Iterable[str]) -> None:
        self._model = model
        self._settings = settings
        self._sent = tuple(sent)

    async def stream(self, request: ModelRequest) -> AsyncGenerator[TextDelta | ModelEnd, None]:
        """Yield the reply as it comes, then ModelEnd. Raises ModelError."""
        if self.begins_with_user:
            request = from_user(request)
        with translated(self._sent):
            async with model_request_stream(
                self._model,
                to_messages(request),
                model_settings=self._settings,
                model_request_parameters=ModelRequestParameters(function_tools=to_tools(request)),
                instrument=False,
            ) as response:
                async for event in response:
                    yield TextDelta(text_of(event))
                end = to_end(response)
        yield end


def request_body(dialect: Dialect, parameters: ModelParameters) -> dict[str, Any]:
    """Return the fields of the request that the spec sets, named as the provider does.

    They are sent as they are: whether a model takes them is for the provider to say, and it says so.
    """
    typed = {
        dialect.temperature: parameters.temperature,
        dialect.top_p: parameters.top_p,
        dialect.longest: parameters.max_output_tokens,
    }
    set_ones = {name: value for name, value in typed.items() if value is not None}
    if not dialect.within:
        return {**set_ones, **parameters.extra}
    inner = parameters.extra.get(dialect.within)
    merged = {**set_ones, **inner} if isinstance(inner, dict) else set_ones
    return {**parameters.extra, **({dialect.within: merged} if merged else {})}


def sent_parameters(dialect: Dialect, body: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of all parameters in a request body made by `request_body`."""
    inner = body.get(dialect.within) if dialect.within else None
    return (*(inner if isinstance(inner, dict) else ()), *(name for name in body if name != dialect.within))


def to_messages(request: ModelRequest) -> list[wire.ModelMessage]:
    """Return the conversation as the library takes it."""
    names = {call.id: call.name for message in request.messages for call in message.tool_calls}
    system = [wire.ModelRequest(parts=[wire.SystemPromptPart(request.system)])] if request.system else []
    said = (_to_message(message, names) for message in request.messages)
    return [*system, *(message for message in said if message is not None)]


def from_user(request: ModelRequest) -> ModelRequest:
    """Return the request with its conversation from the first message of a user on."""
    first = next((index for index, message in enumerate(request.messages) if message.role == "user"), 0)
    return replace(request, messages=request.messages[first:]) if first else request


def _to_message(message: ChatMessage, names: dict[str, str]) -> wire.ModelMessage | None:
    match message.role:
        case "assistant":
            parts: list[wire.ModelResponsePart] = [wire.TextPart(message.content)] if message.content else []
            parts += [wire.ToolCallPart(call.name, call.arguments, call.id) for call in message.tool_calls]
            # Providers refuse a message in which nothing is said.
            return wire.ModelResponse(parts=parts) if parts else None
        case "tool":
            call_id = message.tool_call_id or ""
            part = wire.ToolReturnPart(names.get(call_id, "tool"), message.content, tool_call_id=call_id)
            return wire.ModelRequest(parts=[part])
    return wire.ModelRequest(parts=[wire.UserPromptPart(message.content)])


def to_tools(request: ModelRequest) -> list[ToolDefinition]:
    """Return the tools as the library takes them."""
    return [
        ToolDefinition(name=tool.name, description=tool.description, parameters_json_schema=tool.parameters)
        for tool in request.tools
    ]


def text_of(event: wire.ModelResponseStreamEvent) -> str:
    """Return the text an event adds to the reply: none for thoughts and tool calls."""
    if isinstance(event, wire.PartStartEvent) and isinstance(event.part, wire.TextPart):
        return event.part.content
    if isinstance(event, wire.PartDeltaEvent) and isinstance(event.delta, wire.TextPartDelta):
        return event.delta.content_delta
    return ""


def to_end(response: StreamedResponse) -> ModelEnd:
    """Return what a finished stream amounts to. Raises ModelError when it is no answer."""
    complete = response.get()
    calls = tuple(_to_call(part) for part in complete.parts if isinstance(part, wire.ToolCallPart))
    text = any(isinstance(part, wire.TextPart) and part.content for part in complete.parts)
    if complete.finish_reason == "content_filter":
        raise ModelError(
            FailureKind.REFUSED, "refused to answer (content filter)", state="refuses to answer", about_message=True
        )
    if complete.finish_reason is None and not (complete.provider_details or {}).get("finish_reason"):
        raise _broken_off()
    if not text and not calls:
        raise _empty(complete.finish_reason)
    usage = response.usage
    return ModelEnd(tool_calls=calls, input_tokens=usage.input_tokens, output_tokens=usage.output_tokens)


def _broken_off() -> ModelError:
    return ModelError(FailureKind.BROKEN, "broke off its answer", state="breaks off its answers", retryable=True)


def _empty(finish_reason: str | None) -> ModelError:
    if finish_reason == "length":
        return ModelError(
            FailureKind.REFUSED,
            "used all its output tokens before it said anything (parameters.maxOutputTokens)",
            state="uses all its output tokens before it says anything",
        )
    return ModelError(FailureKind.BROKEN, "gave an empty answer", state="gives empty answers", retryable=True)


def _to_call(part: wire.ToolCallPart) -> ToolCall:
    try:
        arguments = part.args_as_dict(raise_if_invalid=True)
    except (ValueError, AssertionError) as error:
        raise ModelError(
            FailureKind.BROKEN,
            "called a tool with arguments that are not a JSON object",
            state="calls tools with arguments that are not JSON objects",
            retryable=True,
        ) from error
    return ToolCall(id=part.tool_call_id, name=part.tool_name, arguments=arguments)


@contextmanager
def translated(body: Iterable[str]) -> Iterator[None]:
    """Turn every failure of a library into a ModelError; `body` names the parameters that were sent."""
    try:
        yield
    except (ModelError, GeneratorExit):
        raise
    except Exception as error:
        # From None: the chain holds the provider's words and what was sent, and a traceback may be written down.
        raise to_error(error, body) from None


def to_error(error: Exception, body: Iterable[str]) -> ModelError:
    """Return what a failure of the library stands for."""
    if isinstance(error, ModelHTTPError):
        return _from_http(error, tuple(body))
    if isinstance(error, ModelContextWindowExceededError):
        return _too_long(None)
    if isinstance(error, ModelConnectionError):
        return _from_connection(error)
    if isinstance(error, ModelAPIError) and "finish_reason" in error.message:
        return _broken_off()
    if isinstance(error, ModelAPIError | UnexpectedModelBehavior | ValueError | TypeError | KeyError | AttributeError):
        return ModelError(
            FailureKind.BROKEN, "gave a malformed answer", state="gives malformed answers", retryable=True
        )
    return from_transport(error)


def _from_connection(error: ModelConnectionError) -> ModelError:
    if isinstance(error, ModelTimeoutError):
        return ModelError(FailureKind.TIMEOUT, "did not answer in time", state="does not answer in time")
    return from_transport(error)


def _from_http(error: ModelHTTPError, sent: tuple[str, ...]) -> ModelError:
    code = next((code for code in (error.provider_error_code, error.provider_error_type) if code in KNOWN_CODES), "")
    status = error.status_code
    if isinstance(error, ModelContextWindowExceededError) or (status in (400, 413, 422) and says_too_long(error.body)):
        return _too_long(status)
    if status == 400 and key_is_invalid(error_of(error.body)):
        return invalid_key(status)
    if status in (400, 422) and (name := blamed_parameter(error.body, code or "", sent)):
        return ModelError(
            FailureKind.UNKNOWN_PARAMETER,
            f"answered {status}: it does not take the parameter {name}, or not with this value",
            state=f"does not take the parameter {name}, or not with this value",
            status=status,
        )
    if code == "model_not_found":
        return ModelError(
            FailureKind.NOT_FOUND, f"answered {status} ({code})", state=f"answers {status} ({code})", status=status
        )
    found = ModelError.from_status(status, code or "")
    if code in QUOTA_CODES or isinstance(error, ModelQuotaExceededError):
        return ModelError(FailureKind.RATE_LIMITED, found.message, state=found.state, status=status)
    if found.retryable:
        found.retry_after = error.retry_after
    if code in CONTENT_CODES:
        return ModelError(found.kind, found.message, state=found.state, about_message=True, status=status)
    return found


def _too_long(status: int | None) -> ModelError:
    return ModelError(
        FailureKind.REFUSED,
        "found the conversation too long for it",
        state="finds conversations too long",
        about_message=True,
        too_long=True,
        status=status,
    )


def error_of(body: object) -> dict[str, Any]:
    """Return the member of an answer that tells of an error, or the answer itself where it has none."""
    if not isinstance(body, dict):
        return {}
    error = body.get("error", body)
    return error if isinstance(error, dict) else body


def says_too_long(body: object) -> bool:
    """Whether a refusal is about the length of what was sent. There is no code for it that all providers use."""
    error = error_of(body)
    return bool(TOO_LONG_WORDS.search(str(error.get("message") or error.get("detail") or "")))


def blamed_parameter(body: object, code: str, sent: tuple[str, ...]) -> str:
    """Return which of the parameters that were sent a refusal is about, or "".

    OpenAI has a code and names the parameter; others only say so in their own words.
    """
    error = error_of(body)
    param = error.get("param")
    if code in PARAMETER_CODES:
        return next((name for name in sent if name == param), "")
    words = str(error.get("message") or error.get("detail") or error)
    if not PARAMETER_WORDS.search(words):
        return ""
    return next((name for name in sent if name == param or re.search(rf"\b{re.escape(name)}\b", words)), "")
