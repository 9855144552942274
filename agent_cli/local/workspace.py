"""Temporary folders of `abide dev`: removed at the end, and by the next run if the end never came (kill -9)."""

import fcntl
import os
import shutil
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Final, Self

PREFIX: Final = "abide-dev-"
LOCK: Final = "in-use"
SETTLED_SECONDS: Final = 60.0
"""A folder younger than this is left alone: its owner may not have locked it yet."""


class Workspace:
    """A folder for one run. `secrets` is for this user alone; `data` may be entered by the user Postgres runs as."""

    def __init__(self, parent: Path | None = None) -> None:
        self._parent = parent or Path(tempfile.gettempdir())
        self._root: Path | None = None
        self._lock: int | None = None

    def __enter__(self) -> Self:
        sweep(self._parent)
        self._root = Path(tempfile.mkdtemp(prefix=PREFIX, dir=self._parent))
        self._lock = os.open(self._root / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        # As root, Postgres runs as somebody else, who has to pass through.
        self._root.chmod(0o711)
        self.secrets.mkdir(mode=0o700)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shutil.rmtree(self.root, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)

    @property
    def root(self) -> Path:
        """The folder itself."""
        assert self._root is not None, "entered before use"  # noqa: S101
        return self._root

    @property
    def secrets(self) -> Path:
        """Where the values of Secrets go."""
        return self.root / "secrets"

    @property
    def data(self) -> Path:
        """Where state goes that nobody wants to keep."""
        return self.root / "data"


def sweep(parent: Path) -> list[Path]:
    """Remove this user's folders of runs that were killed, and return which; whatever is in use or new stays."""
    return [folder for folder in parent.glob(f"{PREFIX}*") if _remove_abandoned(folder)]


def _remove_abandoned(folder: Path) -> bool:
    try:
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        found = os.fstat(lock)
        if found.st_uid != os.geteuid() or folder.is_symlink() or time.time() - found.st_mtime < SETTLED_SECONDS:
            return False
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
        return not folder.exists()
    except OSError:
        return False
    finally:
        os.close(lock)
