"""What the rest of the code needs from the store, and no more.

The Postgres adapter is agent_store.postgres. Every method may raise StoreUnavailable; other errors are named at each
method. Every call has a deadline of its own (see StoreSettings), after which the connection is dropped.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from enum import StrEnum
from typing import Any, Protocol, runtime_checkable
from uuid import UUID

from agent_api.wire import TurnStatus
from agent_store.steps import ApprovalRecord, Journal, NewApproval, NewStep, StepRecord


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
    """A turn as stored. Tokens and cost are those of all its model calls, `cost_micros` in millionths of the currency;
    None: no price is known, or prices of several currencies."""

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
    input_tokens: int = 0
    output_tokens: int = 0
    cost_micros: int | None = None
    currency: str | None = None


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to run one turn: complete() accepts only this owner and token.

    `merged` are id and turn_seq of the turns that started together with this one and get its outcome, in their order;
    `content` is then the text of all of them, a blank line between two. `steps_before` counts the model steps the
    session made before this turn; `accepted_messages` the user messages the session has accepted up to and including
    this turn and what was merged into it.
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
    is_resumed: bool = False
    """Work on it was begun before, so that there may be steps in its journal."""
    is_alone: bool = False
    """The process that had it last ran nothing else beside it, and ended."""
    is_cancelled: bool = False
    """Somebody wants no answer any more."""
    is_unreadable: bool = False
    """What was asked is stored in a form that cannot be read; `content` is empty then."""
    merged: Sequence[tuple[UUID, int]] = ()
    texts: Sequence[str] = ()
    """The messages one by one, where several were merged."""


@dataclass(frozen=True, slots=True)
class CancelRequest:
    """Some process was asked to cancel a turn that another one runs; `interrupted`: since a newer message came."""

    turn_id: UUID
    interrupted: bool


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
    """How a turn ended. `steps` counts the model steps it made; status is final.

    `cost_micros` is what its model calls cost, in millionths of `currency`; None where no price is known.
    """

    status: TurnStatus
    messages: Sequence[NewMessage]
    model: str | None
    steps: int
    error_type: str | None = None
    error_message: str | None = None
    input_tokens: int = 0
    output_tokens: int = 0
    cost_micros: int | None = None
    currency: str | None = None


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


Spent = tuple[int, int]
"""Tokens, and money in millionths of the budget's currency."""


@dataclass(frozen=True, slots=True)
class BudgetAccount:
    """What a process used of one budget since its last account, and the slice it wants to hold from now on.

    `day` None: today, by the database's clock. `serial` counts the accounts of this owner for this day and scope, from
    1: one that was counted is not counted again. `held` is the slice it thinks it holds. A `limit` of 0 is none.
    """

    day: date | None
    scope: str
    serial: int
    spent: Spent
    held: Spent
    want: Spent
    limit: Spent


@dataclass(frozen=True, slots=True)
class BudgetStanding:
    """Where a budget stands after an account: what this process `held`s now, what was `used`, what others hold.

    `seconds_left` runs to `resets_at`, when the next day begins.
    """

    day: date
    held: Spent
    used: Spent
    held_elsewhere: Spent
    resets_at: datetime
    seconds_left: float


@dataclass(frozen=True, slots=True)
class AgentRecord:
    """An agent of which rows are kept, living or deleted."""

    id: UUID
    namespace: str
    name: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class NewMemory:
    """Something to remember. `user` None: shared by all users. `vector` has length 1 and is of `vector_model`."""

    id: UUID
    user: str | None
    content: str
    type: str
    importance: int
    tags: Sequence[str] = ()
    vector_model: str | None = None
    vector: Sequence[float] | None = None


@dataclass(frozen=True, slots=True)
class MemoryRecord:
    """A memory as stored."""

    id: UUID
    user: str | None
    content: str
    type: str
    importance: int
    tags: Sequence[str]
    created_at: datetime
    updated_at: datetime
    recalled_at: datetime | None


@dataclass(frozen=True, slots=True)
class MemoryFilter:
    """Which memories: of one user and shared ones, of one type (None: any), with all of these tags."""

    user: str
    type: str | None = None
    tags: Sequence[str] = ()
    least_importance: int = 1


@dataclass(frozen=True, slots=True)
class MemoryCandidate:
    """A memory that may fit, with its place (from 1) among those found by words and by meaning; None: not found so.

    `weight` grows with importance and shrinks with age, from 0 to 2.
    """

    memory: MemoryRecord
    weight: float
    word_place: int | None
    meaning_place: int | None


