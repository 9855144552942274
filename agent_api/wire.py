"""Request and response bodies of the REST API, shared by runtime, CLI and console.

Wire names are camelCase. The paths and the meaning of each status code are in docs/rest.md.
"""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

SESSION_PATTERN = r"^[A-Za-z0-9._:@-]{1,128}$"
USER_PATTERN = r"^[A-Za-z0-9._:@-]{1,128}$"
CONTENT_MAX_LENGTH = 100_000
IDEMPOTENCY_KEY_MAX_LENGTH = 255
ANONYMOUS = "anonymous"
MEMORY_CONTENT_MAX_LENGTH = 8000
MEMORY_TAG_MAX_LENGTH = 64
MEMORY_TAGS_MOST = 32
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


class TurnUsage(Wire):
    """What a turn used, over all its model calls."""

    input_tokens: int
    output_tokens: int
    cost: str | None = Field(
        default=None,
        description="A decimal number of the currency; null where no price is known.",
        examples=["0.00042"],
    )
    currency: str | None = Field(default=None, examples=["USD"])


class StepOut(Wire):
    """One step inside a turn that uses tools: a model answer that asked for tools, or a tool call."""

    index: int = Field(description="Counts the steps of the turn from 0.")
    kind: Literal["model", "tool"]
    name: str = Field(description="`provider/model`, or the name of the tool.")
    status: Literal["started", "finished", "failed"]
    started_at: datetime
    finished_at: datetime | None = None


class ApprovalOut(Wire):
    """A tool call that waits for a person."""

    turn_id: UUID
    call_id: str = Field(description="Names the call within its turn.", examples=["call-1"])
    tool: str
    arguments: dict[str, Any]
    session: str
    user: str
    requested_at: datetime
    expires_at: datetime = Field(description="Then `onTimeout` decides.")
    on_timeout: Literal["Approve", "Reject"]


class ApprovalPage(Wire):
    """The tool calls of an agent that wait for a person, those that expire first before; at most 200."""

    items: list[ApprovalOut]


class DecisionIn(Wire):
    """Body of POST …/turns/{turn}/approvals/{callId}."""

    model_config = ConfigDict(extra="forbid")

    decision: Literal["approve", "reject"]
    comment: str = Field(default="", max_length=2000, description="The model reads it if the call is refused.")


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
    usage: TurnUsage | None = Field(default=None, description="Given once the turn has its outcome.")
    steps: list[StepOut] | None = Field(
        default=None, description="What it did with tools so far. Given where one turn is read."
    )
    approvals: list[ApprovalOut] | None = Field(
        default=None, description="The tool calls it waits for. Given where one turn is read."
    )


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
    ok: bool = Field(default=True, description="Whether something is left; of every user that was seen today.")
    warns: bool = Field(default=False, description="Whether warnPercent of it is used.")
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


class MemoryType(StrEnum):
    """What a memory is about."""

    GENERAL = "general"
    CONVERSATION = "conversation"
    TASK_RESULT = "task_result"
    LEARNING = "learning"


MemoryTag = Annotated[str, Field(min_length=1, max_length=MEMORY_TAG_MAX_LENGTH, pattern=r"^[^\x00\s,]+$")]


class MemoryIn(Wire):
    """Body of POST …/memories: something to remember."""

    model_config = ConfigDict(extra="forbid", strict=True)

    content: str = Field(min_length=1, max_length=MEMORY_CONTENT_MAX_LENGTH, examples=["Prefers answers in French."])
    type: MemoryType = MemoryType.GENERAL
    importance: int = Field(default=5, ge=1, le=10, description="1-3 low, 4-6 medium, 7-9 high, 10 critical.")
    tags: list[MemoryTag] = Field(default_factory=list, max_length=MEMORY_TAGS_MOST, description="Words to find it by.")
    shared: bool = Field(default=False, description="Known to all users of the agent; needs the right to operate.")


class MemoryPatch(Wire):
    """Body of PATCH …/memories/{id}: what shall change; what is left out stays."""

    model_config = ConfigDict(extra="forbid", strict=True)

    content: str | None = Field(default=None, min_length=1, max_length=MEMORY_CONTENT_MAX_LENGTH)
    type: MemoryType | None = None
    importance: int | None = Field(default=None, ge=1, le=10)
    tags: list[MemoryTag] | None = Field(default=None, max_length=MEMORY_TAGS_MOST)


