"""Models of real providers. What speaks their protocols is loaded when it is needed, and only for the one in use."""

import asyncio
import gc
import importlib
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from decimal import Decimal
from typing import TYPE_CHECKING, Final, Protocol

from agent_api.v1alpha1 import ModelSpec
from agent_runtime.llm.access import Entry
from agent_runtime.llm.dialects import HOLLOW, LAZY, UNUSED, Dialect
from agent_runtime.llm.port import FailureKind, ModelEnd, ModelError, ModelRequest, Price, TextDelta
from agent_runtime.slim import hollow_modules, lazy_packages, without_modules

if TYPE_CHECKING:
    from agent_runtime.llm.client import ProviderClient

CHARACTERS_PER_TOKEN: Final = 4
"""A usual guess for texts in English, used where a service does not count."""


class Chat(Protocol):
    """Calls of one model behind one address; each protocol has a module with a class of this name."""

    def stream(self, request: ModelRequest) -> AsyncGenerator[TextDelta | ModelEnd, None]:
        """Yield the reply as it comes, then ModelEnd. Raises ModelError."""
        ...


class Library:
    """The client libraries, each loaded once, in a thread: it takes a second that nobody else should wait for."""

    def __init__(self) -> None:
        self._loading: dict[str, asyncio.Future[None]] = {}

    async def load(self, dialect: Dialect) -> None:
        """Return once it is loaded. Raises ModelError when it cannot be. If cancelled: it goes on loading."""
        if dialect.chat not in self._loading:
            loop = asyncio.get_running_loop()
            self._loading[dialect.chat] = loop.run_in_executor(None, _import, dialect.chat)
        try:
            await asyncio.shield(self._loading[dialect.chat])
        except ImportError as error:
            raise ModelError(FailureKind.BROKEN, "could not be called: its client library is missing") from error

    def chat(self, spec: ModelSpec, dialect: Dialect, base_url: str, client: "ProviderClient") -> Chat:
        """Return what calls a model; after `load`."""
        chat: Chat = importlib.import_module(dialect.chat).Chat(spec, dialect, base_url, client)
        return chat


def _import(name: str) -> None:
    with without_modules(*UNUSED), lazy_packages(*LAZY), hollow_modules(*HOLLOW):
        importlib.import_module(name)
    # What only the import itself needed goes back to the system: up to 16 MB of a library with many large classes.
    gc.collect()
    import ctypes

    with suppress(OSError, AttributeError):  # other C libraries than glibc have no such call
        ctypes.CDLL(None).malloc_trim(0)


class ProviderModel:
    """One entry of the Agent's `models` that is reached through the network."""

    def __init__(self, spec: ModelSpec, entry: Entry, library: Library) -> None:
        self.display = spec.display
        self.timeout = float(spec.timeout_seconds)
        self.stream_idle = float(spec.stream_idle_seconds)
        self.price = price_of(spec)
        self._spec = spec
        self._entry = entry
        self._library = library
        self._chat: Chat | None = None

    async def prepare(self) -> None:
        """Load the client library."""
        if self._chat is not None:
            return
        access = self._entry.access
        assert access is not None  # noqa: S101 - only built-in models have none
        await self._library.load(access.dialect)
        self._chat = self._library.chat(self._spec, access.dialect, access.base_url, access.client())

    async def stream(self, request: ModelRequest) -> AsyncGenerator[TextDelta | ModelEnd, None]:
        """Yield the reply as it comes. Raises ModelError, NotAsked where a call is known to be in vain."""
        self._entry.ask(self.timeout + self.stream_idle)
        assert self._chat is not None  # noqa: S101 - prepared
        length = 0
        try:
            async with aclosing(self._chat.stream(request)) as items:
                async for item in items:
                    if isinstance(item, TextDelta):
                        length += len(item.text)
                    yield item if isinstance(item, TextDelta) else counted(item, request, length)
        finally:
            self._entry.ended()


def counted(end: ModelEnd, request: ModelRequest, length: int) -> ModelEnd:
    """Return the end of an answer of so many characters with token counts, guessed where the service gave none."""
    if end.input_tokens or end.output_tokens:
        return end
    sent = len(request.system) + sum(len(message.content) for message in request.messages)
    length += sum(len(str(call.arguments)) for call in end.tool_calls)
    return ModelEnd(end.tool_calls, -(-sent // CHARACTERS_PER_TOKEN), -(-length // CHARACTERS_PER_TOKEN))


def price_of(spec: ModelSpec) -> Price | None:
    """Return a model's price as the spec gives it, None without one."""
    if spec.price is None:
        return None
    return Price(Decimal(spec.price.input_per_million), Decimal(spec.price.output_per_million), spec.price.currency)