@dataclass(frozen=True, slots=True)
class DataKey:
    """A data key of an agent: `wrapping_key_id` names the key it is wrapped with; the current one encrypts."""

    id: str
    created_at: datetime
    wrapping_key_id: str
    is_current: bool


@dataclass(frozen=True, slots=True)
class KeyPass:
    """One step of looking at all content of an agent: `cursor` is where the next one begins, None at the end.

    `values` counts rows with content by the id of their key, None for plain content, as they were found; `rewritten` of
    them were encrypted anew, and `unreadable` of them do not decrypt: they stay as they are.
    """

    cursor: str | None
    values: Mapping[str | None, int]
    rewritten: int
    unreadable: int = 0


class KeyStore(Protocol):
    """The data keys of an agent. Raises StoreUnavailable with EncryptionKeyMismatch where one cannot be unwrapped."""

    async def list_keys(self, agent_id: UUID) -> Sequence[DataKey]:
        """Return the agent's data keys, old to new; none where its content is not encrypted."""
        ...

    async def rotate_key(self, agent_id: UUID) -> Sequence[DataKey]:
        """Make a new data key, which encrypts from now on, and wrap all of them with the newest wrapping key."""
        ...

    async def pass_keys(self, agent_id: UUID, cursor: str | None, *, rewrite: bool) -> KeyPass:
        """Look at a bounded number of rows from `cursor` on (None: from the first one), within a few seconds.

        With `rewrite`, content that is not under the current key is encrypted anew; whoever changes a row meanwhile
        wins. Idempotent; may be begun again anywhere. Raises ValueError for a cursor that is none.
        """
        ...


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

    async def renew(self, agent_id: UUID, owner: Owner, *, ttl: float) -> Sequence[CancelRequest]:
        """Extend the lease; return which of the owner's turns are to be cancelled, each time until they are gone.

        Raises LeaseLost when a newer epoch exists or the row is gone."""
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

    async def start_next(self, agent_id: UUID, session_id: UUID, owner: Owner, *, most: int = 1) -> Claim | None:
        """Claim the session's oldest queued turn if no turn is active there; None otherwise.

        `most`: how many queued turns are merged into one claim, that of the oldest.

        Raises LeaseLost when `owner` is not the newest epoch.
        """
        ...

    async def claim_orphans(
        self, agent_id: UUID, owner: Owner, *, limit: int, known: Sequence[UUID] = (), most: int = 1
    ) -> list[Claim]:
        """Take over running turns whose owner is gone or has a newer epoch (raising token and attempts), then start
        queued turns of sessions in which nothing is active. At most `limit`; those being claimed elsewhere are skipped.
        `most` is that of start_next().

        Running turns that `owner` itself holds and that are not in `known` come back too, with token and attempts as
        they are: their claim was committed but its answer (of accept, start_next or this method) never arrived.
        Raises LeaseLost when `owner` is not the newest epoch.
        """
        ...

    async def cancel_turn(self, agent_id: UUID, turn_id: UUID, user: str) -> TurnRecord | None:
        """Cancel the turn if it is still queued, and return it as it then stands; its message is part of the history.

        A turn that runs is returned unchanged, and its owner's next renew() asks it to cancel; one that has its outcome
        stays. None if the turn does not exist or belongs to another user.
        """
        ...

    async def interrupt(self, accepted: TurnRecord, error: tuple[str, str]) -> TurnRecord | None:
        """Make way for a queued turn: cancel what is queued before it in its session, and ask for the end of what runs.

        Cancelled turns have `error` as type and message. Returns the turn before it that is still active, or None.
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


class StepStore(Protocol):
    """The journal of the steps inside turns, and approvals. Each method is atomic and may be called again."""

    async def write_steps(self, claim: Claim, steps: Sequence[NewStep]) -> None:
        """Commit steps under the claim's token; one that has its result already stays as it is.

        Raises LeaseLost when the turn was taken over.
        """
        ...

    async def load_journal(self, claim: Claim) -> Journal:
        """Return what earlier work on the turn left behind."""
        ...

    async def list_steps(self, agent_id: UUID, session_id: UUID, turn_id: UUID) -> list[StepRecord]:
        """Return the steps of a turn in their order."""
        ...

    async def forget_results(self, claim: Claim, before: int) -> None:
        """Drop the results of a finished turn's steps with an index below `before`: its messages hold them."""
        ...

    async def park(self, claim: Claim, approvals: Sequence[NewApproval]) -> bool:
        """Leave the turn to wait for these approvals: its session stays busy, and nobody runs it.

        False if it is to be cancelled, and nothing was done. Raises LeaseLost when the turn was taken over.
        """
        ...

    async def list_approvals(
        self, agent_id: UUID, *, turn_id: UUID | None = None, limit: int = 200
    ) -> list[ApprovalRecord]:
        """Return the tool calls that wait for a person, of one turn if it is given, those that expire first before."""
        ...

    async def find_approval(self, agent_id: UUID, turn_id: UUID, call_id: str) -> ApprovalRecord | None:
        """Return one approval, waiting or not, or None."""
        ...

    async def decide(self, agent_id: UUID, approval: ApprovalRecord, *, approve: bool, by: str, comment: str) -> bool:
        """Decide on a waiting call; with the last one of its turn the sweep of any process goes on with the turn.

        False if it does not wait any more (decided, out of time, its turn cancelled).
        """
        ...

    async def expire_approvals(self, agent_id: UUID) -> int:
        """Time out what waited too long; return how many turns may go on by that."""
        ...

    async def cancel_waiting(self, agent_id: UUID, turn_id: UUID, user: str) -> bool:
        """Have a waiting turn cancelled by the next sweep of any process; False if it does not wait."""
        ...

    async def mark_alone(self, claim: Claim, *, alone: bool) -> None:
        """Note that the turn runs with no other beside it, or no longer does. Raises LeaseLost."""
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

    async def save_state(
        self, agent_id: UUID, session_id: UUID, document: dict[str, Any], *, expected: int | None = None
    ) -> SessionState:
        """Write the snapshot of a session; `version` rises by one with each save.

        `expected` is the version it must replace (0: only if there is none; None: whatever is there). An expected 0 is
        also met by a first save. Raises SessionGone when the session does not exist (any more), StateChanged when the
        snapshot is not the expected one.
        """
        ...

    async def load_state(self, agent_id: UUID, session_id: UUID) -> SessionState | None:
        """Return the newest snapshot, or None."""
        ...

    async def delete_state(self, agent_id: UUID, session_id: UUID) -> bool:
        """Delete the snapshot; False if there was none."""
        ...

    async def delete_old_sessions(self, agent_id: UUID, *, days: int, limit: int) -> Sequence[UUID]:
        """Delete up to `limit` sessions in which nothing happened for `days` days; return their ids."""
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


