"""How a command ends when it cannot do what was asked."""

from collections.abc import Sequence
from typing import Final

FAILED: Final = 1
USAGE: Final = 2


class CliError(Exception):
    """Ends the command: every line goes to stderr on its own, then the process exits with `exit_code`.

    Lines are whole sentences for people: what failed, for which object, what to do next, no secrets.
    """

    def __init__(self, lines: str | Sequence[str], *, exit_code: int = FAILED) -> None:
        self.lines = [lines] if isinstance(lines, str) else list(lines)
        self.exit_code = exit_code
        super().__init__("; ".join(self.lines))


class HungError(CliError):
    """A thread of this process does not end; the process must, without waiting for it."""


class UsageError(CliError):
    """The user must change the command line or a file; exit code 2."""

    def __init__(self, lines: str | Sequence[str]) -> None:
        super().__init__(lines, exit_code=USAGE)
