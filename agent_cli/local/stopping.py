"""SIGINT, SIGTERM and SIGHUP as a request to stop, seen between steps or at once where that is safe."""

import os
import select
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

AGAIN_SECONDS: Final = 0.02


class StopRequest:
    """Set by the first signal. Made and waited for in the main thread; `requested` may be read anywhere.

    The handlers stay: a second Ctrl-C must not cut the way out short.
    """

    def __init__(self) -> None:
        self.requested = False
        self._interrupts = False
        # A pipe that the interpreter itself writes to: a threading.Event set by a handler while its own thread is
        # inside wait() deadlocks.
        self._reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)
        # Who started this with nohup wants it to outlive the terminal.
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            signal.signal(signal.SIGHUP, self._on_signal)

    def request(self) -> None:
        """Ask to stop, from any thread; an interrupting() section ends by KeyboardInterrupt."""
        main = threading.main_thread().ident
        assert main is not None  # noqa: S101 - it runs
        signal.pthread_kill(main, signal.SIGTERM)

    def wait(self) -> None:
        """Return once a stop is requested."""
        while not self.requested:
            select.select([self._reader], [], [])

    def finish(self) -> None:
        """Ignore the signals from now on; the process is about to end, and its exit code is settled."""
        # An interpreter that shuts down puts back the default, death by signal, where a handler of ours stands.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)

    @contextmanager
    def interrupting(self) -> Iterator[None]:
        """Raise KeyboardInterrupt inside the section when a stop is requested, also if it already was."""
        self._interrupts = True
        try:
            if self.requested:
                raise KeyboardInterrupt
            yield
        finally:
            self._interrupts = False

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        if not self._interrupts:
            return
        if _is_importing(frame):
            # An exception between taking the import lock and the `try` after it would leave the lock taken for ever,
            # and every thread that imports would hang. So the signal comes again a moment later.
            again = threading.Timer(AGAIN_SECONDS, self.request)
            again.daemon = True
            again.start()
            return
        self._interrupts = False
        raise KeyboardInterrupt


def _is_importing(frame: FrameType | None) -> bool:
    """Whether the import machinery is at work somewhere below this frame."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False