class MemoryStore(Protocol):
    """What agents remember beyond a session. Not encrypted: it is searched.

    `shared` says whether memories of nobody in particular may be changed too; they are always read.
    """

    async def save_memory(self, agent_id: UUID, memory: NewMemory) -> MemoryRecord:
        """Keep a memory; the same id again changes nothing and returns what is kept.

        Raises MemoriesFull when this user (or, for shared ones, the agent) has MOST_MEMORIES.
        """
        ...

    async def seed_memories(self, agent_id: UUID, memories: Sequence[NewMemory]) -> None:
        """Keep shared memories with the type, importance and tags given here, also where they were changed."""
        ...

    async def get_memory(self, agent_id: UUID, memory_id: UUID, user: str) -> MemoryRecord | None:
        """Return a memory of this user or a shared one, or None."""
        ...

    async def change_memory(
        self,
        agent_id: UUID,
        memory_id: UUID,
        user: str,
        *,
        shared: bool,
        content: str | None = None,
        type: str | None = None,  # noqa: A002 - the column's name
        importance: int | None = None,
        tags: Sequence[str] | None = None,
    ) -> MemoryRecord | None:
        """Change what is given, and return the memory, or None if there is none. Another content loses its vector."""
        ...

    async def delete_memory(self, agent_id: UUID, memory_id: UUID, user: str, *, shared: bool) -> bool:
        """Delete a memory; False if there was none."""
        ...

    async def list_memories(
        self, agent_id: UUID, wanted: MemoryFilter, *, before: tuple[datetime, UUID] | None, limit: int
    ) -> list[MemoryRecord]:
        """Return memories, the newest change first, older than the cursor `before`."""
        ...

    async def recall_memories(
        self,
        agent_id: UUID,
        wanted: MemoryFilter,
        *,
        query: str,
        vector: Sequence[float] | None,
        vector_model: str | None,
        limit: int,
    ) -> list[MemoryCandidate]:
        """Return the best `limit` by words and the best `limit` by meaning; without both, those with most weight."""
        ...

    async def touch_memories(self, agent_id: UUID, memory_ids: Sequence[UUID]) -> None:
        """Note that memories were recalled, at most once a day each."""
        ...

    async def list_unembedded(self, agent_id: UUID, vector_model: str, limit: int) -> list[tuple[UUID, str]]:
        """Return id and content of memories without a vector of this model."""
        ...

    async def embed_memory(
        self, agent_id: UUID, memory_id: UUID, content: str, vector_model: str, vector: Sequence[float]
    ) -> bool:
        """Keep the vector of a memory that still has this content; False if it has not."""
        ...


