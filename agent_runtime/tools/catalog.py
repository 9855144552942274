"""All tools of one agent: from the entries of spec.tools to what a model may call, and the one way to call it."""

import asyncio
import json
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from agent_api.v1alpha1 import SideEffect, ToolEntry
from agent_api.wire import ToolCheck
from agent_runtime.clock import Clock
from agent_runtime.llm.port import ToolCall, ToolSpec
from agent_runtime.tools.arguments import BadSchema, Checker, without_property
from agent_runtime.tools.builtin import BuiltinToolset
from agent_runtime.tools.headers import SecretHeaders
from agent_runtime.tools.port import Approval, ToolContext, ToolPolicy, ToolResult
from agent_runtime.tools.toolset import MOST_NAME, Offered, ToolFailed, Toolset, cut, is_named, long_name

if TYPE_CHECKING:
    from agent_runtime.memory.port import MemoryTools

MOST_OFFERED: Final = 128
"""More than that no provider takes in one request."""
OWN_CODE_SECONDS: Final = 3600.0
"""Functions of own code keep deadlines of their own; this one is behind them."""
PREPARE_SECONDS: Final = 3.0
"""So long the first turn of a process waits for tools to be discovered."""
IDEMPOTENCY_HEADER: Final = "Idempotency-Key"
_UNKNOWN: Final = ToolPolicy(side_effects=False)


class CallOutcome(StrEnum):
    """How a call ended, as metrics count it."""

    OK = "ok"
    ERROR = "error"
    TIMEOUT = "timeout"
    REFUSED = "refused"


class ToolObserver(Protocol):
    """Who is told of calls."""

    def tool_called(self, entry: str, outcome: str, seconds: float) -> None:
        """Count a call."""
        ...

    def broke(self, error: BaseException, trace: str) -> None:
        """Note a defect, with its traceback."""
        ...


@dataclass(frozen=True, slots=True)
class Source:
    """One source of tools with what the spec says of it; `entry` is None for tools of own code."""

    toolset: Toolset
    entry: ToolEntry | None = None
    timeout: float = 30.0

    def offered(self) -> Sequence[Offered]:
        """Return the tools that models may call."""
        allow = self.entry.allow if self.entry is not None else ()
        return [tool for tool in self.toolset.tools() if not allow or self._is_named(tool.name, allow)]

    def policy_of(self, name: str, *, side_effects: bool) -> ToolPolicy:
        """Return how the tool of this name is called; `side_effects` is what the source itself says."""
        said = self._said(name)
        return ToolPolicy(
            side_effects=side_effects if said is None else not said.repeatable,
            idempotency_argument=(said.idempotency_argument or None) if said is not None else None,
            approval=self._approval(name),
        )

    def _is_named(self, name: str, said: Iterable[str]) -> bool:
        return is_named(self.toolset.name, name, said)

    def _said(self, name: str) -> SideEffect | None:
        effects = self.entry.side_effects if self.entry is not None else {}
        return next((effect for said, effect in effects.items() if self._is_named(name, (said,))), None)

    def _approval(self, name: str) -> Approval | None:
        spec = self.entry.approval if self.entry is not None else None
        if spec is None or not self._is_named(name, spec.for_):
            return None
        return Approval(float(spec.timeout_seconds), spec.on_timeout)


@dataclass(frozen=True, slots=True)
class Binding:
    """What one name leads to."""

    name: str
    source: Source
    tool: Offered
    policy: ToolPolicy

    @property
    def spec(self) -> ToolSpec:
        """What the model sees; the argument that the runtime fills in is not its business."""
        own = self.policy.idempotency_argument
        shown = without_property(self.tool.parameters, own) if own else self.tool.parameters
        return ToolSpec(self.name, self.tool.description, shown)


def bind(sources: Iterable[Source]) -> dict[str, Binding]:
    """Return what each name leads to: a tool's own name, or `entry_tool` where two entries have one of that name.

    Tools that are down keep their names, so that no name changes its meaning because a server is away.
    """
    found = [(source, tool) for source in sources for tool in source.offered()]
    count = Counter(tool.name for _, tool in found)
    bindings: dict[str, Binding] = {}
    for source, tool in found:
        name = tool.name if count[tool.name] == 1 else long_name(source.toolset.name, tool.name)
        if name in bindings:
            continue
        policy = source.policy_of(tool.name, side_effects=tool.side_effects)
        if tool.idempotency_argument is not None and policy.idempotency_argument is None:
            policy = replace(policy, idempotency_argument=tool.idempotency_argument)
        bindings[name] = Binding(name, source, tool, policy)
    return bindings


