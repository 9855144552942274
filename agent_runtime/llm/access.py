"""One way to a provider, shared by all agents of the process with the same provider, address and key.

It holds the key and the connections, checks without cost which models can be used, and keeps what is known of each.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from agent_runtime.clock import Clock
from agent_runtime.llm import breaker
from agent_runtime.llm.breaker import Breaker
from agent_runtime.llm.dialects import DIALECTS, Answer
from agent_runtime.llm.keys import KeyFile
from agent_runtime.llm.port import FailureKind, ModelError, NotAsked
from agent_runtime.llm.standing import (
    LONG_PAUSE,
    Standing,
    after_answer,
    after_check,
    after_failure,
    after_key_change,
    pause_before_check,
)

if TYPE_CHECKING:
    from agent_runtime.llm.client import ProviderClient

CHECK_TIMEOUT: Final = 10.0
KEY_SECONDS: Final = 1.0
"""How often files of keys are looked at when nothing is asked."""
START_PAUSE: Final = 2.0
"""Before the first check, unless somebody asks for it: a process that starts has more urgent things to do."""
LEAST_PAUSE: Final = 1.0
"""Between two checks, however often there is a reason for one."""
SILENCE: Final = 3600.0 + 5.0
"""Beyond every timeout that a spec may have."""
Pulse = Callable[[], None]


class Entry:
    """What is known of one model; `access` is None for built-in ones."""

    def __init__(self, model: str, clock: Clock, on_change: Callable[[], None], access: "Access | None" = None) -> None:
        self.model = model
        self.access = access
        self._clock = clock
        self._on_change = on_change
        self._tried_at: float | None = None
        self._breaker = Breaker()
        self._last: ModelError | None = None
        self.standing = Standing() if access else after_answer(Standing(), clock.now())

    def ask(self, patience: float = LONG_PAUSE) -> None:
        """Say that a turn wants to call the model now, and gives it so many seconds to begin its answer.

        Raises NotAsked if that is known to be in vain: for a refused key, which a turn tries again at most once a
        minute or when it changes; while the provider wants no calls; and while the model is left alone because calls
        fail, of which one at a time probes when the time is up. Whoever calls says so with `ended`.
        """
        if self.access is None:
            return
        self.access.look_at_key()
        if self.access.key_problem:
            raise NotAsked(FailureKind.AUTH_FAILED, self.access.key_problem)
        now = self._clock.monotonic()
        self._ask_key(now)
        self._ask_breaker(now)
        self._breaker = breaker.begin_probe(self._breaker, now, patience)

    def ended(self) -> None:
        """The call that `ask` allowed is over; `called` may say how."""
        self._breaker = breaker.end_probe(self._breaker)

    def _ask_breaker(self, now: float) -> None:
        if rest := self._breaker.resting(now):
            raise NotAsked(
                self._last.kind if self._last else FailureKind.RATE_LIMITED,
                f"wants no further call for {rest:.1f} s (Retry-After)",
                retryable=True,
                retry_after=rest,
            )
        if (pause := self._breaker.shut(now)) and self._last is not None:
            raise NotAsked(
                self._last.kind, f"{self._last.state}, so it is left alone; it is asked again in {pause:.1f} s"
            )

    def _ask_key(self, now: float) -> None:
        assert self.access is not None  # noqa: S101 - asked by `ask`
        if not self.standing.is_denied:
            return
        if self._tried_at is not None and now - self._tried_at < LONG_PAUSE:
            since = f"{self.standing.since:%H:%M:%SZ}" if self.standing.since else "a while"
            raise NotAsked(
                FailureKind.AUTH_FAILED,
                f"{self.standing.phrase} since {since} and is asked again when its key changes, or once a minute",
            )
        self.access.trying(self, now)

    @property
    def is_left_alone(self) -> bool:
        """Whether calls are not made now because they would fail."""
        now = self._clock.monotonic()
        return self._breaker.shut(now) > 0 or self._breaker.resting(now) > 0

    def called(self, error: ModelError | None, session: str = "", seconds: float = 0.0) -> None:
        """Note how a call for a session ended, and after how many seconds."""
        now = self._clock.now()
        if error is None:
            self._breaker = breaker.after_success(self._breaker)
        else:
            self.failed(error, seconds)
            if self.access is not None and error.kind is FailureKind.UNREACHABLE and error.status is None:
                self.access.unreachable(self, error, seconds)
        before = self.standing
        self.update(after_answer(before, now) if error is None else after_failure(before, error, now, session))
        if self.access is None:
            return
        if error is None:
            self.access.key_works()
        elif error.kind is FailureKind.AUTH_FAILED:
            self.note_try(self._clock.monotonic())
            if error.key_refused:
                self.access.key_refused(self, error)
        if (before.ok, before.kind) != (self.standing.ok, self.standing.kind) and self.standing.ok is False:
            self.access.check_soon()

    def forget_failures(self) -> None:
        """There is another key, to which no limit and no failure belongs yet."""
        self._breaker = Breaker()

    def failed(self, error: ModelError, seconds: float) -> None:
        """Count a failed call of this model, or of another one behind an address that cannot be reached."""
        if not error.about_message:
            self._last = error
        self._breaker = breaker.after_failure(self._breaker, error, seconds, self._clock.monotonic())

    def note_try(self, at: float | None) -> None:
        """Remember when the key was last tried; None: it may be tried at once."""
        self._tried_at = at

    def update(self, standing: Standing) -> None:
        """Take over what is known now; tell if it is news."""
        before, self.standing = self.standing, standing
        if standing.ok and not before.ok:
            self._breaker = breaker.after_good_check(self._breaker)
        if (before.ok, before.kind, before.phrase) != (standing.ok, standing.kind, standing.phrase):
            self._on_change()


class Access:
    """Not thread-safe; used within one event loop. `watch` is the loop that keeps it."""

    def __init__(
        self, provider: str, base_url: str, key: KeyFile | None, clock: Clock, on_change: Callable[[], None]
    ) -> None:
        self.provider = provider
        self.dialect = DIALECTS[provider]
        self.base_url = self.dialect.address(base_url)
        self._key = key
        self._clock = clock
        self._on_change = on_change
        self._client: ProviderClient | None = None
        self._entries: dict[str, Entry] = {}
        self._wake = asyncio.Event()
        self._due: float | None = clock.monotonic() + START_PAUSE

    # ---- key and connections

    @property
    def key_problem(self) -> str:
        """Why there is no usable key; empty if there is one or none is needed."""
        return self._key.problem if self._key else ""

    def look_at_key(self) -> None:
        """Look at the file again: another key is used by the next call, and checked at once."""
        if self._key is None or not self._key.reload():
            return
        for entry in self._entries.values():
            entry.note_try(None)
            entry.forget_failures()
            entry.update(after_key_change(entry.standing))
        self.check_soon(at_once=True)

    def client(self) -> "ProviderClient":
        """Return the connections to the provider, made on first use."""
        if self._client is None:
            from agent_runtime.llm.client import ProviderClient

            self._client = ProviderClient(lambda: self._key.value if self._key else "", SILENCE, self.dialect)
        return self._client

    async def aclose(self) -> None:
        """Close the connections."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    # ---- what is known of its models

    def entry(self, model: str) -> Entry:
        """Return what is known of one of its models."""
        if model not in self._entries:
            self._entries[model] = Entry(model, self._clock, self._on_change, self)
        return self._entries[model]

    def trying(self, entry: Entry, now: float) -> None:
        """A turn tries a refused key: the others that share it wait for what becomes of it."""
        for other in self._entries.values():
            if other is entry or other.standing.is_denied:
                other.note_try(now)

    def key_works(self) -> None:
        """A call succeeded, so that the key is right: whatever was refused for it is looked at again."""
        for other in self._entries.values():
            if other.standing.is_denied:
                other.note_try(None)
                other.update(after_key_change(other.standing))
                self.check_soon()

    def key_refused(self, entry: Entry, error: ModelError) -> None:
        """The key was refused for one model, and so it is for all."""
        for other in self._entries.values():
            if other is not entry and not other.standing.is_denied:
                other.note_try(self._clock.monotonic())
                other.update(after_failure(other.standing, error, self._clock.now()))

    def unreachable(self, entry: Entry, error: ModelError, seconds: float) -> None:
        """A call did not get as far as the provider, which is the same for all models there."""
        for other in self._entries.values():
            if other is not entry:
                other.failed(error, seconds)

    # ---- checks

    def check_soon(self, *, at_once: bool = False) -> None:
        """Have all models checked in a moment."""
        self._due = self._clock.monotonic() + (0.0 if at_once else LEAST_PAUSE)
        self._wake.set()

    async def watch(self, pulse: Pulse) -> None:
        """Keep an eye on the key, and check the models whenever it is time; for ever."""
        while True:
            pulse()
            self._wake.clear()
            self.look_at_key()
            if self._due is not None and self._clock.monotonic() >= self._due:
                await self.check()
            with suppress(TimeoutError):
                async with asyncio.timeout(KEY_SECONDS):
                    await self._wake.wait()

    async def check(self) -> None:
        """Ask which models there are, and note what that says about each. Takes at most CHECK_TIMEOUT."""
        self._due = None
        if self.key_problem:
            problem = ModelError(FailureKind.AUTH_FAILED, self.key_problem)
            findings: Mapping[str, ModelError | None] = dict.fromkeys(self._entries, problem)
        else:
            findings = await self._ask()
        now = self._clock.now()
        for model, error in findings.items():
            entry = self._entries[model]
            if error is not None and error.kind is FailureKind.AUTH_FAILED and error.status != 403:
                entry.note_try(self._clock.monotonic())
            # A key may be barred from the list (403) and yet be good for calls: the first turn finds out.
            entry.update(after_check(entry.standing, error, now))
        if self._due is None:
            self._due = self._next_check()

    async def _ask(self) -> Mapping[str, ModelError | None]:
        paths = {model: self.dialect.check_path(model) for model in self._entries}
        different = tuple(dict.fromkeys(paths.values()))
        answers = dict(zip(different, await asyncio.gather(*map(self._get, different)), strict=True))
        return {model: self._judge(answers[path], model) for model, path in paths.items()}

    def _judge(self, answer: Answer | ModelError, model: str) -> ModelError | None:
        return answer if isinstance(answer, ModelError) else self.dialect.judge(answer, model)

    async def _get(self, path: str) -> Answer | ModelError:
        from agent_runtime.llm.client import from_transport

        try:
            async with asyncio.timeout(CHECK_TIMEOUT):
                response = await self.client().get(f"{self.base_url}{path}")
            return Answer(response.status_code, response.content)
        except TimeoutError:
            words = f"answer within {CHECK_TIMEOUT:g} s"
            return ModelError(FailureKind.TIMEOUT, f"did not {words}", state=f"does not {words}")
        except Exception as error:  # a client's exceptions are many, and all mean that there is no answer
            return from_transport(error)

    def _next_check(self) -> float | None:
        pauses = [pause_before_check(entry.standing) for entry in self._entries.values()]
        known = [pause for pause in pauses if pause is not None]
        return self._clock.monotonic() + min(known) if known else None

    @property
    def entries(self) -> Sequence[Entry]:
        """All its models, for tests and statistics."""
        return tuple(self._entries.values())
