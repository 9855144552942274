"""How often each caller may ask: a bucket that holds a minute's requests and fills evenly."""

from collections import OrderedDict
from typing import Final

from agent_runtime.clock import Clock

MOST_CALLERS: Final = 10_000
"""Callers remembered at once; the one that was silent longest is forgotten, and may then ask as if it were new."""


class Rates:
    """Counts the requests of each caller of one agent. `per_minute` 0: no limit."""

    def __init__(self, per_minute: int, clock: Clock) -> None:
        self._per_minute = per_minute
        self._clock = clock
        self._callers: OrderedDict[tuple[str, str], tuple[float, float]] = OrderedDict()

    def take(self, name: str, user: str) -> float:
        """Count one request. Returns 0.0, or after how many seconds it may be sent again: then it is not counted."""
        if not self._per_minute:
            return 0.0
        now = self._clock.monotonic()
        left, at = self._callers.pop((name, user), (float(self._per_minute), now))
        rate = self._per_minute / 60
        left = min(float(self._per_minute), left + (now - at) * rate)
        allowed = left >= 1
        self._callers[(name, user)] = (left - 1 if allowed else left, now)
        if len(self._callers) > MOST_CALLERS:
            self._callers.popitem(last=False)
        return 0.0 if allowed else (1 - left) / rate
