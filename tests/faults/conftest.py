"""Plays: fault tests that wait at the same time, each on a database of its own."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import psycopg
import pytest
import pytest_asyncio
from psycopg import sql

from agent_store.embedded import EmbeddedPostgres


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


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def plays(
    request: pytest.FixtureRequest,
    postgres_server: EmbeddedPostgres,
    postgres_template: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[Mapping[str, asyncio.Task[Any]]]:
    """Start the plays of the module's selected tests, and return their tasks by the test's id.

    Fault tests mostly wait: for leases to run out, for processes to start. So a module may name in PLAYS, by test, a
    coroutine function of (folder, postgres_url, **parameters) that does the work; AT_ONCE of them run at the same time,
    in the order of the tests, each on a database of its own and for PLAY_SECONDS at most.
    """
    module = request.module
    stage, entrance = asyncio.Semaphore(module.AT_ONCE), asyncio.Lock()

    async def run(test: pytest.Function) -> Any:
        async with stage:
            folder = tmp_path_factory.mktemp("play")
            database = copied_database(postgres_server.url, postgres_template)
            async with entrance:  # two copies of one template at a time would get in each other's way
                url = await asyncio.to_thread(database.__enter__)
            try:
                async with asyncio.timeout(module.PLAY_SECONDS):
                    return await module.PLAYS[test.originalname](folder, url, **parameters_of(test))
            finally:
                await asyncio.to_thread(database.__exit__, None, None, None)

    tests = [item for item in request.session.items if isinstance(item, pytest.Function) and item.module is module]
    tasks = {
        test.nodeid: asyncio.create_task(run(test), name=test.name)
        for test in tests
        if test.originalname in module.PLAYS
    }
    yield tasks
    for task in tasks.values():
        task.cancel()
    await asyncio.gather(*tasks.values(), return_exceptions=True)


@pytest_asyncio.fixture(loop_scope="module")
async def played(request: pytest.FixtureRequest, plays: Mapping[str, asyncio.Task[Any]]) -> Any:
    """Wait for the play of this test and return what came of it."""
    return await plays[request.node.nodeid]


def parameters_of(test: pytest.Function) -> dict[str, Any]:
    """Return the parameters of a parametrized test."""
    callspec = getattr(test, "callspec", None)
    return {} if callspec is None else dict(callspec.params)
