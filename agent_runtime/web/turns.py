"""Messages and turns: send one, read them, follow and cancel a turn."""

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Annotated, Final
from uuid import UUID

from fastapi import APIRouter, Header, Path, Request, Response
from fastapi.responses import StreamingResponse

from agent_api.wire import MessagePage, SessionPage, TurnStatus
from agent_runtime.context import RuntimeContext
from agent_runtime.errors import AgentRuntimeError, NotFound
from agent_runtime.loop.engine import AgentEngine
from agent_runtime.loop.watch import TurnEvent
from agent_runtime.web import render, sse
from agent_runtime.web.openapi import documented
from agent_runtime.web.params import (
    DEFAULT_USER,
    PAGE_DEFAULT,
    Cursor,
    IdempotencyKey,
    Limit,
    Name,
    Namespace,
    Session,
    User,
    WaitSeconds,
    context_of,
    engine_of,
    invalid_field,
    preferred_wait,
    prefers_async,
    read_message,
    wants_stream,
)
from agent_store.ports import SessionKey, TurnRecord

DEFAULT_WAIT: Final = 60.0
AGENT: Final = "/v1/agents/{namespace}/{name}"
SESSION: Final = f"{AGENT}/sessions/{{session}}"

router = APIRouter()
TurnId = Annotated[UUID, Path(alias="turn", description="Id of the turn.")]
LastEventId = Annotated[
    str, Header(alias="Last-Event-ID", max_length=128, description="Id of the last event that was received.")
]


@router.post(f"{SESSION}/messages", **documented("send_message"))
async def send_message(
    request: Request,
    namespace: Namespace,
    name: Name,
    session: Session,
    user: User = DEFAULT_USER,
    idempotency_key: IdempotencyKey = None,
    wait_seconds: WaitSeconds = DEFAULT_WAIT,
) -> Response:
    """Send a message and get its reply.

    Answers 200 once the turn has its outcome, or 202 with the turn after `waitSeconds`; the turn goes on either way.
    """
    engine = engine_of(request, namespace, name)
    body = await read_message(request)
    context = context_of(request)
    if prefers_async(request):
        turn = await engine.accept(user, session, body.content, idempotency_key)
        return _turn_answer(engine, turn, preference="respond-async")
    if wants_stream(request):
        return await _stream_message(context, engine, user, session, body.content, idempotency_key)
    with context.waiters.enter():
        turn = await engine.accept(user, session, body.content, idempotency_key)
        turn = await engine.wait_outcome(turn, preferred_wait(request, wait_seconds))
    return _turn_answer(engine, turn)


def _turn_answer(engine: AgentEngine, turn: TurnRecord, *, preference: str = "") -> Response:
    body = render.turn_response(turn, waiting=engine.spec.messages.waiting_approval).model_dump_json(by_alias=True)
    if turn.status.is_final and not preference:
        return Response(body, 200, media_type="application/json")
    headers = {"Location": _turn_path(engine, turn)}
    if preference:
        headers["Preference-Applied"] = preference
    return Response(body, 202, headers, "application/json")


def _turn_path(engine: AgentEngine, turn: TurnRecord) -> str:
    return f"/v1/agents/{engine.agent.namespace}/{engine.agent.name}/turns/{turn.id}"


async def _stream_message(
    context: RuntimeContext, engine: AgentEngine, user: str, session: str, content: str, idempotency_key: str | None
) -> Response:
    with context.waiters.enter():  # refuses before anything is stored; the stream takes its own place below
        turn = await engine.accept(user, session, content, idempotency_key)
    return _stream(context, engine, turn, None)


def _stream(
    context: RuntimeContext, engine: AgentEngine, turn: TurnRecord, last_event: tuple[int, int] | None
) -> Response:
    headers = {
        "Location": _turn_path(engine, turn),
        "Cache-Control": "no-store",
        "X-Accel-Buffering": "no",
    }
    events = _lines(context, turn, engine.events(turn, last_event))
    return StreamingResponse(events, 200, headers, sse.MEDIA_TYPE)


async def _lines(
    context: RuntimeContext, turn: TurnRecord, events: AsyncGenerator[TurnEvent | None, None]
) -> AsyncIterator[bytes]:
    """Yield the stream's bytes. An error in its middle ends it; the client comes back and is told by status."""
    try:
        with context.waiters.enter():
            yield sse.PREAMBLE
            async for event in events:
                yield sse.HEARTBEAT if event is None else sse.encode_event(turn.id, event)
    except AgentRuntimeError:
        return
    finally:
        await events.aclose()


