"""Metrics and errors that programs around an agent add to its own."""

import json
from typing import Any, Final

from fastapi import APIRouter, Request, Response

from agent_api.wire import ErrorIn, MetricIn
from agent_runtime.access.principal import Right
from agent_runtime.web.openapi import documented
from agent_runtime.web.params import Name, Namespace, context_of, engine_of, invalid_field, read_model, require
from agent_runtime.web.turns import AGENT
from agent_store.ports import ErrorRecord, Metric

router = APIRouter()
FACTS_MOST_CHARS: Final = 10_000


@router.post(f"{AGENT}/metrics", **documented("record_metric"))
async def record_metric(request: Request, namespace: Namespace, name: Name) -> Response:
    """Add a sample to the agent's metrics in Postgres (`abide.agent_metrics`)."""
    require(request, Right.OPERATE)
    engine = engine_of(request, namespace, name)
    body = await read_model(request, MetricIn)
    facts = _bounded("metadata", body.metadata)
    await context_of(request).store.record_metrics([Metric(engine.agent.id, body.type, body.value, facts)])
    return Response(status_code=204)


@router.post(f"{AGENT}/errors", **documented("record_error"))
async def record_error(request: Request, namespace: Namespace, name: Name) -> Response:
    """Add an error to the agent's errors (`abide.agent_errors`), where its status shows it, too."""
    require(request, Right.OPERATE)
    engine = engine_of(request, namespace, name)
    body = await read_model(request, ErrorIn)
    context = context_of(request)
    scrub = context.scrubber.scrub
    facts = json.loads(scrub(json.dumps(_bounded("context", body.context))))
    await context.store.record_error(
        ErrorRecord(engine.agent.id, body.type, scrub(body.message), scrub(body.trace), facts)
    )
    return Response(status_code=204)


def _bounded(field: str, facts: dict[str, Any]) -> dict[str, Any]:
    if len(json.dumps(facts)) > FACTS_MOST_CHARS:
        raise invalid_field(field, f"write at most {FACTS_MOST_CHARS} characters of JSON")
    return facts
