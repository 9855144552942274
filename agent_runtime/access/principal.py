"""Who a request comes from, and what it may do; the edge finds out, routes ask."""

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Right(StrEnum):
    """What a caller may do with an agent; the same words are verbs of Kubernetes RBAC on `agents`."""

    CHAT = "chat"
    """Talk: send messages, follow and cancel own turns, own sessions."""
    READ = "read"
    """See what every user wrote and what went wrong, without changing anything."""
    APPROVE = "approve"
    """Decide on tool calls that wait for a person."""
    OPERATE = "operate"
    """Change what is kept: states, export and erasure of a user's data."""


ALL_RIGHTS: Final = frozenset(Right)


@dataclass(frozen=True, slots=True)
class Principal:
    """Who calls. `user`: the user it speaks as, or None if it may name anyone in the header `Abide-User`.

    `name` is for the audit: which key, which subject of a token. `agents`: `namespace/name` of the agents it is for,
    None for all that the process serves.
    """

    name: str
    rights: Collection[Right] = ALL_RIGHTS
    user: str | None = None
    agents: Collection[str] | None = None


ANYBODY: Final = Principal("anybody")
"""Who calls where nobody is asked (`ABIDE_AUTH=none`)."""
SCOPE_KEY: Final = "abide.principal"
"""Where the edge leaves the Principal in the ASGI scope."""
