"""What a load run does and what its figures mean: pure."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any, Final
from urllib.parse import urlsplit

from agent_cli.errors import UsageError

MOST_AGENTS: Final = 100
MOST_SESSIONS: Final = 1000
MOST_RATE: Final = 500.0
MOST_MESSAGES: Final = 1000
LINEAR_EXPONENT: Final = 1.15
"""Growing with more than this power of the number of agents is not linear; measurement needs some room above 1."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One run: for each count of agents, `messages` to each of `sessions` sessions of each agent.

    `rate` is messages per second over all agents together; they are sent at instants fixed beforehand.
    """

    agents: tuple[int, ...]
    sessions: int
    rate: float
    messages: int

    def total(self, agents: int) -> int:
        """Return the messages of one row."""
        return agents * self.sessions * self.messages

    def seconds(self, agents: int) -> float:
        """Return how long sending one row's messages takes."""
        return self.total(agents) / self.rate

    def order(self, agents: int) -> list[tuple[int, int]]:
        """Return (agent, session) of every message in the order of sending: all sessions in turn, agents mixed."""
        one_round = [(agent, session) for session in range(self.sessions) for agent in range(agents)]
        return one_round * self.messages


def parse_counts(text: str) -> tuple[int, ...]:
    """Return the counts of `5,10,20`. Raises UsageError."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and 1 <= int(part) <= MOST_AGENTS for part in parts):
        raise UsageError(f"--agents {text!r}: write whole numbers from 1 to {MOST_AGENTS}, such as 5,10,20.")
    return tuple(dict.fromkeys(int(part) for part in parts))


def make_plan(counts: Sequence[int], *, sessions: int, rate: float, messages: int, timeout: float) -> Plan:
    """Return the plan. Raises UsageError when it is out of bounds or cannot end within `timeout` seconds per row."""
    for option, value, most in (
        ("--sessions", sessions, MOST_SESSIONS),
        ("--rate", rate, MOST_RATE),
        ("--messages", messages, MOST_MESSAGES),
    ):
        if not 0 < value <= most or not math.isfinite(value):
            raise UsageError(f"{option} {value:g}: write a number from 1 to {most:g}.")
    plan = Plan(tuple(counts), sessions, rate, messages)
    longest = max(counts)
    if plan.seconds(longest) > timeout / 2:
        raise UsageError(
            f"{plan.total(longest)} messages at {rate:g}/s take {plan.seconds(longest):.0f} s, more than half of "
            f"--timeout {timeout:g}: raise --rate or --timeout, or lower --messages or --sessions."
        )
    return plan


def is_loopback(url: str) -> bool:
    """Whether a URL certainly means this machine. Raises UsageError when it is no http(s) URL."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(f"--url {url!r}: write http://host:port or https://host.")
    if parts.hostname == "localhost":
        return True
    try:
        return ip_address(parts.hostname).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True, slots=True)
class Spread:
    """Times in milliseconds. Empty when nothing was timed."""

    values: Sequence[float]

    def percentile(self, share: float) -> float | None:
        """Return the smallest value that `share` (0 to 1) of all do not exceed; None if there is none."""
        ordered = sorted(self.values)
        return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else None

    def typical_total(self) -> float | None:
        """Return what all would take at the median of one; None if nothing was timed."""
        median = self.percentile(0.5)
        return None if median is None else median * len(self.values)

    def as_json(self) -> dict[str, float | int | None]:
        """Return {count, p50, p99, max}, in milliseconds."""
        found = {"p50": self.percentile(0.5), "p99": self.percentile(0.99), "max": self.percentile(1.0)}
        return {"count": len(self.values), **{name: _rounded(value) for name, value in found.items()}}


@dataclass(slots=True)
class Row:
    """What was seen with one count of agents. Seconds are None where nothing was started or stopped."""

    agents: int
    start_seconds: float | None = None
    stop_seconds: float | None = None
    sending_seconds: float = 0.0
    reply: Spread = field(default_factory=lambda: Spread(()))
    save: Spread = field(default_factory=lambda: Spread(()))
    close: Spread = field(default_factory=lambda: Spread(()))
    failures: Counter[str] = field(default_factory=Counter)

    @property
    def failed(self) -> int:
        """How many requests were not answered as they should have been."""
        return sum(self.failures.values())

    def as_json(self) -> dict[str, Any]:
        """Return the row as it is documented: seconds, replies per second, spreads in milliseconds, failures."""
        per_second = len(self.reply.values) / self.sending_seconds if self.sending_seconds else None
        return {
            "agents": self.agents,
            "startSeconds": _rounded(self.start_seconds),
            "repliesPerSecond": _rounded(per_second),
            "replyMs": self.reply.as_json(),
            "saveMs": self.save.as_json(),
            "closeMs": self.close.as_json(),
            "stopSeconds": _rounded(self.stop_seconds),
            "failed": self.failed,
            "failures": dict(self.failures),
        }


@dataclass(frozen=True, slots=True)
class Growth:
    """How a time grows with the number of agents: as agents to the power of `exponent`."""

    what: str
    exponent: float

    @property
    def is_linear(self) -> bool:
        """Whether it grows at most linearly."""
        return self.exponent <= LINEAR_EXPONENT

    def text(self) -> str:
        """Return the sentence for people."""
        verdict = "linear or better" if self.is_linear else "worse than linear"
        return f"{self.what} grows as agents^{self.exponent:.2f}: {verdict}"


def growth_of(rows: Sequence[Row]) -> list[Growth]:
    """Return how start, save, close and stop grow, each where two or more counts of agents tell.

    Starting and stopping are taken as a whole; saving and closing for all sessions, each at the median of one request,
    so that one slow request does not decide.
    """
    times: Mapping[str, list[tuple[int, float | None]]] = {
        "start": [(row.agents, row.start_seconds) for row in rows],
        "save": [(row.agents, row.save.typical_total()) for row in rows],
        "close": [(row.agents, row.close.typical_total()) for row in rows],
        "stop": [(row.agents, row.stop_seconds) for row in rows],
    }
    found = []
    for what, points in times.items():
        usable = [(agents, seconds) for agents, seconds in points if seconds]
        exponent = fit_exponent(usable)
        if exponent is not None:
            found.append(Growth(what, exponent))
    return found


def fit_exponent(points: Sequence[tuple[int, float]]) -> float | None:
    """Return k of the best fit value = c * count^k; None with fewer than two different counts. Values are positive."""
    if len({count for count, _ in points}) < 2:
        return None
    xs = [math.log(count) for count, _ in points]
    ys = [math.log(value) for _, value in points]
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True))
    return slope / sum((x - mean_x) ** 2 for x in xs)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
