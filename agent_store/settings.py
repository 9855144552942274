"""How the store uses Postgres."""

from dataclasses import dataclass


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
