"""Puts the web app together."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.routing import Match, Route

from agent_api.version import VERSION
from agent_runtime.context import RuntimeContext
from agent_runtime.settings import AuthMode, RuntimeSettings
from agent_runtime.slim import without_modules
from agent_runtime.web import approvals, errors, feedback, keys, memories, openai, records, states, status, turns, users
from agent_runtime.web.edge import Edge
from agent_runtime.web.problems import field_errors, from_status, invalid

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


def build_app(settings: RuntimeSettings, *, lifespan: Lifespan | None = None) -> FastAPI:
    """Return the app; `app.state.context` must be set before its first request."""
    app = FastAPI(
        title="Abide agent",
        version=VERSION,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
        exception_handlers={
            HTTPException: _on_http_error,
            RequestValidationError: _on_invalid,
        },
    )
    for part in (turns, approvals, states, errors, feedback, users, records, keys, memories, openai, status):
        # Not include_router: it would put another router, and its bookkeeping per request, around each part.
        app.router.routes.extend(part.router.routes)
    with without_modules("pydantic.v1"):
        _add_documentation(app, settings)

    def context() -> RuntimeContext:
        found: RuntimeContext = app.state.context
        return found

    app.add_middleware(Edge, context=context)
    return app


def _add_documentation(app: FastAPI, settings: RuntimeSettings) -> None:
    @app.get("/openapi.json", include_in_schema=False, response_model=None)
    async def openapi_json() -> Response:
        from fastapi.responses import JSONResponse

        return JSONResponse(app.openapi())

    @app.get("/docs", include_in_schema=False, response_model=None)
    async def docs() -> Response:
        from agent_runtime.web.docs import docs_page

        return Response(docs_page(), media_type="text/html")

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            from agent_runtime.web.openapi import openapi_document

            app.openapi_schema = openapi_document(app, VERSION, keys=settings.auth is AuthMode.KEY)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for it alone
    headers = error.headers
    if error.status_code == 405:
        headers = {"Allow": ", ".join(_allowed_methods(request))}
    return from_status(error.status_code, headers).response(request.url.path)


def _allowed_methods(request: Request) -> list[str]:
    """Return the methods of all routes at the request's path; the framework names those of the first one only."""
    matching = (
        route
        for route in request.app.routes
        if isinstance(route, Route) and route.matches(request.scope)[0] is not Match.NONE
    )
    return sorted({method for route in matching for method in route.methods or ()})


async def _on_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101 - registered for it alone
    return invalid(field_errors(error.errors())).response(request.url.path)