@router.get(f"{SESSION}/messages", **documented("list_messages"))
async def list_messages(
    request: Request,
    namespace: Namespace,
    name: Name,
    session: Session,
    user: User = DEFAULT_USER,
    limit: Limit = PAGE_DEFAULT,
    cursor: Cursor = None,
) -> Response:
    """Read a session's history, oldest first; an unknown session has none."""
    engine = engine_of(request, namespace, name)
    after = 0 if cursor is None else render.decode_seq_cursor(cursor)
    if after is None:
        raise invalid_field("cursor", "not a cursor of this list; leave it out to start from the oldest message")
    key = SessionKey(engine.agent.id, user, session)
    found = await context_of(request).store.list_messages(key, after_seq=after, limit=limit + 1)
    items = [render.message_out(message) for message in found[:limit]]
    following = render.encode_seq_cursor(items[-1].seq) if len(found) > limit else None
    page = MessagePage(items=items, next_cursor=following)
    return Response(page.model_dump_json(by_alias=True), media_type="application/json")


@router.get(f"{AGENT}/sessions", **documented("list_sessions"))
async def list_sessions(
    request: Request,
    namespace: Namespace,
    name: Name,
    user: User = DEFAULT_USER,
    limit: Limit = PAGE_DEFAULT,
    cursor: Cursor = None,
) -> Response:
    """List the user's sessions, newest activity first."""
    engine = engine_of(request, namespace, name)
    before = None if cursor is None else render.decode_session_cursor(cursor)
    if cursor is not None and before is None:
        raise invalid_field("cursor", "not a cursor of this list; leave it out to start from the newest session")
    found = await context_of(request).store.list_sessions(engine.agent.id, user, before=before, limit=limit + 1)
    following = render.encode_session_cursor(found[limit - 1]) if len(found) > limit else None
    page = SessionPage(items=[render.session_out(one) for one in found[:limit]], next_cursor=following)
    return Response(page.model_dump_json(by_alias=True), media_type="application/json")


@router.delete(SESSION, **documented("delete_session"))
async def delete_session(
    request: Request, namespace: Namespace, name: Name, session: Session, user: User = DEFAULT_USER
) -> Response:
    """Delete a session with everything in it; a running turn is stopped."""
    engine = engine_of(request, namespace, name)
    if not await engine.delete_session(SessionKey(engine.agent.id, user, session)):
        raise NotFound("session")
    return Response(status_code=204)


@router.get(f"{AGENT}/turns/{{turn}}", **documented("get_turn"))
async def get_turn(
    request: Request, namespace: Namespace, name: Name, turn: TurnId, user: User = DEFAULT_USER
) -> Response:
    """Read a turn as it stands, with its steps and the tool calls that wait for a person."""
    engine = engine_of(request, namespace, name)
    found = await engine.turn(turn, user)
    steps = await engine.steps(found)
    approvals = await engine.approvals(found.id) if found.status is TurnStatus.WAITING else []
    text = engine.spec.messages.waiting_approval
    body = render.turn_response(found, waiting=text, steps=steps, approvals=approvals)
    return Response(body.model_dump_json(by_alias=True), media_type="application/json")


@router.get(f"{AGENT}/turns/{{turn}}/events", **documented("follow_turn"))
async def follow_turn(
    request: Request,
    namespace: Namespace,
    name: Name,
    turn: TurnId,
    user: User = DEFAULT_USER,
    last_event_id: LastEventId = "",
) -> Response:
    """Follow a turn as server-sent events, from the beginning or behind `Last-Event-ID`."""
    engine = engine_of(request, namespace, name)
    found = await engine.turn(turn, user)
    return _stream(context_of(request), engine, found, sse.parse_event_id(turn, last_event_id))


@router.post(f"{AGENT}/turns/{{turn}}/cancel", **documented("cancel_turn"))
async def cancel_turn(
    request: Request, namespace: Namespace, name: Name, turn: TurnId, user: User = DEFAULT_USER
) -> Response:
    """Cancel a turn: at once while it is queued, soon while it runs. A finished turn stays as it is."""
    engine = engine_of(request, namespace, name)
    return _turn_answer(engine, await engine.cancel(turn, user))
