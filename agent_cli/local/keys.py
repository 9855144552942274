"""The key that `abide dev` encrypts content with: made once, and kept in the folder with the data."""

import os
from pathlib import Path
from typing import Final

from agent_cli.errors import CliError
from agent_store.codec_keys import format_key

FOLDER: Final = "encryption-keys"
FIRST: Final = "1"
KEY_BYTES: Final = 32


def keep_key(data: Path) -> Path:
    """Return the folder with the keys of a data folder, which this user alone can enter; make a key if it has none.

    Raises CliError.
    """
    folder = data / FOLDER
    try:
        # The folder above is made as the embedded Postgres makes it: as root, its user has to pass through.
        data.mkdir(mode=0o711, parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        if not any(not path.name.startswith(".") for path in folder.iterdir()):
            _write(folder / FIRST, f"{format_key(os.urandom(KEY_BYTES))}\n")
    except OSError as error:
        raise CliError(f"The encryption key cannot be kept in {folder}: {error.strerror or error}.") from error
    return folder


def _write(path: Path, text: str) -> None:
    """Write a file that is there as a whole or not at all."""
    written = path.with_name(f".{path.name}.new")
    descriptor = os.open(written, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        # A key that is lost with the power would make everything written under it unreadable.
        os.fsync(file.fileno())
    written.replace(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