class BudgetStore(Protocol):
    """Budgets by day: what was used, and the slices that processes hold. `scope` is `agent`, or `user:` and a user."""

    async def account_budgets(
        self, agent_id: UUID, owner: Owner, time_zone: str, accounts: Sequence[BudgetAccount]
    ) -> list[BudgetStanding]:
        """Count what was used and grant slices, all in one transaction; in the order of `accounts`.

        Used and held together never exceed a limit by what is granted here. May be called again with the same accounts
        after an unknown outcome. An owner whose lease has ended may account, and is granted nothing more.
        """
        ...

    async def read_budget(self, agent_id: UUID, scope: str, time_zone: str) -> BudgetStanding:
        """Return where a budget stands today; of what is held it says nothing."""
        ...

    async def forget_budgets(self, agent_id: UUID, time_zone: str, *, keep_days: int) -> None:
        """Delete the days before the last `keep_days`. Idempotent."""
        ...


@dataclass(frozen=True, slots=True)
class FeedbackRecord:
    """What a user thought of a turn: `score` is -1, 0 or 1; `revision` is the one the turn was accepted by."""

    turn_id: UUID
    at: datetime
    score: int
    comment: str
    revision: str


@dataclass(frozen=True, slots=True)
class ErasedUser:
    """What one step of an erasure deleted; `done`: nothing was left."""

    session_ids: Sequence[UUID]
    memories: int
    done: bool


class UserStore(Protocol):
    """All that is kept of one user of an agent: to give it away, to erase it; and feedback.

    Lists are read in pages: items behind `after`, in a fixed order, at most `limit`.
    """

    async def user_sessions(self, agent_id: UUID, user: str, *, after: str | None, limit: int) -> list[SessionRecord]:
        """Return the user's sessions by name."""
        ...

    async def session_turns(
        self, agent_id: UUID, session_id: UUID, *, after_seq: int, limit: int
    ) -> list[dict[str, Any]]:
        """Return a session's turns by turn_seq: the columns of abide.turns, `pending_content` as text."""
        ...

    async def session_feedback(
        self, agent_id: UUID, session_id: UUID, *, after: UUID | None, limit: int
    ) -> list[FeedbackRecord]:
        """Return the feedback on a session's turns, by turn."""
        ...

    async def session_approvals(
        self, agent_id: UUID, session_id: UUID, *, after: tuple[UUID, str] | None, limit: int
    ) -> list[dict[str, Any]]:
        """Return a session's approvals by turn and call: the columns of abide.approvals, content decoded."""
        ...

    async def user_memories(self, agent_id: UUID, user: str, *, after: UUID | None, limit: int) -> list[dict[str, Any]]:
        """Return the user's own memories by id: the columns of abide.memories but vectors and words."""
        ...

    async def user_usage(self, agent_id: UUID, user: str) -> list[dict[str, Any]]:
        """Return what the user used of budgets, by day: `day`, `tokens_used`, and `micros_used` in millionths."""
        ...

    async def erase_user(self, agent_id: UUID, user: str) -> ErasedUser:
        """Delete a bounded part of what is kept of the user; call it until it is done. Idempotent.

        Turns in flight are fenced out. Records of acts (`system_events`) stay until their retention is over.
        """
        ...

    async def save_feedback(
        self, agent_id: UUID, turn_id: UUID, user: str, *, score: int, comment: str
    ) -> FeedbackRecord | None:
        """Keep feedback on a turn in place of earlier one; None if the turn does not exist or is another user's."""
        ...

    async def load_feedback(self, agent_id: UUID, turn_id: UUID, user: str) -> FeedbackRecord | None:
        """Return the feedback on a turn of this user, or None."""
        ...


class Store(
    AgentStore,
    LeaseStore,
    TurnStore,
    StepStore,
    SessionStore,
    TelemetryStore,
    MemoryStore,
    BudgetStore,
    KeyStore,
    UserStore,
    Protocol,
):
    """All of it, as one adapter implements it."""

    async def check(self) -> None:
        """Make sure Postgres answers, is writable and has a new enough schema, else raise StoreUnavailable."""
        ...

    async def check_room(self) -> None:
        """Make sure that Postgres can write more than it has room for in pages it has, else raise StoreUnavailable."""
        ...

    async def aclose(self) -> None:
        """Close all connections within the deadline of one call."""
        ...
