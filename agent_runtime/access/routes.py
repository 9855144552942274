"""Which right each route needs: the one table, so that a route that is not in it is closed to all but the holders of
every right.
"""

from collections.abc import Sequence
from typing import Final

from agent_runtime.access.principal import Right

_TALK: Final = frozenset((Right.CHAT,))
_SEE: Final = frozenset((Right.CHAT, Right.READ))
_READ: Final = frozenset((Right.READ,))
_DECIDE: Final = frozenset((Right.APPROVE,))
_PENDING: Final = frozenset((Right.APPROVE, Right.READ))
_OPERATE: Final = frozenset((Right.OPERATE,))
_MEMORIES: Final = frozenset((Right.CHAT, Right.OPERATE))
_ANY: Final = frozenset(Right)

READING: Final = ("GET", "HEAD")
AGENTS: Final = "/v1/agents/"
AUDITED: Final = frozenset((Right.APPROVE, Right.OPERATE))


def agent_of(path: str) -> tuple[str, str] | None:
    """Return namespace and name of the agent that a path is about, None where it names none."""
    parts = path.split("/", 5)
    return (parts[3], parts[4]) if path.startswith(AGENTS) and len(parts) > 4 else None


def rights_for(method: str, path: str) -> frozenset[Right]:
    """Return the rights of which a caller needs one; routes may ask for more."""
    reading = method in READING
    if not path.startswith(AGENTS):
        if path.startswith("/v1/models"):
            return _ANY
        return _TALK if path == "/v1/chat/completions" else _OPERATE
    return _below_agent(reading, path.split("/")[5:])


def _below_agent(reading: bool, parts: Sequence[str]) -> frozenset[Right]:
    match parts:
        case ["sessions"] | ["sessions", _, "messages"]:
            return _SEE if reading else _TALK
        case ["sessions", _]:
            return _TALK
        case ["sessions", _, "state"]:
            return _SEE if reading else _OPERATE
        case ["turns", _] | ["turns", _, "events"]:
            return _SEE if reading else _OPERATE
        case ["turns", _, "cancel"]:
            return _TALK
        case ["turns", _, "feedback"]:
            return _SEE if reading else _TALK
        case ["turns", _, "approvals", *_]:
            return _PENDING if reading else _DECIDE
        case ["approvals"]:
            return _PENDING
        case ["feedback"]:
            return _READ
        case ["keys", *_]:
            return _OPERATE
        case ["errors"]:
            return _READ if reading else _OPERATE
        case ["memories", *_]:
            return _SEE | _OPERATE if reading else _MEMORIES
    return _OPERATE


def audited_right(method: str, path: str) -> Right | None:
    """Return the right whose use is to be recorded, None where none is: reading is, too, where it is of everything."""
    parts = path.split("/")[5:]
    if method in READING and parts[:1] != ["users"]:
        return None
    needed = rights_for(method, path)
    return next(iter(needed)) if len(needed) == 1 and needed <= AUDITED else None
