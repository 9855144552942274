"""Named points before and after every statement of the store, where tests can make the process die, wait or fail.

Names are `store.<method>.<n>.before` and `.after`, n counting the method's statements from 1. Set by the environment:
`ABIDE_FAILPOINTS="name=action[,name=action…]"` with actions `kill[:skip]` (SIGKILL to this process, after letting
`skip` hits pass), `sleep:SECONDS` and `error[:times]` (raise StoreUnavailable, at every hit or at the first `times`);
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


START: Final = (*_points("check", 1), *_points("register", 1, 2))
"""What a process passes before it is ready."""

PLAIN_TURN: Final = (*_points("accept", 1), *_points("load_history", 1), *_points("complete", 1))
"""What a turn without queueing, duplicates or takeover passes, in this order."""

QUEUED_TURN: Final = _points("start_next", 1)
"""What the start of a queued turn passes besides."""

REPEATED_MESSAGE: Final = (*_points("accept", 2), *_points("get_turn", 1))
"""What a message sent again passes besides, also in another process than the one that runs its turn."""

AUTO_SAVE: Final = (*_points("load_state", 1), *_points("save_state", 1))
"""What saving a session's snapshot passes."""

READING: Final = _points("list_messages", 1)
"""What reading a session's history passes."""

UPKEEP: Final = (
    *_points("renew", 1),
    *_points("claim_orphans", 1, 2),
    *_points("beat", 1),
    *_points("record_metrics", 1),
)
"""What comes round by itself every few seconds; orphaned and waiting turns are taken over there."""

DRAIN: Final = _points("release", 1)
"""What only the end of a process passes."""

EVERY: Final = (*START, *PLAIN_TURN, *QUEUED_TURN, *REPEATED_MESSAGE, *AUTO_SAVE, *READING, *UPKEEP, *DRAIN)
"""All that a process passes which talks, is taken over and drained, without faults of Postgres."""


@dataclass(frozen=True, slots=True)
class Action:
    """What happens at a point: `kind` is kill, sleep or error; `amount` the hits to skip, seconds, hits that fail."""

    kind: str
    amount: float = 0.0


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
        if action.kind == "sleep":
            await asyncio.sleep(action.amount)
        elif action.kind == "error":
            if not action.amount or self._hits[name] <= action.amount:
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
    kind, _, amount = action.partition(":")
    try:
        if not name or kind not in ("kill", "sleep", "error") or (kind == "sleep" and not amount):
            raise ValueError
        return name, Action(kind, float(amount or 0))
    except ValueError:
        raise ValueError(
            f"ABIDE_FAILPOINTS: {part!r} is not name=kill, name=kill:SKIP, name=sleep:SECONDS or name=error[:TIMES]"
        ) from None
