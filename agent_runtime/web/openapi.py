"""The OpenAPI document: what each route answers, with examples. Built when it is first asked for, not at start."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from fastapi import FastAPI
from pydantic import BaseModel

from agent_api import wire

JSON: Final = "application/json"
PROBLEM: Final = "application/problem+json"
EVENTS: Final = "text/event-stream"
_AT: Final = "2026-01-31T14:02:11.000000Z"
_TURN_ID: Final = "019c147e-5d3c-7b1a-9a3e-0c7d2f4b8a11"

_TURN: Final = {
    "id": _TURN_ID,
    "status": "completed",
    "model": "echo/echo",
    "error": None,
    "session": "s1",
    "attempts": 1,
    "createdAt": _AT,
    "finishedAt": _AT,
    "usage": {"inputTokens": 120, "outputTokens": 40, "cost": "0.00042", "currency": "USD"},
}
_APPROVAL: Final = {
    "turnId": _TURN_ID,
    "callId": "call-1",
    "tool": "create_review",
    "arguments": {"title": "Fix the door"},
    "session": "s1",
    "user": "anonymous",
    "requestedAt": _AT,
    "expiresAt": _AT,
    "onTimeout": "Reject",
}
_MEMORY: Final = {
    "id": "5b0c1f9e-2d3a-4c56-8f70-1a2b3c4d5e6f",
    "content": "Prefers answers in French.",
    "type": "general",
    "importance": 7,
    "tags": ["language"],
    "user": "anonymous",
    "createdAt": _AT,
    "updatedAt": _AT,
    "recalledAt": None,
    "score": None,
}
EXAMPLES: Final[Mapping[str, Any]] = {
    "MessageIn": {"content": "hello"},
    "TurnResponse": {"turn": _TURN, "reply": {"content": "hello [1]"}},
    "TurnPending": {
        "turn": {**_TURN, "status": "running", "model": None, "finishedAt": None, "usage": None},
        "reply": None,
    },
    "MessagePage": {
        "items": [
            {"seq": 1, "role": "user", "content": "hello", "turnId": _TURN_ID, "createdAt": _AT},
            {"seq": 2, "role": "assistant", "content": "hello [1]", "turnId": _TURN_ID, "createdAt": _AT},
        ],
        "nextCursor": None,
    },
    "SessionPage": {
        "items": [{"name": "s1", "user": "anonymous", "createdAt": _AT, "lastActiveAt": _AT, "messages": 1}],
        "nextCursor": None,
    },
    "ErrorPage": {
        "items": [
            {
                "time": _AT,
                "type": "ModelUnreachable",
                "message": "openai/gpt-5-mini does not answer within 30 s",
                "turnId": _TURN_ID,
            }
        ],
        "nextCursor": None,
    },
    "ApprovalPage": {"items": [_APPROVAL]},
    "ApprovalOut": _APPROVAL,
    "DecisionIn": {"decision": "approve", "comment": ""},
    "MemoryIn": {"content": "Prefers answers in French.", "importance": 7, "tags": ["language"]},
    "MemoryPatch": {"importance": 9},
    "MemoryOut": _MEMORY,
    "MemoryPage": {"items": [_MEMORY], "nextCursor": None},
    "RecallIn": {"query": "Which language does she like?", "limit": 5},
    "Recalled": {"items": [{**_MEMORY, "score": 0.0246}]},
    "KeysOut": {
        "encrypts": True,
        "items": [
            {"id": "m4xk2p", "createdAt": _AT, "wrappingKey": "1", "current": False},
            {"id": "t7wq9c", "createdAt": _AT, "wrappingKey": "2", "current": True},
        ],
    },
    "KeyPassIn": {"cursor": None, "dryRun": False},
    "KeyPassOut": {
        "cursor": None,
        "rows": [{"key": None, "rows": 12}, {"key": "t7wq9c", "rows": 188}],
        "rewritten": 12,
        "unreadable": 0,
    },
    "State": {
        "format": "abide.dev/session-state",
        "formatVersion": 2,
        "cursor": {"turnSeq": 5, "acceptedMessages": 5},
        "variables": {"language": "en"},
        "summary": None,
        "version": 1,
        "updatedAt": _AT,
    },
    "FeedbackIn": {"score": 1, "text": "Thank you!"},
    "FeedbackOut": {"turnId": _TURN_ID, "score": 1, "text": "Thank you!", "revision": "3f2a9c01de", "at": _AT},
    "UserErased": {"sessions": 3, "memories": 12},
    "MetricIn": {"type": "orders_found", "value": 3, "metadata": {"shop": "north"}},
    "ErrorIn": {"type": "OrderSystemDown", "message": "The order system refuses connections."},
    "UserExport": '{"kind": "export", "format": "abide.dev/user-export", "formatVersion": 1, "user": "alice"}\n'
    '{"kind": "session", "name": "s1", "messages": 1}\n{"kind": "end", "items": 1}\n',
    "StateIn": {"variables": {"language": "en"}, "summary": None},
    "HealthOut": {
        "ok": True,
        "version": "0.1.0",
        "revision": "3f2a9c01de",
        "checks": [{"name": "store", "ok": True, "reason": "", "message": ""}],
        "models": [
            {
                "name": "primary",
                "model": "openai/gpt-5-mini",
                "ok": False,
                "reason": "ModelAuthFailed",
                "message": "answers 401",
                "since": _AT,
                "checkedAt": _AT,
            }
        ],
    },
}

_STATE_SCHEMA: Final[Mapping[str, Any]] = {
    "title": "State",
    "description": "The state of a session, see docs/state.md. `version` and `updatedAt` are ignored when written.",
    "type": "object",
    "properties": {
        "format": {"const": "abide.dev/session-state"},
        "formatVersion": {"type": "integer", "minimum": 1, "maximum": 2},
        "cursor": {
            "type": "object",
            "properties": {
                "turnSeq": {"type": "integer", "minimum": 0},
                "acceptedMessages": {"type": "integer", "minimum": 0},
                "summarySeq": {"type": "integer", "minimum": 0},
            },
            "additionalProperties": False,
        },
        "variables": {"type": "object"},
        "summary": {"type": ["string", "null"]},
        "version": {"type": "integer", "readOnly": True},
        "updatedAt": {"type": "string", "format": "date-time", "readOnly": True},
    },
    "additionalProperties": False,
}
_STATE_IN_SCHEMA: Final = {
    **_STATE_SCHEMA,
    "title": "StateIn",
    "properties": {**_STATE_SCHEMA["properties"], "version": {}, "updatedAt": {}},
}

_EVENT_SCHEMA: Final = {
    "description": "One event of the stream; `data` is a JSON document.",
    "type": "object",
    "properties": {
        "id": {"type": "string", "description": "turn:attempt:index"},
        "event": {"enum": ["accepted", "delta", "reset", "completed", "failed"]},
        "data": {"type": "string", "contentMediaType": "application/json"},
        "retry": {"type": "integer"},
    },
}

PROBLEMS: Final[Mapping[int, str]] = {
    400: "The body could not be read.",
    401: "No valid API key or token.",
    403: "The caller is known and has no right to this.",
    404: "The agent, session or turn does not exist, or belongs to another user.",
    405: "The path exists, the method does not.",
    409: "It does not fit what is there, as an Idempotency-Key that was used with another body.",
    413: "The message has more than 100,000 characters, or the body is too large.",
    422: "A field is wrong; `errors` names each.",
    429: "Too many requests of this caller, or too many messages wait in this session.",
    500: "A defect; it was recorded.",
    503: "Nothing can be kept now: Postgres is away, or the process is starting or being stopped.",
}
_RETRYABLE: Final = (429, 503)


@dataclass(frozen=True, slots=True)
class Answer:
    """A successful answer: what it means, the schema of its body and which example shows it."""

    description: str
    schema: str = ""
    example: str = ""
    media_type: str = JSON


@dataclass(frozen=True, slots=True)
class Operation:
    """What a route's document says beyond its parameters."""

    tag: str
    answers: Mapping[int, Answer]
    problems: Sequence[int] = ()
    body: str = ""


