"""Asking runtimes how they are: GET /readyz of pods that run but are not ready, and once of each that became ready.

Status must not depend on Postgres, and the kubelet tells only that a probe failed, not why; so the operator reads the
answer itself. A reconcile waits only shortly for it: an answer that comes later wakes the agent again.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import aiohttp
from pydantic import ValidationError

from agent_api.wire import HealthOut
from agent_operator.keys import AgentKey
from agent_operator.status.causes import needs_probe
from agent_operator.status.observed import ProbeFailure, ProbeResult
from agent_operator.status.pods import PodView

ANSWER_TIMEOUT: Final = 1.0
PATIENCE: Final = 0.3
"""So long a reconcile waits: `Ready` must follow the pod within a second, also when its process is frozen."""
UNREADY_PAUSE: Final = 1.5
READY_PAUSE: Final = 30.0
CONCURRENT: Final = 32
_BODY_LIMIT: Final = 64 * 1024

Fetch = Callable[[str], Awaitable[ProbeResult]]
"""Reads the health of the runtime at an IP address; never raises, and ends within ANSWER_TIMEOUT."""


class HttpFetch:
    """`Fetch` over HTTP on a session of its own."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._session: aiohttp.ClientSession | None = None

    async def __call__(self, ip: str) -> ProbeResult:
        if self._session is None:
            # No proxy, no cookies, a new connection each time: the answer must be that pod's, now.
            self._session = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=ANSWER_TIMEOUT),
                connector=aiohttp.TCPConnector(limit=CONCURRENT, force_close=True),
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        host = f"[{ip}]" if ":" in ip else ip
        try:
            async with self._session.get(f"http://{host}:{self._port}/readyz", allow_redirects=False) as response:
                return HealthOut.model_validate_json(await response.content.read(_BODY_LIMIT))
        except ValidationError:
            return ProbeFailure.NOT_UNDERSTOOD
        except (TimeoutError, aiohttp.ClientError, OSError):
            return ProbeFailure.NO_ANSWER

    async def aclose(self) -> None:
        """Close the session."""
        if self._session is not None:
            await self._session.close()


@dataclass(frozen=True, slots=True)
class _Answer:
    result: ProbeResult
    while_ready: bool
    at: float


class HealthProber:
    """Keeps the newest answer of each pod that was asked."""

    def __init__(self, fetch: Fetch, wake: Callable[[AgentKey], None]) -> None:
        self._fetch = fetch
        self._wake = wake
        self._answers: dict[AgentKey, dict[str, _Answer]] = {}
        self._asking: dict[str, asyncio.Task[None]] = {}
        self._slots = asyncio.Semaphore(CONCURRENT)

    async def ask(self, key: AgentKey, pods: Sequence[PodView], *, now: datetime) -> Mapping[str, ProbeResult]:
        """Return, by pod uid, the newest answer given in the pod's present state, after asking again where it is due.

        If cancelled, the questions go on and wake the agent when answered.
        """
        self._answers.setdefault(key, {})
        self._drop_gone(key, pods)
        asked = [self._start(key, pod) for pod in pods if self._is_due(key, pod, now)]
        if asked:
            await asyncio.wait(asked, timeout=PATIENCE)
        answers = self._answers.get(key, {})  # the agent may have been forgotten meanwhile
        return {
            pod.uid: answers[pod.uid].result
            for pod in pods
            if pod.uid in answers and answers[pod.uid].while_ready == pod.ready
        }

    def forget(self, key: AgentKey) -> None:
        """Drop everything known about an agent's pods."""
        self._answers.pop(key, None)

    async def aclose(self) -> None:
        """Stop asking."""
        tasks = list(self._asking.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _drop_gone(self, key: AgentKey, pods: Sequence[PodView]) -> None:
        answers = self._answers.get(key)
        if answers:
            alive = {pod.uid for pod in pods}
            self._answers[key] = {uid: answer for uid, answer in answers.items() if uid in alive}

    def _is_due(self, key: AgentKey, pod: PodView, now: datetime) -> bool:
        if not (needs_probe(pod, now) or (pod.serving and pod.ip)):
            return False
        answer = self._answers.get(key, {}).get(pod.uid)
        if answer is None or answer.while_ready != pod.ready:
            return True
        age = asyncio.get_running_loop().time() - answer.at
        if pod.ready:
            return isinstance(answer.result, ProbeFailure) and age > READY_PAUSE
        return age > UNREADY_PAUSE

    def _start(self, key: AgentKey, pod: PodView) -> asyncio.Task[None]:
        task = self._asking.get(pod.uid)
        if task is None:
            task = asyncio.create_task(self._ask_one(key, pod), name=f"ask {key} {pod.name}")
            self._asking[pod.uid] = task
            task.add_done_callback(lambda _: self._asking.pop(pod.uid, None))
        return task

    async def _ask_one(self, key: AgentKey, pod: PodView) -> None:
        started = asyncio.get_running_loop().time()
        async with self._slots:
            result = await self._fetch(pod.ip)
        loop_time = asyncio.get_running_loop().time()
        known = self._answers.get(key)
        if known is None:
            return
        before = known.get(pod.uid)
        known[pod.uid] = _Answer(result, pod.ready, loop_time)
        late = loop_time - started > PATIENCE
        if late and (before is None or before.result != result or before.while_ready != pod.ready):
            self._wake(key)
