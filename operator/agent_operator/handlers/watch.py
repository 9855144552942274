"""Watch events: remember the object, wake its Agent; nothing else. kopf never retries these, so they must not fail."""

from collections.abc import Callable, Iterable
from typing import Any

import kopf

from agent_operator.keys import AgentKey
from agent_operator.kube.port import Kind
from agent_operator.reconcile.cache import ClusterCache


def register_watches(
    registry: kopf.OperatorRegistry,
    kinds: Iterable[Kind],
    cache: ClusterCache,
    wake: Callable[[AgentKey], None],
    count: Callable[[Kind], None],
) -> None:
    """Feed the cache from the watches of these kinds."""
    for kind in kinds:
        _register(registry, kind, cache, wake, count)


def _register(
    registry: kopf.OperatorRegistry,
    kind: Kind,
    cache: ClusterCache,
    wake: Callable[[AgentKey], None],
    count: Callable[[Kind], None],
) -> None:
    @kopf.on.event(kind.group, kind.version, kind.plural, registry=registry, id=f"watch-{kind.plural}")
    async def take_note(event: kopf.RawEvent, **_: Any) -> None:
        count(kind)
        body: dict[str, Any] = {**event["object"]}
        key = cache.remove(kind, body) if event["type"] == "DELETED" else cache.put(kind, body)
        if key is not None:
            wake(key)
