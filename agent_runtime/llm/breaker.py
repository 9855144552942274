"""When a model that fails is left alone, as a value; pure functions say what calls and checks make of it.

    CLOSED ── THRESHOLD failures in a row ──► OPEN until … ── time is up ──► one call probes, the others pass over
       ▲                                        ▲                                      │
       └────────── a call succeeds ─────────────┼──────────────────────────────────────┤
                                                └──── it fails: open for twice as long ┘

How long a model is left alone follows from what a failed call of it costs: a hanging one, that makes each turn wait for
its timeout, longer than one that refuses connections at once. All times are in seconds of a monotonic clock.
"""

from dataclasses import dataclass, replace
from typing import Final

from agent_runtime.llm.port import FailureKind, ModelError

COUNTED: Final = frozenset((FailureKind.UNREACHABLE, FailureKind.TIMEOUT, FailureKind.BROKEN, FailureKind.RATE_LIMITED))
"""What another call made now would meet as well; a refusal may be about one conversation."""
THRESHOLD: Final = 4
"""Failures in a row. A turn makes two calls where trying again may help, so two turns or more."""
SLOW: Final = 1.0
"""A failed call that took longer costs its turn something that users notice."""
SLOW_THRESHOLD: Final = 2
LEAST_PAUSE: Final = 1.0
MOST_PAUSE: Final = 5.0
MOST_SLOW_PAUSE: Final = 60.0
MOST_RETRY_AFTER: Final = 60.0
"""A provider is not believed if it wants to be left alone for longer: it is asked once a minute."""
MOST_DOUBLINGS: Final = 8


@dataclass(frozen=True, slots=True)
class Breaker:
    """What the last calls came to. `open_until` None: closed. `rest_until`: as the provider asked for.

    `failures` and `slow` count in a row; `cost` is what the last one took; `reopened` counts failed probes;
    `probe_until`: until then one call is given time to probe.
    """

    failures: int = 0
    slow: int = 0
    cost: float = 0.0
    open_until: float | None = None
    reopened: int = 0
    probe_until: float = 0.0
    rest_until: float = 0.0

    def resting(self, now: float) -> float:
        """Return for how many seconds more the provider wants no call; 0: it takes calls."""
        return max(0.0, self.rest_until - now)

    def shut(self, now: float) -> float:
        """Return for how many seconds more calls are in vain; 0: one may be made."""
        if self.open_until is None:
            return 0.0
        return max(0.0, self.open_until - now, self.probe_until - now)


def after_success(breaker: Breaker) -> Breaker:
    """A call succeeded, or the model refused what was sent for reasons of its own: it is there."""
    return replace(Breaker(), rest_until=breaker.rest_until)


def after_failure(breaker: Breaker, error: ModelError, seconds: float, now: float) -> Breaker:
    """A call that took so many seconds failed."""
    if error.retry_after is not None:
        rest = max(breaker.rest_until, now + min(error.retry_after, MOST_RETRY_AFTER))
        return replace(breaker, rest_until=rest)
    if error.about_message:
        return after_success(breaker)
    if error.kind not in COUNTED:
        return breaker
    slow = breaker.slow + 1 if seconds >= SLOW else 0
    counted = replace(breaker, failures=breaker.failures + 1, slow=slow, cost=seconds)
    if breaker.open_until is not None:
        # Of calls that began before it opened, the probe alone says something new.
        return _open(replace(counted, reopened=breaker.reopened + 1), now) if now >= breaker.open_until else counted
    if counted.failures >= THRESHOLD or slow >= SLOW_THRESHOLD:
        return _open(counted, now)
    return counted


def after_good_check(breaker: Breaker) -> Breaker:
    """The provider answers again, as a check that costs nothing says: the next call may probe."""
    if breaker.open_until is None:
        return breaker
    return replace(breaker, open_until=0.0, probe_until=0.0)


def begin_probe(breaker: Breaker, now: float, patience: float) -> Breaker:
    """A call is made; while the breaker is open it is the only one, for at most `patience` seconds."""
    return breaker if breaker.open_until is None else replace(breaker, probe_until=now + patience)


def end_probe(breaker: Breaker) -> Breaker:
    """The call that was to probe ended without a result, its turn being cancelled: another one may."""
    return replace(breaker, probe_until=0.0)


def _open(breaker: Breaker, now: float) -> Breaker:
    most = MOST_PAUSE if breaker.cost < SLOW else MOST_SLOW_PAUSE
    pause = max(LEAST_PAUSE, breaker.cost) * (1 << min(breaker.reopened, MOST_DOUBLINGS))
    return replace(breaker, open_until=now + min(pause, most), probe_until=0.0)
