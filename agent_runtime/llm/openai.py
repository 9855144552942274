"""Models of OpenAI, and of whatever speaks its chat completions protocol. The client library is loaded when needed."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING, Final

from agent_api.v1alpha1 import ModelSpec
from agent_runtime.llm.access import Entry
from agent_runtime.llm.port import FailureKind, ModelEnd, ModelError, ModelRequest, TextDelta
from agent_runtime.slim import without_modules

if TYPE_CHECKING:
    from agent_runtime.llm.openai_chat import Chat


class Library:
    """The client library, loaded once, in a thread: it takes a second that nobody else should wait for."""

    def __init__(self) -> None:
        self._loading: asyncio.Future[None] | None = None

    async def load(self) -> None:
        """Return once it is loaded. Raises ModelError when it cannot be. If cancelled: it goes on loading."""
        if self._loading is None:
            self._loading = asyncio.get_running_loop().run_in_executor(None, _import)
        try:
            await asyncio.shield(self._loading)
        except ImportError as error:
            raise ModelError(FailureKind.BROKEN, "could not be called: its client library is missing") from error


UNUSED: Final = ("aiohttp", "httpx", "rich")
"""What the library takes along where it is installed, and never uses here: 13 MB."""


def _import() -> None:
    with without_modules(*UNUSED):
        import agent_runtime.llm.openai_chat  # noqa: F401


class OpenAIModel:
    """One entry of the Agent's `models` with provider openai or openai-compatible."""

    def __init__(self, spec: ModelSpec, entry: Entry, library: Library) -> None:
        self.display = spec.display
        self.timeout = float(spec.timeout_seconds)
        self.stream_idle = float(spec.stream_idle_seconds)
        self._spec = spec
        self._entry = entry
        self._library = library
        self._chat: Chat | None = None

    async def prepare(self) -> None:
        """Load the client library."""
        if self._chat is not None:
            return
        await self._library.load()
        from agent_runtime.llm.openai_chat import Chat

        access = self._entry.access
        assert access is not None  # noqa: S101 - only built-in models have none
        self._chat = Chat(self._spec, access.base_url, access.client())

    async def stream(self, request: ModelRequest) -> AsyncGenerator[TextDelta | ModelEnd, None]:
        """Yield the reply as it comes. Raises ModelError, NotAsked where the key is known to be refused."""
        self._entry.ask()
        assert self._chat is not None  # noqa: S101 - prepared
        async with aclosing(self._chat.stream(request)) as items:
            async for item in items:
                yield item
