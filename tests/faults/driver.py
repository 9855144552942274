"""Start, stop, kill and freeze real runtime processes, and talk to them as clients do.

Used by every test of this folder. Nothing here looks inside a process: what is known about one is its exit code, its
HTTP answers and what it printed. All waits are on conditions and have deadlines.
"""

import asyncio
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, UUID, uuid4, uuid5

import httpx

from agent_store.codec_keys import format_key

REPOSITORY = Path(__file__).resolve().parents[2]
POLL_SECONDS = 0.02
# Between two tries of one client; many clients try at once while nothing answers.
RETRY_SECONDS = 0.1
# A start takes 1 s alone; many processes start at once on two cores that do other things as well.
READY_SECONDS = 60.0
FINAL = frozenset({"completed", "fallback", "failed", "cancelled"})


async def until(
    condition: Callable[[], bool | Awaitable[bool]], timeout: float, what: str, *, poll: float = POLL_SECONDS
) -> float:
    """Wait until `condition` holds; return the seconds it took. Raises TimeoutError naming `what`."""
    started = time.monotonic()
    while True:
        held = condition()
        if await held if isinstance(held, Awaitable) else held:
            return time.monotonic() - started
        if time.monotonic() - started > timeout:
            raise TimeoutError(f"not within {timeout:g} s: {what}")
        await asyncio.sleep(poll)


def free_port() -> int:
    """Return a loopback port nothing listens on. Bound again at once by the process it is meant for."""
    # Not one that the system hands out by itself: any connection could take it before its process listens there.
    for port in random.SystemRandom().sample(range(12_000, 30_000), 100):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise OSError("no port of 100 is free")


@dataclass(frozen=True, slots=True)
class AgentUnderTest:
    """One Agent with the built-in echo model, and the manifest file it is served from."""

    name: str
    delay_seconds: float
    folder: Path
    namespace: str = "faults"

    @property
    def id(self) -> UUID:
        """Return the id a runtime gives the agent unless told otherwise."""
        return uuid5(NAMESPACE_URL, f"abide.dev/{self.namespace}/{self.name}")

    @property
    def path(self) -> str:
        """Return the agent's canonical REST path."""
        return f"/v1/agents/{self.namespace}/{self.name}"

    def spec(self) -> dict[str, Any]:
        """Return the Agent's spec."""
        model = {"provider": "echo", "parameters": {"delaySeconds": self.delay_seconds}}
        return {"systemPrompt": "Echo.", "models": [model], "history": {"limit": 10000}}

    def keep_key(self) -> Path:
        """Return the folder with the agent's encryption key, made once: content is encrypted, as in a cluster."""
        keys = self.folder / f"{self.name}-keys"
        if not keys.exists():
            keys.mkdir()
            (keys / "1").write_text(format_key(os.urandom(32)))
        return keys

    def write(self) -> Path:
        """Write the manifest into the folder and return its path."""
        manifest = {
            "apiVersion": "abide.dev/v1alpha1",
            "kind": "Agent",
            "metadata": {"name": self.name, "namespace": self.namespace},
            "spec": self.spec(),
        }
        path = self.folder / f"{self.name}.json"
        path.write_text(json.dumps(manifest))
        return path


