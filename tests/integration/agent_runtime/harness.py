"""Runtimes to test against: served in this process on a real port, or as processes of their own; and outages."""

import asyncio
import json
import os
import random
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit
from uuid import UUID

import asyncpg
import httpx

from agent_api.v1alpha1 import Agent
from agent_runtime.app import serve
from agent_runtime.ids import default_agent_id
from agent_runtime.settings import AuthMode, RuntimeSettings
from agent_runtime.telemetry import logs
from agent_store.ports import Store

REPOSITORY = Path(__file__).resolve().parents[3]
NAMESPACE = "tests"


T = TypeVar("T")


async def until(probe: Callable[[], Awaitable[T]], what: str, timeout: float = 15.0) -> T:
    """Ask again and again until `probe` gives something true; return it."""
    deadline = time.monotonic() + timeout
    while True:
        found = await probe()
        if found:
            return found
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {timeout:g} s: {what}")
        await asyncio.sleep(0.02)


def free_port() -> int:
    """Return a loopback port nothing listens on."""
    # Not one that the system hands out by itself: any connection could take it before its process listens there.
    for port in random.SystemRandom().sample(range(12_000, 30_000), 100):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise OSError("no port of 100 is free")


def manifest(name: str, *models: dict[str, Any], **spec: Any) -> dict[str, Any]:
    """Return an Agent with these models (default: echo) and spec fields, in camelCase."""
    return {
        "apiVersion": "abide.dev/v1alpha1",
        "kind": "Agent",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"systemPrompt": "You are a test.", "models": list(models) or [{"provider": "echo"}], **spec},
    }


def echo(delay: float = 0.0, **fields: Any) -> dict[str, Any]:
    """Return an echo model."""
    return {"provider": "echo", "parameters": {"delaySeconds": delay}, **fields}


def scripted(*replies: Any, **fields: Any) -> dict[str, Any]:
    """Return a scripted model."""
    return {"provider": "scripted", "parameters": {"replies": list(replies)}, **fields}


@dataclass
class Talk:
    """One agent as its callers see it."""

    http: httpx.AsyncClient
    base: str
    agent: str
    user: str | None = None
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def path(self) -> str:
        """The agent's canonical URL."""
        return f"{self.base}/v1/agents/{NAMESPACE}/{self.agent}"

    def as_user(self, user: str) -> "Talk":
        """Return the same agent for another user."""
        return Talk(self.http, self.base, self.agent, user, self.headers)

    async def request(self, method: str, path: str, **more: Any) -> httpx.Response:
        """Send a request below the agent's path."""
        headers = {**self.headers, **({"Abide-User": self.user} if self.user else {}), **more.pop("headers", {})}
        return await self.http.request(method, f"{self.path}{path}", headers=headers, **more)

    async def post(
        self, content: Any, session: str = "s", *, key: str | None = None, wait: float | None = None, **headers: str
    ) -> httpx.Response:
        """Send a message."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        if key is not None:
            named["Idempotency-Key"] = key
        params = {} if wait is None else {"waitSeconds": wait}
        return await self.request(
            "POST", f"/sessions/{session}/messages", json={"content": content}, headers=named, params=params
        )

    async def say(self, content: str, session: str = "s", **more: Any) -> str:
        """Send a message and return the reply."""
        response = await self.post(content, session, **more)
        assert response.status_code == 200, response.text
        return str(response.json()["reply"]["content"])

    async def messages(self, session: str = "s", **params: Any) -> list[dict[str, Any]]:
        """Return a page of history."""
        response = await self.request("GET", f"/sessions/{session}/messages", params=params)
        assert response.status_code == 200, response.text
        return list(response.json()["items"])

    async def turn(self, turn_id: str) -> dict[str, Any]:
        """Return a turn as it stands."""
        response = await self.request("GET", f"/turns/{turn_id}")
        assert response.status_code == 200, response.text
        return dict(response.json())

    async def outcome(self, turn_id: str, timeout: float = 20.0) -> dict[str, Any]:
        """Wait for a turn's outcome."""

        async def final() -> dict[str, Any] | None:
            with suppress(httpx.TransportError, AssertionError):
                found = await self.turn(turn_id)
                if found["turn"]["status"] not in ("queued", "running", "waiting"):
                    return found
            return None

        found = await until(final, f"turn {turn_id} ends", timeout)
        assert found is not None
        return found

    async def wait_status(self, turn_id: str, status: str) -> None:
        """Wait until a turn has this status."""

        async def reached() -> bool:
            return bool((await self.turn(turn_id))["turn"]["status"] == status)

        await until(reached, f"turn {turn_id} is {status}")


def events_of(text: str) -> list[dict[str, Any]]:
    """Read a stream of server-sent events: {id, event, data} of each, comments left out."""
    found = []
    for block in text.split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.splitlines() if line and not line.startswith(":"))
        if "event" in lines:
            found.append({"id": lines["id"], "event": lines["event"], "data": json.loads(lines["data"])})
    return found


class Serving:
    """Agents served inside the test process."""

    def __init__(self, base: str, http: httpx.AsyncClient) -> None:
        self.base = base
        self.http = http

    def talk(self, agent: str, user: str | None = None, **headers: str) -> Talk:
        """Return a way to talk to one of the agents."""
        return Talk(self.http, self.base, agent, user, headers)


