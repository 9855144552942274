"""All that is kept of one user: given away as JSON lines, and erased."""

import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from datetime import date, datetime
from enum import Enum
from typing import Annotated, Any, Final
from uuid import UUID

from fastapi import APIRouter, Path, Request, Response
from fastapi.responses import StreamingResponse
from pydantic.alias_generators import to_camel

from agent_api.wire import USER_PATTERN, UserErased
from agent_runtime.access.principal import Right
from agent_runtime.context import RuntimeContext
from agent_runtime.loop.engine import AgentEngine
from agent_runtime.telemetry.logs import get_logger
from agent_runtime.web.admission import note
from agent_runtime.web.openapi import documented
from agent_runtime.web.params import Name, Namespace, context_of, engine_of, require
from agent_runtime.web.turns import AGENT
from agent_store.errors import StoreError
from agent_store.ports import SessionKey, SessionRecord, Store

_LOG = get_logger("access")
MEDIA_TYPE: Final = "application/x-ndjson"
FORMAT: Final = "abide.dev/user-export"
FORMAT_VERSION: Final = 1
PAGE: Final = 200

router = APIRouter()
ExportedUser = Annotated[
    str, Path(alias="user", pattern=USER_PATTERN, description="The user it is about.", examples=["alice"])
]
Item = Mapping[str, Any]


@router.get(f"{AGENT}/users/{{user}}/export", **documented("export_user"))
async def export_user(request: Request, namespace: Namespace, name: Name, user: ExportedUser) -> Response:
    """Give away all that is kept of a user, one JSON object per line.

    The last line is `{"kind": "end", …}`: without it something is missing.
    """
    require(request, Right.OPERATE)
    engine = engine_of(request, namespace, name)
    context = context_of(request)
    items = _items(context.store, engine, user, context.clock.now())
    first = [await anext(items), await anext(items)]  # a store that is away is told by status
    return StreamingResponse(_lines(first, items), 200, {"Cache-Control": "no-store"}, MEDIA_TYPE)


async def _lines(first: list[Item], items: AsyncGenerator[Item, None]) -> AsyncIterator[bytes]:
    """Yield the lines. What fails in the middle cuts the answer short, so that its last line is missing."""
    try:
        for item in first:
            yield _line(item)
        async for item in items:
            yield _line(item)
    except (StoreError, ValueError) as error:  # ValueError: content that does not decrypt
        _LOG.error("export_cut_short", problem=type(error).__name__)
    finally:
        await items.aclose()


def _line(item: Item) -> bytes:
    document = {to_camel(name): value for name, value in item.items()}
    return f"{json.dumps(document, ensure_ascii=False, default=_plain)}\n".encode("utf-8", "replace")


def _plain(value: Any) -> str:
    match value:
        case date():
            return value.isoformat()
        case Enum():
            return str(value.value)
    return str(value)


async def _items(store: Store, engine: AgentEngine, user: str, now: datetime) -> AsyncGenerator[Item, None]:
    agent_id, count = engine.agent.id, 0
    agent = f"{engine.agent.namespace}/{engine.agent.name}"
    head = {"kind": "export", "format": FORMAT, "format_version": FORMAT_VERSION}
    yield {**head, "agent": agent, "user": user, "at": now}
    after: str | None = None
    while sessions := await store.user_sessions(agent_id, user, after=after, limit=PAGE):
        for session in sessions:
            async for item in _session_items(store, agent_id, session):
                count += 1
                yield item
        after = sessions[-1].name
    memory: UUID | None = None
    while memories := await store.user_memories(agent_id, user, after=memory, limit=PAGE):
        for one in memories:
            count += 1
            yield {"kind": "memory", **one}
        memory = memories[-1]["id"]
    for usage in await store.user_usage(agent_id, user):
        count += 1
        yield {"kind": "usage", **usage}
    yield {"kind": "end", "items": count}


async def _session_items(store: Store, agent_id: UUID, session: SessionRecord) -> AsyncIterator[Item]:
    name = session.name
    head = {"name": name, "created_at": session.created_at, "last_active_at": session.last_active_at}
    yield {"kind": "session", **head, "messages": session.accepted_messages}
    turn_seq = 0
    while turns := await store.session_turns(agent_id, session.id, after_seq=turn_seq, limit=PAGE):
        for turn in turns:
            yield {"kind": "turn", "session": name, **turn}
        turn_seq = turns[-1]["turn_seq"]
    key, seq = SessionKey(agent_id, session.user, name), 0
    while messages := await store.list_messages(key, after_seq=seq, limit=PAGE):
        for message in messages:
            yield {
                "kind": "message",
                "session": name,
                "seq": message.seq,
                "turn_id": message.turn_id,
                "role": message.role,
                "content": message.content,
                "created_at": message.created_at,
                "tool_calls": list(message.tool_calls),
                "tool_call_id": message.tool_call_id,
            }
        seq = messages[-1].seq
    state = await store.load_state(agent_id, session.id)
    if state is not None:
        document = {"version": state.version, "updated_at": state.updated_at, "document": state.document}
        yield {"kind": "state", "session": name, **document}
    call: tuple[UUID, str] | None = None
    while approvals := await store.session_approvals(agent_id, session.id, after=call, limit=PAGE):
        for approval in approvals:
            yield {"kind": "approval", "session": name, **approval}
        call = approvals[-1]["turn_id"], approvals[-1]["call_id"]
    turn_id: UUID | None = None
    while feedback := await store.session_feedback(agent_id, session.id, after=turn_id, limit=PAGE):
        for opinion in feedback:
            at = {"turn_id": opinion.turn_id, "at": opinion.at, "revision": opinion.revision}
            yield {"kind": "feedback", "session": name, **at, "score": opinion.score, "text": opinion.comment}
        turn_id = feedback[-1].turn_id


@router.delete(f"{AGENT}/users/{{user}}", **documented("erase_user"))
async def erase_user(request: Request, namespace: Namespace, name: Name, user: ExportedUser) -> Response:
    """Erase all that is kept of a user; running turns are stopped.

    An answer of 503 leaves a part: send it again. What is sent while it goes on may stay.
    """
    require(request, Right.OPERATE)
    engine = engine_of(request, namespace, name)
    erased = await _erase(context_of(request), engine, user)
    note(request.scope, erased=erased.model_dump())
    return Response(erased.model_dump_json(by_alias=True), media_type="application/json")


async def _erase(context: RuntimeContext, engine: AgentEngine, user: str) -> UserErased:
    sessions = memories = 0
    while True:
        step = await context.store.erase_user(engine.agent.id, user)
        engine.forget_sessions(step.session_ids)
        sessions += len(step.session_ids)
        memories += step.memories
        if step.done:
            return UserErased(sessions=sessions, memories=memories)