_STREAM: Final = "Events `accepted`, `delta`, `reset`, `completed`, `failed`, with ids `turn:attempt:index`."
_COMMON: Final = (401, 403, 404, 422, 429, 503)
_TURN_200: Final = Answer("The turn has its outcome.", "TurnResponse", "TurnResponse")
_TURN_202: Final = Answer("The turn goes on; see `Location`.", "TurnResponse", "TurnPending")
_HEALTH: Final = {200: Answer("All is well.", "HealthOut", "HealthOut"), 503: Answer("Not so.", "HealthOut")}

OPERATIONS: Final[Mapping[str, Operation]] = {
    "send_message": Operation("messages", {200: _TURN_200, 202: _TURN_202}, (*_COMMON, 409, 413), body="MessageIn"),
    "list_messages": Operation("messages", {200: Answer("One page.", "MessagePage", "MessagePage")}, _COMMON),
    "list_sessions": Operation("sessions", {200: Answer("One page.", "SessionPage", "SessionPage")}, _COMMON),
    "delete_session": Operation("sessions", {204: Answer("It is gone.")}, _COMMON),
    "list_errors": Operation("errors", {200: Answer("One page.", "ErrorPage", "ErrorPage")}, _COMMON),
    "get_turn": Operation("turns", {200: Answer("The turn as it stands.", "TurnResponse", "TurnResponse")}, _COMMON),
    "follow_turn": Operation("turns", {200: Answer(_STREAM, media_type=EVENTS)}, _COMMON),
    "cancel_turn": Operation("turns", {200: _TURN_200, 202: _TURN_202}, _COMMON),
    "list_approvals": Operation(
        "approvals", {200: Answer("What waits, at most 200.", "ApprovalPage", "ApprovalPage")}, _COMMON
    ),
    "decide_approval": Operation(
        "approvals",
        {200: Answer("The call, as decided.", "ApprovalOut", "ApprovalOut")},
        (*_COMMON, 409),
        body="DecisionIn",
    ),
    "list_memories": Operation("memories", {200: Answer("One page.", "MemoryPage", "MemoryPage")}, _COMMON),
    "add_memory": Operation(
        "memories", {201: Answer("It is kept.", "MemoryOut", "MemoryOut")}, (*_COMMON, 409), body="MemoryIn"
    ),
    "recall_memories": Operation(
        "memories", {200: Answer("What fits best, best first.", "Recalled", "Recalled")}, _COMMON, body="RecallIn"
    ),
    "get_memory": Operation("memories", {200: Answer("The memory.", "MemoryOut", "MemoryOut")}, _COMMON),
    "change_memory": Operation(
        "memories", {200: Answer("As it is now.", "MemoryOut", "MemoryOut")}, _COMMON, body="MemoryPatch"
    ),
    "delete_memory": Operation("memories", {204: Answer("It is gone.")}, _COMMON),
    "list_keys": Operation("keys", {200: Answer("The keys, old to new.", "KeysOut", "KeysOut")}, _COMMON),
    "rotate_key": Operation("keys", {200: Answer("The keys, old to new.", "KeysOut", "KeysOut")}, (*_COMMON, 409)),
    "reencrypt": Operation(
        "keys", {200: Answer("What this part found and did.", "KeyPassOut", "KeyPassOut")}, _COMMON, body="KeyPassIn"
    ),
    "put_feedback": Operation(
        "feedback", {200: Answer("It is kept.", "FeedbackOut", "FeedbackOut")}, _COMMON, body="FeedbackIn"
    ),
    "get_feedback": Operation(
        "feedback", {200: Answer("The last word on this turn.", "FeedbackOut", "FeedbackOut")}, _COMMON
    ),
    "export_user": Operation(
        "users",
        {
            200: Answer(
                "One JSON object per line; `kind` is export, session, turn, message, state, approval, feedback, "
                "memory, and end in the last line.",
                example="UserExport",
                media_type="application/x-ndjson",
            )
        },
        _COMMON,
    ),
    "erase_user": Operation("users", {200: Answer("All of it is gone.", "UserErased", "UserErased")}, _COMMON),
    "record_metric": Operation("records", {204: Answer("It is kept.")}, _COMMON, body="MetricIn"),
    "record_error": Operation("records", {204: Answer("It is kept.")}, _COMMON, body="ErrorIn"),
    "get_state": Operation("state", {200: Answer("The newest snapshot.", "State", "State")}, _COMMON),
    "put_state": Operation(
        "state", {200: Answer("The snapshot that was saved.", "State", "State")}, (*_COMMON, 413), body="StateIn"
    ),
    "delete_state": Operation("state", {204: Answer("It is gone.")}, _COMMON),
    "chat_completions": Operation(
        "openai",
        {200: Answer("A completion, or with `stream` its chunks.", "ChatCompletion")},
        (401, 403, 404, 413, 422, 429, 503),
        body="ChatCompletionRequest",
    ),
    "get_model": Operation("openai", {200: Answer("The agent, as a model.", "ModelCard")}, (401, 404, 503)),
    "list_models": Operation("openai", {200: Answer("The agents, as models.", "ModelList")}, (401, 503)),
    "livez": Operation("status", _HEALTH),
    "readyz": Operation("status", _HEALTH),
    "health": Operation("status", _HEALTH),
    "metrics": Operation("status", {200: Answer("Prometheus text format.", media_type="text/plain")}),
}


