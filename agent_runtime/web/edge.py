"""What every request passes first: key, size and time of the body, and the last word on errors.

Plain ASGI: the framework's own middleware classes cost a task and a queue per request.
"""

import asyncio
import traceback
from collections.abc import Callable
from typing import Any, Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from agent_runtime.context import RuntimeContext
from agent_runtime.web.admission import act_of, admit, header, record
from agent_runtime.web.problems import ProblemDetails, ProblemError, from_error, internal, invalid, too_large

BODY_SECONDS: Final = 30.0
PROTECTED: Final = "/v1/"
SINGLE: Final = frozenset({b"abide-user", b"idempotency-key"})
_SLOW = ProblemDetails(408, "request-timeout", "The request's body did not come in time.")


class Edge:
    """Wraps the app. `context` is looked up per request, since the app is built before the runtime is."""

    def __init__(self, app: ASGIApp, context: Callable[[], RuntimeContext]) -> None:
        self._app = app
        self._context = context

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        context = self._context()
        started: list[int] = []

        async def watched_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                if admitted and act_of(scope):
                    await record(scope, context, message["status"])
                started.append(message["status"])
            await send(message)

        admitted = False
        try:
            problem = _too_long(scope, context) or _repeated(scope)
            if scope["path"].startswith(PROTECTED) and problem is None:
                problem = await admit(scope, context)
                admitted = problem is None
            if problem is None:
                await self._app(scope, _bounded(receive, context.settings.bounds.body_bytes), watched_send)
            else:
                await problem.response(scope["path"])(scope, receive, watched_send)
        except Exception as error:
            problem = _problem_of(error, context)
            if started:
                raise  # the answer is half sent: only the connection can tell
            await problem.response(scope["path"])(scope, receive, watched_send)
        finally:
            context.metrics.on_request(started[0] if started else None)


def _too_long(scope: Scope, context: RuntimeContext) -> ProblemDetails | None:
    length = header(scope, b"content-length")
    limit = context.settings.bounds.body_bytes
    if length.isdigit() and int(length) > limit:
        return _body_too_large(limit)
    return None


def _repeated(scope: Scope) -> ProblemDetails | None:
    """Refuse a header that comes twice where one of the two values would silently win."""
    seen = set()
    for name, _ in scope["headers"]:
        if name in SINGLE:
            if name in seen:
                return invalid([{"field": name.decode().title(), "message": "comes twice; send it once"}])
            seen.add(name)
    return None


def _body_too_large(limit: int) -> ProblemDetails:
    return too_large(f"A body has at most {limit} bytes.")


def _bounded(receive: Receive, limit: int) -> Receive:
    """Return a receive that fails once the body is too long or too slow."""
    received = 0
    complete = False

    async def bounded() -> Message:
        nonlocal received, complete
        if complete:  # what comes now is the end of the connection, however long that takes
            return await receive()
        try:
            async with asyncio.timeout(BODY_SECONDS):
                message: dict[str, Any] = dict(await receive())
        except TimeoutError:
            raise ProblemError(_SLOW) from None
        if message["type"] == "http.request":
            received += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if received > limit:
                raise ProblemError(_body_too_large(limit))
        return message

    return bounded


def _problem_of(error: Exception, context: RuntimeContext) -> ProblemDetails:
    problem = from_error(error)
    if problem is not None:
        return problem
    trace = traceback.format_exc()
    engine = next(iter(context.engines.values()))
    engine.telemetry.broke(error, trace)
    return internal()
