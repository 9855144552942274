"""What agents refer to without owning it: users' Secrets and ConfigMaps, read by name and looked at again.

They carry no label of ours, and watching all Secrets of a cluster would mean to hold them all in memory. So each is
read by name: every two seconds while something in it is missing or seems wrong, otherwise every four seconds, and less
often the more there are, down to every half minute. Agents that share an object share the reads. Of a Secret only its
version and the names of its keys are kept.
"""

import asyncio
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

import structlog

from agent_operator.errors import OperatorError
from agent_operator.keys import AgentKey
from agent_operator.kube.port import CONFIG_MAP, Cluster, Kind, Object

log = structlog.get_logger(__name__)

TICK: Final = 0.5
CONCURRENT_READS: Final = 16
PROMPT_SECONDS: Final = 4.0
"""So often something complete is looked at where there is little: its loss is to show within five seconds."""
RELAXED_READS_PER_SECOND: Final = 10.0
"""More than that are not spent on what is complete, until its interval is the longest one."""


@dataclass(frozen=True, slots=True)
class Reference:
    """Names one object that an Agent refers to."""

    kind: Kind
    namespace: str
    name: str


@dataclass(frozen=True, slots=True)
class Referent:
    """What was found: `keys` in its data, and for ConfigMaps the values somebody asked for.

    `version` changes with every change of the object.
    """

    exists: bool
    keys: frozenset[str] = frozenset()
    values: Mapping[str, str] = field(default_factory=dict)
    version: str = ""


@dataclass(slots=True)
class _Watched:
    wanted: dict[AgentKey, frozenset[str]]
    found: Referent | None = None
    due: float = 0.0

    @property
    def keys(self) -> frozenset[str]:
        return frozenset().union(*self.wanted.values())

    @property
    def complete(self) -> bool:
        return self.found is not None and self.found.exists and self.keys <= self.found.keys


class References:
    """Reads references for reconciles, and wakes the agents that refer to something that changed."""

    def __init__(
        self,
        cluster: Cluster,
        wake: Callable[[AgentKey], None],
        *,
        missing_interval: float,
        present_interval: float,
        random_source: random.Random | None = None,
    ) -> None:
        self._cluster = cluster
        self._wake = wake
        self._missing_interval = missing_interval
        self._present_interval = present_interval
        self._random = random_source or random.Random()
        self._watched: dict[Reference, _Watched] = {}
        self._by_agent: dict[AgentKey, frozenset[Reference]] = {}
        self._closely: set[AgentKey] = set()
        self._slots = asyncio.Semaphore(CONCURRENT_READS)

    async def resolve(self, key: AgentKey, wanted: Mapping[Reference, frozenset[str]]) -> dict[Reference, Referent]:
        """Return what these references lead to now; from then on changes of them wake the agent.

        What was not complete when last looked at is read again. Raises what `Cluster.get` raises.
        """
        self._depend(key, wanted)
        results: dict[Reference, Referent] = {}
        for reference in wanted:
            watched = self._watched[reference]
            if watched.found is None or not watched.complete:
                await self._read(reference)
            results[reference] = watched.found or Referent(exists=False)
        return results

    def forget(self, key: AgentKey) -> None:
        """Stop looking at what only this agent refers to."""
        self._closely.discard(key)
        self._depend(key, {})

    def watch_closely(self, key: AgentKey, *, closely: bool) -> None:
        """Look at what the agent refers to as often as at something missing: somebody is about to correct it."""
        if closely == (key in self._closely):
            return
        if not closely:
            self._closely.discard(key)
            return
        self._closely.add(key)
        soon = asyncio.get_running_loop().time() + self._missing_interval
        for reference in self._by_agent.get(key, ()):
            watched = self._watched[reference]
            watched.due = min(watched.due, soon)

    def _depend(self, key: AgentKey, wanted: Mapping[Reference, frozenset[str]]) -> None:
        for reference in self._by_agent.pop(key, frozenset()) - wanted.keys():
            watched = self._watched[reference]
            del watched.wanted[key]
            if not watched.wanted:
                del self._watched[reference]
        for reference, keys in wanted.items():
            self._watched.setdefault(reference, _Watched({})).wanted[key] = keys
        if wanted:
            self._by_agent[key] = frozenset(wanted)

    async def run(self) -> None:
        """Look at everything again when it is due, until cancelled."""
        while True:
            now = asyncio.get_running_loop().time()
            due = [reference for reference, watched in self._watched.items() if watched.due <= now]
            if due:
                await asyncio.gather(*(self._look_again(reference) for reference in due))
            await asyncio.sleep(TICK)

    async def _look_again(self, reference: Reference) -> None:
        watched = self._watched.get(reference)
        if watched is None:
            return
        before = watched.found
        try:
            await self._read(reference)
        except OperatorError as exc:
            log.debug("a reference could not be read", kind=reference.kind.key, name=reference.name, error=str(exc))
            self._plan(watched)
            return
        if watched.found != before:
            for key in list(watched.wanted):
                self._wake(key)

    async def _read(self, reference: Reference) -> None:
        watched = self._watched[reference]
        async with self._slots:
            body = await self._cluster.get(reference.kind, reference.namespace, reference.name)
        watched.found = _to_referent(reference.kind, body, watched.keys)
        self._plan(watched)

    def _plan(self, watched: _Watched) -> None:
        relaxed = watched.complete and self._closely.isdisjoint(watched.wanted)
        interval = relaxed_interval(len(self._watched), self._present_interval) if relaxed else self._missing_interval
        # Half a tick earlier than asked for, and never all at once.
        pause = interval * self._random.uniform(0.8, 1.0) - TICK / 2
        watched.due = asyncio.get_running_loop().time() + pause

    def statistics(self) -> dict[str, int]:
        """Return how many objects are looked at, and how many of them are incomplete."""
        missing = sum(not watched.complete for watched in self._watched.values())
        return {"references": len(self._watched), "missing": missing}


def relaxed_interval(count: int, longest: float) -> float:
    """Return after how many seconds to look again at something complete, when `count` objects are looked at."""
    return min(longest, max(PROMPT_SECONDS, count / RELAXED_READS_PER_SECOND))


def _to_referent(kind: Kind, body: Object | None, wanted: frozenset[str]) -> Referent:
    if body is None:
        return Referent(exists=False)
    data = body.get("data") or {}
    values = {key: data[key] for key in wanted if key in data} if kind is CONFIG_MAP else {}
    return Referent(True, frozenset(data), values, body["metadata"]["resourceVersion"])
