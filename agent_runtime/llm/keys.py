"""API keys of providers, as files that Kubernetes mounts from Secrets and replaces at any time."""

from pathlib import Path
from typing import Final

from agent_api.v1alpha1 import KeyRef

MOST_BYTES: Final = 65_536

Mark = tuple[int, int, int]


class KeyFile:
    """One key, `<folder>/<secret>/<key>`. Looked at again whenever `reload` is called, and read when it changed."""

    def __init__(self, folder: Path, ref: KeyRef) -> None:
        self._path = folder / ref.name / ref.key
        self._ref = ref
        self._mark: Mark | None = None
        self.value = ""
        self.problem = ""
        """Why there is no usable key, as what follows the model's name; empty if there is one."""
        self._read()

    def reload(self) -> bool:
        """Look at the file again; True if there is another key now, or none any more."""
        if self._look() == self._mark and self._mark is not None:
            return False
        before = (self.value, self.problem)
        self._read()
        return before != (self.value, self.problem)

    def _look(self) -> Mark | None:
        try:
            status = self._path.stat()
        except OSError:
            return None
        return (status.st_ino, status.st_size, status.st_mtime_ns)

    def _read(self) -> None:
        # The mark first: a file that is replaced in between is then read once more, instead of never.
        self._mark = self._look()
        text = ""
        if self._mark is not None and self._mark[1] <= MOST_BYTES:
            try:
                text = self._path.read_text(encoding="utf-8", errors="replace").strip()
            except OSError:
                self._mark = None
        self.problem = self._problem_of(text)
        self.value = "" if self.problem else text

    def _problem_of(self, text: str) -> str:
        where = f'key "{self._ref.key}" of Secret "{self._ref.name}"'
        if not text:
            return f"has no API key: {where} is missing or empty"
        if not (text.isascii() and text.isprintable()) or " " in text:
            return f"has no usable API key: {where} holds blanks, line breaks or characters that no key has"
        return ""
