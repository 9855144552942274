"""Sends the messages of one row, saves and closes the sessions, and times each request."""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

import httpx

from agent_api.wire import USER_HEADER, TurnResponse, TurnStatus
from agent_cli.load.plan import Plan, Row, Spread

USER: Final = "abide-load"
REQUEST_TIMEOUT: Final = 60.0
CONTENT: Final = "How long does this take? " * 8
MOST_UNDER_WAY: Final = 256
"""Requests at once. Beyond it messages wait, which their latency shows, since it counts from when they were due."""
AT_ONCE_AFTERWARDS: Final = 4
"""Saves and closes at once: they are to be timed, not to be made to wait for each other."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One agent as the load reaches it."""

    namespace: str
    name: str
    base_url: str
    api_key: str | None = None

    def session(self, name: str) -> str:
        """Return the URL of one session."""
        agent = f"{quote(self.namespace, safe='')}/{quote(self.name, safe='')}"
        return f"{self.base_url}/v1/agents/{agent}/sessions/{quote(name, safe='')}"

    def headers(self) -> dict[str, str]:
        """Return what every request carries."""
        key = {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}
        return {USER_HEADER: USER, **key}


async def run_load(plan: Plan, endpoints: Sequence[Endpoint], row: Row, *, run_id: str) -> None:
    """Fill in `row`: talk in sessions of this run's own, then save and close (delete) each of them.

    Sessions are also closed when this is cancelled or fails; the caller bounds the time.
    """
    limits = httpx.Limits(max_connections=MOST_UNDER_WAY, max_keepalive_connections=MOST_UNDER_WAY)
    names = [f"load-{run_id}-{number}" for number in range(plan.sessions)]
    everything = [(endpoint, name) for endpoint in endpoints for name in names]
    async with httpx.AsyncClient(timeout=REQUEST_TIMEOUT, limits=limits, trust_env=False) as http:
        try:
            row.reply = Spread(await _talk(http, plan, endpoints, names, row))
            row.save = await _each(http, everything, _save, row.failures)
        finally:
            row.close = await asyncio.shield(_each(http, everything, _close, row.failures))


async def _talk(
    http: httpx.AsyncClient, plan: Plan, endpoints: Sequence[Endpoint], names: Sequence[str], row: Row
) -> list[float]:
    """Send every message at its instant; return milliseconds from that instant to the reply, of those that came."""
    gate = asyncio.Semaphore(MOST_UNDER_WAY)
    # A session answers one message at a time; the next one waits here, not in the agent's queue, which is bounded.
    locks = {(endpoint, name): asyncio.Lock() for endpoint in endpoints for name in names}
    times: list[float] = []

    async def send(at: float, endpoint: Endpoint, name: str) -> None:
        async with locks[endpoint, name], gate:
            problem = await _send(http, endpoint, name)
        if problem is None:
            times.append((time.perf_counter() - at) * 1000)
        else:
            row.failures[problem] += 1

    started = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for number, (agent, session) in enumerate(plan.order(len(endpoints))):
            at = started + number / plan.rate
            await asyncio.sleep(max(0.0, at - time.perf_counter()))
            group.create_task(send(at, endpoints[agent], names[session]), name=f"message-{number}")
    row.sending_seconds = time.perf_counter() - started
    return times


async def _send(http: httpx.AsyncClient, endpoint: Endpoint, name: str) -> str | None:
    """Send one message; return None when it was answered, else what went wrong in few words."""
    try:
        answer = await http.post(
            f"{endpoint.session(name)}/messages", json={"content": CONTENT}, headers=endpoint.headers()
        )
    except httpx.TransportError as error:
        return type(error).__name__
    if answer.status_code != httpx.codes.OK:
        return f"HTTP {answer.status_code}"
    status = TurnResponse.model_validate_json(answer.content).turn.status
    return None if status is TurnStatus.COMPLETED else f"turn {status.value}"


async def _save(http: httpx.AsyncClient, endpoint: Endpoint, name: str) -> httpx.Response:
    """Write the session's snapshot."""
    document = {"variables": {"load": True}}
    return await http.put(f"{endpoint.session(name)}/state", json=document, headers=endpoint.headers())


async def _close(http: httpx.AsyncClient, endpoint: Endpoint, name: str) -> httpx.Response:
    """Delete the session, which is idle, with everything in it."""
    return await http.delete(endpoint.session(name), headers=endpoint.headers())


async def _each(
    http: httpx.AsyncClient,
    sessions: Iterable[tuple[Endpoint, str]],
    request: Callable[[httpx.AsyncClient, Endpoint, str], Awaitable[httpx.Response]],
    failures: Counter[str],
) -> Spread:
    """Make one request per session, a few at once; return milliseconds of those that succeeded."""
    gate = asyncio.Semaphore(AT_ONCE_AFTERWARDS)
    times: list[float] = []

    async def make(endpoint: Endpoint, name: str) -> None:
        async with gate:
            started = time.perf_counter()
            try:
                answer = await request(http, endpoint, name)
            except httpx.TransportError as error:
                failures[f"{request.__name__.strip('_')}: {type(error).__name__}"] += 1
                return
            if answer.is_success:
                times.append((time.perf_counter() - started) * 1000)
            elif not (request is _close and answer.status_code == httpx.codes.NOT_FOUND):
                failures[f"{request.__name__.strip('_')}: HTTP {answer.status_code}"] += 1

    await asyncio.gather(*(make(endpoint, name) for endpoint, name in sessions))
    return Spread(times)
