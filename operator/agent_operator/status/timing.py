"""When time alone may change status: then an agent is looked at again although nothing happened."""

from datetime import datetime
from typing import Final

from agent_operator.status.causes import (
    OOM_STABLE_SECONDS,
    START_GRACE_SECONDS,
    START_SECONDS,
    is_unstable,
    is_within,
)
from agent_operator.status.models import Answering, find_grace_end, view_models
from agent_operator.status.observed import Observation

_MARGIN_SECONDS: Final = 0.1


def recheck_after(observation: Observation) -> float | None:
    """Return in how many seconds time alone may change status; None if it cannot."""
    now = observation.now
    waits: list[float] = []
    for pod in observation.pods:
        if pod.deleting or pod.finished or observation.suspended:
            continue
        if pod.started is not None and not pod.ready:
            limits = (START_GRACE_SECONDS, START_SECONDS, *((OOM_STABLE_SECONDS,) if pod.ended is not None else ()))
            waits += [_remaining(pod.started, now, limit) for limit in limits if is_within(pod.started, now, limit)]
        if is_unstable(pod, now) and pod.started is not None:
            waits.append(_remaining(pod.started, now, OOM_STABLE_SECONDS))
    if view_models(observation).answering is Answering.CHECKING:
        ends = [(find_grace_end(pod) - now).total_seconds() for pod in observation.pods if pod.serving]
        waits += [end + _MARGIN_SECONDS for end in ends if end > 0]
    return min(waits, default=None)


def _remaining(since: datetime, now: datetime, seconds: float) -> float:
    return max(0.0, seconds - (now - since).total_seconds()) + _MARGIN_SECONDS
