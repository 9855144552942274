"""Asking runtimes how they are: GET /readyz of pods that run but are not ready, and of each that became ready, once.

A pod that became ready is asked on until it knows whether its models can be called: no status calls it serving earlier.

Status must not depend on Postgres, and the kubelet tells only that a probe failed, not why; so the operator reads the
answer itself. A reconcile waits only shortly for it: an answer that comes later, and every other one, wakes the agent.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

import aiohttp
from pydantic import ValidationError

from agent_api.wire import HealthOut
from agent_operator.keys import AgentKey
from agent_operator.status.causes import needs_probe
from agent_operator.status.models import MODEL_GRACE_SECONDS
from agent_operator.status.observed import ProbeFailure, ProbeResult
from agent_operator.status.pods import PodView

ANSWER_TIMEOUT: Final = 1.0
PATIENCE: Final = 0.3
"""So long a reconcile waits: `Ready` must follow the pod within a second, also when its process is frozen."""
UNREADY_PAUSES: Final = (2.0, 4.0)
"""Between two questions to a pod that is not ready: in its first minute, and later."""
FIRST_MINUTE: Final = 60.0
READY_PAUSES: Final = (2.0, 30.0)
"""Between two tries to reach a pod that is ready: after the first one, and later."""
CHECKING_PAUSE: Final = 1.0
"""Between two questions to a pod that does not know its models yet, for MODEL_GRACE_SECONDS at most."""
UNSEEN_SECONDS: Final = 8.0
"""A pod that says so long that it is ready, and is not: the kubelet cannot reach what it asks every two seconds."""
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


@dataclass(slots=True)
class _Conversation:
    """One pod that is asked, in one state: it ends when the pod becomes ready, unready, or is gone."""

    pod: PodView
    task: asyncio.Task[None] | None = None
    answered: asyncio.Event = field(default_factory=asyncio.Event)
    answer: ProbeResult | None = None


class HealthProber:
    """Keeps asking the pods that reconciles showed it, and keeps the newest answer of each."""

    def __init__(self, fetch: Fetch, wake: Callable[[AgentKey], None]) -> None:
        self._fetch = fetch
        self._wake = wake
        self._conversations: dict[AgentKey, dict[str, _Conversation]] = {}
        self._slots = asyncio.Semaphore(CONCURRENT)

    async def ask(self, key: AgentKey, pods: Sequence[PodView], *, now: datetime) -> Mapping[str, ProbeResult]:
        """Return, by pod uid, the newest answer given in the pod's present state, waiting shortly for the first one.

        From then on the agent is woken whenever a pod that is not ready says something new.
        If cancelled, the questions go on.
        """
        wanted = {pod.uid: pod for pod in pods if needs_probe(pod, now) or (pod.serving and pod.ip)}
        known = self._conversations.get(key, {})
        current = {uid: one for uid, one in known.items() if uid in wanted and _same_state(one.pod, wanted[uid])}
        for uid in known.keys() - current.keys():
            _end(known[uid])
        for uid in wanted.keys() - current.keys():
            current[uid] = self._begin(key, wanted[uid])
        if current:
            self._conversations[key] = current
        else:
            self._conversations.pop(key, None)
        await self._wait_for_first_answers(current.values())
        return {uid: one.answer for uid, one in current.items() if one.answer is not None}

    def forget(self, key: AgentKey) -> None:
        """Ask nothing more about an agent."""
        for conversation in self._conversations.pop(key, {}).values():
            _end(conversation)

    async def aclose(self) -> None:
        """Stop asking."""
        tasks = [one.task for group in self._conversations.values() for one in group.values() if one.task is not None]
        for key in list(self._conversations):
            self.forget(key)
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _wait_for_first_answers(self, conversations: Iterable[_Conversation]) -> None:
        waiting = [one.answered.wait() for one in conversations if not one.answered.is_set()]
        if waiting:
            with suppress(TimeoutError):
                async with asyncio.timeout(PATIENCE):
                    await asyncio.gather(*waiting)

    def _begin(self, key: AgentKey, pod: PodView) -> _Conversation:
        conversation = _Conversation(pod)
        conversation.task = asyncio.create_task(self._converse(key, conversation), name=f"ask {key} {pod.name}")
        return conversation

    async def _converse(self, key: AgentKey, conversation: _Conversation) -> None:
        loop, pod = asyncio.get_running_loop(), conversation.pod
        begun, well_since, missed = loop.time(), float("inf"), False
        while True:
            asked = loop.time()
            async with self._slots:
                answer = await self._fetch(pod.ip)
            well = not pod.ready and isinstance(answer, HealthOut) and answer.ok
            well_since = min(well_since, loop.time()) if well else float("inf")
            if loop.time() - well_since > UNSEEN_SECONDS:
                answer = ProbeFailure.NOT_SEEN
            before = conversation.answer
            # Who named a cause may be busy with getting over it: only the second silence in a row is news.
            missed = not missed and answer is ProbeFailure.NO_ANSWER and isinstance(before, HealthOut) and not before.ok
            conversation.answer = answer = before if missed and before is not None else answer
            first = not conversation.answered.is_set()
            conversation.answered.set()
            # A first answer in time is taken by the reconcile that waits for it.
            if loop.time() - asked > PATIENCE if first else _gist(before) != _gist(answer):
                self._wake(key)
            past = loop.time() - begun
            if pod.ready and isinstance(answer, HealthOut):
                if not _is_checking(answer) or past > MODEL_GRACE_SECONDS:
                    return
                await asyncio.sleep(CHECKING_PAUSE)
            else:
                early, late = READY_PAUSES if pod.ready else UNREADY_PAUSES
                still_early = first if pod.ready else past < FIRST_MINUTE
                await asyncio.sleep(early if still_early else late)


def _is_checking(answer: HealthOut) -> bool:
    return any(check.ok is None for check in answer.models)


def _same_state(before: PodView, now: PodView) -> bool:
    """Whether what the pod said then still counts: same readiness, same run of its container, same address."""
    return (before.ready, before.started, before.ip) == (now.ready, now.started, now.ip)


def _gist(answer: ProbeResult | None) -> object:
    """Return the part of an answer whose change is news; its texts may count seconds."""
    if isinstance(answer, HealthOut):
        checks = tuple((check.name, check.ok, check.reason) for check in answer.checks)
        return answer.version, checks, tuple((check.name, check.ok, check.reason) for check in answer.models)
    return answer


def _end(conversation: _Conversation) -> None:
    if conversation.task is not None:
        conversation.task.cancel()
