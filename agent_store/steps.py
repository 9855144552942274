"""The values of the step journal: steps inside a turn, and tool calls that wait for a person."""

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID


class StepKind(StrEnum):
    """What a step does."""

    MODEL = "model"
    TOOL = "tool"


class StepStatus(StrEnum):
    """How far a step is: `started` has no result yet, `failed` has one that says what went wrong."""

    STARTED = "started"
    FINISHED = "finished"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class NewStep:
    """A step to write. `index` counts the steps of the turn from 0 and is the same in every attempt.

    `name` is the model (`provider/model`) or the tool; `result` is JSON, None as long as there is none. `started` and
    `finished` say how many seconds ago that was. `key`: what the tool was given to make repeating safe.
    """

    index: int
    kind: StepKind
    name: str
    status: StepStatus
    result: dict[str, Any] | None = None
    key: str | None = None
    started: float = 0.0
    finished: float | None = None


@dataclass(frozen=True, slots=True)
class StepRecord:
    """A step as stored. `result` is None once the turn is finished: its messages hold it."""

    index: int
    kind: StepKind
    name: str
    status: StepStatus
    result: dict[str, Any] | None
    key: str | None
    started_at: datetime
    finished_at: datetime | None


class Verdict(StrEnum):
    """What became of an approval."""

    APPROVED = "approved"
    REJECTED = "rejected"
    TIMED_OUT = "timed out"


@dataclass(frozen=True, slots=True)
class Decision:
    """The answer to an approval; `on_timeout` is Approve or Reject and counts if nobody gave one in time."""

    verdict: Verdict
    on_timeout: str
    comment: str

    @property
    def allows(self) -> bool:
        """Whether the call may be made."""
        return self.verdict is Verdict.APPROVED or (self.verdict is Verdict.TIMED_OUT and self.on_timeout == "Approve")


@dataclass(frozen=True, slots=True)
class NewApproval:
    """A tool call that a person has to agree to within `timeout` seconds. `call_id` is unique within the turn."""

    call_id: str
    tool: str
    arguments: dict[str, Any]
    timeout: float
    on_timeout: str


@dataclass(frozen=True, slots=True)
class ApprovalRecord:
    """A tool call that waits for a person, or waited: `verdict` is None until there is one."""

    turn_id: UUID
    session_id: UUID
    session_name: str
    user: str
    call_id: str
    tool: str
    arguments: dict[str, Any]
    requested_at: datetime
    expires_at: datetime
    on_timeout: str
    verdict: Verdict | None


@dataclass(frozen=True, slots=True)
class Journal:
    """What is known of a turn from earlier work on it: its steps by index, the answers to approvals by call id."""

    steps: dict[int, StepRecord] = field(default_factory=dict)
    decisions: dict[str, Decision] = field(default_factory=dict)