class AgentTools:
    """Tools as the turn engine needs them (see the port)."""

    def __init__(self, sources: Sequence[Source], clock: Clock, observer: ToolObserver) -> None:
        self._sources = tuple(sources)
        self._clock = clock
        self._observer = observer
        self._seen_tools: tuple[Sequence[Offered], ...] = ()
        self._bindings: dict[str, Binding] = {}
        self._checkers: dict[int, tuple[Offered, Checker | None]] = {}
        self._prepared = not self._sources

    @property
    def toolsets(self) -> Sequence[Toolset]:
        """The sources, each with a loop `watch` for the supervisor to run."""
        return tuple(source.toolset for source in self._sources)

    async def prepare(self) -> None:
        """Return once every source was looked at, or after PREPARE_SECONDS; at once from then on."""
        deadline = self._clock.monotonic() + PREPARE_SECONDS
        while not self._prepared:
            waiting = any(not one.discovered and one.check().ok is None for one in self.toolsets)
            if waiting and self._clock.monotonic() < deadline:
                # Asked only until it is first true, and by the first turns of a process alone.
                await self._clock.sleep(0.05)
            else:
                self._prepared = True

    async def aclose(self) -> None:
        """Close all connections."""
        for toolset in self.toolsets:
            await toolset.aclose()

    # ---- the port

    def specs(self) -> Sequence[ToolSpec]:
        """Return what the model may ask for now, in the order of spec.tools."""
        up = [one for one in self._bound().values() if one.source.toolset.is_up]
        return [one.spec for one in up[:MOST_OFFERED]]

    def policy(self, name: str) -> ToolPolicy:
        """Return how a tool may be called.

        While tools of an entry are not discovered yet, a name may turn out to be one of them: then it counts as having
        side effects, and needs the approval that the spec asks for.
        """
        found = self._find(name)
        if found is not None:
            return found.policy
        for source in self._sources:
            if not source.toolset.discovered:
                own = name.removeprefix(f"{source.toolset.name}_")
                policies = [source.policy_of(one, side_effects=True) for one in (name, own)]
                return next((one for one in policies if one.approval is not None), policies[0])
        return _UNKNOWN

    def checks(self) -> Sequence[ToolCheck]:
        """Return what is known of each entry, with the names of its tools, MOST_OFFERED in all: health stays short."""
        bindings = list(self._bound().values())[:MOST_OFFERED]
        checks = []
        for source in self._sources:
            names = [one.name for one in bindings if one.source is source]
            checks.append(source.toolset.check().model_copy(update={"tools": names}))
        return checks

    async def call(self, call: ToolCall, context: ToolContext) -> ToolResult:
        """Call a tool; whatever happens is a result that the model can read."""
        found = self._find(call.name)
        if found is None:
            return ToolResult(self._unknown(call.name), is_error=True)
        started = self._clock.monotonic()
        outcome, result = await self._call(found, call, context)
        self._observer.tool_called(found.source.toolset.name, outcome, self._clock.monotonic() - started)
        return result

    async def _call(self, found: Binding, call: ToolCall, context: ToolContext) -> tuple[CallOutcome, ToolResult]:
        problem = self._problem_of(found, call.arguments)
        if problem:
            return CallOutcome.REFUSED, ToolResult(problem, is_error=True)
        arguments = self._filled_in(found, call.arguments, context)
        timeout = found.source.timeout
        try:
            async with asyncio.timeout(timeout) as deadline:
                text = await found.source.toolset.call(found.tool.name, arguments, context, timeout=timeout)
        except ToolFailed as failure:
            return CallOutcome.ERROR, ToolResult(cut(f"{call.name}: {failure}"), is_error=True)
        except TimeoutError as error:
            if not deadline.expired():
                return self._broke(call, error)
            unsure = "; whether it took effect is not known" if found.policy.side_effects else ""
            text = f"{call.name}: no answer within {timeout:g} s{unsure}"
            return CallOutcome.TIMEOUT, ToolResult(text, is_error=True)
        except Exception as error:  # a defect of one tool must not cost the turn
            return self._broke(call, error)
        return CallOutcome.OK, ToolResult(cut(text))

    def _broke(self, call: ToolCall, error: Exception) -> tuple[CallOutcome, ToolResult]:
        self._observer.broke(error, traceback.format_exc())
        text = f"{call.name}: could not be called because of an internal error; answer without it"
        return CallOutcome.ERROR, ToolResult(text, is_error=True)

    def _problem_of(self, found: Binding, arguments: Any) -> str:
        """Return why these arguments cannot be sent, in words a model can act on; empty if they can."""
        lead = f"{found.name}: the arguments do not fit and nothing was called:"
        if not isinstance(arguments, dict):
            return f"{lead} they must be a JSON object"
        try:
            json.dumps(arguments, ensure_ascii=False).encode("utf-8")
        except (ValueError, TypeError, RecursionError):
            return f"{lead} they hold characters that are no text"
        try:
            checker = self._checker(found)
        except BadSchema:
            return f"{found.name}: cannot be called, since its schema is wrong; answer without it"
        misfits = checker.misfits(arguments)
        return f"{lead} {'; '.join(map(str, misfits))}" if misfits else ""

    def _checker(self, found: Binding) -> Checker:
        key = id(found.tool)
        known = self._checkers.get(key)
        if known is None or known[0] is not found.tool:
            known = self._checkers[key] = (found.tool, self._make_checker(found))
        if known[1] is None:
            raise BadSchema(found.name)
        return known[1]

    def _make_checker(self, found: Binding) -> Checker | None:
        try:
            return Checker(found.spec.parameters, trusted=found.tool.trusted)
        except BadSchema:
            return None

    @staticmethod
    def _filled_in(found: Binding, arguments: Mapping[str, Any], context: ToolContext) -> dict[str, Any]:
        own = found.policy.idempotency_argument
        filled = dict(arguments)
        if own and own != IDEMPOTENCY_HEADER:
            filled[own] = context.key
        return filled

    def _find(self, name: str) -> Binding | None:
        bindings = self._bound()
        found = bindings.get(name)
        if found is not None:
            return found
        # A name from before another server's tools came or went.
        return next(
            (one for one in bindings.values() if long_name(one.source.toolset.name, one.tool.name) == name), None
        )

    def _unknown(self, name: str) -> str:
        names = ", ".join(spec.name for spec in self.specs()) or "none"
        return f"unknown tool {name[:MOST_NAME]!r}; there are: {names}"

    def _bound(self) -> Mapping[str, Binding]:
        """Return the bindings, made anew when a source has other tools than before."""
        tools = tuple(toolset.tools() for toolset in self.toolsets)
        if len(tools) != len(self._seen_tools) or any(
            now is not before for now, before in zip(tools, self._seen_tools, strict=True)
        ):
            self._seen_tools = tools
            self._bindings = bind(self._sources)
            self._checkers.clear()
        return self._bindings


