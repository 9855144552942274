"""Messages over HTTP to runtime processes: as fast as they go, at a fixed rate, or all at once.

The bare client of `workers.http_load`; latencies count from the instant a message was due, so that a server that falls
behind cannot hide it.
"""

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from benchmarks.common import CONTENT, NAMESPACE
from benchmarks.workers.http_load import Connection

GRACE: Final = 60.0


@dataclass(slots=True)
class Talked:
    """What became of the messages: seconds of each reply, and the first words of answers that were no reply."""

    seconds: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    lasted: float = 0.0

    @property
    def rate(self) -> float:
        """Replies per second."""
        return len(self.seconds) / self.lasted if self.lasted else 0.0

    def percentile(self, share: float) -> float:
        """Return the seconds within which this share of the replies came."""
        ordered = sorted(self.seconds)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def message(agent: str, session: str, content: str = CONTENT, *, wait_seconds: float = 60.0) -> bytes:
    """Return the bytes of a request."""
    body = json.dumps({"content": content}).encode()
    path = f"/v1/agents/{NAMESPACE}/{agent}/sessions/{session}/messages?waitSeconds={wait_seconds:g}"
    lines = [f"POST {path} HTTP/1.1", "Host: bench", "Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode() + body


async def connect(port: int, number: int) -> list[Connection]:
    """Open connections to a process."""
    loop = asyncio.get_running_loop()
    return [(await loop.create_connection(Connection, "127.0.0.1", port))[1] for _ in range(number)]


def close(connections: Sequence[Connection]) -> None:
    """Close connections."""
    for connection in connections:
        connection.close()


async def ask(connection: Connection, request: bytes, due: float, talked: Talked) -> None:
    """Send one message and note what came of it."""
    answer = await connection.request(request)
    if answer.startswith(b"HTTP/1.1 200"):
        talked.seconds.append(time.perf_counter() - due)
    else:
        talked.failures.append(answer[:200].decode(errors="replace"))


async def as_fast_as_they_go(ports: Sequence[int], agent: str, *, sessions: int, turns: int, seconds: float) -> Talked:
    """Keep a message under way in each of `sessions` sessions, spread over the processes; new ones after `turns`."""
    talked = Talked()
    connections = [one for port in ports for one in await connect(port, sessions // len(ports))]
    started = time.perf_counter()
    deadline = started + seconds

    async def client(number: int, connection: Connection) -> None:
        round_ = 0
        while time.perf_counter() < deadline:
            request = message(agent, f"f{number}-{round_}-{started:.0f}")
            for _ in range(turns):
                if time.perf_counter() >= deadline:
                    return
                await ask(connection, request, time.perf_counter(), talked)
            round_ += 1

    async with asyncio.timeout(seconds + GRACE):
        await asyncio.gather(*(client(number, one) for number, one in enumerate(connections)))
    talked.lasted = time.perf_counter() - started
    close(connections)
    return talked


async def at_rate(port: int, agent: str, *, rate: float, seconds: float, sessions: int) -> Talked:
    """Send messages at a fixed rate, the sessions in turn; one that is still busy is due later, which counts."""
    talked = Talked()
    connections = await connect(port, sessions)
    requests = [message(agent, f"r{number}") for number in range(sessions)]
    free = [asyncio.Lock() for _ in range(sessions)]
    started = time.perf_counter()

    async def one(number: int, due: float) -> None:
        async with free[number]:
            await ask(connections[number], requests[number], due, talked)

    async with asyncio.timeout(seconds + GRACE), asyncio.TaskGroup() as group:
        for count in range(int(rate * seconds)):
            due = started + count / rate
            pause = due - time.perf_counter()
            if pause > 0:
                await asyncio.sleep(pause)
            group.create_task(one(count % sessions, due))
    talked.lasted = time.perf_counter() - started
    close(connections)
    return talked


async def once_each(port: int, agent: str, names: Sequence[str], *, at_once: int, wait_seconds: float = 60.0) -> Talked:
    """Send one message to each session, `at_once` of them at a time."""
    talked = Talked()
    connections = await connect(port, min(at_once, len(names)))
    waiting = iter(names)
    started = time.perf_counter()

    async def client(connection: Connection) -> None:
        for name in waiting:
            await ask(connection, message(agent, name, wait_seconds=wait_seconds), time.perf_counter(), talked)

    async with asyncio.timeout(len(names) * wait_seconds / len(connections) + GRACE):
        await asyncio.gather(*(client(one) for one in connections))
    talked.lasted = time.perf_counter() - started
    close(connections)
    return talked
