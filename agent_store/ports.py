"""What the rest of the code needs from the store, and no more.

The Postgres adapter is agent_store.postgres. Every method may raise StoreUnavailable; other errors are named at each
method. Every call has a deadline of its own (see StoreSettings), after which the connection is dropped.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Protocol, runtime_checkable
from uuid import UUID

from agent_api.wire import TurnStatus


@dataclass(frozen=True, slots=True)
class Owner:
    """A running process: `instance` is the pod's uid (or a fixed name in dev mode), `epoch` counts its starts.

    A process that registers the same instance again gets a higher epoch; whatever the lower one owned is orphaned at
    once, without waiting for its lease to run out.
    """

    instance: str
    epoch: int


@dataclass(frozen=True, slots=True)
class SessionKey:
    """One user's conversation with one agent; two users may use the same name and never meet."""

    agent_id: UUID
    user: str
    name: str


@dataclass(frozen=True, slots=True)
class NewTurn:
    """A message to accept. `id` and `created` are chosen by the caller so that tests can fix them."""

    id: UUID
    session: SessionKey
    content: str
    idempotency_key: str | None
    request_hash: bytes
    queue_limit: int
    revision: str


class Disposition(StrEnum):
    """What became of an accepted message."""

    RUN = "run"
    QUEUED = "queued"
    DUPLICATE = "duplicate"


@dataclass(frozen=True, slots=True)
class TurnRecord:
    """A turn as stored."""

    id: UUID
    agent_id: UUID
    session_id: UUID
    session_name: str
    user: str
    turn_seq: int
    status: TurnStatus
    attempts: int
    model: str | None
    error_type: str | None
    error_message: str | None
    reply: str | None
    created_at: datetime
    finished_at: datetime | None


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to run one turn: complete() accepts only this owner and token.

    `steps_before` counts the model steps the session made before this turn; `accepted_messages` the user messages the
    session has accepted up to and including this turn.
    """

    turn_id: UUID
    session_id: UUID
    session: SessionKey
    turn_seq: int
    token: int
    attempts: int
    content: str
    steps_before: int
    accepted_messages: int


@dataclass(frozen=True, slots=True)
class Accepted:
    """Result of accept(): the turn, and the claim if it runs now."""

    disposition: Disposition
    turn: TurnRecord
    claim: Claim | None


@dataclass(frozen=True, slots=True)
class StoredMessage:
    """One line of history. Order is `seq`; `role` is user, assistant or tool."""

    seq: int
    turn_id: UUID
    role: str
    content: str
    created_at: datetime
    tool_calls: Sequence[dict[str, Any]] = ()
    tool_call_id: str | None = None


@dataclass(frozen=True, slots=True)
class NewMessage:
    """A line that a finished turn adds after its user message; the last assistant line is the reply."""

    role: str
    content: str
    tool_calls: Sequence[dict[str, Any]] = ()
    tool_call_id: str | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a turn ended. `steps` counts the model steps it made; status is final."""

    status: TurnStatus
    messages: Sequence[NewMessage]
    model: str | None
    steps: int
    error_type: str | None = None
    error_message: str | None = None
    input_tokens: int = 0
    output_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Completed:
    """Result of complete(): `waiting` says whether the session has queued turns to start."""

    turn: TurnRecord
    waiting: bool


@dataclass(frozen=True, slots=True)
class SessionRecord:
    """A session as listed."""

    id: UUID
    name: str
    user: str
    created_at: datetime
    last_active_at: datetime
    accepted_messages: int


