"""What is known of one source of tools, as a value; pure functions say what attempts make of it."""

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from agent_api.conditions import Reason
from agent_api.wire import ToolCheck

PATIENCE: Final = 2
"""Failures in a row before what may pass by itself counts as down."""
PAUSES: Final = (1.0, 2.0, 4.0, 8.0, 10.0)
"""Seconds until something that is down is looked at again; the last one for ever after: back within 15 s."""
WELL_PAUSE: Final = 10.0
"""Seconds between two looks at a server that answers."""


class Unusable(Exception):  # noqa: N818 - a finding, not a mistake of ours
    """A source of tools cannot be used: `phrase` follows its name ("refuses connections").

    `passing`: it may be a single failure, so that one alone proves nothing.
    """

    def __init__(self, phrase: str, *, passing: bool = False) -> None:
        super().__init__(phrase)
        self.phrase = phrase
        self.passing = passing


@dataclass(frozen=True, slots=True)
class Standing:
    """What is known. `ok` None: nothing yet. `failures` counts the last ones in a row."""

    ok: bool | None = None
    phrase: str = ""
    since: datetime | None = None
    failures: int = 0

    def to_check(self, name: str, kind: str, tools: list[str]) -> ToolCheck:
        """Return it as the runtime tells it."""
        return ToolCheck(
            name=name,
            type=kind,
            ok=self.ok,
            reason=Reason.TOOL_DOWN.value if self.ok is False else "",
            message=self.phrase,
            since=self.since,
            tools=tools,
        )


def after_success(standing: Standing, now: datetime) -> Standing:
    """It answered."""
    return Standing(True, "", standing.since if standing.ok else now)


def after_failure(standing: Standing, failure: Unusable, now: datetime) -> Standing:
    """It did not answer as it should."""
    failures = standing.failures + 1
    if standing.ok is False:
        return replace(standing, phrase=failure.phrase, failures=failures)
    if failure.passing and failures < PATIENCE:
        return replace(standing, failures=failures)
    return Standing(False, failure.phrase, now, failures)


def pause_before_look(standing: Standing) -> float:
    """Return after how many seconds to look at it again."""
    if standing.failures == 0:
        return WELL_PAUSE
    return PAUSES[min(standing.failures, len(PAUSES)) - 1]
