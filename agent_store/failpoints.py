"""Named points before and after every statement of the store, where tests can make the process die, wait or fail.

Names are `store.<method>.<n>.before` and `.after`, n counting the method's statements from 1. Set by the environment:
`ABIDE_FAILPOINTS="name=action[,name=action…]"` with actions `kill[:skip]` (SIGKILL to this process, after letting
`skip` hits pass), `sleep:SECONDS` (`sleep:SECONDS:SKIP`: once, after so many hits) and `error[:times[:skip]]` (raise
StoreUnavailable, at every hit or at the first `times`, after letting `skip` hits pass);
`ABIDE_FAILPOINTS_TRACE=FILE` appends each name that is passed. For tests only: without either variable the store does
not call anything here.
"""

import asyncio
import os
import signal
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Self

from agent_api.conditions import Reason
from agent_store.errors import StoreUnavailable


def _points(method: str, *statements: int) -> tuple[str, ...]:
    return tuple(f"store.{method}.{n}.{when}" for n in statements for when in ("before", "after"))


FIRST_START: Final = _points("open_keys", 2, 3)
"""What only the first process of an agent passes, which makes its data key."""

START: Final = (
    *_points("check", 1),
    *_points("register", 1),
    *_points("open_keys", 1),
    *FIRST_START,
    *_points("register", 2),
)
"""What a process passes before it is ready."""

PLAIN_TURN: Final = (*_points("accept", 1), *_points("load_history", 1), *_points("complete", 1))
"""What a turn without queueing, duplicates or takeover passes, in this order."""

QUEUED_TURN: Final = _points("start_next", 1)
"""What the start of a queued turn passes besides."""

REPEATED_MESSAGE: Final = (*_points("accept", 2), *_points("get_turn", 1))
"""What a message sent again passes besides, also in another process than the one that runs its turn."""

AUTO_SAVE: Final = _points("save_state", 1)
"""What saving a session's snapshot passes."""

FOREIGN_STATE: Final = _points("load_state", 1)
"""What saving passes besides where another process, or a user, wrote the snapshot before: a read, once per session."""

READING: Final = (*_points("list_messages", 1), *_points("list_steps", 1))
"""What reading a session's history and a turn passes."""

UPKEEP: Final = (
    *_points("renew", 1),
    *_points("claim_orphans", 1, 2),
    *_points("expire_approvals", 1),
    *_points("beat", 1),
    *_points("record_metrics", 1),
)
"""What comes round by itself every few seconds; orphaned and waiting turns are taken over there."""

WISHES: Final = (
    *_points("cancel_turn", 1),
    *_points("interrupt", 1),
    *_points("delete_old_sessions", 1),
)
"""What is passed where somebody cancels or interrupts, or sessions are past their retention."""

TOOL_TURN: Final = (
    *_points("claim_orphans", 3),
    *_points("write_steps", 1),
    *_points("park", 1),
    *_points("load_journal", 1, 2),
    *_points("forget_results", 1),
    *_points("find_approval", 1),
    *_points("decide", 1),
)
"""What turns pass besides whose tools have side effects and wait for a person."""

TOOL_READING: Final = (
    *_points("list_approvals", 1),
    *_points("cancel_waiting", 1),
    *_points("mark_alone", 1),
)
"""What is passed rarely: looking at steps and approvals, cancelling what waits, running a suspect alone."""

MEMORIES: Final = tuple(
    point
    for method in (
        "save_memory",
        "seed_memories",
        "get_memory",
        "change_memory",
        "delete_memory",
        "list_memories",
        "recall_memories",
        "touch_memories",
        "list_unembedded",
        "embed_memory",
    )
    for point in _points(method, 1)
)
"""What agents with memories pass besides: no turn depends on any of it."""

KEYS: Final = (
    *_points("list_keys", 1),
    *_points("reload_keys", 1),
    *_points("rotate_key", 1, 2, 3),
    *_points("pass_keys", 1, 2),
)
"""What agents with encryption pass besides: after a rotation, and when somebody asks for it."""