class RuntimeProcess:
    """One `python -m agent_runtime`, as a pod would run it."""

    def __init__(
        self, agent: AgentUnderTest, postgres_url: str, *, instance: str, environ: Mapping[str, str] | None = None
    ) -> None:
        self.agent = agent
        self.postgres_url = postgres_url
        self.instance = instance
        self.environ = dict(environ or {})
        self.port = free_port()
        self.started_at = 0.0
        self.log = agent.folder / f"{instance}-{uuid4().hex[:6]}.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Return the base URL clients use."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """Return the process id; it stays this process's until `exit_code` is known."""
        assert self._process is not None, "start() first"
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """Return the exit code (negative: ended by that signal), or None while it runs."""
        return None if self._process is None else self._process.poll()

    @property
    def running(self) -> bool:
        """Whether the process was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start the process. It is killed should this test process die first."""
        keeper = shutil.which("setpriv")
        prefix = [keeper, "--pdeathsig", "KILL"] if keeper else []
        environ = {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(self.agent.folder),
            "PYTHONUNBUFFERED": "1",
            "ABIDE_MANIFEST": str(self.agent.write()),
            "ABIDE_POSTGRES_URL": self.postgres_url,
            "ABIDE_ENCRYPTION_KEYS_DIR": str(self.agent.keep_key()),
            "ABIDE_INSTANCE": self.instance,
            "ABIDE_POD_NAME": self.instance,
            "ABIDE_AUTH": "none",
            "ABIDE_HOST": "127.0.0.1",
            "ABIDE_PORT": str(self.port),
            "ABIDE_LOG_FORMAT": "json",
            **self.environ,
        }
        self.started_at = time.monotonic()
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*prefix, sys.executable, "-m", "agent_runtime"],
                cwd=REPOSITORY,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def signal(self, number: signal.Signals) -> None:
        """Send a signal; nothing happens when the process has ended."""
        if self._process is not None:
            self._process.send_signal(number)

    def kill(self) -> None:
        """End it the hard way."""
        self.signal(signal.SIGKILL)

    def terminate(self) -> None:
        """Ask it to drain and end."""
        self.signal(signal.SIGTERM)

    def freeze(self) -> None:
        """Stop it without its knowledge."""
        self.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self.signal(signal.SIGCONT)

    async def wait_exit(self, timeout: float = 30.0) -> int:
        """Return the exit code once the process has ended."""
        await until(lambda: not self.running, timeout, f"{self.instance} ends\n{self.logs()}")
        code = self.exit_code
        assert code is not None
        return code

    async def wait_ready(self, http: httpx.AsyncClient, timeout: float = READY_SECONDS) -> float:
        """Wait until /readyz says 200; return the seconds since the start. Raises at once if the process ends."""
        await self._wait_ready_or(http, timeout, allow_exit=False)
        return time.monotonic() - self.started_at

    async def wait_ready_or_exit(self, http: httpx.AsyncClient, timeout: float = READY_SECONDS) -> bool:
        """Wait until the process is ready (True) or has ended (False)."""
        return await self._wait_ready_or(http, timeout, allow_exit=True)

    async def _wait_ready_or(self, http: httpx.AsyncClient, timeout: float, *, allow_exit: bool) -> bool:
        deadline = time.monotonic() + timeout
        seen = ""
        while self.running:
            health = await self.health(http, "/readyz")
            if health is not None and health.status_code == 200:
                return True
            seen = health.text if health is not None else seen
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.instance} not ready within {timeout:g} s: {seen}\n{self.logs()}")
            await asyncio.sleep(RETRY_SECONDS)
        if allow_exit:
            return False
        raise AssertionError(f"{self.instance} ended with {self.exit_code} before it was ready\n{self.logs()}")

    async def health(self, http: httpx.AsyncClient, path: str, timeout: float = 2.0) -> httpx.Response | None:
        """Return the answer of /livez, /readyz or /health, or None if there was none in time."""
        try:
            return await http.get(self.url + path, timeout=timeout)
        except httpx.TransportError:
            return None

    def logs(self, lines: int = 40) -> str:
        """Return the last lines the process printed."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return f"--- {self.instance} (port {self.port})\n" + "\n".join(text.splitlines()[-lines:])

    def close(self) -> None:
        """End the process whatever state it is in, and collect it."""
        if self._process is None:
            return
        if self.running:
            self._process.kill()
        self._process.wait(timeout=10)


class Fleet:
    """The runtime processes of one scenario, in the order they were started; ends them all on close."""

    def __init__(self, agent: AgentUnderTest, postgres_url: str) -> None:
        self.agent = agent
        self.postgres_url = postgres_url
        self.processes: list[RuntimeProcess] = []

    def start(
        self, instance: str, environ: Mapping[str, str] | None = None, *, postgres_url: str | None = None
    ) -> RuntimeProcess:
        """Start one more process and return it without waiting."""
        process = RuntimeProcess(self.agent, postgres_url or self.postgres_url, instance=instance, environ=environ)
        process.start()
        self.processes.append(process)
        return process

    def running(self) -> list[RuntimeProcess]:
        """Return the processes that have not ended, newest last."""
        return [process for process in self.processes if process.running]

    def urls(self) -> list[str]:
        """Return where clients may try, newest first."""
        return [process.url for process in reversed(self.running())]

    def logs(self) -> str:
        """Return the ends of all logs."""
        return "\n".join(process.logs() for process in self.processes)

    def close(self) -> None:
        """End every process."""
        for process in self.processes:
            process.close()


@contextmanager
def fleet(agent: AgentUnderTest, postgres_url: str) -> Iterator[Fleet]:
    """Yield a Fleet and leave no process behind; a failure inside carries the logs."""
    made = Fleet(agent, postgres_url)
    try:
        yield made
    except BaseException as error:
        error.add_note(made.logs())
        raise
    finally:
        made.close()


@dataclass(frozen=True, slots=True)
class Answer:
    """One HTTP answer to a message: the turn as the client was told it stands."""

    status_code: int
    turn_id: str
    turn_status: str
    reply: str | None

    @property
    def final(self) -> bool:
        """Whether the turn had its outcome."""
        return self.turn_status in FINAL


@dataclass(slots=True)
class Message:
    """One message of a client and everything that came back for it."""

    user: str
    session: str
    content: str
    key: str | None
    # Acknowledged before this one was first sent, in the same session.
    after: tuple[str, ...] = ()
    answers: list[Answer] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)
    settled_at: float = 0.0

    @property
    def acknowledged(self) -> bool:
        """Whether any answer told the client that the message was taken."""
        return bool(self.answers)

    @property
    def final(self) -> Answer | None:
        """Return the first final answer, if there was one."""
        return next((answer for answer in self.answers if answer.final), None)


class UnexpectedAnswerError(AssertionError):
    """An HTTP answer that no fault excuses."""


class Conversation:
    """Scripted clients of one agent. They remember what they said and were told; the invariants judge it."""

    def __init__(self, agent: AgentUnderTest, http: httpx.AsyncClient, urls: Callable[[], list[str]]) -> None:
        self.agent = agent
        self.http = http
        self.urls = urls
        self.said: list[Message] = []
        self._turns_of_choice = 0

    def compose(self, user: str, session: str, *, keyed: bool = True) -> Message:
        """Make the session's next message: its text is unlike any other's."""
        earlier = [message for message in self.said if (message.user, message.session) == (user, session)]
        content = f"{user}/{session}/{len(earlier) + 1}"
        after = tuple(message.content for message in earlier if message.acknowledged)
        message = Message(user, session, content, f"key-{content}" if keyed else None, after)
        self.said.append(message)
        return message

    async def say(self, user: str, session: str, *, timeout: float = 40.0) -> Message:
        """Send one keyed message and try again with the same key until it is answered."""
        message = self.compose(user, session)
        await self.settle(message, timeout=timeout)
        return message

    async def say_once(self, user: str, session: str, *, timeout: float = 20.0) -> Message:
        """Send one message without a key, once a process runs: what became of it is unknown if no answer comes."""
        await until(lambda: bool(self.urls()), timeout, "a process runs", poll=RETRY_SECONDS)
        message = self.compose(user, session, keyed=False)
        await self._post(message, wait=True, timeout=timeout)
        return message

    async def burst(self, user: str, session: str, count: int, *, timeout: float = 40.0) -> list[Message]:
        """Send messages one after another without waiting for replies, so that they queue; return once acknowledged."""
        messages = []
        for _ in range(count):
            message = self.compose(user, session)
            await self.acknowledge(message, timeout=timeout)
            messages.append(message)
        return messages

    async def acknowledge(self, message: Message, *, timeout: float = 40.0) -> None:
        """Send the message again and again with its key until it is acknowledged."""

        async def attempt() -> bool:
            return await self._post(message, wait=False, timeout=5.0) is not None

        await until(attempt, timeout, f"{message.content} is acknowledged: {message.refusals[-3:]}", poll=RETRY_SECONDS)

    async def settle(self, message: Message, *, timeout: float = 40.0, patience: float = 10.0) -> Answer:
        """Send the message with its key until its outcome is known; one try takes `patience` seconds at most.

        A message without a key is followed by its turn instead, if it was acknowledged.
        """

        async def attempt() -> bool:
            if message.key is None:
                await self.follow(message)
            else:
                await self._post(message, wait=True, timeout=patience)
            return message.final is not None

        if message.final is None:
            await until(attempt, timeout, f"{message.content} is answered: {message.refusals[-3:]}", poll=RETRY_SECONDS)
            message.settled_at = time.monotonic()
        assert message.final is not None
        return message.final

    async def settle_all(self, *, timeout: float = 40.0) -> None:
        """Wait for the outcome of every message that may have one."""
        open_ones = [message for message in self.said if message.key is not None or message.acknowledged]
        await asyncio.gather(*(self.settle(message, timeout=timeout) for message in open_ones))

    async def repeat_all(self) -> None:
        """Send every keyed message once more; the invariants compare the answers."""
        await asyncio.gather(*(self.repeat(message) for message in self.said if message.key is not None))

    async def repeat(self, message: Message) -> None:
        """Send a keyed message once more, until there is an answer."""
        before = len(message.answers)

        async def attempt() -> bool:
            await self._post(message, wait=True, timeout=10.0)
            return len(message.answers) > before

        await until(attempt, 60.0, f"{message.content} is answered again", poll=RETRY_SECONDS)

    async def glance(self, user: str, session: str) -> None:
        """Read a page of history as a client would that does not mind if it cannot."""
        with suppress(httpx.HTTPStatusError, httpx.TransportError):
            await self.history(user, session, limit=200)

    async def history(self, user: str, session: str, *, limit: int = 7) -> list[dict[str, Any]]:
        """Read a session's whole history through its pages."""
        items: list[dict[str, Any]] = []
        cursor: str | None = None
        while True:
            query = {"limit": str(limit), **({"cursor": cursor} if cursor else {})}
            page = await self.http.get(
                f"{self._choose()}{self.agent.path}/sessions/{session}/messages",
                params=query,
                headers={"Abide-User": user},
                timeout=10.0,
            )
            page.raise_for_status()
            body = page.json()
            items += body["items"]
            cursor = body["nextCursor"]
            if not cursor:
                return items

    def _choose(self) -> str:
        urls = self.urls()
        if not urls:
            raise httpx.ConnectError("no process runs")
        self._turns_of_choice += 1
        return urls[self._turns_of_choice % len(urls)]

    async def ask(self, message: Message, process: RuntimeProcess, *, timeout: float) -> Answer | None:
        """Send the message to this process once and wait; None if it was refused or no answer came."""
        return await self._post(message, wait=True, timeout=timeout, base=process.url)

    async def _post(self, message: Message, *, wait: bool, timeout: float, base: str = "") -> Answer | None:
        headers = {"Abide-User": message.user}
        if message.key is not None:
            headers["Idempotency-Key"] = message.key
        if not wait:
            headers["Prefer"] = "respond-async"
        try:
            url = f"{base or self._choose()}{self.agent.path}/sessions/{message.session}/messages"
            response = await self.http.post(url, json={"content": message.content}, headers=headers, timeout=timeout)
        except httpx.TransportError as error:
            message.refusals.append(f"{type(error).__name__}: {error}")
            return None
        return self._take(message, response)

    async def follow(self, message: Message) -> Answer | None:
        """Ask once how the message's turn stands; None if there was no answer, or it was never acknowledged."""
        if not message.acknowledged:
            return None
        turn = message.answers[-1].turn_id
        try:
            url = f"{self._choose()}{self.agent.path}/turns/{turn}"
            response = await self.http.get(url, headers={"Abide-User": message.user}, timeout=5.0)
        except httpx.TransportError as error:
            message.refusals.append(f"{type(error).__name__}: {error}")
            return None
        return self._take(message, response)

    def _take(self, message: Message, response: httpx.Response) -> Answer | None:
        """Note the answer. Only 503 with Retry-After excuses itself."""
        if response.status_code == 503 and float(response.headers.get("Retry-After", "0")) > 0:
            message.refusals.append(f"503 {response.text[:200]}")
            return None
        if response.status_code not in (200, 202):
            raise UnexpectedAnswerError(f"{message.content}: {response.status_code} {response.headers} {response.text}")
        body = response.json()
        turn, reply = body["turn"], body.get("reply")
        answer = Answer(response.status_code, turn["id"], turn["status"], reply["content"] if reply else None)
        message.answers.append(answer)
        return answer


def new_http() -> httpx.AsyncClient:
    """Return a client for plain HTTP on loopback, without a limit by which one silent process holds up the others."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=20)
    return httpx.AsyncClient(trust_env=False, limits=limits, verify=False)


def names_of(messages: Iterable[Message]) -> list[str]:
    """Return the texts of messages, for comparing."""
    return [message.content for message in messages]