class MemoryOut(Wire):
    """One memory. `user` is null for those that all users of the agent share."""

    id: UUID
    content: str
    type: MemoryType
    importance: int
    tags: list[str]
    user: str | None
    created_at: datetime
    updated_at: datetime
    recalled_at: datetime | None = Field(default=None, description="When it was last given to a model.")
    score: float | None = Field(default=None, description="How well it fits a recall, within one answer.")


class MemoryPage(Wire):
    """One page of memories, the newest change first."""

    items: list[MemoryOut]
    next_cursor: str | None = None


class RecallIn(Wire):
    """Body of POST …/memories/recall: what to look for. Without a query, importance and recency decide."""

    model_config = ConfigDict(extra="forbid", strict=True)

    query: str = Field(default="", max_length=MEMORY_CONTENT_MAX_LENGTH, examples=["Which language does she like?"])
    type: MemoryType | None = None
    tags: list[MemoryTag] = Field(default_factory=list, max_length=MEMORY_TAGS_MOST, description="It has all of them.")
    least_importance: int = Field(default=1, ge=1, le=10)
    limit: int = Field(default=5, ge=1, le=50)


class Recalled(Wire):
    """Answer to a recall: the memories that fit best, best first."""

    items: list[MemoryOut]


class DataKeyOut(Wire):
    """A data key of an agent. The key itself is never shown."""

    id: str
    created_at: datetime
    wrapping_key: str = Field(description="The key of the Secret, or the file, that it is wrapped with.")
    current: bool = Field(description="Whether new content is encrypted with it.")


class KeysOut(Wire):
    """The data keys of an agent, old to new."""

    encrypts: bool = Field(description="Whether new content is encrypted.")
    items: list[DataKeyOut]


class KeyPassIn(Wire):
    """Body of POST …/keys/reencryption."""

    model_config = ConfigDict(extra="forbid")

    cursor: str | None = Field(default=None, max_length=512, description="`cursor` of the answer before; null: begin.")
    dry_run: bool = Field(default=False, strict=True, description="Count only.")


class KeyCount(Wire):
    """How many rows with content were found under a key; null: not encrypted."""

    key: str | None
    rows: int


class KeyPassOut(Wire):
    """What one part of a pass over an agent's content found and did."""

    cursor: str | None = Field(description="Where the next part begins; null: all was looked at.")
    rows: list[KeyCount] = Field(description="Rows by the key they were found under.")
    rewritten: int = Field(description="Rows that were encrypted anew.")
    unreadable: int = Field(description="Rows that do not decrypt: they were changed or moved, and stay as they are.")


class FeedbackIn(Wire):
    """Body of PUT …/turns/{turn}/feedback."""

    model_config = ConfigDict(extra="forbid")

    score: int = Field(strict=True, ge=-1, le=1, description="-1 bad, 0 neither, 1 good.", examples=[1])
    text: str = Field(default="", max_length=4000, description="What the user says about it.", examples=["Thank you!"])


class FeedbackOut(Wire):
    """What a user thought of a turn."""

    turn_id: UUID
    score: int
    text: str
    revision: str = Field(description="Revision of the Agent that accepted the turn.")
    at: datetime


class UserErased(Wire):
    """What was erased of a user."""

    sessions: int = Field(description="Sessions, each with its turns, messages, state and feedback.")
    memories: int


class MetricIn(Wire):
    """Body of POST …/metrics: a sample of the caller's own."""

    model_config = ConfigDict(extra="forbid")

    type: str = Field(min_length=1, max_length=200, pattern=r"^[A-Za-z0-9_.:-]+$", examples=["orders_found"])
    value: float = Field(strict=True, allow_inf_nan=False, examples=[3])
    metadata: dict[str, Any] = Field(default_factory=dict, description="Further facts; no secrets.")


class ErrorIn(Wire):
    """Body of POST …/errors: an error of the caller's own."""

    model_config = ConfigDict(extra="forbid")

    type: str = Field(min_length=1, max_length=200, pattern=r"^[A-Za-z0-9_.:-]+$", examples=["OrderSystemDown"])
    message: str = Field(min_length=1, max_length=2000, description="What happened; secrets are blanked.")
    trace: str = Field(default="", max_length=20_000)
    context: dict[str, Any] = Field(default_factory=dict, description="Further facts; no secrets.")
