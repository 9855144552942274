"""Whom the edge lets in: who calls, as which user, with which right, how often; and the record of what they did."""

from typing import Any, Final

from starlette.types import Scope

from agent_api.wire import ANONYMOUS, USER_HEADER
from agent_runtime.access.errors import NotIdentifiedError
from agent_runtime.access.principal import ANYBODY, SCOPE_KEY, Principal, Right
from agent_runtime.access.routes import READING, agent_of, audited_right, rights_for
from agent_runtime.auth import bearer_token
from agent_runtime.context import RuntimeContext
from agent_runtime.errors import NotFound
from agent_runtime.settings import AuthMode
from agent_runtime.telemetry.logs import get_logger
from agent_runtime.web.problems import ProblemDetails, forbidden, from_error, rate_limited, unauthorized
from agent_store.errors import StoreError

_LOG = get_logger("access")
_USER: Final = USER_HEADER.lower().encode("ascii")
NOTES_KEY: Final = "abide.notes"
"""Where routes leave in the ASGI scope what the record of an act is to say besides: a mapping."""
ACT_KEY: Final = "abide.act"
"""Where routes leave the right that an act took of which the path does not tell."""
MOST_CHARS: Final = 500
USER_CHARS: Final = 128


async def admit(scope: Scope, context: RuntimeContext) -> ProblemDetails | None:
    """Find out who calls and leave it in the scope; return the problem if they may not.

    A caller that speaks as one user gets that one's header, whatever it sent or left out. Raises AccessUnavailable.
    """
    path, method = scope["path"], scope["method"]
    agent = agent_of(path)
    if context.settings.auth is AuthMode.NONE:
        principal = ANYBODY
    else:
        token = bearer_token(header(scope, b"authorization"))
        if token is None:
            return unauthorized("Send the header Authorization: Bearer <key or token>.")
        try:
            principal = await context.gate.identify(token, agent)
        except NotIdentifiedError as error:
            return unauthorized(str(error))
    scope[SCOPE_KEY] = principal
    problem = _refuse(scope, principal, method, path, agent)
    return problem or (count(scope, context, agent) if agent is not None else None)


def _refuse(
    scope: Scope, principal: Principal, method: str, path: str, agent: tuple[str, str] | None
) -> ProblemDetails | None:
    if principal.agents is not None and agent is not None and "/".join(agent) not in principal.agents:
        return from_error(NotFound("agent"))
    needed = rights_for(method, path)
    if needed.isdisjoint(principal.rights):
        words = " or ".join(sorted(right.value for right in needed))
        return forbidden(f"The right {words} is needed; {principal.name} does not have it.")
    return _speak_as(scope, principal, method) if principal.user is not None else None


def _speak_as(scope: Scope, principal: Principal, method: str) -> ProblemDetails | None:
    """Make the request one of the caller's own user."""
    user = str(principal.user)
    named = {value.decode("latin-1") for key, value in scope["headers"] if key == _USER}
    if named - {user}:
        if method in READING and Right.READ in principal.rights:
            return None  # who may read what everybody wrote names whom it is about
        return forbidden(f"{principal.name} speaks as {user} only: leave the header {USER_HEADER} out.")
    others = [(key, value) for key, value in scope["headers"] if key != _USER]
    scope["headers"] = [*others, (_USER, user.encode("latin-1"))]
    return None


def count(scope: Scope, context: RuntimeContext, agent: tuple[str, str]) -> ProblemDetails | None:
    """Count a request of its caller and user; return the problem if it is one too many."""
    principal: Principal = scope.get(SCOPE_KEY, ANYBODY)
    # What is too long to be a user is refused later, and must not fill memory here.
    pause = context.gate.take(agent, principal, header(scope, _USER)[:USER_CHARS] or ANONYMOUS)
    if not pause:
        return None
    return rate_limited(context.engines[agent].spec.limits.requests_per_minute, pause)


def header(scope: Scope, name: bytes) -> str:
    """Return the first header of this name, "" if there is none."""
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), "")


def note(scope: Scope, **facts: Any) -> None:
    """Have the record of the act under way say this, too: short, and without what users wrote."""
    scope[NOTES_KEY] = {**scope.get(NOTES_KEY, {}), **facts}


def mark_act(scope: Scope, right: Right) -> None:
    """Have the act under way recorded as one that took this right."""
    scope[ACT_KEY] = right


def act_of(scope: Scope) -> Right | None:
    """Return the right whose use by this request is to be recorded, None where none is."""
    found: Right | None = scope.get(ACT_KEY)
    return found or audited_right(scope["method"], scope["path"])


async def record(scope: Scope, context: RuntimeContext, status: int) -> None:
    """Write down an act that needed `approve` or `operate`, before its answer is sent: who, what, how it ended.

    An act is not undone because it could not be written down: then the log has it.
    """
    method, path = scope["method"], scope["path"]
    right = act_of(scope)
    agent = agent_of(path)
    engine = context.engines.get(agent) if agent is not None else None
    if right is None or engine is None:
        return
    principal: Principal = scope.get(SCOPE_KEY, ANYBODY)
    outcome = "done" if status < 400 else "refused" if status < 500 else "failed"
    details: dict[str, Any] = {
        "who": principal.name,
        "user": header(scope, _USER)[:MOST_CHARS],
        "method": method,
        "path": path[:MOST_CHARS],
        "status": status,
        "outcome": outcome,
        **scope.get(NOTES_KEY, {}),
    }
    try:
        message = f"{principal.name}: {method} {path[:MOST_CHARS]}: {outcome}"
        await context.store.record_event(engine.agent.id, f"access.{right.value}", message, details)
    except StoreError as error:
        _LOG.error("act_not_recorded", right=right.value, problem=str(error), **details)
