"""The agent's recorded errors, for whoever looks after it."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from agent_api.wire import ErrorPage
from agent_runtime.web import render
from agent_runtime.web.openapi import documented
from agent_runtime.web.params import PAGE_DEFAULT, Cursor, Limit, Name, Namespace, context_of, engine_of, invalid_field
from agent_runtime.web.turns import AGENT

router = APIRouter()
ErrorType = Annotated[
    str | None,
    Query(
        alias="type",
        min_length=1,
        max_length=200,
        pattern=r"^[^\x00]*$",
        description="Only errors of this type.",
        examples=["ModelUnreachable"],
    ),
]


@router.get(f"{AGENT}/errors", **documented("list_errors"))
async def list_errors(
    request: Request,
    namespace: Namespace,
    name: Name,
    limit: Limit = PAGE_DEFAULT,
    cursor: Cursor = None,
    error_type: ErrorType = None,
) -> Response:
    """List the agent's recorded errors of all users, newest first; they are kept for 30 days."""
    engine = engine_of(request, namespace, name)
    before = None if cursor is None else render.decode_error_cursor(cursor)
    if cursor is not None and before is None:
        raise invalid_field("cursor", "not a cursor of this list; leave it out to start from the newest error")
    store = context_of(request).store
    found = await store.list_errors(engine.agent.id, error_type=error_type, before=before, limit=limit + 1)
    following = render.encode_error_cursor(found[limit - 1]) if len(found) > limit else None
    page = ErrorPage(items=[render.error_out(one) for one in found[:limit]], next_cursor=following)
    return Response(page.model_dump_json(by_alias=True), media_type="application/json")
