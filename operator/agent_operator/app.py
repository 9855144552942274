"""The composition root: settings → clients → context → kopf; and the start and end of the operator's own tasks."""

import asyncio
import socket
import sys
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Final

import kopf
import structlog

from agent_api.version import VERSION
from agent_api.wire import CheckResult
from agent_operator.context import OperatorContext
from agent_operator.errors import Unusable
from agent_operator.events import EventRecorder
from agent_operator.handlers.lifecycle import register_lifecycle
from agent_operator.handlers.login import register_login
from agent_operator.handlers.settings import build_kopf_settings
from agent_operator.handlers.watch import register_watches
from agent_operator.health.facts import FactsBoard
from agent_operator.health.prober import HealthProber, HttpFetch
from agent_operator.keys import AgentKey
from agent_operator.kube.client import KubeCluster, find_own_namespace, load_configuration
from agent_operator.kube.port import WATCHED_KINDS, Kind
from agent_operator.migrations import Migrations
from agent_operator.reconcile.adoption import StateIds
from agent_operator.reconcile.cache import ClusterCache
from agent_operator.reconcile.controller import Controller, ControllerSettings, Sweeper
from agent_operator.reconcile.debts import Debts
from agent_operator.reconcile.deletion import Deletions
from agent_operator.reconcile.erasure import Eraser
from agent_operator.reconcile.queue import WorkQueue
from agent_operator.reconcile.reconciler import Reconciler, ReconcilerSettings
from agent_operator.reconcile.references import References
from agent_operator.reconcile.reviews import Reviews
from agent_operator.reconcile.rootkeys import RootKeys
from agent_operator.reconcile.rotation import SecretRotation
from agent_operator.settings import OperatorSettings, SettingsError
from agent_operator.telemetry.audit import AuditTrail
from agent_operator.telemetry.logs import configure_logs
from agent_operator.telemetry.metrics import Metrics
from agent_operator.upkeep import DebtCollector, Upkeep
from agent_operator.watches import STALE_SECONDS, Watches
from agent_operator.web import WebServer
from agent_store.codec_keys import KeysUnusable
from agent_store.ports import Store
from agent_store.postgres.errors import describe_address
from agent_store.postgres.store import PostgresStore

log = structlog.get_logger(__name__)

DRAIN_SECONDS: Final = 20.0
QUEUE_STALL_SECONDS: Final = 300.0
RECONCILE_STALL_SECONDS: Final = 120.0
LOOP_LAG_SECONDS: Final = 10.0
_LAG_TICK: Final = 0.5


def main(environ: Mapping[str, str]) -> int:
    """Run until SIGTERM or SIGINT; return the exit code: 0 asked to stop, 1 failed, 2 wrong settings."""
    try:
        settings = OperatorSettings.from_environ(environ)
    except SettingsError as exc:
        sys.stderr.write(f"abide operator: {exc}\n")
        return 2
    configure_logs(log_format=settings.log_format, level=settings.log_level)
    try:
        asyncio.run(serve(settings, PostgresStore(settings.postgres_url)))
    except KeyboardInterrupt:
        return 0
    except (Unusable, KeysUnusable) as exc:
        log.error("the operator cannot work here and is to be started again", problem=str(exc))
        return 1
    except Exception:
        log.exception("the operator failed and is to be started again")
        return 1
    return 0


async def serve(settings: OperatorSettings, store: Store, *, stop: asyncio.Event | None = None) -> None:
    """Run one operator until a signal comes or `stop` is set.

    Raises whatever ended a task of its own or a watch: the process is to be started again then.
    """
    context = await build_context(settings, store)
    operator = Operator(context, stop or asyncio.Event())
    try:
        await operator.run()
    finally:
        await context.fetch.aclose()
        await context.cluster.aclose()
        await context.store.aclose()


