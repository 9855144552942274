"""Memories by REST: each user's own, and those that all users of an agent share."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Header, Path, Query, Request, Response

from agent_api.wire import (
    IDEMPOTENCY_KEY_MAX_LENGTH,
    MEMORY_TAGS_MOST,
    MemoryIn,
    MemoryOut,
    MemoryPage,
    MemoryPatch,
    MemoryTag,
    MemoryType,
    Recalled,
    RecallIn,
)
from agent_runtime.access.principal import Right
from agent_runtime.errors import NotFound
from agent_runtime.memory.memories import AgentMemories
from agent_runtime.memory.port import Memory
from agent_runtime.web import render
from agent_runtime.web.admission import mark_act
from agent_runtime.web.openapi import documented
from agent_runtime.web.params import (
    DEFAULT_USER,
    PAGE_DEFAULT,
    Cursor,
    Limit,
    Name,
    Namespace,
    User,
    engine_of,
    invalid_field,
    read_model,
    require,
)
from agent_runtime.web.problems import ProblemDetails, ProblemError
from agent_runtime.web.turns import AGENT
from agent_store.ports import MemoryFilter

router = APIRouter()
PATH = f"{AGENT}/memories"
MemoryId = Annotated[UUID, Path(description="Id of the memory.")]
Tags = Annotated[
    list[MemoryTag], Query(alias="tag", max_length=MEMORY_TAGS_MOST, description="It has this tag; all, if repeated.")
]
Kind = Annotated[MemoryType | None, Query(alias="type", description="Only memories of this type.")]
Least = Annotated[int, Query(alias="leastImportance", ge=1, le=10, description="Only memories at least so important.")]
Key = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=IDEMPOTENCY_KEY_MAX_LENGTH,
        description="The same key keeps one memory, however often it is sent.",
    ),
]
_OFF = ProblemDetails(
    404, "memories-not-enabled", "This agent keeps no memories.", "Set spec.memories.enabled to true in its manifest."
)


@router.get(PATH, **documented("list_memories"))
async def list_memories(
    request: Request,
    namespace: Namespace,
    name: Name,
    limit: Limit = PAGE_DEFAULT,
    cursor: Cursor = None,
    kind: Kind = None,
    tag: Tags = [],  # noqa: B006 - the framework copies it
    least_importance: Least = 1,
    user: User = DEFAULT_USER,
) -> Response:
    """List the user's memories and the shared ones, the newest change first."""
    memories = _memories(request, namespace, name)
    before = None if cursor is None else render.decode_memory_cursor(cursor)
    if cursor is not None and before is None:
        raise invalid_field("cursor", "not a cursor of this list; leave it out to start from the newest memory")
    wanted = MemoryFilter(user, kind, tuple(tag), least_importance)
    found = await memories.page(wanted, before=before, limit=limit + 1)
    following = None
    if len(found) > limit:
        following = render.encode_memory_cursor(found[limit - 1].updated_at, found[limit - 1].id)
    return _answer(MemoryPage(items=[_out(one) for one in found[:limit]], next_cursor=following))


@router.post(PATH, **documented("add_memory"))
async def add_memory(
    request: Request, namespace: Namespace, name: Name, user: User = DEFAULT_USER, idempotency_key: Key = None
) -> Response:
    """Keep a memory of the user, or with `shared` one of all users, which takes the right to operate."""
    memories = _memories(request, namespace, name)
    body = await read_model(request, MemoryIn)
    if body.shared:
        _operate(request)
    kept = await memories.keep(
        None if body.shared else user,
        body.content,
        kind=body.type,
        importance=body.importance,
        tags=body.tags,
        key=idempotency_key,
    )
    return _answer(_out(kept), 201)


@router.post(f"{PATH}/recall", **documented("recall_memories"))
async def recall_memories(request: Request, namespace: Namespace, name: Name, user: User = DEFAULT_USER) -> Response:
    """Find the memories that fit best, as the model gets them: by words, by meaning, by importance and recency."""
    memories = _memories(request, namespace, name)
    body = await read_model(request, RecallIn)
    found = await memories.recall(
        user,
        body.query,
        kind=body.type,
        tags=body.tags,
        least_importance=body.least_importance,
        limit=body.limit,
    )
    return _answer(Recalled(items=[_out(one) for one in found]))


@router.get(f"{PATH}/{{memory:uuid}}", **documented("get_memory"))
async def get_memory(
    request: Request, namespace: Namespace, name: Name, memory: MemoryId, user: User = DEFAULT_USER
) -> Response:
    """Read one memory."""
    found = await _memories(request, namespace, name).get(user, memory)
    if found is None:
        raise NotFound("memory")
    return _answer(_out(found))


@router.patch(f"{PATH}/{{memory:uuid}}", **documented("change_memory"))
async def change_memory(
    request: Request, namespace: Namespace, name: Name, memory: MemoryId, user: User = DEFAULT_USER
) -> Response:
    """Change a memory: what the body holds. Shared ones take the right to operate."""
    memories = _memories(request, namespace, name)
    body = await read_model(request, MemoryPatch)
    changed = await memories.change(
        user,
        memory,
        shared=await _is_shared(request, memories, user, memory),
        content=body.content,
        kind=body.type,
        importance=body.importance,
        tags=body.tags,
    )
    if changed is None:
        raise NotFound("memory")
    return _answer(_out(changed))


@router.delete(f"{PATH}/{{memory:uuid}}", **documented("delete_memory"))
async def delete_memory(
    request: Request, namespace: Namespace, name: Name, memory: MemoryId, user: User = DEFAULT_USER
) -> Response:
    """Delete a memory. Shared ones take the right to operate; those of the manifest come back at the next start."""
    memories = _memories(request, namespace, name)
    if not await memories.delete(user, memory, shared=await _is_shared(request, memories, user, memory)):
        raise NotFound("memory")
    return Response(status_code=204)


def _memories(request: Request, namespace: str, name: str) -> AgentMemories:
    memories = engine_of(request, namespace, name).memories
    if memories is None:
        raise ProblemError(_OFF)
    return memories


async def _is_shared(request: Request, memories: AgentMemories, user: str, memory: UUID) -> bool:
    """Return whether a memory is one of all users. Raises ProblemError, 403, where it is and may not be changed."""
    found = await memories.get(user, memory)
    shared = found is not None and found.user is None
    if shared:
        _operate(request)
    return shared


def _operate(request: Request) -> None:
    """Demand the right to operate, and have its use recorded."""
    require(request, Right.OPERATE)
    mark_act(request.scope, Right.OPERATE)


def _out(memory: Memory) -> MemoryOut:
    return MemoryOut(
        id=memory.id,
        content=memory.content,
        type=memory.type,
        importance=memory.importance,
        tags=list(memory.tags),
        user=memory.user,
        created_at=memory.created_at,
        updated_at=memory.updated_at,
        recalled_at=memory.recalled_at,
        score=memory.score,
    )


def _answer(body: MemoryOut | MemoryPage | Recalled, status: int = 200) -> Response:
    return Response(body.model_dump_json(by_alias=True), status, media_type="application/json")
