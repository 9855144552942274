"""kopf's settings: it watches, and does nothing else (no peering, scanning, posting, annotations or finalizers)."""

from typing import Any, Final, NoReturn, cast

import kopf

from agent_api.labels import GROUP
from agent_operator.kube.port import AGENT, WATCHED_KINDS
from agent_operator.reconcile.controller import OWN_OBJECTS
from agent_operator.watches import WATCH_SECONDS

_PERSISTENCE: Final = f"kopf.{GROUP}"


class _NoDiffBase(kopf.DiffBaseStorage):
    """kopf compares each event with what was handled last; no handler here asks, so there is nothing to compare.

    Building what would be compared copies every object deeply, which was a third of the time an event took.
    """

    def build(self, **_: Any) -> kopf.BodyEssence:
        return cast(kopf.BodyEssence, {})

    def fetch(self, **_: Any) -> None:
        return None

    def store(self, **_: Any) -> NoReturn:
        raise AssertionError("kopf is not to write on objects")


class _NoProgress(kopf.ProgressStorage):
    """Handlers that only take note have no progress to keep."""

    def fetch(self, **_: Any) -> None:
        return None

    def store(self, **_: Any) -> NoReturn:
        raise AssertionError("kopf is not to write on objects")

    def purge(self, **_: Any) -> NoReturn:
        raise AssertionError("kopf is not to write on objects")

    def touch(self, **_: Any) -> NoReturn:
        raise AssertionError("kopf is not to write on objects")

    def clear(self, *, essence: kopf.BodyEssence) -> kopf.BodyEssence:
        return essence


def build_kopf_settings() -> kopf.OperatorSettings:
    """Return the settings; where they differ from kopf's defaults the reason stands beside them."""
    settings = kopf.OperatorSettings()
    # Any other kopf operator in the cluster could otherwise pause this one.
    settings.peering.standalone = True
    # Needs list and watch on CRDs and namespaces; the kinds and namespaces are known beforehand.
    settings.scanning.disabled = True
    # Events have their own, aggregating recorder.
    settings.posting.enabled = False
    # Each stream ends soon enough that a dead watcher shows (see watches.py) and a half-open connection does not last.
    settings.watching.server_timeout = WATCH_SECONDS
    settings.watching.client_timeout = WATCH_SECONDS + 30
    settings.watching.connect_timeout = 10
    settings.watching.inactivity_timeout = 70
    settings.watching.reconnect_backoff = 1.0
    settings.watching.chunk_size = 100
    for kind in WATCHED_KINDS:
        if kind is not AGENT:
            settings.watching.label_selectors[kind.group, kind.version, kind.plural] = OWN_OBJECTS
    settings.networking.request_timeout = 30
    settings.networking.connect_timeout = 5
    settings.networking.error_backoffs = [0.5, 1, 2, 4, 8, 16, 30, 30]
    settings.networking.enforce_retry_after = True
    # No limit: handlers only cache and enqueue; the own queue bounds the work.
    settings.queueing.worker_limit = None
    settings.queueing.idle_timeout = 1
    settings.queueing.exit_timeout = 10
    settings.execution.default_backoff = 5
    settings.process.ultimate_exiting_timeout = 40
    settings.persistence.finalizer = f"{_PERSISTENCE}/unused"
    settings.persistence.progress_storage = _NoProgress()
    settings.persistence.diffbase_storage = _NoDiffBase()
    return settings
