"""OpenAI-compatible endpoints: `/v1/chat/completions` and `/v1/models`.

A request is answered from the messages it brings and kept nowhere, as OpenAI does, unless `metadata.session` names a
session: then its last message is a message of that session, durable like any other. Errors have OpenAI's shape.
"""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse

from agent_api.wire import CONTENT_MAX_LENGTH, USER_HEADER, TurnStatus
from agent_runtime.context import RuntimeContext
from agent_runtime.errors import AgentRuntimeError, NotFound
from agent_runtime.llm.port import ChatMessage
from agent_runtime.loop.driver import TurnRun
from agent_runtime.loop.engine import AgentEngine
from agent_runtime.loop.stream import TurnStream
from agent_runtime.web.admission import count
from agent_runtime.web.openapi import documented
from agent_runtime.web.params import (
    DEFAULT_USER,
    IdempotencyKey,
    User,
    context_of,
    invalid_field,
    principal_of,
)
from agent_runtime.web.problems import ProblemDetails, ProblemError, field_errors, forbidden, from_error, too_large
from agent_store.errors import StoreError
from agent_store.ports import Outcome, TurnRecord

if TYPE_CHECKING:
    from agent_runtime.web.openai_wire import ChatCompletionRequest

router = APIRouter()
POLL_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Answered:
    """A completion, however it came about."""

    content: str
    status: str
    model: str | None
    error: str | None
    usage: tuple[int, int]
    turn_id: str | None = None


@router.get("/v1/models", **documented("list_models"))
async def list_models(request: Request) -> Response:
    """List the agents of this process as models."""
    agents = principal_of(request).agents
    cards = [
        _card(namespace, name)
        for namespace, name in context_of(request).engines
        if agents is None or f"{namespace}/{name}" in agents
    ]
    return Response(json.dumps({"object": "list", "data": cards}), media_type="application/json")


@router.get("/v1/models/{model:path}", **documented("get_model"))
async def get_model(request: Request, model: str) -> Response:
    """Show one agent as a model."""
    engine = _engine(request, model)
    return Response(json.dumps(_card(engine.agent.namespace, engine.agent.name)), media_type="application/json")


def _card(namespace: str, name: str) -> dict[str, Any]:
    return {"id": f"{namespace}/{name}", "object": "model", "created": 0, "owned_by": "abide"}


def _engine(request: Request, model: str) -> AgentEngine:
    """Return the agent that a model's name stands for. Raises NotFound, also where the caller's key is not for it."""
    agents = principal_of(request).agents
    if agents is not None and model not in agents:
        raise NotFound("agent")
    namespace, _, name = model.partition("/")
    return context_of(request).engine(namespace, name)


async def _read(request: Request) -> "ChatCompletionRequest":
    """Read the body. Raises ProblemError naming the parameter that is wrong, unknown or not supported."""
    from pydantic import ValidationError

    from agent_runtime.web.openai_wire import ChatCompletionRequest

    try:
        return ChatCompletionRequest.model_validate_json(await request.body())
    except ValidationError as error:
        errors = error.errors(include_url=False, include_context=False, include_input=False)
        fields = field_errors(errors)
        first = str(errors[0]["loc"][0]) if errors[0]["loc"] else ""
        described = ChatCompletionRequest.model_fields.get(first)
        if errors[0]["type"] == "extra_forbidden":
            problem = ProblemDetails(422, "unknown-parameter", f"Unknown parameter: {first}.", "Leave it out.", fields)
        elif described is not None and (described.description or "").startswith("Not supported"):
            detail = f"{described.description} Leave it out."
            problem = ProblemDetails(422, "unsupported-parameter", f"Unsupported value of {first}.", detail, fields)
        else:
            detail = f"{fields[0]['field'] or 'body'}: {fields[0]['message']}"
            problem = ProblemDetails(422, "invalid-value", "The request is not valid.", detail, fields)
        raise ProblemError(problem) from None


