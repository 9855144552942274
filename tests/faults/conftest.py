"""Databases for fault tests: several at once, and a server of their own that may be broken."""

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql

from agent_store.embedded import EmbeddedPostgres
from agent_store.migrate import migrate
from tests.faults.breakable import BreakablePostgres


@contextmanager
def copied_database(server_url: str, template: str) -> Iterator[str]:
    """Make a fresh database like `template`, yield its URL and drop it."""
    name = f"fault_{uuid4().hex[:12]}"
    create = sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template))
    with psycopg.connect(server_url, autocommit=True, connect_timeout=10) as connection:
        connection.execute(create)
    try:
        yield f"{server_url.rpartition('/')[0]}/{name}"
    finally:
        with psycopg.connect(server_url, autocommit=True, connect_timeout=10) as connection:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture(scope="session")
def new_database(
    postgres_server: EmbeddedPostgres, postgres_template: str
) -> Callable[[], AbstractContextManager[str]]:
    """Return what makes a fresh, migrated database, for tests that need several at once."""
    return lambda: copied_database(postgres_server.url, postgres_template)


@pytest.fixture(scope="module")
def breakable() -> Iterator[BreakablePostgres]:
    """A Postgres that a test may stop, kill and freeze without harming other tests."""
    folder = Path(tempfile.mkdtemp(prefix="abide-faults-"))
    server = EmbeddedPostgres(folder)
    try:
        server.start()
        with psycopg.connect(server.url, autocommit=True, connect_timeout=10) as connection:
            connection.execute("CREATE DATABASE abide_template")
        migrate(f"{server.url.rpartition('/')[0]}/abide_template")
        yield BreakablePostgres(server)
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def breakable_url(breakable: BreakablePostgres) -> Iterator[str]:
    """A fresh, migrated database on the breakable server, which is whole again afterwards."""
    with copied_database(breakable.server.url, "abide_template") as url:
        try:
            yield url
        finally:
            breakable.mend()
            wait_until_back(breakable.server)


def wait_until_back(server: EmbeddedPostgres, timeout: float = 30.0) -> None:
    """Return once the server takes connections. Raises the last refusal after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            psycopg.connect(server.url, connect_timeout=2).close()
        except psycopg.OperationalError:
            if time.monotonic() > deadline:
                raise
        else:
            return
