"""Errors as RFC 9457 problem details, and which error of the inside becomes which problem."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final

from fastapi import Response

from agent_api.conditions import Reason
from agent_runtime.access.errors import AccessUnavailable
from agent_runtime.errors import (
    Draining,
    InvalidContent,
    InvalidState,
    NotFound,
    NotReady,
    NotWaiting,
    Overloaded,
    SessionBusy,
)
from agent_runtime.memory.port import InvalidMemory
from agent_runtime.web.openai_errors import is_openai, openai_error, openai_status
from agent_store.errors import IdempotencyMismatch, LeaseLost, MemoriesFull, QueueFull, SessionGone, StoreUnavailable

BASE: Final = "https://abide.dev/problems/"
MEDIA_TYPE: Final = "application/problem+json"
STORE_DOWN: Final = "Send it again, with the same Idempotency-Key if it has one; the log and /readyz tell the cause."
"""Callers are told neither where Postgres is nor what it said."""

FieldError = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class ProblemDetails:
    """One problem: `kind` is the last part of its type URI; `headers` go with the response."""

    status: int
    kind: str
    title: str
    detail: str = ""
    errors: Sequence[FieldError] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    reason: str = ""

    def body(self, instance: str) -> dict[str, Any]:
        """Return the JSON document; `instance` is the path of the request."""
        return {
            "type": f"{BASE}{self.kind}",
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            "instance": instance,
            "errors": [dict(error) for error in self.errors],
            **({"reason": self.reason} if self.reason else {}),
        }

    def openai_body(self) -> dict[str, Any]:
        """Return the JSON document for OpenAI's clients."""
        param = self.errors[0]["field"] or None if self.errors else None
        message = f"{self.title} {self.detail}".strip()
        return openai_error(self.kind, self.status, message, param)

    def response(self, instance: str) -> Response:
        """Return the HTTP response; on the paths of OpenAI's protocol in the shape that its clients read."""
        if is_openai(instance):
            body, status = self.openai_body(), openai_status(self.status)
            content = json.dumps(body, ensure_ascii=False).encode("utf-8", errors="replace")
            return Response(content, status, dict(self.headers), "application/json")
        return Response(
            json.dumps(self.body(instance), ensure_ascii=False).encode("utf-8", errors="replace"),
            self.status,
            dict(self.headers),
            MEDIA_TYPE,
        )


class ProblemError(Exception):
    """Raised by routes to answer with a problem."""

    def __init__(self, problem: ProblemDetails) -> None:
        super().__init__(problem.title)
        self.problem = problem


def invalid(errors: Sequence[FieldError]) -> ProblemDetails:
    """Return the problem of a request whose fields are wrong; `errors` are {field, message}."""
    detail = "; ".join(f"{error['field'] or 'body'}: {error['message']}" for error in errors[:5])
    return ProblemDetails(422, "invalid-request", "The request is not valid.", detail, errors)


def too_large(detail: str, errors: Sequence[FieldError] = ()) -> ProblemDetails:
    """Return the problem of a request that is too large."""
    return ProblemDetails(413, "too-large", "The request is too large.", detail, errors)


def unauthorized(detail: str) -> ProblemDetails:
    """Return the problem of a request without a valid key or token (RFC 6750, section 3)."""
    return ProblemDetails(
        401,
        "unauthorized",
        "A valid API key or token is needed.",
        detail,
        headers={"WWW-Authenticate": 'Bearer realm="abide"'},
    )


def forbidden(detail: str) -> ProblemDetails:
    """Return the problem of a caller who is known and may not do this (RFC 6750, section 3.1)."""
    headers = {"WWW-Authenticate": 'Bearer realm="abide", error="insufficient_scope"'}
    return ProblemDetails(403, "forbidden", "This caller may not do this.", detail, headers=headers)


def rate_limited(per_minute: int, retry_after: float) -> ProblemDetails:
    """Return the problem of a caller who asks too often."""
    detail = f"This agent takes {per_minute} requests of one caller and user in a minute."
    return _waiting(429, "rate-limited", "Too many requests.", detail, retry_after)