@router.post("/v1/chat/completions", **documented("chat_completions"))
async def chat_completions(
    request: Request, user: User = DEFAULT_USER, idempotency_key: IdempotencyKey = None
) -> Response:
    """Answer a conversation, as OpenAI's chat completions do."""
    body = await _read(request)
    context = context_of(request)
    engine = _engine(request, body.model)
    # The path names no agent, so that the edge could not count.
    if problem := count(request.scope, context, (engine.agent.namespace, engine.agent.name)):
        raise ProblemError(problem)
    _check_last(body)
    completion = _Completion(context, engine, body, _speaker(request, user, body), idempotency_key)
    if body.stream:
        await completion.begin()
        return StreamingResponse(completion.chunks(), 200, {"Cache-Control": "no-store"}, "text/event-stream")
    return Response(json.dumps(await completion.whole(), ensure_ascii=False), media_type="application/json")


def _speaker(request: Request, user: str, body: "ChatCompletionRequest") -> str:
    principal = principal_of(request)
    if principal.user is not None and body.user not in (None, principal.user):
        raise ProblemError(forbidden(f"{principal.name} speaks as {principal.user} only: leave user out."))
    return user if USER_HEADER in request.headers else body.user or user


def _check_last(body: "ChatCompletionRequest") -> None:
    last = body.messages[-1]
    if last.role != "user" or not last.text():
        raise invalid_field("messages", "the last message must be one of the user, with a text")
    if len(last.text()) > CONTENT_MAX_LENGTH:
        raise ProblemError(too_large(f"A message has at most {CONTENT_MAX_LENGTH} characters."))