def build_tools(
    entries: Sequence[ToolEntry],
    secrets: Path,
    clock: Clock,
    observer: ToolObserver,
    on_change: Callable[[], None],
    *,
    memory: "MemoryTools | None" = None,
    extra: Sequence[Toolset] = (),
) -> AgentTools:
    """Return the tools of one agent; nothing is connected to before their loops run.

    `secrets` is the folder of mounted Secrets, `extra` the tools of own code, `memory` what the built-in Memory uses.
    """
    sources = [
        Source(_toolset(entry, secrets, clock, on_change, memory), entry, float(entry.timeout_seconds))
        for entry in entries
    ]
    return AgentTools([*sources, *(Source(one, timeout=OWN_CODE_SECONDS) for one in extra)], clock, observer)


def _toolset(
    entry: ToolEntry, secrets: Path, clock: Clock, on_change: Callable[[], None], memory: "MemoryTools | None"
) -> Toolset:
    headers = SecretHeaders(secrets, entry.headers_from)
    if entry.mcp is not None:
        from agent_runtime.tools.mcp_server import McpToolset

        return McpToolset(entry, headers, clock, on_change)
    if entry.http is not None:
        from agent_runtime.tools.http_request import HttpToolset

        return HttpToolset(entry, headers, clock, on_change)
    return BuiltinToolset(entry, clock, memory)
