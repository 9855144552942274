"""Users' own code: the class is found when the process starts, its instance lives as long as the process.

`init` is called in the background; until it has succeeded the process is not ready. Whatever own code does wrong later
costs the turn it was called for, and leaves a row in `agent_errors`.
"""

import asyncio
import importlib
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, cast

import abide
from agent_api.conditions import Reason
from agent_api.v1alpha1 import Agent as AgentResource
from agent_api.wire import CheckResult
from agent_runtime.clock import Clock
from agent_runtime.errors import SettingsError
from agent_runtime.hooks.calls import Caller, HookCrashed, raised
from agent_runtime.hooks.port import OWN_CODE_FAILED, HookFailed, Prepared
from agent_runtime.memory.memories import AgentMemories
from agent_runtime.telemetry.logs import get_logger
from agent_runtime.tools.port import ToolContext
from agent_store.ports import TurnRecord

_LOG = get_logger("own-code")
INIT_SECONDS: Final = 60.0
HOOK_SECONDS: Final = 10.0
CLEANUP_SECONDS: Final = 5.0
FIRST_RETRY: Final = 1.0
LONGEST_RETRY: Final = 30.0
MOST_AFTER: Final = 256
"""Calls of after_turn that may be under way; more are left out, and that is written down."""

OnError = Callable[[str, str, str], None]
"""Told (error type, message, traceback)."""


def load_class(name: str) -> type[abide.Agent]:
    """Return the class `module:Class`. Raises SettingsError saying what to write instead."""
    module_name, colon, class_name = name.partition(":")
    if not (module_name and colon and class_name.isidentifier()):
        raise SettingsError([f"ABIDE_AGENT_CLASS={name!r}: write module:Class, for example shop:Support"])
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # the module is code of the user's
        where = ", ".join(path for path in sys.path[:3] if path) or "the working directory"
        place = _last_line(error)
        if isinstance(error, ModuleNotFoundError):
            place = f"looked for in {where} and so on, set PYTHONPATH"
        what = f"importing {module_name} raised {type(error).__name__}: {error} ({place})"
        raise SettingsError([f"ABIDE_AGENT_CLASS={name!r}: {what}"]) from error
    found = getattr(module, class_name, None)
    if not (isinstance(found, type) and issubclass(found, abide.Agent)):
        raise SettingsError([f"ABIDE_AGENT_CLASS={name!r}: {class_name} is no subclass of abide.Agent"])
    return found


