"""Tells when files change."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

POLL_SECONDS: Final = 0.5
Fingerprint = tuple[tuple[int, int, int] | None, ...]


class Watcher:
    """Notices when a file was written, replaced, removed or came back since this object was made.

    Files are asked for their state twice a second: no notification works over every kind of mount.
    """

    def __init__(self, files: Sequence[Path], *, poll: float = POLL_SECONDS) -> None:
        self._files = list(files)
        self._poll = poll
        self._seen = fingerprint(self._files)
        self._end = threading.Event()

    @contextmanager
    def calling(self, on_change: Callable[[], None]) -> Iterator[None]:
        """Call `on_change` from a thread once for each change, until the block ends; then wait for the last call."""
        thread = threading.Thread(target=self._run, args=[on_change], name="abide-reload", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._end.set()
            thread.join()

    def _run(self, on_change: Callable[[], None]) -> None:
        while not self._end.wait(self._poll):
            now = fingerprint(self._files)
            # Acting on what stood still for one round leaves editors the time to write the whole file.
            if now != self._seen and not self._end.wait(self._poll) and fingerprint(self._files) == now:
                self._seen = now
                on_change()


def fingerprint(files: Sequence[Path]) -> Fingerprint:
    """Return what tells one state of the files from another; None for a file that cannot be read now."""
    return tuple(_fingerprint(path) for path in files)


def _fingerprint(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return (found.st_ino, found.st_size, found.st_mtime_ns)