USERS: Final = tuple(
    point
    for method in (
        "user_sessions",
        "session_turns",
        "session_feedback",
        "session_approvals",
        "user_memories",
        "user_usage",
        "save_feedback",
        "load_feedback",
        "record_event",
        "record_error",
    )
    for point in _points(method, 1)
) + _points("erase_user", 1, 2, 3)
"""What export and erasure of a user, feedback and records pass: no turn depends on any of it."""

FULL_DISK: Final = _points("check_room", 1)
"""What a process passes after Postgres could not write, until it can again."""

DRAIN: Final = _points("release", 1)
"""What only the end of a process passes."""

BUDGETED_TURN: Final = _points("account_budgets", 1)
"""What a turn passes besides, before its first model call and after its commit, where a budget is set."""

BUDGET_UPKEEP: Final = (*_points("read_budget", 1), *_points("forget_budgets", 1))
"""What comes round by itself where a budget is set."""

EVERY: Final = (*START, *PLAIN_TURN, *QUEUED_TURN, *REPEATED_MESSAGE, *AUTO_SAVE, *READING, *UPKEEP, *DRAIN)
"""All that processes pass which start, talk, are taken over and drained, without faults of Postgres."""


@dataclass(frozen=True, slots=True)
class Action:
    """What happens at a point: `kind` is kill, sleep or error; `amount` the hits to skip, seconds, hits that fail.

    `skip`: hits of sleep and error that pass before; None: sleep at each.
    """

    kind: str
    amount: float = 0.0
    skip: int | None = None


class Failpoints:
    """The points that are set, and how often each was passed."""

    def __init__(self, actions: Mapping[str, Action] | None = None, *, trace: str | None = None) -> None:
        self._actions = dict(actions or {})
        self._trace = trace
        self._hits: Counter[str] = Counter()

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Self:
        """Read ABIDE_FAILPOINTS and ABIDE_FAILPOINTS_TRACE. Raises ValueError saying what is wrong."""
        actions = dict(_parse(part) for part in environ.get("ABIDE_FAILPOINTS", "").split(",") if part.strip())
        return cls(actions, trace=environ.get("ABIDE_FAILPOINTS_TRACE") or None)

    @property
    def active(self) -> bool:
        """Whether anything is set; if not, nobody needs to call hit()."""
        return bool(self._actions) or self._trace is not None

    @property
    def hits(self) -> Mapping[str, int]:
        """How often each point was passed or acted on."""
        return self._hits

    async def hit(self, name: str) -> None:
        """Pass the point `name`, or do what is set there."""
        self._hits[name] += 1
        if self._trace is not None:
            self._append(self._trace, name)
        action = self._actions.get(name)
        if action is None:
            return
        hits = self._hits[name] - (action.skip or 0)
        if action.kind == "sleep":
            if action.skip is None or hits == 1:
                await asyncio.sleep(action.amount)
        elif action.kind == "error":
            if hits > 0 and (not action.amount or hits <= action.amount):
                raise StoreUnavailable(Reason.CONNECTION_REFUSED, f"failpoint {name}", sent=name.endswith(".after"))
        elif self._hits[name] > action.amount:
            os.kill(os.getpid(), signal.SIGKILL)

    @staticmethod
    def _append(trace: str, name: str) -> None:
        # One write of one line, so that it is there even if the next thing is a SIGKILL.
        file = os.open(trace, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(file, f"{name}\n".encode())
        finally:
            os.close(file)


NO_FAILPOINTS: Final = Failpoints()


def _parse(part: str) -> tuple[str, Action]:
    name, _, action = part.strip().partition("=")
    kind, _, numbers = action.partition(":")
    amount, _, skip = numbers.partition(":")
    try:
        if not name or kind not in ("kill", "sleep", "error") or (kind == "sleep" and not amount):
            raise ValueError
        if skip and kind == "kill":
            raise ValueError
        return name, Action(kind, float(amount or 0), int(skip) if skip else None)
    except ValueError:
        raise ValueError(
            f"ABIDE_FAILPOINTS: {part!r} is not name=kill, name=kill:SKIP, name=sleep:SECONDS[:SKIP] or"
            " name=error[:TIMES[:SKIP]]"
        ) from None