@dataclass(frozen=True, slots=True)
class SessionState:
    """A snapshot: one versioned JSON document (docs/state.md), not a copy of the history."""

    session_id: UUID
    version: int
    document: dict[str, Any]
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class Metric:
    """One aggregated sample of `agent_metrics`: `value` is the sum over the interval, `metadata` holds counts."""

    agent_id: UUID
    metric_type: str
    value: float
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ErrorRecord:
    """One row of `agent_errors`, already scrubbed of secrets. `id` is set where rows are listed."""

    agent_id: UUID
    error_type: str
    message: str
    stack_trace: str = ""
    context: dict[str, Any] = field(default_factory=dict)
    occurred_at: datetime | None = None
    id: UUID | None = None


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The current row of one pod in `agent_heartbeats`."""

    agent_id: UUID
    pod: str
    at: datetime
    details: dict[str, Any]


@dataclass(frozen=True, slots=True)
class AgentRecord:
    """An agent of which rows are kept, living or deleted."""

    id: UUID
    namespace: str
    name: str
    created_at: datetime


class AgentStore(Protocol):
    """Whose rows an id stands for, and how they go."""

    async def find_agent(self, agent_id: UUID) -> AgentRecord | None:
        """Return the agent whose rows are kept under this id, or None."""
        ...

    async def erase_agent(self, agent_id: UUID) -> bool:
        """Delete a bounded number of the agent's rows; True once none is left, so call it until then. Idempotent.

        The first call fences running turns and lets no process register for this id any more. Audit rows
        (`system_events`) stay until their retention is over.
        """
        ...


OnStoreCall = Callable[[str, float, str | None], None]
"""Told of each statement: `<method>.<n>`, its seconds with the wait for a connection, the reason if it failed."""


class PoolCounts(Protocol):
    """How many connections are open, and how many of these are idle."""

    @property
    def open(self) -> int:
        """Connections that are open."""
        ...

    @property
    def idle(self) -> int:
        """Of these, how many nobody uses."""
        ...


@runtime_checkable
class Instrumented(Protocol):
    """A store that tells how it does."""

    def observe(self, on_call: OnStoreCall) -> None:
        """Tell `on_call` of every statement from now on; it must not block or raise."""
        ...

    def statistics(self) -> PoolCounts:
        """Return how many connections are open and idle."""
        ...


class LeaseStore(Protocol):
    """Process leases: who is alive. Times are the database's."""

    async def register(self, agent_id: UUID, namespace: str, name: str, instance: str, *, ttl: float) -> Owner:
        """Make sure the agent's row exists and take a new epoch for `instance`, alive for `ttl` seconds.

        Raises SchemaTooOld as StoreUnavailable when migrations have not run.
        """
        ...

    async def renew(self, agent_id: UUID, owner: Owner, *, ttl: float) -> None:
        """Extend the lease. Raises LeaseLost when a newer epoch exists or the row is gone."""
        ...

    async def release(self, agent_id: UUID, owner: Owner) -> None:
        """End the lease now, so that other processes take over at once. Idempotent."""
        ...


class TurnStore(Protocol):
    """The life of turns. Each method is atomic; any may be called again after an unknown outcome."""

    async def accept(self, turn: NewTurn, owner: Owner) -> Accepted:
        """Commit a message: the session row (made on first use), the turn and the user message.

        RUN: nothing else is active or queued in the session and the turn is claimed by `owner`. QUEUED: it runs later.
        DUPLICATE: the same key and hash was accepted before (the turn is returned as it stands now).
        Calling it again with the same `turn.id` after an unknown outcome returns what was stored (RUN again with its
        claim if this owner still holds it).
        Raises QueueFull, IdempotencyMismatch; LeaseLost when `owner` is not the newest epoch.
        """
        ...

    async def complete(self, claim: Claim, owner: Owner, outcome: Outcome) -> Completed:
        """Commit the outcome and free the session, in one transaction, guarded by the claim's token.

        Calling it again with the same claim after an unknown outcome succeeds if the first call took effect.
        Raises LeaseLost when the turn was taken over.
        """
        ...

    async def start_next(self, agent_id: UUID, session_id: UUID, owner: Owner) -> Claim | None:
        """Claim the session's oldest queued turn if no turn is active there; None otherwise.

        Raises LeaseLost when `owner` is not the newest epoch.
        """
        ...

    async def claim_orphans(
        self, agent_id: UUID, owner: Owner, *, limit: int, known: Sequence[UUID] = ()
    ) -> list[Claim]:
        """Take over running turns whose owner is gone or has a newer epoch (raising token and attempts), then start
        queued turns of sessions in which nothing is active. At most `limit`; those being claimed elsewhere are skipped.

        Running turns that `owner` itself holds and that are not in `known` come back too, with token and attempts as
        they are: their claim was committed but its answer (of accept, start_next or this method) never arrived.
        Raises LeaseLost when `owner` is not the newest epoch.
        """
        ...

    async def cancel_queued(self, agent_id: UUID, turn_id: UUID, user: str) -> TurnRecord | None:
        """Cancel the turn if it is still queued, and return it as it then stands.

        A turn that runs or has its outcome is returned unchanged; None if it does not exist or belongs to another user.
        """
        ...

    async def get_turn(self, agent_id: UUID, turn_id: UUID, user: str) -> TurnRecord | None:
        """Return the turn with its reply, or None if it does not exist or belongs to another user."""
        ...

    async def load_history(
        self, session_id: UUID, agent_id: UUID, *, before_turn_seq: int, limit: int
    ) -> list[StoredMessage]:
        """Return the newest `limit` messages of finished turns before that turn, oldest first."""
        ...


