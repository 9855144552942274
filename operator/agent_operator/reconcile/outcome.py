"""What a reconcile did, and when to look again."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Outcome:
    """`writes` names what was written, as `verb kind/name`.

    `recheck_in` is in seconds; None means only when something happens.
    `result` is a short stable word for metrics: `unchanged`, `changed`, `gone` or `refused`.
    """

    result: str
    writes: tuple[str, ...] = ()
    recheck_in: float | None = None


def soonest(*delays: float | None) -> float | None:
    """Return the smallest of the delays that are set."""
    return min((delay for delay in delays if delay is not None), default=None)