def _last_line(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return f"in {frames[-1].filename}, line {frames[-1].lineno}" if frames else ""


class RuntimeServices:
    """Implements abide.Services."""

    def __init__(
        self,
        agent: AgentResource,
        memories: AgentMemories | None,
        *,
        on_metric: Callable[[str, float], None],
        on_error: OnError,
    ) -> None:
        self.name = agent.metadata.name
        self.namespace = agent.metadata.namespace
        self.spec: Mapping[str, Any] = agent.spec.model_dump(mode="json", by_alias=True)
        self._memories = memories
        self._on_metric = on_metric
        self._on_error = on_error

    @property
    def memories(self) -> abide.Memories:
        """See abide.Services.memories."""
        if self._memories is None:
            raise RuntimeError("this agent keeps no memories: set spec.memories.enabled")
        return cast("abide.Memories", self._memories)

    def record_metric(self, metric_type: str, value: float = 1.0) -> None:
        """See abide.Services.record_metric."""
        self._on_metric(metric_type, float(value))

    def record_error(self, error_type: str, message: str) -> None:
        """See abide.Services.record_error."""
        self._on_error(error_type, message, "")


class OwnCode:
    """The instance of one agent's class, and its hooks with their deadlines."""

    def __init__(self, kind: type[abide.Agent], services: RuntimeServices, clock: Clock, on_error: OnError) -> None:
        self.name = f"{kind.__module__}:{kind.__qualname__}"
        self.caller = Caller()
        self._kind = kind
        self._services = services
        self._clock = clock
        self._on_error = on_error
        self._instance: abide.Agent | None = None
        self._ready = asyncio.Event()
        self._problem = ""
        self._since = clock.now()
        self._after: set[asyncio.Task[None]] = set()

    # ---- life

    @property
    def instance(self) -> abide.Agent | None:
        """The instance, once `init` has succeeded."""
        return self._instance if self._ready.is_set() else None

    async def begin(self, on_ready: Callable[[abide.Agent], None]) -> None:
        """Make the instance and call `init` until it succeeds; `on_ready` is called before anything else may be.

        What `on_ready` raises counts as a failure of `init`.
        """
        pause = FIRST_RETRY
        while True:
            try:
                self._instance = await self._make()
                on_ready(self._instance)
            except HookCrashed as error:
                # Whoever reaches the pod may read this, and what libraries raise may hold passwords.
                self._problem = error.shown
                if error.shown != str(error):
                    self._problem += f"; the text is among the agent's errors: abide errors {self._services.name}"
                self._tell(error)
                await self._clock.sleep(pause)
                pause = min(pause * 2, LONGEST_RETRY)
                continue
            self._ready.set()
            self._problem = ""
            _LOG.info("own_code_ready", name=self.name, agent=self._services.name)
            return

    async def _make(self) -> abide.Agent:
        try:
            made = self._kind()
            made.runtime = self._services
        except Exception as error:  # the class is code of the user's
            raise raised("making an instance", error) from error
        await self.caller.call(made.init, timeout=INIT_SECONDS)
        return made

    def check(self) -> CheckResult:
        """Return what readiness says of it."""
        if self._ready.is_set():
            return CheckResult(name="code", ok=True)
        since = f"(since {self._since:%Y-%m-%dT%H:%M:%SZ})"
        if not self._problem:
            message = f"{self.name} is being made ready by its init {since}."
            return CheckResult(name="code", ok=False, reason=Reason.STARTING.value, message=message)
        message = f"{self.name}: {self._problem}; it is tried again by itself {since}."
        return CheckResult(name="code", ok=False, reason=Reason.PROBE_FAILING.value, message=message)

    async def end(self) -> None:
        """Wait for what is under way, then call `cleanup`."""
        if self._after:
            await asyncio.wait(list(self._after), timeout=CLEANUP_SECONDS)
        for task in list(self._after):
            task.cancel()
        if self._instance is not None:
            with suppress(HookFailed):
                await self._guarded(self._instance.cleanup, timeout=CLEANUP_SECONDS)

    # ---- around a turn

    async def before(self, context: ToolContext, content: str, system: str) -> Prepared:
        """Call `before_turn` and `prompt`. Raises HookFailed.

        A turn that another process left waits for `init`, as long as turns may take.
        """
        await self._ready.wait()
        instance = self._instance
        assert instance is not None  # noqa: S101 - ready
        turn = _turn(context, content, system)
        match await self._guarded(instance.before_turn, turn, timeout=HOOK_SECONDS):
            case None:
                pass
            case abide.Reply(content=str(reply)) if reply:
                return Prepared(content, system, reply)
            case str(changed) if changed:
                content = changed
            case other:
                self._refuse("before_turn", "a text, an abide.Reply or None", other)
        match await self._guarded(instance.prompt, turn, timeout=HOOK_SECONDS):
            case None:
                pass
            case str(prompt):
                system = prompt
            case other:
                self._refuse("prompt", "a text or None", other)
        return Prepared(content, system)

    def after(self, context: ToolContext, turn: TurnRecord) -> None:
        """Call `after_turn` in the background."""
        instance = self.instance
        if instance is None or type(instance).after_turn is abide.Agent.after_turn:
            return
        if len(self._after) >= MOST_AFTER:
            busy = f"{self.name}: after_turn was left out, since {MOST_AFTER} calls of it are under way"
            self._on_error(OWN_CODE_FAILED, busy, "")
            return
        outcome = abide.Outcome(
            turn.status.value,
            turn.reply,
            turn.model,
            turn.error_type,
            turn.error_message,
            turn.input_tokens,
            turn.output_tokens,
        )
        about = _turn(context, "", "")

        async def run() -> None:
            with suppress(HookFailed):
                await self._guarded(instance.after_turn, about, outcome, timeout=HOOK_SECONDS)

        task = asyncio.get_running_loop().create_task(run(), name=f"after-turn-{turn.id}")
        self._after.add(task)
        task.add_done_callback(self._after.discard)

    async def _guarded(self, hook: Callable[..., Any], *arguments: Any, timeout: float) -> Any:
        try:
            return await self.caller.call(hook, *arguments, timeout=timeout)
        except HookCrashed as error:
            self._tell(error)
            raise HookFailed(f"The agent's own code failed in {hook.__name__}.") from error

    def _refuse(self, hook: str, wanted: str, got: object) -> None:
        self._on_error(OWN_CODE_FAILED, f"{self.name}: {hook} returned {type(got).__name__}; return {wanted}", "")
        raise HookFailed(f"The agent's own code failed in {hook}.")

    def _tell(self, error: HookCrashed) -> None:
        trace = "".join(traceback.format_exception(error.error)) if error.error is not None else ""
        self._on_error(OWN_CODE_FAILED, f"{self.name}: {error}", trace)
        _LOG.warning("own_code_failed", name=self.name, agent=self._services.name, message=str(error))


def _turn(context: ToolContext, content: str, system: str) -> abide.Turn:
    return abide.Turn(context.turn_id, context.user, context.session, context.session_id, content, system)


def read_tools(instance: abide.Agent) -> Sequence[Callable[..., Any]]:
    """Return what `tools` gives. Raises HookCrashed."""
    try:
        return list(instance.tools())
    except Exception as error:  # code of the user's
        raise raised("tools", error) from error
