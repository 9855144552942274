"""Health, metrics and documentation: open to everyone who reaches the port, and free of secrets."""

from fastapi import APIRouter, Request, Response

from agent_api.wire import HealthOut
from agent_runtime.web.openapi import documented
from agent_runtime.web.params import context_of

router = APIRouter()


@router.head("/livez", include_in_schema=False)
@router.get("/livez", **documented("livez"))
async def livez(request: Request) -> Response:
    """Whether the process moves; never depends on Postgres."""
    return _answer(context_of(request).liveness())


@router.head("/readyz", include_in_schema=False)
@router.get("/readyz", **documented("readyz"))
async def readyz(request: Request) -> Response:
    """Whether a turn can be accepted and committed now."""
    return _answer(context_of(request).readiness())


@router.head("/health", include_in_schema=False)
@router.get("/health", **documented("health"))
async def health(request: Request) -> Response:
    """The same as /readyz, for people."""
    return _answer(context_of(request).readiness())


@router.get("/metrics", **documented("metrics"))
async def metrics(request: Request) -> Response:
    """Prometheus metrics."""
    from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

    context = context_of(request)
    context.refresh_gauges()
    return Response(generate_latest(context.metrics.registry), headers={"Content-Type": CONTENT_TYPE_LATEST})


def _answer(health: HealthOut) -> Response:
    return Response(
        health.model_dump_json(by_alias=True),
        200 if health.ok else 503,
        {"Cache-Control": "no-store"},
        "application/json",
    )