async def build_context(settings: OperatorSettings, store: Store) -> OperatorContext:
    """Build everything; nothing runs yet. Must be called in the event loop that will run it."""
    metrics = Metrics()
    metrics.info.labels(VERSION).set(1)
    cluster = KubeCluster(await load_configuration(settings.environ), on_request=metrics.on_request)
    cache = ClusterCache()
    queue: WorkQueue[AgentKey] = WorkQueue()
    references = References(
        cluster,
        queue.add,
        missing_interval=settings.reference_missing_interval,
        present_interval=settings.reference_present_interval,
    )
    fetch = HttpFetch(settings.agent_port)
    prober = HealthProber(fetch, queue.add)
    states = StateIds(store, cache)
    facts = FactsBoard(
        store, states.by_agent, queue.add,
        interval=settings.health_interval, counters_interval=settings.counters_interval,
    )  # fmt: skip
    recorder = EventRecorder(cluster, socket.gethostname(), on_drop=metrics.events_dropped.inc)
    audit = AuditTrail(store)
    eraser = Eraser(store, cache.states)
    own_namespace = settings.namespace or find_own_namespace(settings.environ)
    debts = Debts(cluster, own_namespace)
    deletions = Deletions(
        cluster, cache, eraser, debts,
        check=store.check, audit=audit.note, tell=recorder.tell, now=lambda: datetime.now(UTC),
    )  # fmt: skip
    root_keys = RootKeys(settings.encryption_root_dir)
    reconciler = Reconciler(
        cluster, cache, references, prober, facts, recorder,
        ReconcilerSettings(
            settings.runtime_image, settings.agent_postgres_url, settings.counters_interval,
            store_address=describe_address(settings.agent_postgres_url), docs=settings.docs_url,
        ),
        states, deletions, SecretRotation(cluster, cache), root_keys,
        Reviews(cluster, cache, own_namespace, settings.reviewer_account),
    )  # fmt: skip
    sweeper = Sweeper(cluster, cache, settings.watch_namespaces)
    controller = Controller(
        queue, cache, sweeper, reconciler, metrics,
        ControllerSettings(settings.workers, settings.sweep_interval),
    )  # fmt: skip
    return OperatorContext(
        settings=settings,
        cluster=cluster,
        store=store,
        cache=cache,
        queue=queue,
        watches=Watches(WATCHED_KINDS, settings.watch_namespaces),
        references=references,
        fetch=fetch,
        prober=prober,
        facts=facts,
        recorder=recorder,
        migrations=Migrations(settings.environ),
        audit=audit,
        upkeep=Upkeep(store),
        collector=DebtCollector(debts, eraser, audit.note),
        sweeper=sweeper,
        controller=controller,
        metrics=metrics,
    )


