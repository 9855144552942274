"""What is known of one model, as a value; pure functions say what calls and checks make of it.

A *call* is a turn's. A *check* costs nothing: it lists the provider's models with the key. What a call showed weighs
more: a provider may list its models to anybody, so a check that succeeds takes back a failure of calls only if checks
failed too, or the key changed since, or (for what comes and goes by itself) after several good ones.
"""

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from agent_api.conditions import Reason
from agent_api.wire import ModelCheck
from agent_runtime.llm.port import FailureKind, ModelError

PATIENCE: Final = {
    FailureKind.UNREACHABLE: 2,
    FailureKind.TIMEOUT: 2,
    FailureKind.RATE_LIMITED: 2,
    FailureKind.BROKEN: 2,
    FailureKind.REFUSED: 3,
}
"""Failures in a row before a model counts as broken; what no repetition mends counts at once."""
PASSING: Final = frozenset((FailureKind.UNREACHABLE, FailureKind.TIMEOUT, FailureKind.RATE_LIMITED, FailureKind.BROKEN))
"""What may end by itself."""
GOOD_CHECKS: Final = 4
"""Good checks in a row that outweigh failed calls; twice as many each time that calls proved them wrong."""
REFUSED_SESSIONS: Final = 2
"""A model that answered before is not blamed for requests that it refuses to one session alone."""
MOST_RELAPSES: Final = 3
CHECK_PAUSES: Final = (2.0, 4.0, 8.0, 15.0)
"""Seconds until the next check of what may end by itself."""
LONG_PAUSE: Final = 60.0
"""Seconds until the next check of what somebody must change."""


@dataclass(frozen=True, slots=True)
class Standing:
    """What is known. `ok` None: nothing yet. `confirmed`: checks failed too, so that a good one means something.

    `relapses`: how often good checks took back failures of calls since a call last succeeded. `answered`: whether a
    call ever succeeded. `sessions`: whose calls failed in this row, REFUSED_SESSIONS of them at most.
    """

    ok: bool | None = None
    kind: FailureKind | None = None
    phrase: str = ""
    since: datetime | None = None
    checked_at: datetime | None = None
    streak: int = 0
    streak_since: datetime | None = None
    confirmed: bool = False
    good_checks: int = 0
    bad_checks: int = 0
    relapses: int = 0
    answered: bool = False
    sessions: tuple[str, ...] = ()

    @property
    def reason(self) -> str:
        """The reason as status names it, empty when ok or unknown."""
        if self.kind is None:
            return ""
        if self.kind in (FailureKind.TIMEOUT, FailureKind.BROKEN):
            return Reason.MODEL_UNREACHABLE.value
        return Reason(self.kind.value).value

    @property
    def is_denied(self) -> bool:
        """Whether the provider is known to refuse the key."""
        return self.ok is False and self.kind is FailureKind.AUTH_FAILED

    def to_check(self, name: str, model: str) -> ModelCheck:
        """Return it as the runtime tells it."""
        return ModelCheck(
            name=name,
            model=model,
            ok=self.ok,
            reason=self.reason,
            message=self.phrase,
            since=self.since,
            checked_at=self.checked_at,
        )


def after_answer(standing: Standing, now: datetime) -> Standing:
    """A call succeeded: nothing says more."""
    return replace(_well(standing, now), answered=True)


def after_failure(standing: Standing, error: ModelError, now: datetime, session: str = "") -> Standing:
    """A call for a session failed."""
    if error.about_message:
        return replace(standing, checked_at=now)
    needed = PATIENCE.get(error.kind, 1)
    sessions = tuple(sorted({*standing.sessions, session}))[:REFUSED_SESSIONS]
    if error.kind is FailureKind.REFUSED and standing.answered and len(sessions) < REFUSED_SESSIONS:
        # It may be this conversation that the provider does not take; others are still answered.
        needed = standing.streak + 2
    return replace(_count(standing, error, now, needed=needed), sessions=sessions)


def after_check(standing: Standing, error: ModelError | None, now: datetime) -> Standing:
    """A check succeeded (None) or failed. A failed one counts at once, but for a limit that may pass in a second."""
    if error is not None:
        needed = PATIENCE[error.kind] if error.kind is FailureKind.RATE_LIMITED else 1
        failed = _count(standing, error, now, needed=needed)
        return replace(failed, confirmed=True, bad_checks=standing.bad_checks + 1)
    if standing.ok is not False or standing.confirmed:
        return replace(_well(standing, now), relapses=standing.relapses)
    good = standing.good_checks + 1
    if standing.kind in PASSING and good >= GOOD_CHECKS << min(standing.relapses, MOST_RELAPSES):
        return replace(_well(standing, now), relapses=standing.relapses + 1)
    return replace(standing, good_checks=good, checked_at=now)


def after_key_change(standing: Standing) -> Standing:
    """There is another key: what was known stays until a check or a call says otherwise, and either may."""
    return replace(standing, confirmed=True, streak=0, streak_since=None)


def pause_before_check(standing: Standing) -> float | None:
    """Return after how many seconds the model should be checked again by itself; None: there is no need."""
    if standing.ok:
        return None
    if standing.kind is None or standing.kind in PASSING:
        checks = standing.bad_checks + standing.good_checks
        return CHECK_PAUSES[min(max(checks, 1), len(CHECK_PAUSES)) - 1]
    return LONG_PAUSE


def _count(standing: Standing, error: ModelError, now: datetime, *, needed: int) -> Standing:
    streak = standing.streak + 1
    begun = standing.streak_since or now
    counted = replace(standing, streak=streak, streak_since=begun, checked_at=now, good_checks=0)
    if streak < needed:
        return counted
    return replace(
        counted,
        ok=False,
        kind=error.kind,
        phrase=error.state,
        since=_begin(standing, error.kind, begun if needed > 1 else now),
        # A call is news that checks do not have yet.
        confirmed=False,
    )


def _well(standing: Standing, now: datetime) -> Standing:
    return Standing(ok=True, since=standing.since if standing.ok else now, checked_at=now, answered=standing.answered)


def _begin(standing: Standing, kind: FailureKind, now: datetime) -> datetime:
    """The same failure goes on since it began."""
    return standing.since if standing.kind is kind and standing.since is not None else now