def encryption_keys(detail: str) -> ProblemDetails:
    """Return the problem of keys that are missing or wrong."""
    return ProblemDetails(409, "encryption-keys", "The agent's encryption keys cannot be used.", detail)


def internal() -> ProblemDetails:
    """Return the problem of a defect, which tells nothing of the inside."""
    return ProblemDetails(500, "internal-error", "An internal error occurred.", "It was recorded; try again later.")


def from_status(status: int, headers: Mapping[str, str] | None = None) -> ProblemDetails:
    """Return the problem the web framework means by a status code."""
    kinds = {
        404: ("not-found", "There is nothing at this path."),
        405: ("method-not-allowed", "Another method is needed."),
    }
    phrase = HTTPStatus(status).phrase
    kind, title = kinds.get(status, (phrase.lower().replace(" ", "-"), f"{phrase}."))
    return ProblemDetails(status, kind, title, headers=headers or {})


def from_error(error: Exception) -> ProblemDetails | None:
    """Return the problem an error of engine or store stands for, or None if it is a defect."""
    match error:
        case ProblemError(problem=problem):
            return problem
        case NotFound(what=what):
            # A session's first messages have no snapshot yet; that is no mistake of whoever asks.
            detail = "It is saved after state.autoSaveEveryMessages messages and at the end." if what == "state" else ""
            return ProblemDetails(404, f"{what}-not-found", str(error), detail)
        case NotWaiting():
            return ProblemDetails(409, "approval-not-waiting", "This call waits for no decision any more.", str(error))
        case SessionGone():
            return ProblemDetails(404, "session-not-found", "There is no such session.")
        case InvalidState(problems=problems) | InvalidContent(problems=problems):
            return invalid([{"field": name, "message": message} for name, message in problems])
        case InvalidMemory(problems=problems):
            return invalid([{"field": name, "message": message} for name, message in problems])
        case MemoriesFull():
            return ProblemDetails(409, "memories-full", "No more memories can be kept.", str(error))
        case IdempotencyMismatch():
            return ProblemDetails(
                409,
                "idempotency-mismatch",
                "This Idempotency-Key was used with another body.",
                "Send a new key with a new message; the same key only repeats the same message.",
            )
        case QueueFull():
            return _waiting(429, "queue-full", "Too many messages wait in this session.", str(error), 2.0)
        case AccessUnavailable():
            title = "It cannot be found out now who calls."
            return _waiting(503, "access-unavailable", title, error.message, error.retry_after)
        case SessionBusy():
            title = "Another message of this session is being answered."
            return _waiting(429, "session-busy", title, error.message, error.retry_after)
        case Draining():
            return _waiting(503, "draining", "This process is being stopped.", error.message, error.retry_after)
        case Overloaded():
            return _waiting(503, "overloaded", "Too much is going on.", error.message, error.retry_after)
        case NotReady():
            reason = error.reason.value
            detail = error.message if error.reason is Reason.STARTING else STORE_DOWN
            return _waiting(503, "not-ready", "No message can be kept now.", detail, error.retry_after, reason)
        case StoreUnavailable():
            title = "Postgres cannot be used now."
            return _waiting(503, "store-unavailable", title, STORE_DOWN, 2.0, error.reason.value)
        case LeaseLost():
            return _waiting(503, "not-ready", "No message can be kept now.", "The lease is being renewed.", 1.0)
    return None


def _waiting(status: int, kind: str, title: str, detail: str, retry_after: float, reason: str = "") -> ProblemDetails:
    headers = {"Retry-After": str(max(1, math.ceil(retry_after)))}
    return ProblemDetails(status, kind, title, detail, headers=headers, reason=reason)


def field_errors(errors: Sequence[Mapping[str, Any]]) -> list[FieldError]:
    """Return pydantic's errors as {field, message}; the parts of a path are joined by dots."""
    return [
        {"field": ".".join(str(part) for part in _path(error["loc"])), "message": str(error["msg"])} for error in errors
    ]


def _path(location: Sequence[Any]) -> Sequence[Any]:
    """Drop the framework's first part (body, query, path, header); callers know where their fields are."""
    places = ("body", "query", "path", "header")
    return location[1:] if location and location[0] in places else location