class _Completion:
    """One completion being made."""

    def __init__(
        self,
        context: RuntimeContext,
        engine: AgentEngine,
        body: "ChatCompletionRequest",
        user: str,
        idempotency_key: str | None,
    ) -> None:
        self._context = context
        self._engine = engine
        self._body = body
        self._user = user
        self._key = idempotency_key
        self._turn: TurnRecord | None = None
        self._run: TurnRun | None = None
        self._stream = TurnStream()
        self._id = f"chatcmpl-{uuid4().hex}"
        self._created = int(time.time())

    async def begin(self) -> None:
        """Commit the message, if the conversation is one that is kept. Raises what accept raises, and Overloaded."""
        with self._context.waiters.enter():  # refuses before anything is stored; who waits takes a place of its own
            if self._body.session is not None:
                content = self._body.messages[-1].text()
                self._turn = await self._engine.accept(self._user, self._body.session, content, self._key)
            else:
                self._run = self._prepare_once()

    async def whole(self) -> dict[str, Any]:
        """Return the completion once it is there."""
        answered = None
        await self.begin()
        with self._context.waiters.enter():
            async with aclosing(self._pieces()) as pieces:
                async for piece in pieces:
                    answered = piece if isinstance(piece, Answered) else answered
        if answered is None:
            raise NotFound("turn")
        return {
            **self._head("chat.completion"),
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": answered.content, "refusal": None},
                    "logprobs": None,
                    "finish_reason": "stop",
                }
            ],
            "usage": _usage(answered),
            "abide": _info(answered),
        }

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the completion as it is made. An error in the middle is told as OpenAI does, and ends the stream."""
        try:
            with self._context.waiters.enter():
                yield self._chunk({"role": "assistant", "content": ""})
                async with aclosing(self._pieces()) as pieces:
                    async for piece in pieces:
                        if piece is None:
                            yield b": alive\n\n"
                        elif isinstance(piece, str):
                            yield self._chunk({"content": piece})
                        else:
                            yield self._chunk({}, finish="stop", abide=_info(piece))
                            if self._with_usage:
                                yield self._line(
                                    {**self._head("chat.completion.chunk"), "choices": [], "usage": _usage(piece)}
                                )
                            yield b"data: [DONE]\n\n"
        except (AgentRuntimeError, StoreError) as error:
            problem = from_error(error)
            if problem is not None:
                yield self._line(problem.openai_body())

    @property
    def _with_usage(self) -> bool:
        return self._body.stream_options is not None and self._body.stream_options.include_usage

    async def _pieces(self) -> AsyncGenerator[str | Answered | None, None]:
        """Yield pieces of text, None while nothing happens, and the answer last."""
        if self._turn is not None:
            source = self._kept(self._turn)
        elif self._run is not None:
            source = self._once(self._run)
        else:
            raise AssertionError("begin() comes first")
        async with aclosing(source) as pieces:
            async for piece in pieces:
                yield piece

    async def _kept(self, turn: TurnRecord) -> AsyncGenerator[str | Answered | None, None]:
        said = False
        with self._engine.hub.hold(turn.id) as stream:
            async with aclosing(self._engine.events(turn, None)) as events:
                async for event in events:
                    if event is None and stream.waiting:
                        # A person may take days to decide, which no client of this protocol waits for.
                        text = self._engine.spec.messages.waiting_approval
                        yield f"\n\n{text}" if said else text
                        status = TurnStatus.WAITING.value
                        yield Answered(text, status, None, None, stream.usage, str(turn.id))
                        return
                    if event is None:
                        yield None
                    elif event.kind == "delta":
                        said = True
                        yield event.text
                    elif event.kind == "reset" and said:
                        yield "\n\n"  # what was said cannot be taken back here
                    elif event.turn is not None and event.kind != "accepted":
                        yield _from_turn(event.turn, stream.usage)

    def _prepare_once(self) -> TurnRun:
        *before, last = self._body.messages
        system = "\n\n".join(message.text() for message in before if message.role in ("system", "developer"))
        history = tuple(
            ChatMessage(message.role, message.text()) for message in before if message.role in ("user", "assistant")
        )
        self._stream.begin(1)
        return self._engine.prepare_once(last.text(), history, self._stream, system=system, user=self._user)

    async def _once(self, run: TurnRun) -> AsyncGenerator[str | Answered | None, None]:
        stream = self._stream
        work = asyncio.create_task(self._engine.run_once(run), name="answer-once")
        work.add_done_callback(lambda _task: stream.close())
        try:
            attempt, index = 1, 0
            while True:
                if stream.attempt != attempt:
                    attempt, index = stream.attempt, 0
                    yield "\n\n"
                fresh = stream.deltas[index:]
                index += len(fresh)
                for text in fresh:
                    yield text
                if work.done() and index == len(stream.deltas):
                    break
                if not stream.closed and not await stream.wait_change(POLL_SECONDS):
                    yield None
            yield _from_outcome(work.result())
        finally:
            work.cancel()

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self._body.model,
            "system_fingerprint": self._engine.revision or None,
        }

    def _chunk(self, delta: dict[str, str], *, finish: str | None = None, abide: dict[str, Any] | None = None) -> bytes:
        chunk = {
            **self._head("chat.completion.chunk"),
            "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}],
            **({"usage": None} if self._with_usage else {}),
        }
        return self._line({**chunk, "abide": abide} if abide else chunk)

    @staticmethod
    def _line(document: dict[str, Any]) -> bytes:
        return f"data: {json.dumps(document, ensure_ascii=False, separators=(',', ':'))}\n\n".encode()


def _usage(answered: Answered) -> dict[str, int]:
    sent, made = answered.usage
    return {"prompt_tokens": sent, "completion_tokens": made, "total_tokens": sent + made}


def _info(answered: Answered) -> dict[str, Any]:
    return {"id": answered.turn_id, "status": answered.status, "model": answered.model, "error": answered.error}


def _from_turn(turn: TurnRecord, usage: tuple[int, int]) -> Answered:
    return Answered(turn.reply or "", turn.status.value, turn.model, turn.error_type, usage, str(turn.id))


def _from_outcome(outcome: Outcome) -> Answered:
    content = outcome.messages[-1].content if outcome.messages else ""
    usage = (outcome.input_tokens, outcome.output_tokens)
    return Answered(content, outcome.status.value, outcome.model, outcome.error_type, usage)
