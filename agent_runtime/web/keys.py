"""The keys that an agent's content is encrypted with: looking, rotating, and encrypting anew."""

from collections import Counter
from collections.abc import Sequence
from typing import Final

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from agent_api.conditions import Reason
from agent_api.wire import DataKeyOut, KeyCount, KeyPassIn, KeyPassOut, KeysOut
from agent_runtime.access.principal import Right
from agent_runtime.web.openapi import documented
from agent_runtime.web.params import Name, Namespace, context_of, engine_of, invalid_field, read_model, require
from agent_runtime.web.problems import ProblemError, encryption_keys
from agent_runtime.web.turns import AGENT
from agent_store.errors import StoreUnavailable
from agent_store.ports import DataKey

router = APIRouter()
STEP_SECONDS: Final = 1.0
"""So long one request goes on with rows: few requests, and none that a proxy gives up on."""


@router.get(f"{AGENT}/keys", **documented("list_keys"))
async def list_keys(request: Request, namespace: Namespace, name: Name) -> Response:
    """List the agent's data keys, old to new. The keys themselves are never shown."""
    require(request, Right.OPERATE)
    engine = engine_of(request, namespace, name)
    return _answer(_keys_out(await context_of(request).store.list_keys(engine.agent.id)))


@router.post(f"{AGENT}/keys/rotation", **documented("rotate_key"))
async def rotate_key(request: Request, namespace: Namespace, name: Name) -> Response:
    """Make a new data key, which encrypts from now on; all are wrapped with the newest key of the Secret."""
    require(request, Right.OPERATE)
    engine = engine_of(request, namespace, name)
    try:
        return _answer(_keys_out(await context_of(request).store.rotate_key(engine.agent.id)))
    except StoreUnavailable as error:
        if error.reason is Reason.ENCRYPTION_KEY_MISMATCH:
            # Who may operate the agent is told which key of which Secret it is about.
            raise ProblemError(encryption_keys(error.message)) from error
        raise


@router.post(f"{AGENT}/keys/reencryption", **documented("reencrypt"))
async def reencrypt(request: Request, namespace: Namespace, name: Name) -> Response:
    """Encrypt a part of the agent's content anew with its current key, or only count it.

    Call it with the `cursor` of the answer until that is null. Begun again, it passes over what is done.
    """
    require(request, Right.OPERATE)
    engine = engine_of(request, namespace, name)
    body = await read_model(request, KeyPassIn)
    context = context_of(request)
    ends_at = context.clock.monotonic() + STEP_SECONDS
    found: Counter[str | None] = Counter()
    rewritten = unreadable = 0
    cursor = body.cursor
    while True:
        try:
            step = await context.store.pass_keys(engine.agent.id, cursor, rewrite=not body.dry_run)
        except ValueError as error:
            raise invalid_field("cursor", str(error)) from None
        found.update(step.values)
        rewritten += step.rewritten
        unreadable += step.unreadable
        cursor = step.cursor
        if cursor is None or context.clock.monotonic() >= ends_at:
            break
    rows = [KeyCount(key=key, rows=count) for key, count in sorted(found.items(), key=lambda one: one[0] or "")]
    return _answer(KeyPassOut(cursor=cursor, rows=rows, rewritten=rewritten, unreadable=unreadable))


def _keys_out(keys: Sequence[DataKey]) -> KeysOut:
    items = [
        DataKeyOut(id=key.id, created_at=key.created_at, wrapping_key=key.wrapping_key_id, current=key.is_current)
        for key in keys
    ]
    return KeysOut(encrypts=any(key.is_current for key in keys), items=items)


def _answer(model: BaseModel) -> Response:
    return Response(model.model_dump_json(by_alias=True), media_type="application/json")
