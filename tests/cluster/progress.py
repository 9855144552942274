"""Progress lines on standard error, each with the seconds since the command began."""

import sys
import time
from collections.abc import Callable
from typing import TextIO


class Progress:
    """Writes lines like `[  12.3 s] node Ready`; standard output stays free for results."""

    def __init__(self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._begin = clock()

    def elapsed(self) -> float:
        """Return the seconds since this object was made."""
        return self._clock() - self._begin

    def say(self, text: str) -> None:
        """Write one line at once (pipes would hold it back otherwise)."""
        # Looked up late: pytest swaps sys.stderr for each test.
        print(f"[{self.elapsed():6.1f} s] {text}", file=self._stream or sys.stderr, flush=True)
