"""Everything one operator process is made of. Built once, by app.py."""

from dataclasses import dataclass

from agent_operator.events import EventRecorder
from agent_operator.health.facts import FactsBoard
from agent_operator.health.prober import HealthProber, HttpFetch
from agent_operator.keys import AgentKey
from agent_operator.kube.client import KubeCluster
from agent_operator.migrations import Migrations
from agent_operator.reconcile.cache import ClusterCache
from agent_operator.reconcile.controller import Controller, Sweeper
from agent_operator.reconcile.queue import WorkQueue
from agent_operator.reconcile.references import References
from agent_operator.settings import OperatorSettings
from agent_operator.telemetry.audit import AuditTrail
from agent_operator.telemetry.metrics import Metrics
from agent_operator.upkeep import DebtCollector, Upkeep
from agent_operator.watches import Watches
from agent_store.ports import Store


@dataclass(frozen=True, slots=True)
class OperatorContext:
    """The collaborators, each an argument of those that need it."""

    settings: OperatorSettings
    cluster: KubeCluster
    store: Store
    cache: ClusterCache
    queue: WorkQueue[AgentKey]
    watches: Watches
    references: References
    fetch: HttpFetch
    prober: HealthProber
    facts: FactsBoard
    recorder: EventRecorder
    migrations: Migrations
    audit: AuditTrail
    upkeep: Upkeep
    collector: DebtCollector
    sweeper: Sweeper
    controller: Controller
    metrics: Metrics
