"""Bring the database schema up to date: `python -m agent_store.migrate`, for the operator, `abide dev` and people.

Every migration is a plain SQL file in sql/migrations, named NNNN_pre_what.sql (safe while the previous release still
runs) or NNNN_post_what.sql (only once it is gone); alembic keeps the order and the version. Runs in its own short
process over ABIDE_POSTGRES_DIRECT_URL or ABIDE_POSTGRES_URL: a pooler in transaction mode in between would lose the
lock.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import psycopg

SCHEMA: Final = "abide"
VERSION_TABLE: Final = "schema_version"
_SQL: Final = Path(__file__).parent / "sql" / "migrations"
_SCRIPTS: Final = Path(__file__).parent / "migrations"
NEWEST: Final = max(path.name[:4] for path in _SQL.glob("*.sql"))
"""Number of the newest migration. A database that is ahead of it, in a rollout, is left alone."""
_LOCK: Final = "hashtextextended('abide.migrate', 0)"


class MigrationError(Exception):
    """The schema could not be brought up to date; the message is one line without secrets."""


def run_sql(wrapper: str) -> None:
    """Run the SQL file that belongs to a migration's wrapper (its `__file__`)."""
    from alembic import op

    connection = op.get_bind().connection.driver_connection
    if connection is None:
        raise MigrationError("the connection to the database was lost")
    connection.execute((_SQL / (Path(wrapper).stem + ".sql")).read_bytes())


def migrate(url: str, *, connect_timeout: int = 10, lock_timeout: int = 120, ddl_timeout: int = 30) -> None:
    """Apply all pending migrations to the database at `url`, and make the partitions of the coming weeks. Idempotent.

    Timeouts are seconds: to connect, to wait while another process migrates, and to wait for a table that is in use.
    Raises MigrationError; a migration that failed has changed nothing.
    """
    try:
        with psycopg.connect(url, autocommit=True, connect_timeout=connect_timeout) as lock:
            _set_lock_timeout(lock, lock_timeout)
            lock.execute(f"SELECT pg_advisory_lock({_LOCK})".encode())
            _set_lock_timeout(lock, ddl_timeout)
            lock.execute(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}".encode())
            if _applied(lock) < NEWEST:
                _upgrade(url, connect_timeout, ddl_timeout)
            lock.execute(b"SELECT abide.ensure_partitions()")
    except psycopg.Error as error:
        raise MigrationError(_explain(url, error)) from error


def _applied(connection: psycopg.Connection) -> str:
    found = connection.execute(b"SELECT to_regclass('abide.schema_version')").fetchone()
    if found is None or found[0] is None:
        return ""
    row = connection.execute(b"SELECT max(version_num) FROM abide.schema_version").fetchone()
    return str(row[0] or "") if row else ""


def _upgrade(url: str, connect_timeout: int, ddl_timeout: int) -> None:
    # Imported here: they take longer than finding that there is nothing to do, which is the usual case.
    import sqlalchemy
    from alembic import command
    from alembic.config import Config

    def connect() -> psycopg.Connection:
        connection = psycopg.connect(url, autocommit=True, connect_timeout=connect_timeout)
        _set_lock_timeout(connection, ddl_timeout)
        connection.autocommit = False
        return connection

    engine = sqlalchemy.create_engine("postgresql+psycopg://", creator=connect, poolclass=sqlalchemy.NullPool)
    config = Config()
    config.set_main_option("script_location", str(_SCRIPTS).replace("%", "%%"))
    try:
        with engine.connect() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    except sqlalchemy.exc.DBAPIError as error:
        if isinstance(error.orig, psycopg.Error):
            raise error.orig from error
        raise
    finally:
        engine.dispose()


def _set_lock_timeout(connection: psycopg.Connection, seconds: int) -> None:
    connection.execute(b"SELECT set_config('lock_timeout', %s, false)", [f"{seconds}s"])


def _explain(url: str, error: psycopg.Error) -> str:
    parts = urlsplit(url)
    what = " ".join(str(error).split())
    if parts.password:
        what = what.replace(parts.password, "***")
    where = f"{parts.hostname or 'localhost'}:{parts.port or 5432}"
    if isinstance(error, psycopg.errors.LockNotAvailable):
        what = "another migration, or a statement on the tables, did not end in time; try again"
    return f"cannot migrate Postgres at {where}: {what}"


def main(environ: Mapping[str, str]) -> int:
    """Migrate the database the environment names; 0 if it is up to date now, else 1 with one line on standard error."""
    url = environ.get("ABIDE_POSTGRES_DIRECT_URL") or environ.get("ABIDE_POSTGRES_URL")
    if not url:
        print("set ABIDE_POSTGRES_URL to the URL of the database to migrate", file=sys.stderr)  # noqa: T201
        return 1
    try:
        migrate(url)
    except MigrationError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(os.environ))
