"""What users think of turns."""

from fastapi import APIRouter, Request, Response

from agent_api.wire import FeedbackIn, FeedbackOut
from agent_runtime.errors import NotFound
from agent_runtime.web.openapi import documented
from agent_runtime.web.params import DEFAULT_USER, Name, Namespace, User, context_of, engine_of, read_model
from agent_runtime.web.turns import AGENT, TurnId
from agent_store.ports import FeedbackRecord

router = APIRouter()


@router.put(f"{AGENT}/turns/{{turn}}/feedback", **documented("put_feedback"))
async def put_feedback(
    request: Request, namespace: Namespace, name: Name, turn: TurnId, user: User = DEFAULT_USER
) -> Response:
    """Say what the user thought of a turn; the last word counts."""
    engine = engine_of(request, namespace, name)
    body = await read_model(request, FeedbackIn)
    store = context_of(request).store
    saved = await store.save_feedback(engine.agent.id, turn, user, score=body.score, comment=body.text)
    if saved is None:
        raise NotFound("turn")
    return _answer(saved)


@router.get(f"{AGENT}/turns/{{turn}}/feedback", **documented("get_feedback"))
async def get_feedback(
    request: Request, namespace: Namespace, name: Name, turn: TurnId, user: User = DEFAULT_USER
) -> Response:
    """Read what the user thought of a turn."""
    engine = engine_of(request, namespace, name)
    found = await context_of(request).store.load_feedback(engine.agent.id, turn, user)
    if found is None:
        raise NotFound("feedback")
    return _answer(found)


def _answer(found: FeedbackRecord) -> Response:
    out = FeedbackOut(
        turn_id=found.turn_id, score=found.score, text=found.comment, revision=found.revision, at=found.at
    )
    return Response(out.model_dump_json(by_alias=True), media_type="application/json")