class SessionStore(Protocol):
    """Reading sessions, and their snapshots."""

    async def list_messages(self, key: SessionKey, *, after_seq: int, limit: int) -> list[StoredMessage]:
        """Return messages of started turns with seq > after_seq, ascending; an unknown session has none."""
        ...

    async def list_sessions(
        self, agent_id: UUID, user: str, *, before: tuple[datetime, UUID] | None, limit: int
    ) -> list[SessionRecord]:
        """Return the user's sessions, newest activity first, older than the cursor `before`."""
        ...

    async def delete_session(self, key: SessionKey) -> bool:
        """Delete the session and everything in it; False if it did not exist. A turn in flight is fenced out."""
        ...

    async def find_session(self, key: SessionKey) -> SessionRecord | None:
        """Return the session, or None."""
        ...

    async def open_session(self, key: SessionKey) -> SessionRecord:
        """Return the session, made without any message if it did not exist. Idempotent."""
        ...

    async def save_state(self, agent_id: UUID, session_id: UUID, document: dict[str, Any]) -> SessionState:
        """Write the snapshot of a session; `version` rises by one with each save.

        Raises SessionGone when the session does not exist (any more).
        """
        ...

    async def load_state(self, agent_id: UUID, session_id: UUID) -> SessionState | None:
        """Return the newest snapshot, or None."""
        ...

    async def delete_state(self, agent_id: UUID, session_id: UUID) -> bool:
        """Delete the snapshot; False if there was none."""
        ...

    async def count_sessions(self, agent_id: UUID) -> int:
        """Return how many sessions the agent has."""
        ...


class TelemetryStore(Protocol):
    """What is written about agents for people."""

    async def record_metrics(self, metrics: Sequence[Metric]) -> None:
        """Append samples to `agent_metrics`."""
        ...

    async def record_error(self, error: ErrorRecord) -> None:
        """Append a row to `agent_errors`."""
        ...

    async def beat(self, agent_id: UUID, pod: str, details: dict[str, Any]) -> None:
        """Write the pod's current heartbeat (one row per pod), stamped by the database."""
        ...

    async def heartbeats(self, agent_ids: Sequence[UUID] | None = None) -> list[Heartbeat]:
        """Return the current heartbeat of every pod of these agents (None: of all agents)."""
        ...

    async def last_errors(self, agent_ids: Sequence[UUID] | None = None) -> dict[UUID, ErrorRecord]:
        """Return the newest error of each agent that has one."""
        ...

    async def list_errors(
        self, agent_id: UUID, *, error_type: str | None = None, before: tuple[datetime, UUID] | None, limit: int
    ) -> list[ErrorRecord]:
        """Return the agent's errors, of one type if it is given, newest first, older than the cursor `before`.

        Each has its `id` and `occurred_at`; traces are left out.
        """
        ...

    async def session_counts(self, agent_ids: Sequence[UUID] | None = None) -> dict[UUID, int]:
        """Return the number of sessions per agent."""
        ...

    async def maintain(self) -> None:
        """Make coming partitions, drop what is past its retention, forget dead processes and pods.

        Idempotent; call it about once an hour.
        """
        ...

    async def record_event(self, agent_id: UUID | None, event_type: str, message: str, details: dict[str, Any]) -> None:
        """Append a row to `system_events`."""
        ...


class Store(AgentStore, LeaseStore, TurnStore, SessionStore, TelemetryStore, Protocol):
    """All of it, as one adapter implements it."""

    async def check(self) -> None:
        """Make sure Postgres answers, is writable and has a new enough schema, else raise StoreUnavailable."""
        ...

    async def aclose(self) -> None:
        """Close all connections within the deadline of one call."""
        ...
