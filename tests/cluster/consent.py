"""Asking before the machine is changed. CI=true or YES=1 answers for the person."""

import os
import sys
from collections.abc import Callable, Mapping

from tests.cluster.errors import RequirementError


def is_given_by_environment(environ: Mapping[str, str]) -> bool:
    """Tell whether the environment already says yes."""
    return environ.get("YES") == "1" or environ.get("CI", "").lower() == "true"


def ask(
    changes: list[str],
    *,
    environ: Mapping[str, str] = os.environ,
    is_terminal: Callable[[], bool] = lambda: sys.stdin.isatty(),
    read: Callable[[str], str] = input,
) -> None:
    """Return once the listed changes of this machine are allowed; no changes need no answer.

    Raises: RequirementError when there is nobody to ask or the answer is no.
    """
    if not changes or is_given_by_environment(environ):
        return
    listed = "; ".join(changes)
    if not is_terminal():
        raise RequirementError(f"this would change the machine ({listed}): set YES=1 to allow it")
    try:
        answer = read(f"This changes the machine: {listed}.\nGo on? [y/N] ")
    except EOFError:
        answer = ""
    if answer.strip().lower() not in {"y", "yes"}:
        raise RequirementError("nothing was changed because the answer was no: answer y, or set YES=1")
