"""Folders of small files that Kubernetes mounts from Secrets and replaces at any time."""

import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Final

MOST_FILES: Final = 1000
MOST_BYTES: Final = 65_536

Signature = tuple[tuple[str, int, int, int], ...]
"""Changes when any file does: path, inode, size and modification time of each."""


def _paths(folder: Path) -> list[Path]:
    """Return the files below a folder, two levels at most; Kubernetes' own entries (`..data`) are hidden ones."""
    try:
        entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError:
        return []
    found: list[Path] = []
    for entry in entries[:MOST_FILES]:
        if entry.is_dir():
            try:
                found += sorted(path for path in entry.iterdir() if not path.name.startswith("."))
            except OSError:
                continue
        else:
            found.append(entry)
    return found[:MOST_FILES]


def signature_of(folders: Sequence[Path]) -> Signature:
    """Return what identifies the present content of the folders, without reading the files."""
    parts: list[tuple[str, int, int, int]] = []
    for folder in folders:
        for path in _paths(folder):
            try:
                status = path.stat()
            except OSError:
                continue
            if stat.S_ISREG(status.st_mode):
                parts.append((str(path), status.st_ino, status.st_size, status.st_mtime_ns))
    return tuple(parts)


def list_files(folder: Path) -> dict[str, str]:
    """Return the text of each file by its path, stripped; unreadable, empty and huge ones are left out."""
    texts: dict[str, str] = {}
    for path in _paths(folder):
        try:
            if path.stat().st_size <= MOST_BYTES:
                text = path.read_text(encoding="utf-8").strip()
                if text:
                    texts[str(path)] = text
        except (OSError, UnicodeDecodeError):
            continue
    return texts
