"""What the turn engine needs from a model: one call at a time, streamed, with errors that say what to do next."""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from decimal import ROUND_CEILING, Decimal
from enum import StrEnum
from typing import Any, Final, Protocol


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
    """A piece of the reply's text; an empty one says that the model is at work (it thinks, or writes a tool call)."""

    text: str


@dataclass(frozen=True, slots=True)
class Price:
    """What tokens cost, each in millionths of the currency: the same number as a million tokens in whole units."""

    input: Decimal
    output: Decimal
    currency: str

    def cost_of(self, input_tokens: int, output_tokens: int) -> "Cost":
        """Return what a call costs."""
        return Cost(self.input * input_tokens + self.output * output_tokens, self.currency)


@dataclass(frozen=True, slots=True)
class Cost:
    """What calls cost, in millionths of the currency; without a currency: nothing. None in its place: not known."""

    amount: Decimal = Decimal(0)
    currency: str = ""

    @property
    def micros(self) -> int:
        """The amount in whole millionths, rounded up."""
        return int(self.amount.to_integral_value(ROUND_CEILING))


FREE: Final = Cost()
NO_PRICE: Final = Price(Decimal(0), Decimal(0), "")
"""Of built-in models that are given none."""


def add_costs(one: Cost | None, other: Cost | None) -> Cost | None:
    """Return the sum, None if one is unknown or they have different currencies."""
    if one is None or other is None or (one.currency and other.currency and one.currency != other.currency):
        return None
    return Cost(one.amount + other.amount, one.currency or other.currency)


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
    UNKNOWN_PARAMETER = "UnknownParameter"
    BROKEN = "ModelBroken"


class ModelError(Exception):
    """A model call failed.

    `message` says what the model did ("answered 401") and `state` what it does ("answers 401"): both follow the
    model's name, are fit for callers, and never repeat the provider's own words, which may hold keys or content.
    `retryable`: the same model may do better soon. `about_message`: what was sent is to blame, not the model.
    `too_long`: less of the conversation may fit. `status`: the HTTP status, if there was one. `retry_after`: for how
    many seconds the provider wants no further call. `key_refused`: no call with this key can succeed.
    """

    def __init__(
        self,
        kind: FailureKind,
        message: str,
        *,
        state: str = "",
        retryable: bool = False,
        about_message: bool = False,
        too_long: bool = False,
        status: int | None = None,
        retry_after: float | None = None,
        key_refused: bool = False,
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.state = state or message
        self.retryable = retryable
        self.about_message = about_message
        self.too_long = too_long
        self.status = status
        self.retry_after = retry_after
        self.key_refused = key_refused or status == 401

    @classmethod
    def from_status(cls, status: int, code: str = "") -> "ModelError":
        """Return the error that an HTTP status of a provider stands for (RFC 9110, section 15).

        `code` is the provider's word for it, one of few known ones.
        """
        words = f"{status} ({code})" if code else str(status)
        return cls(
            _kind(status),
            f"answered {words}",
            state=f"answers {words}",
            retryable=status in (408, 409, 425, 429) or status >= 500,
            about_message=status == 413,
            too_long=status == 413,
            status=status,
        )


class NotAsked(ModelError):  # noqa: N818 - what did not happen, not a mistake
    """The model was not called, since it is known that this would be in vain now."""


def _kind(status: int) -> FailureKind:
    match status:
        case 401 | 403:
            return FailureKind.AUTH_FAILED
        case 404:
            return FailureKind.NOT_FOUND
        case 402 | 429:
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

    @property
    def stream_idle(self) -> float:
        """Longest silence between two items of one attempt, in seconds."""
        ...

    @property
    def price(self) -> Price | None:
        """What its tokens cost; None: not known."""
        ...

    async def prepare(self) -> None:
        """Load what calls need; returns at once when that is done. Its time is ours, not the provider's.

        Raises ModelError.
        """
        ...

    def stream(self, request: ModelRequest) -> AsyncGenerator[TextDelta | ModelEnd, None]:
        """Yield the reply's text in pieces, then exactly one ModelEnd.

        Raises ModelError. If closed or cancelled, the call ends and nothing is left behind.
        """
        ...


def count_words(*texts: str) -> int:
    """Return what the built-in models report as tokens: about the number of words, counted by their blanks."""
    return sum(text.count(" ") + 1 for text in texts if text)
