"""The class that users derive from, and what its hooks are given."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Protocol, TypeVar, overload
from uuid import UUID

TOOL_MARK: Final = "__abide_tool__"
F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Turn:
    """One message on its way to a reply. `system_prompt` is the manifest's. A turn without session keeps nothing."""

    id: UUID
    user: str
    session: str
    session_id: UUID
    content: str
    system_prompt: str


@dataclass(frozen=True, slots=True)
class Reply:
    """What `before_turn` returns to answer without asking a model."""

    content: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a turn ended, committed: `status` is completed, fallback, failed or cancelled."""

    status: str
    reply: str | None
    model: str | None
    error_type: str | None
    error_message: str | None
    input_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Call:
    """For whom a tool is called. A tool that wants it has a parameter annotated `abide.Call`; models do not see it.

    `key` is the same whenever this very call is made again after a crash: hand it on as idempotency key.
    """

    user: str
    session: str
    session_id: UUID
    turn_id: UUID
    key: str


class ToolError(Exception):
    """Raised by a tool to tell the model what went wrong; the text of any other exception is kept from it."""


class Memory(Protocol):
    """One memory, as recalled."""

    @property
    def id(self) -> UUID:
        """Its id, for `forget`."""
        ...

    @property
    def content(self) -> str:
        """What is remembered."""
        ...

    @property
    def importance(self) -> int:
        """From 1 to 10."""
        ...

    @property
    def tags(self) -> Sequence[str]:
        """Words to find it by."""
        ...

    @property
    def updated_at(self) -> datetime:
        """When it was last changed."""
        ...


class Memories(Protocol):
    """The agent's memories; needs `spec.memories.enabled`."""

    async def remember(
        self,
        user: str,
        content: str,
        *,
        kind: str = "general",
        importance: int = 5,
        tags: Sequence[str] = (),
        key: str | None = None,
    ) -> Memory:
        """Keep a memory; with the same `key` it is kept once."""
        ...

    async def recall(
        self,
        user: str,
        query: str = "",
        *,
        kind: str | None = None,
        tags: Sequence[str] = (),
        least_importance: int = 1,
        limit: int = 5,
    ) -> Sequence[Memory]:
        """Return the memories of a user, and shared ones, that fit best."""
        ...

    async def forget(self, user: str, memory_id: UUID) -> bool:
        """Delete a memory; False if there is none."""
        ...


class Services(Protocol):
    """What the runtime does for own code."""

    @property
    def name(self) -> str:
        """Name of the Agent."""
        ...

    @property
    def namespace(self) -> str:
        """Namespace of the Agent."""
        ...

    @property
    def spec(self) -> Mapping[str, Any]:
        """The Agent's spec as it was written, with defaults, in camelCase."""
        ...

    @property
    def memories(self) -> Memories:
        """The agent's memories. Raises RuntimeError where `spec.memories.enabled` is false."""
        ...

    def record_metric(self, metric_type: str, value: float = 1.0) -> None:
        """Add a sample; sums are written to `agent_metrics` every few seconds."""
        ...

    def record_error(self, error_type: str, message: str) -> None:
        """Write a row to `agent_errors`, scrubbed of secrets."""
        ...


class Agent:
    """Base class of own code. One instance per Agent and process; hooks of several turns may run at once.

    Every hook may be `async def`, or `def` and is then called in a thread. A hook that raises or takes longer than its
    deadline ends that turn as failed; the agent goes on. Hooks before a turn may be called again for the same turn,
    should its process end; nothing that was not committed has happened.
    """

    runtime: Services
    """Set before `init`."""

    async def init(self) -> None:
        """Called once, before the process is ready; called again after a pause when it raises. At most 60 s."""

    async def before_turn(self, turn: Turn) -> str | Reply | None:
        """Called before anything else; at most 10 s.

        Return a text for the model to read instead of the message, a Reply to answer without a model, or None.
        """
        return None

    async def prompt(self, turn: Turn) -> str | None:
        """Return the system prompt of this turn, or None for the manifest's. At most 10 s."""
        return None

    def tools(self) -> Sequence[Callable[..., Any]]:
        """Return the functions that models may call. Called once, after `init`. Default: all methods marked `tool`."""
        return [getattr(self, name) for name in _marked(type(self))]

    async def after_turn(self, turn: Turn, outcome: Outcome) -> None:
        """Called when the outcome is committed, in the background; at most 10 s. Not called again after a crash."""

    async def cleanup(self) -> None:
        """Called when the process is being stopped, after the last turn; at most 5 s."""


@dataclass(frozen=True, slots=True)
class ToolOptions:
    """What the decorator was told."""

    name: str | None
    side_effects: bool
    idempotency_argument: str | None
    timeout: float


@overload
def tool(function: F, /) -> F: ...


@overload
def tool(
    *,
    name: str | None = None,
    side_effects: bool = True,
    idempotency_argument: str | None = None,
    timeout: float = 30.0,
) -> Callable[[F], F]: ...


def tool(
    function: F | None = None,
    /,
    *,
    name: str | None = None,
    side_effects: bool = True,
    idempotency_argument: str | None = None,
    timeout: float = 30.0,
) -> F | Callable[[F], F]:
    """Mark a function or method as a tool: annotations are its schema, the docstring its description.

    `side_effects`: calling it twice may do something twice, so that a call whose outcome is unknown is not repeated.
    `idempotency_argument`: the parameter that takes a key which makes repeating safe; the runtime fills it in.
    `timeout`: seconds a call may take.
    """

    def mark(marked: F) -> F:
        setattr(marked, TOOL_MARK, ToolOptions(name, side_effects, idempotency_argument, timeout))
        return marked

    return mark if function is None else mark(function)


def options_of(function: Callable[..., Any]) -> ToolOptions:
    """Return what `tool` was told, or its defaults."""
    found = getattr(function, TOOL_MARK, None)
    return found if isinstance(found, ToolOptions) else ToolOptions(None, True, None, 30.0)


def _marked(kind: type) -> list[str]:
    """Return the names of marked methods, base classes first, each in the order of its class."""
    names: dict[str, None] = {}
    for part in reversed(kind.__mro__):
        for name, value in vars(part).items():
            if hasattr(value, TOOL_MARK):
                names[name] = None
    return [name for name in names if hasattr(getattr(kind, name, None), TOOL_MARK)]
