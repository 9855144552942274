"""Signs of life of the watches: which are open, and how long ago each showed that it lives.

A process whose watcher died looks healthy and is deaf. Each stream ends by itself after WATCH_SECONDS and is opened
again, so that a stream that was not asked for or heard of for longer is dead. An unreachable API server is no reason
to restart: the watchers then keep asking.
"""

import asyncio
from collections.abc import Callable, Iterable
from typing import Final

from agent_operator.kube.port import Kind, resource_path

WATCH_SECONDS: Final = 90
STALE_SECONDS: Final = 180.0


class Watches:
    """Keeps the time of the last sign of life of each expected watch."""

    def __init__(
        self,
        kinds: Iterable[Kind],
        namespaces: Iterable[str],
        *,
        clock: Callable[[], float] = lambda: asyncio.get_running_loop().time(),
    ) -> None:
        self._clock = clock
        self._started = clock()
        scopes: list[str | None] = list(namespaces) or [None]
        self._seen: dict[str, float] = {resource_path(kind, scope): self._started for kind in kinds for scope in scopes}
        self._missing = set(self._seen)
        self._heard = self._started
        self._open = asyncio.Event()

    def asked(self, path: str) -> None:
        """Note that a watcher asked for its stream, or for the listing before it."""
        self.heard()
        if path in self._seen:
            self._seen[path] = self._heard

    def opened(self, path: str) -> None:
        """Note that the API server began to answer a watch: what existed before was listed."""
        self.asked(path)
        self._missing.discard(path)
        if not self._missing:
            self._open.set()

    def heard(self) -> None:
        """Note that something came, whatever it was: listing a large cluster takes its time."""
        self._heard = self._clock()

    def silence(self) -> float:
        """Return how many seconds ago anything came."""
        return self._clock() - self._heard

    @property
    def missing(self) -> list[str]:
        """Return the paths of watches that were never open."""
        return sorted(self._missing)

    async def wait_open(self) -> None:
        """Wait until every watch was open once."""
        await self._open.wait()

    def age(self) -> float:
        """Return how many seconds ago the quietest watch showed that it lives."""
        return self._clock() - min(self._seen.values())