def documented(operation_id: str) -> dict[str, Any]:
    """Return the arguments of a route decorator. The descriptions themselves are added when somebody reads them."""
    operation = OPERATIONS[operation_id]
    return {
        "operation_id": operation_id,
        "tags": [operation.tag],
        "response_model": None,
        "status_code": next(iter(operation.answers)),
        "responses": {422: {"description": ""}},  # keeps the framework from describing errors we do not send
    }


def openapi_document(app: FastAPI, version: str, *, keys: bool) -> dict[str, Any]:
    """Return the OpenAPI 3.1 document; `keys` says whether API keys are needed."""
    from fastapi.openapi.utils import get_openapi

    document = get_openapi(
        title="Abide agent",
        version=version,
        summary="Durable AI agents: an acknowledged message is never lost and never answered twice.",
        routes=app.routes,
    )
    components = document.setdefault("components", {})
    components["schemas"] = _schemas()
    if keys:
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for path, methods in document["paths"].items():
        for operation in methods.values():
            _complete(operation, protected=keys and path.startswith("/v1/"))
    return document


def _complete(document: dict[str, Any], *, protected: bool) -> None:
    operation = OPERATIONS[document["operationId"]]
    document["responses"] = {
        **{str(status): _answer(answer) for status, answer in operation.answers.items()},
        **{str(status): _problem(status) for status in operation.problems if protected or status not in (401, 403)},
    }
    if operation.tag == "openai":
        _as_openai(document["responses"], operation)
    elif operation.tag != "status":
        document["responses"]["default"] = {"description": "Another problem.", "content": _problem_content()}
    if document["operationId"] == "send_message":
        document["responses"]["200"]["content"][EVENTS] = {"schema": _EVENT_SCHEMA}
    if operation.body:
        content: dict[str, Any] = {"schema": _ref(operation.body)}
        if operation.body in EXAMPLES:
            content["example"] = EXAMPLES[operation.body]
        document["requestBody"] = {"required": True, "content": {JSON: content}}
    if protected:
        document["security"] = [{"key": []}]


