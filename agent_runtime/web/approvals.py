"""Tool calls that wait for a person: which they are, and what that person decides."""

from typing import Annotated

from fastapi import APIRouter, Path, Request, Response

from agent_api.wire import ApprovalOut, ApprovalPage, DecisionIn
from agent_runtime.access.principal import Right
from agent_runtime.web import render
from agent_runtime.web.admission import note
from agent_runtime.web.openapi import documented
from agent_runtime.web.params import Name, Namespace, engine_of, principal_of, read_model, require
from agent_runtime.web.turns import AGENT, TurnId

router = APIRouter()
CallId = Annotated[str, Path(alias="call", max_length=64, description="Names the call within its turn.")]


@router.get(f"{AGENT}/approvals", **documented("list_approvals"))
async def list_approvals(request: Request, namespace: Namespace, name: Name) -> Response:
    """List the tool calls that wait for a person, of all users; those that expire first come before."""
    if Right.READ not in principal_of(request).rights:
        require(request, Right.APPROVE)
    found = await engine_of(request, namespace, name).approvals()
    return _answer(ApprovalPage(items=[render.approval_out(approval) for approval in found]))


@router.post(f"{AGENT}/turns/{{turn}}/approvals/{{call}}", **documented("decide_approval"))
async def decide_approval(request: Request, namespace: Namespace, name: Name, turn: TurnId, call: CallId) -> Response:
    """Approve or reject a call. Its turn goes on once all its calls are decided; deciding the same again is fine.

    A rejected call is not made; the model reads so, with the comment.
    """
    principal = require(request, Right.APPROVE)
    engine = engine_of(request, namespace, name)
    body = await read_model(request, DecisionIn)
    note(request.scope, decision=body.decision)
    approve = body.decision == "approve"
    found = await engine.decide(turn, call, approve=approve, by=principal.name, comment=body.comment)
    return _answer(render.approval_out(found))


def _answer(body: ApprovalPage | ApprovalOut) -> Response:
    return Response(body.model_dump_json(by_alias=True), media_type="application/json")
