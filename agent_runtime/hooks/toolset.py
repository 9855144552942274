"""The functions of own code, as one source of tools."""

import traceback
from collections.abc import Mapping, Sequence
from typing import Any, Final

import abide
from agent_api.wire import ToolCheck
from agent_runtime.clock import Clock
from agent_runtime.hooks.calls import HookCrashed
from agent_runtime.hooks.code import OnError, OwnCode, read_tools
from agent_runtime.hooks.functions import BadFunction, FunctionTool, to_text
from agent_runtime.hooks.port import OWN_CODE_FAILED
from agent_runtime.supervisor import Pulse
from agent_runtime.tools.port import ToolContext
from agent_runtime.tools.toolset import Offered, ToolFailed, cut

NAME: Final = "code"
"""Name of the source; an entry of spec.tools of this name would make its tools ambiguous, as any two entries do."""


class OwnToolset:
    """Implements Toolset; its tools are known once own code is ready."""

    def __init__(self, code: OwnCode, clock: Clock, on_error: OnError) -> None:
        self.name = NAME
        self._code = code
        self._clock = clock
        self._on_error = on_error
        self._tools: dict[str, FunctionTool] = {}
        self._offered: Sequence[Offered] = ()
        self.discovered = False

    def load(self, instance: abide.Agent) -> None:
        """Read the functions. Raises HookCrashed saying which one cannot be a tool."""
        tools: dict[str, FunctionTool] = {}
        for function in read_tools(instance):
            try:
                made = FunctionTool(function)
            except BadFunction as error:
                raise HookCrashed(f"tools: {error}", error) from error
            if made.name in tools:
                raise HookCrashed(f"tools: two have the name {made.name}; give one another", None)
            tools[made.name] = made
        self._tools = tools
        self._offered = tuple(tool.offered for tool in tools.values())
        self.discovered = True

    @property
    def is_up(self) -> bool:
        """Whether own code is ready."""
        return self.discovered

    def tools(self) -> Sequence[Offered]:
        """Return the functions."""
        return self._offered

    async def call(self, tool: str, arguments: Mapping[str, Any], context: ToolContext, *, timeout: float) -> str:
        """Call one of them. Raises ToolFailed; what a function raised is told to the operator, not to the model."""
        found = self._tools[tool]
        try:
            named = found.bind(arguments, context)
        except BadFunction as error:
            raise ToolFailed(str(error)) from None
        try:
            result = await self._code.caller.call(found.function, timeout=min(timeout, found.options.timeout), **named)
            return cut(to_text(result))
        except HookCrashed as error:
            if isinstance(error.error, abide.ToolError):
                raise ToolFailed(cut(str(error.error) or "it failed")) from None
            trace = "".join(traceback.format_exception(error.error)) if error.error is not None else ""
            self._on_error(OWN_CODE_FAILED, f"{self._code.name}: tool {error}", trace)
            words = "failed with an internal error" if error.error is not None else str(error).split(" ", 1)[1]
            raise ToolFailed(f"it {words}") from None
        except BadFunction as error:
            self._on_error(OWN_CODE_FAILED, f"{self._code.name}: tool {tool}: {error}", "")
            raise ToolFailed("it gave a result that cannot be shown") from None

    def check(self) -> ToolCheck:
        """Return what is known of it; that own code is not ready is told by readiness."""
        return ToolCheck(name=NAME, type="Code", ok=self.discovered or None, tools=list(self._tools))

    async def watch(self, pulse: Pulse) -> None:
        """There is nothing to look at."""
        while True:
            pulse()
            await self._clock.sleep(10.0)

    async def aclose(self) -> None:
        """There is nothing to close."""
