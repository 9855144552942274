"""Fixtures shared by all tests: a real Postgres, and fresh migrated databases on it."""

import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from uuid import uuid4

import hypothesis
import psycopg
import pytest
from psycopg import sql

from agent_store.embedded import EmbeddedPostgres
from agent_store.migrate import migrate
from agent_store.postgres.store import PostgresStore

# The same examples in every run: a red build means the change did it.
hypothesis.settings.register_profile("abide", derandomize=True, deadline=None)
hypothesis.settings.load_profile("abide")

# A shell's background job ignores SIGINT, one of nohup SIGHUP, and so would all it starts: programs under test are to
# be as users run them.
for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)

TEMPLATE = "abide_template"


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[EmbeddedPostgres]:
    """A running Postgres of this test run."""
    folder = Path(tempfile.mkdtemp(prefix="abide-tests-"))
    server = EmbeddedPostgres(folder)
    try:
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres_template(postgres_server: EmbeddedPostgres) -> str:
    """The name of a migrated database that others are copied from."""
    execute(postgres_server.url, sql.SQL("CREATE DATABASE {}").format(sql.Identifier(TEMPLATE)))
    migrate(in_database(postgres_server.url, TEMPLATE))
    return TEMPLATE


@pytest.fixture
def postgres_url(postgres_server: EmbeddedPostgres, postgres_template: str) -> Iterator[str]:
    """The URL of a fresh, migrated database, dropped after the test."""
    name = f"test_{uuid4().hex[:12]}"
    execute(
        postgres_server.url,
        sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(postgres_template)),
    )
    yield in_database(postgres_server.url, name)
    execute(postgres_server.url, sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture
async def store(postgres_url: str) -> AsyncIterator[PostgresStore]:
    """A store on a fresh database."""
    store = PostgresStore(postgres_url)
    yield store
    await store.aclose()


def in_database(url: str, name: str) -> str:
    """Return the URL with another database name."""
    return f"{url.rpartition('/')[0]}/{name}"


def execute(url: str, statement: sql.Composable) -> None:
    """Run one administrative statement outside a transaction."""
    with psycopg.connect(url, autocommit=True, connect_timeout=10) as connection:
        connection.execute(statement)