def _as_openai(responses: dict[str, Any], operation: Operation) -> None:
    """Give the errors of OpenAI's paths their shape: another body, and 400 for wrong fields."""
    for status in [key for key in responses if key not in {str(one) for one in operation.answers}]:
        responses[status]["content"] = {JSON: {"schema": _ref("OpenAIError")}}
    if "422" in responses:
        responses["400"] = {**responses.pop("422"), "description": "A parameter is wrong, unknown or not supported."}


def _answer(answer: Answer) -> dict[str, Any]:
    described: dict[str, Any] = {"description": answer.description}
    if answer.schema:
        content: dict[str, Any] = {"schema": _ref(answer.schema)}
        if answer.example:
            content["example"] = EXAMPLES[answer.example]
        described["content"] = {answer.media_type: content}
    elif answer.media_type == EVENTS:
        described["content"] = {EVENTS: {"schema": _EVENT_SCHEMA}}
    elif answer.media_type != JSON:
        text: dict[str, Any] = {"schema": {"type": "string"}}
        described["content"] = {
            answer.media_type: text | ({"example": EXAMPLES[answer.example]} if answer.example else {})
        }
    return described


def _problem(status: int) -> dict[str, Any]:
    described: dict[str, Any] = {"description": PROBLEMS[status], "content": _problem_content()}
    if status in _RETRYABLE:
        described["headers"] = {
            "Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer", "minimum": 1}}
        }
    return described


def _problem_content() -> dict[str, Any]:
    return {PROBLEM: {"schema": _ref("Problem")}}


def _ref(schema: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{schema}"}


def _schemas() -> dict[str, Any]:
    from pydantic.json_schema import models_json_schema

    from agent_runtime.web import openai_wire

    incoming: list[type[BaseModel]] = [
        wire.MessageIn,
        wire.FeedbackIn,
        wire.MetricIn,
        wire.ErrorIn,
        wire.KeyPassIn,
        wire.DecisionIn,
        wire.MemoryIn,
        wire.MemoryPatch,
        wire.RecallIn,
        openai_wire.ChatCompletionRequest,
    ]
    outgoing: list[type[BaseModel]] = [
        wire.TurnResponse,
        wire.MessagePage,
        wire.SessionPage,
        wire.ErrorPage,
        wire.FeedbackOut,
        wire.UserErased,
        wire.MemoryOut,
        wire.MemoryPage,
        wire.Recalled,
        wire.KeysOut,
        wire.KeyPassOut,
        wire.ApprovalOut,
        wire.ApprovalPage,
        wire.HealthOut,
        wire.Problem,
        openai_wire.ChatCompletion,
        openai_wire.OpenAIError,
        openai_wire.ModelList,
        openai_wire.ModelCard,
    ]
    inputs: list[tuple[type[BaseModel], Literal["validation", "serialization"]]] = [
        (model, "validation") for model in incoming
    ]
    outputs: list[tuple[type[BaseModel], Literal["validation", "serialization"]]] = [
        (model, "serialization") for model in outgoing
    ]
    _, definitions = models_json_schema([*inputs, *outputs], by_alias=True, ref_template="#/components/schemas/{model}")
    return {**definitions["$defs"], "State": dict(_STATE_SCHEMA), "StateIn": _STATE_IN_SCHEMA}
