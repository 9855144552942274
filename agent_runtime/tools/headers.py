"""HTTP headers whose values are files that Kubernetes mounts from Secrets and replaces at any time."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from agent_api.v1alpha1 import HeaderSource
from agent_runtime.tools.standing import Unusable

MOST_BYTES: Final = 16_384

Mark = tuple[tuple[int, int, int] | None, ...]


class SecretHeaders:
    """Reads `<folder>/<secret>/<key>` of each header, again when one changes."""

    def __init__(self, folder: Path, sources: Sequence[HeaderSource]) -> None:
        self._sources = [(one, folder / one.secret_key_ref.name / one.secret_key_ref.key) for one in sources]
        self._mark: Mark | None = None
        self._values: dict[str, str] = {}
        self._problem = ""

    def changed(self) -> bool:
        """Look at the files; True if another value is to be sent from now on."""
        mark = tuple(_look(path) for _, path in self._sources)
        if mark == self._mark:
            return False
        before, first = (self._values, self._problem), self._mark is None
        self._mark = mark
        self._read()
        return not first and before != (self._values, self._problem)

    def values(self) -> dict[str, str]:
        """Return the headers to send now. Raises Unusable when a value is missing or cannot be sent."""
        self.changed()
        if self._problem:
            raise Unusable(self._problem)
        return self._values

    def _read(self) -> None:
        values: dict[str, str] = {}
        self._problem = ""
        for source, path in self._sources:
            ref = source.secret_key_ref
            where = f'key "{ref.key}" of Secret "{ref.name}"'
            try:
                text = path.read_text(encoding="utf-8").strip() if path.stat().st_size <= MOST_BYTES else ""
            except (OSError, UnicodeDecodeError):
                text = ""
            if not text:
                self._problem = f"has no value for header {source.name}: {where} is missing or empty"
                break
            if not (text.isascii() and text.isprintable()):
                self._problem = (
                    f"has no usable value for header {source.name}: {where} holds line breaks or characters that no "
                    "header may have"
                )
                break
            values[source.name] = text
        self._values = {} if self._problem else values


def _look(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return (status.st_ino, status.st_size, status.st_mtime_ns)
