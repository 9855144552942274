"""How the store uses Postgres."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final
from uuid import UUID


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """Bounds of one store; all times are seconds.

    The sum of `connect_timeout` and `command_timeout` stays below the time a lease lives, so that a process learns
    that Postgres is gone before its lease is. `statement_cache` is off behind a pooler that does not keep prepared
    statements (PgBouncer before 1.21 in transaction mode).
    """

    max_connections: int = 5
    idle_seconds: float = 60.0
    connect_timeout: float = 3.0
    acquire_timeout: float = 3.0
    command_timeout: float = 4.0
    statement_cache: bool = True
    application_name: str = "abide"


@dataclass(frozen=True, slots=True)
class KeySettings:
    """Where the keys are that wrap agents' data keys (see codec_keys), and which agents write plainly nevertheless.

    Without `folder` nothing is encrypted. `source` is how errors call the folder, for example `Secret shop/keys`. What
    agents in `plain` wrote under a key is still read.
    """

    folder: Path | None = None
    source: str = ""
    plain: frozenset[UUID] = frozenset()


NO_KEYS: Final = KeySettings()
