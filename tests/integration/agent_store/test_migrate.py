"""Migrations: their sum is schema.sql, they can run at any time and at once, and failures are one clear line."""

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest

import agent_store
from agent_store import migrate as migrations
from agent_store.embedded import EmbeddedPostgres
from agent_store.migrate import NEWEST, MigrationError, main, migrate

PACKAGE = Path(agent_store.__file__).parent


def execute(url: str, statement: str) -> list[tuple[object, ...]]:
    with psycopg.connect(url, autocommit=True, connect_timeout=10) as connection:
        cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


@pytest.fixture
def empty_url(postgres_server: EmbeddedPostgres) -> Iterator[str]:
    """The URL of a database without anything in it."""
    name = f"empty_{uuid4().hex[:12]}"
    execute(postgres_server.url, f"CREATE DATABASE {name}")
    yield f"{postgres_server.url.rpartition('/')[0]}/{name}"
    execute(postgres_server.url, f"DROP DATABASE {name} WITH (FORCE)")


def dump(server: EmbeddedPostgres, url: str) -> list[str]:
    """Return the schema as pg_dump writes it, without alembic's table and the partitions of the day."""
    command = [server.binaries / "pg_dump", "--schema-only", "--schema=abide", "--no-owner"]
    command += ["--exclude-table=abide.schema_version", "--exclude-table=abide.*_20??????", url]
    written = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    # The parts that are random in every dump.
    return [line for line in written.splitlines() if not line.startswith(("\\restrict", "\\unrestrict"))]


def test_sum_of_migrations_is_the_committed_schema(
    postgres_server: EmbeddedPostgres, postgres_url: str, empty_url: str
) -> None:
    with psycopg.connect(empty_url, autocommit=True) as connection:
        connection.execute((PACKAGE / "sql" / "schema.sql").read_bytes())
    migrated = dump(postgres_server, postgres_url)
    assert any(line.startswith("CREATE TABLE abide.sessions") for line in migrated)
    assert migrated == dump(postgres_server, empty_url)


def test_every_sql_file_has_its_wrapper_and_a_name_that_says_when_it_is_safe() -> None:
    files = sorted(path.stem for path in (PACKAGE / "sql" / "migrations").iterdir())
    wrappers = sorted(path.stem for path in (PACKAGE / "migrations" / "versions").glob("*.py"))
    assert files == wrappers
    assert all(name.split("_")[1] in ("pre", "post") for name in files)
    assert [name[:4] for name in files] == [f"{n:04}" for n in range(1, len(files) + 1)]


def test_migrating_again_changes_nothing(postgres_server: EmbeddedPostgres, postgres_url: str) -> None:
    before = dump(postgres_server, postgres_url)
    migrate(postgres_url)
    assert dump(postgres_server, postgres_url) == before
    assert execute(postgres_url, "SELECT version_num FROM abide.schema_version") == [(NEWEST,)]


def test_newer_schema_is_left_alone(postgres_url: str) -> None:
    execute(postgres_url, "UPDATE abide.schema_version SET version_num = '9999'")
    migrate(postgres_url)
    assert execute(postgres_url, "SELECT version_num FROM abide.schema_version") == [("9999",)]


def test_many_may_migrate_at_once(empty_url: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        runs = [
            pool.submit(
                subprocess.run, [sys.executable, "-m", "agent_store.migrate"], env={"ABIDE_POSTGRES_URL": empty_url}
            )
            for _ in range(4)
        ]
        assert [run.result(timeout=120).returncode for run in runs] == [0, 0, 0, 0]
    assert execute(empty_url, "SELECT version_num FROM abide.schema_version") == [(NEWEST,)]


def test_waiting_for_another_migration_has_an_end(empty_url: str) -> None:
    with psycopg.connect(empty_url, autocommit=True) as other:
        other.execute(f"SELECT pg_advisory_lock({migrations._LOCK})".encode())
        with pytest.raises(MigrationError, match="another migration"):
            migrate(empty_url, lock_timeout=1)
    assert execute(empty_url, "SELECT count(*) FROM pg_namespace WHERE nspname = 'abide'") == [(0,)]


def test_failed_migration_changes_nothing(empty_url: str) -> None:
    execute(empty_url, "CREATE SCHEMA abide")
    execute(empty_url, "CREATE VIEW abide.recent_errors AS SELECT 1")  # in the way of the last statement
    with pytest.raises(MigrationError, match="recent_errors"):
        migrate(empty_url)
    left = execute(
        empty_url, "SELECT relname FROM pg_class WHERE relnamespace = 'abide'::regnamespace AND relkind = 'r'"
    )
    assert left in ([], [("schema_version",)])
    execute(empty_url, "DROP VIEW abide.recent_errors")
    migrate(empty_url)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda url: url.replace(":" + url.split(":")[2].split("@")[0], ":pa-ss-wd"), "password authentication failed"),
        (lambda url: "postgresql://abide:pa-ss-wd@127.0.0.1:1/none", "127.0.0.1:1"),
    ],
)
def test_failure_is_one_line_without_the_password(
    empty_url: str, capsys: pytest.CaptureFixture[str], change: object, said: str
) -> None:
    url = change(empty_url)  # type: ignore[operator]
    assert main({"ABIDE_POSTGRES_URL": url}) == 1
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert said in printed
    assert "pa-ss-wd" not in printed


def test_direct_url_wins_and_none_is_said(empty_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main({"ABIDE_POSTGRES_URL": "postgresql://127.0.0.1:1/x", "ABIDE_POSTGRES_DIRECT_URL": empty_url}) == 0
    assert main({}) == 1
    assert "ABIDE_POSTGRES_URL" in capsys.readouterr().err
