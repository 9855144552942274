"""One source of tools, whatever it is: what the catalog needs from MCP servers, HTTP requests, built-ins, own code."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from agent_api.wire import ToolCheck
from agent_runtime.supervisor import Pulse
from agent_runtime.tools.port import ToolContext

MOST_NAME: Final = 64
"""Longest name that all providers take; they also take nothing but letters, digits, '_' and '-'."""
_NO_NAME: Final = re.compile(r"[^a-zA-Z0-9_-]")


def usable_name(name: str) -> str:
    """Return a tool's name as models get it."""
    return _NO_NAME.sub("_", name)[:MOST_NAME]


def long_name(entry: str, tool: str) -> str:
    """Return the name that says whose tool it is."""
    return f"{entry}_{tool}"[:MOST_NAME]


def is_named(entry: str, tool: str, said: Iterable[str]) -> bool:
    """Whether the spec names this tool: as its server does, as models do, or with the entry's name before it."""
    names = (tool, long_name(entry, tool))
    return any(usable_name(one) in names for one in said)


@dataclass(frozen=True, slots=True)
class Offered:
    """One tool of a source. `parameters` is a JSON Schema of an object, `trusted` whether its author is the agent's.

    `side_effects`: what the source itself says of it; `idempotency_argument`: in which argument it takes a key.
    """

    name: str
    description: str
    parameters: dict[str, Any]
    side_effects: bool = True
    trusted: bool = True
    idempotency_argument: str | None = None


class ToolFailed(Exception):  # noqa: N818 - an answer for the model, not a mistake of ours
    """A call that gave no result; the text is for the model: what happened, and what that means."""


class Toolset(Protocol):
    """One source of tools. Everything but `call` and `watch` returns at once."""

    @property
    def name(self) -> str:
        """Name of the entry."""
        ...

    @property
    def discovered(self) -> bool:
        """Whether `tools` was ever known; until then nobody can say what a call would do."""
        ...

    @property
    def is_up(self) -> bool:
        """Whether its tools can be called, as far as anybody knows."""
        ...

    def tools(self) -> Sequence[Offered]:
        """Return its tools as last known, also while it is down."""
        ...

    async def call(self, tool: str, arguments: Mapping[str, Any], context: ToolContext, *, timeout: float) -> str:
        """Call a tool and return what it gave, at most MOST_OUTPUT characters and a note.

        Raises ToolFailed. `timeout` is for what the source does in several parts; whoever calls keeps the deadline.
        """
        ...

    def check(self) -> ToolCheck:
        """Return what is known of it."""
        ...

    async def watch(self, pulse: Pulse) -> None:
        """Find out what it can do, and keep looking; for ever, or until there is nothing to look at."""
        ...

    async def aclose(self) -> None:
        """Close its connections."""
        ...


MOST_OUTPUT = 65_536
"""Characters of a result that a model gets to read."""


def cut(text: str, *, more: bool = False) -> str:
    """Return what a model gets of a result. `more`: there was more than `text` to begin with."""
    # Postgres keeps no NUL in a text.
    text = text.replace("\x00", "\ufffd")
    if len(text) <= MOST_OUTPUT and not more:
        return text
    return f"{text[:MOST_OUTPUT]}\n[cut: only the first {MOST_OUTPUT} characters are shown]"
