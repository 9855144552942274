"""Built-in tools: the clock, and the memories of the user who asks."""

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from agent_api.v1alpha1 import ToolEntry
from agent_api.wire import ToolCheck
from agent_runtime.clock import Clock
from agent_runtime.supervisor import Pulse
from agent_runtime.tools.port import ToolContext
from agent_runtime.tools.standing import Standing, Unusable, after_failure, after_success
from agent_runtime.tools.toolset import Offered, ToolFailed

if TYPE_CHECKING:
    from agent_runtime.memory.port import Memory, MemoryTools

_KINDS: Final = ["general", "conversation", "task_result", "learning"]
_TAGS: Final = {"type": "array", "items": {"type": "string", "minLength": 1, "maxLength": 64}, "maxItems": 32}

Handler = Callable[[Mapping[str, Any], ToolContext], Awaitable[str]]


def _object(required: Sequence[str], **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


CLOCK: Final = (
    Offered(
        "current_time",
        "The present date and time. Call it whenever an answer depends on what day or time it is.",
        _object((), time_zone={"type": "string", "description": "IANA name, for example Europe/Paris. Default: UTC."}),
        side_effects=False,
    ),
)
MEMORY: Final = (
    Offered(
        "remember",
        "Keep something about this user for later conversations: preferences, facts, results.",
        _object(
            ("content",),
            content={"type": "string", "minLength": 1, "maxLength": 8000, "description": "One fact, in full words."},
            type={"enum": _KINDS, "description": "What it is about. Default: general."},
            importance={"type": "integer", "minimum": 1, "maximum": 10, "description": "10 is critical. Default: 5."},
            tags=_TAGS,
        ),
        # The same key keeps a memory once: calling again after a crash does no harm.
        side_effects=False,
    ),
    Offered(
        "recall",
        "Find what was kept about this user earlier.",
        _object(
            (),
            query={"type": "string", "maxLength": 8000, "description": "What to look for, in words."},
            type={"enum": _KINDS},
            tags=_TAGS,
            limit={"type": "integer", "minimum": 1, "maximum": 50, "description": "Default: 5."},
        ),
        side_effects=False,
    ),
    Offered(
        "forget",
        "Delete one memory of this user, by the id that recall gave.",
        _object(("id",), id={"type": "string", "description": "Id of the memory."}),
        side_effects=False,
    ),
)


class BuiltinToolset:
    """One entry of type Builtin: needs no network, so it is never down for long."""

    def __init__(self, entry: ToolEntry, clock: Clock, memory: "MemoryTools | None" = None) -> None:
        assert entry.builtin is not None  # noqa: S101 - the entry's type says so
        self.name = entry.name
        self.discovered = True
        self._clock = clock
        self._memory = memory
        is_clock = entry.builtin.name == "Clock"
        self._tools: Sequence[Offered] = CLOCK if is_clock else MEMORY
        self._handlers: Mapping[str, Handler] = (
            {"current_time": self._current_time}
            if is_clock
            else {"remember": self._remember, "recall": self._recall, "forget": self._forget}
        )
        missing = Unusable("needs memories: set spec.memories.enabled")
        self._standing = (
            after_failure(Standing(), missing, clock.now())
            if memory is None and not is_clock
            else after_success(Standing(), clock.now())
        )

    @property
    def is_up(self) -> bool:
        """Whether it may be called."""
        return self._standing.ok is not False

    def tools(self) -> Sequence[Offered]:
        """Return its tools."""
        return self._tools

    def check(self) -> ToolCheck:
        """Return what is known of it."""
        return self._standing.to_check(self.name, "Builtin", [tool.name for tool in self._tools])

    async def watch(self, pulse: Pulse) -> None:
        """There is nothing to look at."""
        while True:
            pulse()
            await self._clock.sleep(10.0)

    async def aclose(self) -> None:
        """There is nothing to close."""

    async def call(self, tool: str, arguments: Mapping[str, Any], context: ToolContext, *, timeout: float) -> str:
        """Call one of them. Raises ToolFailed."""
        return await self._handlers[tool](arguments, context)

    async def _current_time(self, arguments: Mapping[str, Any], context: ToolContext) -> str:
        now = self._clock.now()
        name = str(arguments.get("time_zone") or "UTC")
        if name.upper() not in ("UTC", "Z", "GMT"):
            now = _in_zone(now, name)
        return json.dumps({"time": now.isoformat(timespec="seconds"), "weekday": f"{now:%A}", "timeZone": name})

    async def _remember(self, arguments: Mapping[str, Any], context: ToolContext) -> str:
        kept = await self._with_memory(
            lambda memory: memory.remember(
                context.user,
                arguments["content"],
                kind=arguments.get("type", "general"),
                importance=arguments.get("importance", 5),
                tags=arguments.get("tags", ()),
                key=context.key or None,
            )
        )
        return json.dumps({"remembered": str(kept.id)})

    async def _recall(self, arguments: Mapping[str, Any], context: ToolContext) -> str:
        found = await self._with_memory(
            lambda memory: memory.recall(
                context.user,
                arguments.get("query", ""),
                kind=arguments.get("type"),
                tags=arguments.get("tags", ()),
                limit=arguments.get("limit", 5),
            )
        )
        return json.dumps({"memories": [_shown(one) for one in found]}, ensure_ascii=False)

    async def _forget(self, arguments: Mapping[str, Any], context: ToolContext) -> str:
        try:
            wanted = UUID(arguments["id"])
        except ValueError:
            raise ToolFailed("id: is no id of a memory; take one that recall gave") from None
        gone = await self._with_memory(lambda memory: memory.forget(context.user, wanted))
        if not gone:
            raise ToolFailed("there is no memory of this id that the user may delete")
        return json.dumps({"forgotten": str(wanted)})

    async def _with_memory(self, call: "Callable[[MemoryTools], Awaitable[Any]]") -> Any:
        from agent_runtime.memory.port import InvalidMemory
        from agent_store.errors import StoreError

        if self._memory is None:
            raise ToolFailed("this agent keeps no memories; answer without them")
        try:
            return await call(self._memory)
        except InvalidMemory as error:
            raise ToolFailed(str(error)) from None
        except StoreError:
            raise ToolFailed("memories cannot be reached right now; answer without them") from None


def _in_zone(now: datetime, name: str) -> datetime:
    from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

    try:
        return now.astimezone(ZoneInfo(name))
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ToolFailed(f"time_zone: {name[:60]!r} is not known; write an IANA name such as Europe/Paris") from None


def _shown(memory: "Memory") -> dict[str, Any]:
    return {
        "id": str(memory.id),
        "content": memory.content,
        "type": str(memory.type),
        "importance": memory.importance,
        "tags": list(memory.tags),
        "at": memory.created_at.isoformat(timespec="seconds"),
    }
