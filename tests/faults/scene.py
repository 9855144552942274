"""One stage for one fault: an agent, its database, its runtime processes, its clients and the watch over its turns."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from tests.faults.driver import AgentUnderTest, Conversation, Fleet, RuntimeProcess, fleet, new_http
from tests.faults.invariants import Observed, Overlaps, assert_invariants, watched


@dataclass(slots=True)
class Scene:
    """What a test acts on. Clients reach every running process unless `talk_to` named some."""

    agent: AgentUnderTest
    postgres_url: str
    http: httpx.AsyncClient
    fleet: Fleet
    overlaps: Overlaps
    clients: Conversation = field(init=False)
    _chosen: tuple[RuntimeProcess, ...] = ()

    def __post_init__(self) -> None:
        self.clients = Conversation(self.agent, self.http, self._urls)

    def _urls(self) -> list[str]:
        if self._chosen:
            return [process.url for process in self._chosen if process.running]
        return self.fleet.urls()

    def talk_to(self, *processes: RuntimeProcess) -> None:
        """Let clients reach these processes only; none given means every one that runs."""
        self._chosen = processes

    async def start(
        self, instance: str, environ: Mapping[str, str] | None = None, *, postgres_url: str | None = None
    ) -> RuntimeProcess:
        """Start a process, on its own way to Postgres if one is given, and wait until it is ready."""
        process = self.fleet.start(instance, environ, postgres_url=postgres_url)
        await process.wait_ready(self.http)
        return process

    async def assert_invariants(self) -> Observed:
        """Wait until all is settled and judge it."""
        return await assert_invariants(self.postgres_url, self.clients, self.overlaps)


@asynccontextmanager
async def staged(folder: Path, postgres_url: str, *, delay_seconds: float, name: str = "echo") -> AsyncIterator[Scene]:
    """Yield a Scene on an empty, migrated database; no process and no connection is left behind."""
    agent = AgentUnderTest(name=name, delay_seconds=delay_seconds, folder=folder)
    async with staged_with(agent, postgres_url) as scene:
        yield scene


@asynccontextmanager
async def staged_with(agent: AgentUnderTest, postgres_url: str) -> AsyncIterator[Scene]:
    """Yield a Scene of this agent on an empty, migrated database; no process and no connection is left behind."""
    async with new_http() as http, watched(postgres_url) as overlaps:
        with fleet(agent, postgres_url) as processes:
            yield Scene(agent, postgres_url, http, processes, overlaps)
