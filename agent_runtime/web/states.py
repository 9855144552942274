"""A session's state: one documented, versioned JSON document."""

import json
from typing import Final
from uuid import UUID

from fastapi import APIRouter, Request, Response

from agent_runtime import state
from agent_runtime.errors import InvalidState, NotFound
from agent_runtime.web.openapi import documented
from agent_runtime.web.params import (
    DEFAULT_USER,
    Name,
    Namespace,
    Session,
    User,
    context_of,
    engine_of,
    invalid_field,
)
from agent_runtime.web.turns import SESSION
from agent_store.ports import SessionKey, SessionState

router = APIRouter()
READ_ONLY: Final = ("version", "updatedAt")
"""Of the snapshot, not of the document: shown when it is read, ignored when it is written."""


@router.get(f"{SESSION}/state", **documented("get_state"))
async def get_state(
    request: Request, namespace: Namespace, name: Name, session: Session, user: User = DEFAULT_USER
) -> Response:
    """Read the newest snapshot of a session."""
    agent_id, session_id = await _find(request, namespace, name, session, user)
    found = await context_of(request).store.load_state(agent_id, session_id)
    if found is None:
        raise NotFound("state")
    return _answer(found)


@router.put(f"{SESSION}/state", **documented("put_state"))
async def put_state(
    request: Request, namespace: Namespace, name: Name, session: Session, user: User = DEFAULT_USER
) -> Response:
    """Write the state of a session, which is made if need be; documents of older format versions are taken too."""
    engine = engine_of(request, namespace, name)
    body = await request.body()
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        raise invalid_field("", "write a JSON object") from None
    if isinstance(data, dict):
        data = {name: value for name, value in data.items() if name not in READ_ONLY}
    document = state.decode(data)
    store = context_of(request).store
    opened = await store.open_session(SessionKey(engine.agent.id, user, session))
    saved = await store.save_state(engine.agent.id, opened.id, state.encode(document))
    engine.state_changed(opened.id)
    return _answer(saved)


@router.delete(f"{SESSION}/state", **documented("delete_state"))
async def delete_state(
    request: Request, namespace: Namespace, name: Name, session: Session, user: User = DEFAULT_USER
) -> Response:
    """Delete the snapshot; the history stays, and the next automatic save makes a new one."""
    agent_id, session_id = await _find(request, namespace, name, session, user)
    if not await context_of(request).store.delete_state(agent_id, session_id):
        raise NotFound("state")
    engine_of(request, namespace, name).state_changed(session_id)
    return Response(status_code=204)


async def _find(request: Request, namespace: str, name: str, session: str, user: str) -> tuple[UUID, UUID]:
    engine = engine_of(request, namespace, name)
    found = await context_of(request).store.find_session(SessionKey(engine.agent.id, user, session))
    if found is None:
        raise NotFound("session")
    return engine.agent.id, found.id


def _answer(found: SessionState) -> Response:
    """Return the document in the present format, with the snapshot's `version` and `updatedAt`."""
    try:
        document = state.encode(state.decode(found.document))
    except InvalidState:  # written by a newer version of Abide: shown as it is
        document = dict(found.document)
    document |= {"version": found.version, "updatedAt": found.updated_at.isoformat()}
    return Response(json.dumps(document, ensure_ascii=False, separators=(",", ":")), media_type="application/json")
