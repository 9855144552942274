"""One way to a provider, shared by all agents of the process with the same provider, address and key.

It holds the key and the connections, checks without cost which models can be used, and keeps what is known of each.
"""

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from agent_runtime.clock import Clock
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

OPENAI_URL: Final = "https://api.openai.com/v1"
CHECK_TIMEOUT: Final = 10.0
KEY_SECONDS: Final = 1.0
"""How often files of keys are looked at when nothing is asked."""
START_PAUSE: Final = 2.0
"""Before the first check, unless somebody asks for it: a process that starts has more urgent things to do."""
LEAST_PAUSE: Final = 1.0
"""Between two checks, however often there is a reason for one."""
NO_LIST: Final = (404, 405, 501)
SILENCE: Final = 3600.0 + 5.0
"""Beyond every timeout that a spec may have."""
Pulse = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Listing:
    """What a provider answered when asked for its models; `ids` is None where it gave no complete list."""

    status: int
    ids: frozenset[str] | None = None


def judge(listing: Listing, provider: str, model: str) -> ModelError | None:
    """Return what a listing says against a model, or None.

    OpenAI itself lists every model a key may use. Services that speak its protocol need not have a list, and answer to
    names that are not on it.
    """
    if listing.status in NO_LIST and provider != "openai":
        return None
    if listing.status in (401, 403, 404, 408, 429) or listing.status >= 500:
        return ModelError.from_status(listing.status)
    if provider == "openai" and listing.ids is not None and model not in listing.ids:
        return ModelError(
            FailureKind.NOT_FOUND, "was not in the provider's list of models", state="is not in the provider's list"
        )
    return None


def read_listing(status: int, body: bytes) -> Listing:
    """Read {"data": [{"id": …}, …]}; anything else is an answer without a list."""
    with suppress(ValueError, TypeError, KeyError):
        content = json.loads(body)
        if status == 200 and isinstance(content, dict) and not content.get("has_more"):
            return Listing(status, frozenset(str(item["id"]) for item in content["data"]))
    return Listing(status)


class Entry:
    """What is known of one model; `access` is None for built-in ones."""

    def __init__(self, model: str, clock: Clock, on_change: Callable[[], None], access: "Access | None" = None) -> None:
        self.model = model
        self.access = access
        self._clock = clock
        self._on_change = on_change
        self._tried_at: float | None = None
        self.standing = Standing() if access else after_answer(Standing(), clock.now())

    def ask(self) -> None:
        """Say that a turn wants to call the model now. Raises NotAsked if that is known to be in vain.

        A key that the provider refused is tried again by a turn at most once a minute, or when it changes.
        """
        if self.access is None:
            return
        self.access.look_at_key()
        if self.access.key_problem:
            raise NotAsked(FailureKind.AUTH_FAILED, self.access.key_problem)
        if not self.standing.is_denied:
            return
        now = self._clock.monotonic()
        if self._tried_at is not None and now - self._tried_at < LONG_PAUSE:
            since = f"{self.standing.since:%H:%M:%SZ}" if self.standing.since else "a while"
            raise NotAsked(
                FailureKind.AUTH_FAILED,
                f"{self.standing.phrase} since {since} and is asked again when its key changes, or once a minute",
            )
        self.access.trying(self, now)

    def called(self, error: ModelError | None, session: str = "") -> None:
        """Note how a call for a session ended."""
        now = self._clock.now()
        before = self.standing
        self.update(after_answer(before, now) if error is None else after_failure(before, error, now, session))
        if self.access is None:
            return
        if error is None:
            self.access.key_works()
        elif error.kind is FailureKind.AUTH_FAILED:
            self.note_try(self._clock.monotonic())
            if error.status == 401:
                self.access.key_refused(self, error)
        if (before.ok, before.kind) != (self.standing.ok, self.standing.kind) and self.standing.ok is False:
            self.access.check_soon()

    def note_try(self, at: float | None) -> None:
        """Remember when the key was last tried; None: it may be tried at once."""
        self._tried_at = at

    def update(self, standing: Standing) -> None:
        """Take over what is known now; tell if it is news."""
        before, self.standing = self.standing, standing
        if (before.ok, before.kind, before.phrase) != (standing.ok, standing.kind, standing.phrase):
            self._on_change()


class Access:
    """Not thread-safe; used within one event loop. `watch` is the loop that keeps it."""

    def __init__(
        self, provider: str, base_url: str, key: KeyFile | None, clock: Clock, on_change: Callable[[], None]
    ) -> None:
        self.provider = provider
        self.base_url = base_url.rstrip("/")
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
            entry.update(after_key_change(entry.standing))
        self.check_soon(at_once=True)

    def client(self) -> "ProviderClient":
        """Return the connections to the provider, made on first use."""
        if self._client is None:
            from agent_runtime.llm.client import ProviderClient

            self._client = ProviderClient(lambda: self._key.value if self._key else "", SILENCE)
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
        """Ask for the list of models once, and note what it says about each. Takes at most CHECK_TIMEOUT."""
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
        from agent_runtime.llm.client import from_transport

        try:
            async with asyncio.timeout(CHECK_TIMEOUT):
                response = await self.client().get(f"{self.base_url}/models")
            listing = read_listing(response.status_code, response.content)
        except TimeoutError:
            words = f"answer within {CHECK_TIMEOUT:g} s"
            slow = ModelError(FailureKind.TIMEOUT, f"did not {words}", state=f"does not {words}")
            return dict.fromkeys(self._entries, slow)
        except Exception as error:  # a client's exceptions are many, and all mean that there is no answer
            return dict.fromkeys(self._entries, from_transport(error))
        return {model: judge(listing, self.provider, model) for model in self._entries}

    def _next_check(self) -> float | None:
        pauses = [pause_before_check(entry.standing) for entry in self._entries.values()]
        known = [pause for pause in pauses if pause is not None]
        return self._clock.monotonic() + min(known) if known else None

    @property
    def entries(self) -> Sequence[Entry]:
        """All its models, for tests and statistics."""
        return tuple(self._entries.values())