@asynccontextmanager
async def serving(
    postgres_url: str, *manifests: dict[str, Any], store: Store | None = None, **settings: Any
) -> AsyncIterator[Serving]:
    """Serve agents on a loopback port until the block ends; drains then."""
    port = free_port()
    agents = tuple(Agent.model_validate(one) for one in manifests)
    merged = {"auth": AuthMode.NONE, "drain_seconds": 0.5, "log_level": "error", **settings}
    made = RuntimeSettings(postgres_url=postgres_url, host="127.0.0.1", port=port, agents=agents, **merged)
    ready, stop = asyncio.Event(), asyncio.Event()
    logs.configure("json", "error", str)
    task = asyncio.create_task(serve(made, store=store, on_ready=ready.set, stop=stop, configure_logs=False))
    waiting = asyncio.create_task(ready.wait())
    await asyncio.wait([task, waiting], timeout=20, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if task.done():
        task.result()
    assert ready.is_set(), "not ready within 20 s"
    limits = httpx.Limits(max_connections=200)
    async with httpx.AsyncClient(timeout=30, limits=limits) as http:
        try:
            yield Serving(f"http://127.0.0.1:{port}", http)
        finally:
            stop.set()
            async with asyncio.timeout(20):
                await task


class Process:
    """A runtime as a process of its own."""

    def __init__(self, folder: Path, postgres_url: str, agent: dict[str, Any], instance: str, **environ: str) -> None:
        self.port = free_port()
        self.base = f"http://127.0.0.1:{self.port}"
        self.agent = str(agent["metadata"]["name"])
        self.log = folder / f"{instance}-{self.port}.log"
        path = folder / f"{self.agent}.json"
        path.write_text(json.dumps(agent))
        self._environ = {
            "PATH": os.defpath,
            "HOME": str(folder),
            "ABIDE_MANIFEST": str(path),
            "ABIDE_POSTGRES_URL": postgres_url,
            "ABIDE_INSTANCE": instance,
            "ABIDE_POD_NAME": instance,
            "ABIDE_AUTH": "none",
            "ABIDE_HOST": "127.0.0.1",
            "ABIDE_PORT": str(self.port),
            **environ,
        }
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start without waiting."""
        with self.log.open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "agent_runtime",
                cwd=REPOSITORY,
                env=self._environ,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    async def wait_exit(self, timeout: float = 20.0) -> int:
        """Return the exit code."""
        assert self._process is not None
        async with asyncio.timeout(timeout):
            return await self._process.wait()

    async def wait_ready(self, http: httpx.AsyncClient, timeout: float = 20.0) -> None:
        """Wait until /readyz says so."""

        async def ready() -> bool:
            assert self._process is not None
            assert self._process.returncode is None, self.logs()
            with suppress(httpx.TransportError):
                return (await http.get(f"{self.base}/readyz")).status_code == 200
            return False

        await until(ready, f"{self.base} is ready", timeout)

    def logs(self) -> str:
        """Return what it printed."""
        return self.log.read_text(errors="replace")

    async def close(self) -> None:
        """End it whatever state it is in."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()


@asynccontextmanager
async def process(
    folder: Path, postgres_url: str, agent: dict[str, Any], instance: str = "pod-1", **environ: str
) -> AsyncIterator[Process]:
    """Start a runtime process; it is killed at the end if it still runs."""
    made = Process(folder, postgres_url, agent, instance, **environ)
    await made.start()
    try:
        yield made
    except BaseException as error:
        error.add_note(made.logs()[-4000:])
        raise
    finally:
        await made.close()


class Proxy:
    """A TCP proxy before Postgres that can refuse, cut and freeze connections; its address stays the same."""

    def __init__(self, postgres_url: str) -> None:
        target = urlsplit(postgres_url)
        self._target = (target.hostname or "", target.port or 5432)
        self.port = free_port()
        host = f"{target.username}:{target.password}@127.0.0.1:{self.port}"
        self.url = f"{target.scheme}://{host}{target.path}" + (f"?{target.query}" if target.query else "")
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._open = asyncio.Event()
        self._open.set()

    async def up(self) -> None:
        """Take connections."""
        self._open.set()
        if self._server is None:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)

    async def down(self) -> None:
        """Refuse new connections and cut the present ones."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        self._open.set()

    def freeze(self) -> None:
        """Pass nothing on any more, without closing anything."""
        self._open.clear()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            onward_reader, onward = await asyncio.open_connection(*self._target)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, onward}
        try:
            await asyncio.gather(self._pump(reader, onward), self._pump(onward_reader, writer))
        finally:
            self._writers -= {writer, onward}

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65_536):
                await self._open.wait()
                writer.write(data)
                await writer.drain()
        writer.transport.abort()


class Database:
    """What is in Postgres, seen from outside."""

    def __init__(self, url: str) -> None:
        self._url = url

    async def rows(self, query: str, *args: object) -> list[dict[str, Any]]:
        """Return the rows of a query."""
        connection = await asyncpg.connect(self._url)
        try:
            return [dict(row) for row in await connection.fetch(query, *args)]
        finally:
            await connection.close()

    async def value(self, query: str, *args: object) -> Any:
        """Return the first value of a query's first row."""
        rows = await self.rows(query, *args)
        return next(iter(rows[0].values())) if rows else None


def agent_id(name: str) -> UUID:
    """Return the id an agent of these tests has."""
    return default_agent_id(NAMESPACE, name)
