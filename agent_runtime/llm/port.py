"""What the turn engine needs from a model: one call at a time, streamed, with errors that say what to do next."""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool the model wants called; `id` ties the result to it."""

    id: str
    name: str
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One line of the conversation as the model sees it; `role` is user, assistant or tool."""

    role: str
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """A tool the model may ask for; `parameters` is a JSON Schema."""

    name: str
    description: str
    parameters: dict[str, Any]


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """One model call. `step` counts the model steps of the whole session, from 0; retries do not move it."""

    system: str
    messages: Sequence[ChatMessage]
    step: int
    tools: Sequence[ToolSpec] = ()


@dataclass(frozen=True, slots=True)
class TextDelta:
    """A piece of the reply's text."""

    text: str


@dataclass(frozen=True, slots=True)
class ModelEnd:
    """The last item of every stream: tools to call (none: the text is the reply) and what it cost."""

    tool_calls: tuple[ToolCall, ...] = ()
    input_tokens: int = 0
    output_tokens: int = 0


class FailureKind(StrEnum):
    """Why a model call failed; doubles as the turn's error type and as a metric label."""

    AUTH_FAILED = "ModelAuthFailed"
    NOT_FOUND = "ModelNotFound"
    RATE_LIMITED = "ModelRateLimited"
    TIMEOUT = "ModelTimeout"
    UNREACHABLE = "ModelUnreachable"
    REFUSED = "ModelRefused"
    BROKEN = "ModelBroken"


class ModelError(Exception):
    """A model call failed. `message` is fit for callers; `retryable` says whether the same model may do better soon."""

    def __init__(self, kind: FailureKind, message: str, *, retryable: bool = False) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.retryable = retryable

    @classmethod
    def from_status(cls, status: int) -> "ModelError":
        """Return the error that an HTTP status of a provider stands for (RFC 9110, section 15)."""
        return cls(_kind(status), f"answered {status}", retryable=status in (408, 409, 425, 429) or status >= 500)


def _kind(status: int) -> FailureKind:
    match status:
        case 401 | 403:
            return FailureKind.AUTH_FAILED
        case 404:
            return FailureKind.NOT_FOUND
        case 429:
            return FailureKind.RATE_LIMITED
        case 408 | 504:
            return FailureKind.TIMEOUT
    return FailureKind.UNREACHABLE if status >= 500 else FailureKind.REFUSED


class Model(Protocol):
    """One entry of the Agent's `models`."""

    @property
    def display(self) -> str:
        """`provider/model`, as turns and status name it."""
        ...

    @property
    def timeout(self) -> float:
        """Longest wait for the first token of one attempt, in seconds."""
        ...

    def stream(self, request: ModelRequest) -> AsyncGenerator[TextDelta | ModelEnd, None]:
        """Yield the reply's text in pieces, then exactly one ModelEnd.

        Raises ModelError. If closed or cancelled, the call ends and nothing is left behind.
        """
        ...


def count_words(*texts: str) -> int:
    """Return what the built-in models report as tokens: about the number of words, counted by their blanks."""
    return sum(text.count(" ") + 1 for text in texts if text)
