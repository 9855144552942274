"""Reading requests: headers, bodies and cursors into plain values, or a problem that names the field."""

import re
from typing import Annotated, Any, Final, TypeVar

from fastapi import Header, Path, Query, Request
from pydantic import BaseModel, ValidationError

from agent_api.wire import (
    ANONYMOUS,
    CONTENT_MAX_LENGTH,
    IDEMPOTENCY_KEY_MAX_LENGTH,
    SESSION_PATTERN,
    USER_HEADER,
    USER_PATTERN,
    MessageIn,
)
from agent_runtime.access.principal import ANYBODY, SCOPE_KEY, Principal, Right
from agent_runtime.context import RuntimeContext
from agent_runtime.loop.engine import AgentEngine
from agent_runtime.web.problems import ProblemError, field_errors, forbidden, invalid, too_large

MOST_WAIT_SECONDS: Final = 3600.0
PAGE_DEFAULT: Final = 50
PAGE_MOST: Final = 200
CURSOR_MAX_LENGTH: Final = 512

Namespace = Annotated[str, Path(description="Namespace of the agent.", examples=["default"])]
Name = Annotated[str, Path(description="Name of the agent.", examples=["assistant"])]
Session = Annotated[
    str, Path(pattern=SESSION_PATTERN, description="Name of the session, the user's own choice.", examples=["s1"])
]
User = Annotated[
    str,
    Header(alias=USER_HEADER, pattern=USER_PATTERN, description="Who speaks; the holder of the key may name anyone."),
]
IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=IDEMPOTENCY_KEY_MAX_LENGTH,
        description="Same key and same body: the same turn, answered once. Same key, other body: 409.",
    ),
]
WaitSeconds = Annotated[
    float,
    Query(alias="waitSeconds", ge=0, le=MOST_WAIT_SECONDS, description="Longest wait for the outcome, in seconds."),
]
Limit = Annotated[int, Query(ge=1, le=PAGE_MOST, description="Most items of the page.")]
Cursor = Annotated[
    str | None, Query(max_length=CURSOR_MAX_LENGTH, description="`nextCursor` of the page before; opaque.")
]
DEFAULT_USER: Final = ANONYMOUS

_WAIT_PREFERENCE = re.compile(r"wait\s*=\s*\"?(\d{1,6})\"?", re.ASCII)

_NO_WEIGHT = re.compile(r"q\s*=\s*0(\.0*)?")

M = TypeVar("M", bound=BaseModel)


def context_of(request: Request) -> RuntimeContext:
    """Return the process's collaborators."""
    context: RuntimeContext = request.app.state.context
    return context


def engine_of(request: Request, namespace: str, name: str) -> AgentEngine:
    """Return the agent's engine. Raises NotFound."""
    return context_of(request).engine(namespace, name)


def principal_of(request: Request) -> Principal:
    """Return who calls, as the edge found out."""
    principal: Principal = request.scope.get(SCOPE_KEY, ANYBODY)
    return principal


def require(request: Request, right: Right) -> Principal:
    """Return who calls. Raises ProblemError: 403 without the right."""
    principal = principal_of(request)
    if right not in principal.rights:
        raise ProblemError(forbidden(f"The right {right.value} is needed; {principal.name} does not have it."))
    return principal


async def read_model(request: Request, model: type[M]) -> M:
    """Read the body as JSON, whatever its media type says. Raises ProblemError: 422 with the fields."""
    body = await request.body()
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        errors = error.errors(include_url=False, include_context=False, include_input=False)
        raise ProblemError(invalid(field_errors(errors))) from None


async def read_message(request: Request) -> MessageIn:
    """Read a message. Raises ProblemError: 413 for content that is too long, 422 for anything else."""
    body = await request.body()
    try:
        return MessageIn.model_validate_json(body)
    except ValidationError as error:
        errors = error.errors(include_url=False, include_context=False, include_input=False)
        fields = field_errors(errors)
        if all(one["type"] == "string_too_long" for one in errors):
            raise ProblemError(too_large(f"A message has at most {CONTENT_MAX_LENGTH} characters.", fields)) from None
        raise ProblemError(invalid(fields)) from None


def prefers_async(request: Request) -> bool:
    """Whether the client wants 202 at once (RFC 7240, section 4.1)."""
    return any(
        part.strip().lower() == "respond-async"
        for value in request.headers.getlist("prefer")
        for part in re.split("[,;]", value)
    )


def preferred_wait(request: Request, wait_seconds: float) -> float:
    """Return how long to wait: the query's word, or less if `Prefer: wait=` says so (RFC 7240, section 4.3)."""
    found = _WAIT_PREFERENCE.search(request.headers.get("prefer", ""))
    return min(wait_seconds, float(found.group(1))) if found else wait_seconds


def wants_stream(request: Request) -> bool:
    """Whether the client asked for server-sent events; `q=0` says that it does not take them (RFC 9110, 12.5.1)."""
    accepted = ",".join(request.headers.getlist("accept")).lower()
    return "text/event-stream" in accepted and any(map(_accepts_events, accepted.split(",")))


def _accepts_events(media_range: str) -> bool:
    kind, *parameters = (part.strip() for part in media_range.split(";"))
    return kind == "text/event-stream" and not any(map(_NO_WEIGHT.fullmatch, parameters))


def invalid_field(field: str, message: str) -> ProblemError:
    """Return the error that refuses one field."""
    return ProblemError(invalid([{"field": field, "message": message}]))


def json_body(model: str, example: Any) -> dict[str, Any]:
    """Return the OpenAPI part of a body that a route reads by itself; `model` is a schema's name."""
    content = {"schema": {"$ref": f"#/components/schemas/{model}"}, "example": example}
    return {"requestBody": {"required": True, "content": {"application/json": content}}}
