"""What keeps reconciling: the workers that empty the queue, and the sweep that looks at everything."""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import structlog

from agent_api.labels import LABEL_MANAGED_BY, MANAGED_BY
from agent_operator.errors import OperatorError, Transient, Waiting
from agent_operator.keys import AgentKey
from agent_operator.kube.port import AGENT, WATCHED_KINDS, Cluster, Kind
from agent_operator.reconcile.cache import ClusterCache
from agent_operator.reconcile.outcome import Outcome
from agent_operator.reconcile.queue import QueueClosed, WorkQueue
from agent_operator.reconcile.reconciler import Reconciler
from agent_operator.status.text import scrub
from agent_operator.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)

SWEEP_SPREAD: Final = 60.0
"""A sweep looks at all agents over this many seconds, so that a large fleet makes no spike."""
SWEEP_RETRY: Final = 2.0
OWN_OBJECTS: Final = f"{LABEL_MANAGED_BY}={MANAGED_BY}"


@dataclass(frozen=True, slots=True)
class ControllerSettings:
    """Sizes and times (seconds). `namespaces` empty means the whole cluster."""

    workers: int
    sweep_interval: float
    namespaces: tuple[str, ...] = ()


class Sweeper:
    """Lists everything and compares it with the cache: what a watch missed shows here."""

    def __init__(self, cluster: Cluster, cache: ClusterCache, namespaces: Sequence[str]) -> None:
        self._cluster = cluster
        self._cache = cache
        self._scopes: list[str | None] = list(namespaces) or [None]
        self.synced = False

    async def sweep(self) -> set[AgentKey]:
        """Bring the cache to the live state; return the agents of which something had been missed.

        Raises what listing raises; the cache then is no worse than before.
        """
        touched: set[AgentKey] = set()
        for kind in WATCHED_KINDS:
            touched |= await self._sweep_kind(kind)
        self.synced = True
        return touched

    async def _sweep_kind(self, kind: Kind) -> set[AgentKey]:
        before, present = self._cache.known_uids(kind), set()
        touched: set[AgentKey] = set()
        for scope in self._scopes:
            selector = "" if kind is AGENT else OWN_OBJECTS
            async for page in self._cluster.list_pages(kind, namespace=scope, selector=selector):
                for body in page:
                    present.add(body["metadata"]["uid"])
                    if key := self._cache.put(kind, body):
                        touched.add(key)
        return touched | self._cache.drop_missing(kind, before, present)


class Controller:
    """Runs workers and sweeps over one queue."""

    def __init__(
        self,
        queue: WorkQueue[AgentKey],
        cache: ClusterCache,
        sweeper: Sweeper,
        reconciler: Reconciler,
        metrics: Metrics,
        settings: ControllerSettings,
    ) -> None:
        self._queue = queue
        self._cache = cache
        self._sweeper = sweeper
        self._reconciler = reconciler
        self._metrics = metrics
        self._settings = settings
        self._random = random.Random()

    async def run(self) -> None:
        """List everything, then reconcile until the queue is closed or this is cancelled."""
        await self._first_sweep()
        async with asyncio.TaskGroup() as tasks:
            sweeps = tasks.create_task(self._sweep_for_ever(), name="sweeps")
            workers = [
                tasks.create_task(self._work(), name=f"worker {number}") for number in range(self._settings.workers)
            ]
            await asyncio.wait(workers)
            sweeps.cancel()

    async def drain(self, timeout: float) -> bool:
        """Take no more work and wait for what runs; return whether all of it ended in time."""
        self._queue.close()
        try:
            async with asyncio.timeout(timeout):
                await self._queue.wait_idle()
        except TimeoutError:
            return False
        return True

    async def _first_sweep(self) -> None:
        while not await self._sweep():  # noqa: ASYNC110 - the pause between two tries
            await asyncio.sleep(SWEEP_RETRY)
        for key in self._cache.agents():
            self._queue.add(key)

    async def _sweep_for_ever(self) -> None:
        while True:
            await asyncio.sleep(self._settings.sweep_interval * self._random.uniform(0.9, 1.1))
            if await self._sweep():
                for key in self._cache.agents():
                    self._queue.add_after(key, self._random.uniform(0, SWEEP_SPREAD))

    async def _sweep(self) -> bool:
        try:
            touched = await self._sweeper.sweep()
        except OperatorError as exc:
            self._metrics.sweeps.labels("failed").inc()
            log.warning("the sweep could not list everything; it is tried again", error=str(exc))
            return False
        self._metrics.sweeps.labels("ok").inc()
        for key in touched:
            self._queue.add(key)
        log.info("swept", agents_touched=len(touched), **self._cache.statistics())
        return True

    async def _work(self) -> None:
        while True:
            try:
                key, waited = await self._queue.get()
            except QueueClosed:
                return
            self._metrics.latencies.observe(waited)
            try:
                with self._metrics.durations.time():
                    await self._handle(key)
            finally:
                self._queue.done(key)

    async def _handle(self, key: AgentKey) -> None:
        """Reconcile one agent; every failure ends in a later try."""
        try:
            outcome = await self._reconciler.reconcile(key)
        except Waiting as exc:
            self._queue.add_after(key, exc.retry_after)
            log.debug("waiting", agent=str(key), reason=str(exc))
        except Transient as exc:
            self._retry(key, exc.reason, exc, at_least=exc.retry_after)
        except (OperatorError, TimeoutError) as exc:
            self._retry(key, type(exc).__name__, exc)
        except Exception as exc:
            # A bug in one agent's reconcile must not stop the others'.
            log.exception("a reconcile failed in a way nobody expected; please report it", agent=str(key))
            self._retry(key, "Bug", exc)
        else:
            self._succeed(key, outcome)

    def _retry(self, key: AgentKey, reason: str, exc: Exception, *, at_least: float = 0.0) -> None:
        pause = self._queue.retry(key, at_least=at_least)
        self._metrics.errors.labels(reason).inc()
        self._metrics.retries.inc()
        log.warning("reconcile failed", agent=str(key), reason=reason, error=scrub(str(exc)), retry_in=round(pause, 2))

    def _succeed(self, key: AgentKey, outcome: Outcome) -> None:
        self._queue.forget(key)
        self._metrics.reconciles.labels(outcome.result).inc()
        if outcome.recheck_in is not None:
            self._queue.add_after(key, outcome.recheck_in)
        if outcome.writes:
            log.info("reconciled", agent=str(key), result=outcome.result, writes=list(outcome.writes))
