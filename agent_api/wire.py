"""Request and response bodies of the REST API, shared by runtime, CLI and console.

Wire names are camelCase. The paths and the meaning of each status code are in docs/rest.md.
"""

from datetime import datetime
from enum import StrEnum
from typing import Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

SESSION_PATTERN = r"^[A-Za-z0-9._:@-]{1,128}$"
USER_PATTERN = r"^[A-Za-z0-9._:@-]{1,128}$"
CONTENT_MAX_LENGTH = 100_000
IDEMPOTENCY_KEY_MAX_LENGTH = 255
ANONYMOUS = "anonymous"
USER_HEADER = "Abide-User"


class Wire(BaseModel):
    """Base of all wire models."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)


class TurnStatus(StrEnum):
    """Where a turn stands; the last four are final."""

    QUEUED = "queued"
    RUNNING = "running"
    WAITING = "waiting"
    COMPLETED = "completed"
    FALLBACK = "fallback"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """Whether the turn has its outcome."""
        return self not in (TurnStatus.QUEUED, TurnStatus.RUNNING, TurnStatus.WAITING)


class MessageIn(Wire):
    """Body of POST …/messages."""

    model_config = ConfigDict(extra="forbid")

    content: str = Field(min_length=1, max_length=CONTENT_MAX_LENGTH, examples=["hello"])


class TurnError(Wire):
    """Why a turn fell back or failed."""

    type: str = Field(examples=["ModelUnavailable"])
    message: str = Field(description="What happened, fit for the caller: no secrets, no internals.")


class TurnOut(Wire):
    """A turn as callers see it."""

    id: UUID
    status: TurnStatus
    model: str | None = Field(default=None, description="provider/model that answered.")
    error: TurnError | None = None
    session: str | None = Field(default=None, description="Name of the session.")
    attempts: int = Field(default=0, description="How often the turn was started.")
    created_at: datetime | None = None
    finished_at: datetime | None = None


class Reply(Wire):
    """The text users read."""

    content: str


class TurnResponse(Wire):
    """Answer to POST …/messages and GET …/turns/{id}."""

    turn: TurnOut
    reply: Reply | None = None


class MessageOut(Wire):
    """One line of a session's history."""

    seq: int
    role: Literal["user", "assistant", "tool"]
    content: str
    turn_id: UUID
    created_at: datetime


class MessagePage(Wire):
    """One page of history, oldest first."""

    items: list[MessageOut]
    next_cursor: str | None = None


class SessionOut(Wire):
    """One session of the calling user."""

    name: str
    user: str
    created_at: datetime
    last_active_at: datetime
    messages: int = Field(description="Accepted user messages.")


class SessionPage(Wire):
    """One page of sessions, newest activity first."""

    items: list[SessionOut]
    next_cursor: str | None = None


class Problem(Wire):
    """An error, as RFC 9457 problem details (application/problem+json)."""

    type: str = Field(examples=["https://abide.dev/problems/queue-full"])
    title: str
    status: int
    detail: str = ""
    instance: str = ""
    errors: list[dict[str, str]] = Field(default_factory=list, description="One {field, message} per wrong field.")


class CheckResult(Wire):
    """One named check of a health endpoint."""

    name: str
    ok: bool
    reason: str = Field(default="", description="A reason of agent_api.conditions, when not ok.")
    message: str = ""


class ModelCheck(Wire):
    """Whether one model of an agent can be used, as its pod last saw it.

    `ok` is None while nothing is known yet. A broken model does not make a pod unready: users get a fallback's reply,
    or the fallback text.
    """

    name: str = Field(description="Name of the entry of spec.models.")
    model: str = Field(description="provider/model.")
    ok: bool | None = None
    reason: str = Field(default="", description="A reason of agent_api.conditions, when not ok.")
    message: str = Field(default="", description="What it does instead, as a phrase: answers 401.")
    since: datetime | None = Field(default=None, description="Since when it is so.")
    checked_at: datetime | None = Field(default=None, description="When it was last checked or called.")


class ToolCheck(Wire):
    """Whether one entry of an agent's `tools` can be used, as its pod last saw it.

    A tool that is down does not make a pod unready: the model is told, and answers without it.
    """

    name: str = Field(description="Name of the entry of spec.tools.")
    type: str = Field(description="MCP, HTTP or Builtin.")
    ok: bool | None = None
    reason: str = Field(default="", description="A reason of agent_api.conditions, when not ok.")
    message: str = Field(default="", description="What it does instead, as a phrase: refuses connections.")
    since: datetime | None = Field(default=None, description="Since when it is so.")
    tools: list[str] = Field(default_factory=list, description="Names the model may call.")


class BudgetCheck(Wire):
    """Where one budget of an agent stands today, as its pod last saw it."""

    scope: Literal["agent", "user"] = Field(description="The whole agent, or its users one by one.")
    ok: bool = True
    limit: str = Field(default="", description="The limit in words: 20.00 USD, 100000 tokens.")
    used_percent: int = Field(default=0, description="How much of it is used, of the user nearest to the limit.")
    resets_at: datetime | None = Field(default=None, description="When the next day of the budget begins.")


class HealthOut(Wire):
    """Body of /livez, /readyz and /health: 200 when ok, else 503."""

    ok: bool
    version: str
    revision: str = ""
    checks: list[CheckResult]
    models: list[ModelCheck] = Field(default_factory=list, description="In the order of spec.models.")
    tools: list[ToolCheck] = Field(default_factory=list, description="In the order of spec.tools.")
    budgets: list[BudgetCheck] = Field(default_factory=list, description="Budgets that are set.")


class ErrorOut(Wire):
    """One recorded error of an agent."""

    time: datetime
    type: str = Field(examples=["ModelUnreachable"])
    message: str = Field(description="What happened, without secrets.")
    turn_id: UUID | None = Field(default=None, description="The turn it happened in.")


class ErrorPage(Wire):
    """One page of errors, newest first."""

    items: list[ErrorOut]
    next_cursor: str | None = None