class Operator:
    """Runs a context: kopf in front, the own tasks behind, the HTTP port beside them."""

    def __init__(self, context: OperatorContext, stop: asyncio.Event) -> None:
        self._context = context
        self._stop = stop
        self._tasks: list[asyncio.Task[None]] = []
        self._failure: BaseException | None = None
        self._stopping = False
        self._loop_lag = 0.0
        settings = context.settings
        self._web = WebServer(settings.host, settings.port, live=self.live, ready=self.ready, metrics=context.metrics)
        context.metrics.sample(self._sample)
        context.metrics.read_agents(context.cache.states)

    async def run(self) -> None:
        """Run until asked to stop. Raises what ended one of the own tasks."""
        context, namespaces = self._context, self._context.settings.watch_namespaces
        registry = kopf.OperatorRegistry()
        register_login(registry, context.watches, context.cluster.server, context.cluster.open_session)
        register_lifecycle(registry, self._start, self._end)
        register_watches(
            registry, WATCHED_KINDS, context.cache, context.queue.add,
            self._count_event,
        )  # fmt: skip
        await kopf.operator(
            registry=registry,
            settings=build_kopf_settings(),
            clusterwide=not namespaces,
            namespaces=list(namespaces),
            stop_flag=self._stop,
            # One token for all objects: kopf copies its default memo for each.
            memo=None,
        )
        if self._failure is not None:
            raise self._failure

    def _count_event(self, kind: Kind) -> None:
        self._context.watches.heard()
        self._context.metrics.watch_events.labels(kind.key).inc()

    async def _start(self) -> None:
        await self._web.start()
        self._own("loop lag", self._measure_lag)
        self._own("leading", self._lead)
        log.info("started", version=VERSION, namespaces=list(self._context.settings.watch_namespaces) or "all")

    async def _lead(self) -> None:
        """Do what only one operator may do: write.

        With a Lease this begins when it is won and ends the process when it is lost; everything outside (watches,
        cache, HTTP) also runs in an operator that waits for its turn. There is one replica for now, so it leads.
        """
        context = self._context
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._wait_synced(), name="first listing")
            tasks.create_task(context.migrations.run(), name="migrations")
            tasks.create_task(context.upkeep.run(), name="upkeep")
            tasks.create_task(context.collector.run(), name="debts")
            tasks.create_task(context.audit.run(), name="audit")
            tasks.create_task(context.facts.run(), name="facts")
            tasks.create_task(context.references.run(), name="references")
            tasks.create_task(context.recorder.run(), name="events")

    async def _wait_synced(self) -> None:
        """Reconcile as soon as every watch is open: what is listed from then on misses nothing."""
        watches, limit = self._context.watches, self._context.settings.sync_timeout
        while watches.missing:
            try:
                async with asyncio.timeout(limit / 10):
                    await watches.wait_open()
            except TimeoutError as exc:
                if watches.silence() > limit:
                    raise Unusable(
                        f"these could not be watched within {limit:.0f} s: {', '.join(watches.missing)}; "
                        "check that the CRD is installed and that the operator may list and watch them"
                    ) from exc
        await self._context.controller.run()

    async def _end(self) -> None:
        """Stop in stages: no new work, running reconciles to their end, then everything else."""
        self._stopping = True
        drained = await self._context.controller.drain(DRAIN_SECONDS)
        log.info("stopping", drained=drained)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._context.prober.aclose()
        await self._web.aclose()
        # After a signal kopf would wait 5 s for its own task that waits for this flag.
        self._stop.set()

    def _own(self, name: str, run: Callable[[], Awaitable[None]]) -> None:
        """Run a task whose end, other than by our stop, ends the operator."""

        async def supervise() -> None:
            try:
                await run()
            except asyncio.CancelledError:
                raise
            except BaseException as exc:
                # A group of one says no more than the one.
                single = isinstance(exc, BaseExceptionGroup) and len(exc.exceptions) == 1
                self._failure = exc.exceptions[0] if isinstance(exc, BaseExceptionGroup) and single else exc
            if not self._stopping:
                self._failure = self._failure or RuntimeError(f"task {name} ended by itself")
                self._stop.set()

        self._tasks.append(asyncio.create_task(supervise(), name=name))

    async def _measure_lag(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + _LAG_TICK
            await asyncio.sleep(_LAG_TICK)
            self._loop_lag = loop.time() - due

    def live(self) -> list[CheckResult]:
        """Return the checks of /livez: what only a restart would cure."""
        queue, watch_age = self._context.queue.statistics(), self._context.watches.age()
        return [
            _check("loop", self._loop_lag < LOOP_LAG_SECONDS, f"the event loop is {self._loop_lag:.1f} s late"),
            _check("watches", watch_age < STALE_SECONDS, f"a watch gave no sign of life for {watch_age:.0f} s"),
            _check(
                "queue",
                queue.oldest_waiting < QUEUE_STALL_SECONDS and queue.oldest_processing < RECONCILE_STALL_SECONDS,
                f"longest wait {queue.oldest_waiting:.0f} s, longest reconcile {queue.oldest_processing:.0f} s",
            ),
        ]

    def ready(self) -> list[CheckResult]:
        """Return the checks of /readyz: whether everything was listed and work is taken."""
        return [
            _check("synced", self._context.sweeper.synced, "not everything was listed yet"),
            _check("accepting", not self._stopping, "the operator is stopping"),
        ]

    def _sample(self) -> dict[str, float]:
        context = self._context
        queue, known = context.queue.statistics(), context.cache.statistics()
        return {
            "abide_operator_queue_depth": queue.depth,
            "abide_operator_queue_delayed": queue.delayed,
            "abide_operator_queue_processing": queue.processing,
            "abide_operator_queue_oldest_seconds": queue.oldest_waiting,
            "abide_operator_unfinished_seconds": queue.oldest_processing,
            "abide_operator_agents": known["agents"],
            "abide_operator_children": known["children"],
            "abide_operator_pods": known["pods"],
            "abide_operator_references_missing": context.references.statistics()["missing"],
            "abide_operator_watch_age_seconds": context.watches.age(),
            "abide_operator_loop_lag_seconds": self._loop_lag,
            "abide_operator_synced": float(context.sweeper.synced),
            "abide_operator_migrations_done": float(context.migrations.done),
            "abide_operator_migration_failures_total": context.migrations.failures,
            "abide_operator_store_reachable": float(not context.facts.failing),
        }


def _check(name: str, ok: bool, problem: str) -> CheckResult:
    return CheckResult(name=name, ok=ok, message="" if ok else problem)
