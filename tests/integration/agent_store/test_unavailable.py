"""When Postgres cannot be used: the right reason, what is known of the statement, no secrets, within the deadline."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Iterator
from uuid import uuid4

import asyncpg
import psycopg
import pytest

from agent_api.conditions import Reason
from agent_store.embedded import EmbeddedPostgres
from agent_store.errors import StoreUnavailable
from agent_store.failpoints import Action, Failpoints
from agent_store.ports import Disposition
from agent_store.postgres.store import PostgresStore
from agent_store.settings import StoreSettings
from tests.contract.agent_store.scene import Scene

QUICK = StoreSettings(connect_timeout=5.0, acquire_timeout=5.0, command_timeout=2.0)
SECRET = "pa-ss-wd"


def execute(url: str, *statements: str) -> None:
    with psycopg.connect(url, autocommit=True, connect_timeout=10) as connection:
        for statement in statements:
            connection.execute(statement.encode())


@pytest.fixture
def role(postgres_server: EmbeddedPostgres) -> Iterator[str]:
    """A login role that is not an administrator."""
    name = f"role_{uuid4().hex[:12]}"
    execute(postgres_server.url, f"CREATE ROLE {name} LOGIN PASSWORD '{SECRET}'")
    yield name
    execute(postgres_server.url, f"DROP ROLE {name}")


def as_role(url: str, role: str, password: str = SECRET) -> str:
    return f"postgresql://{role}:{password}@{url.rpartition('@')[2]}"


async def failure(url: str, settings: StoreSettings = QUICK) -> StoreUnavailable:
    """Return how check() fails."""
    store = PostgresStore(url, settings)
    try:
        with pytest.raises(StoreUnavailable) as caught:
            await store.check()
        assert SECRET not in str(caught.value)
        assert url.partition("@")[2].partition("/")[0] in caught.value.message
        assert store.statistics().open <= 1
        return caught.value
    finally:
        await store.aclose()


async def test_refused_connection() -> None:
    error = await failure(f"postgresql://abide:{SECRET}@127.0.0.1:1/x")
    assert (error.reason, error.sent) == (Reason.CONNECTION_REFUSED, False)


async def test_unknown_host() -> None:
    error = await failure(f"postgresql://abide:{SECRET}@no-such-host.invalid:5432/x", StoreSettings())
    assert error.reason in (Reason.CONNECTION_REFUSED, Reason.TIMEOUT)
    assert not error.sent


async def test_host_that_never_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        started = time.monotonic()
        error = await failure(
            f"postgresql://abide:{SECRET}@127.0.0.1:{listener.getsockname()[1]}/x", StoreSettings(connect_timeout=0.3)
        )
        assert (error.reason, error.sent) == (Reason.TIMEOUT, False)
        assert time.monotonic() - started < 10.0


async def test_wrong_password(postgres_url: str, role: str) -> None:
    error = await failure(as_role(postgres_url, role, "wrong"))
    assert (error.reason, error.sent) == (Reason.AUTH_FAILED, False)
    error = await failure(as_role(postgres_url, "nobody_at_all"))
    assert error.reason is Reason.AUTH_FAILED


async def test_missing_rights(postgres_url: str, role: str) -> None:
    error = await failure(as_role(postgres_url, role))
    assert (error.reason, error.sent) == (Reason.AUTH_FAILED, False)


async def test_server_without_tls(postgres_url: str) -> None:
    error = await failure(f"{postgres_url}?sslmode=require")
    assert (error.reason, error.sent) == (Reason.TLS_FAILED, False)


async def test_no_free_connection(postgres_url: str, role: str) -> None:
    execute(postgres_url, f"ALTER ROLE {role} CONNECTION LIMIT 0")
    error = await failure(as_role(postgres_url, role))
    assert (error.reason, error.sent) == (Reason.CONNECTION_LIMIT, False)


async def test_unknown_database(postgres_url: str) -> None:
    error = await failure(f"{postgres_url}_missing")
    assert (error.reason, error.sent) == (Reason.CONNECTION_REFUSED, False)


async def test_read_only_database(postgres_url: str, scene_store: PostgresStore) -> None:
    scene = Scene(scene_store)
    owner = await scene.start()
    await scene_store.aclose()
    execute(postgres_url, f"ALTER DATABASE {postgres_url.rpartition('/')[2]} SET default_transaction_read_only = on")
    assert (await failure(postgres_url)).reason is Reason.READ_ONLY
    store = PostgresStore(postgres_url)
    with pytest.raises(StoreUnavailable) as caught:
        await Scene(store, scene.agent).say(owner)
    assert (caught.value.reason, caught.value.sent) == (Reason.READ_ONLY, False)
    await store.aclose()
    with pytest.raises(StoreUnavailable) as caught:
        await store.check()
    assert not caught.value.sent


async def test_missing_and_old_schema(postgres_url: str) -> None:
    execute(postgres_url, "UPDATE abide.schema_version SET version_num = '0000'")
    assert (await failure(postgres_url)).reason is Reason.SCHEMA_TOO_OLD
    store = PostgresStore(postgres_url)
    with pytest.raises(StoreUnavailable, match="abide migrate"):
        await store.register(uuid4(), "default", "a", "pod", ttl=8.0)
    execute(postgres_url, "DROP SCHEMA abide CASCADE")
    with pytest.raises(StoreUnavailable, match="abide migrate") as caught:
        await store.register(uuid4(), "default", "a", "pod", ttl=8.0)
    assert (caught.value.reason, caught.value.sent) == (Reason.SCHEMA_TOO_OLD, False)
    await store.aclose()


async def test_check_passes_on_a_good_database(scene_store: PostgresStore) -> None:
    await scene_store.check()


@pytest.fixture
async def scene_store(postgres_url: str) -> AsyncIterator[PostgresStore]:
    store = PostgresStore(postgres_url, QUICK)
    yield store
    await store.aclose()


async def test_statement_that_hangs_ends_at_its_deadline_and_may_be_repeated(
    postgres_url: str, scene_store: PostgresStore
) -> None:
    scene = Scene(scene_store)
    owner = await scene.start()
    first = await scene.say(owner, "one")
    turn = scene.turn("two")
    connection = await asyncpg.connect(postgres_url)
    async with connection.transaction():
        await connection.execute("SELECT FROM abide.sessions WHERE id = $1 FOR UPDATE", first.turn.session_id)
        started = time.monotonic()
        with pytest.raises(StoreUnavailable) as caught:
            await scene_store.accept(turn, owner)
        assert time.monotonic() - started < 10.0
        assert (caught.value.reason, caught.value.sent) == (Reason.TIMEOUT, True)
    await connection.close()
    assert (await scene_store.accept(turn, owner)).disposition is Disposition.QUEUED
    found = await scene_store.find_session(scene.key())
    assert found is not None
    assert found.accepted_messages == 2


async def test_all_connections_busy_is_a_timeout_before_anything_was_sent(postgres_url: str) -> None:
    settings = StoreSettings(max_connections=1, acquire_timeout=0.2, command_timeout=5.0)
    store = PostgresStore(postgres_url, settings)
    connection = await asyncpg.connect(postgres_url)
    scene = Scene(store)
    owner = await scene.start()
    first = await scene.say(owner)
    try:
        async with connection.transaction():
            await connection.execute("SELECT FROM abide.sessions WHERE id = $1 FOR UPDATE", first.turn.session_id)
            blocked = asyncio.create_task(scene.say(owner, "two"))
            while store.statistics().idle:
                await asyncio.sleep(0)
            with pytest.raises(StoreUnavailable) as caught:
                await store.count_sessions(scene.agent)
            assert (caught.value.reason, caught.value.sent) == (Reason.TIMEOUT, False)
        assert (await blocked).disposition is Disposition.QUEUED
    finally:
        await connection.close()
        await store.aclose()


async def test_cancelled_call_gives_its_connection_up(postgres_url: str) -> None:
    store = PostgresStore(postgres_url, StoreSettings(max_connections=1))
    scene = Scene(store)
    owner = await scene.start()
    first = await scene.say(owner)
    connection = await asyncpg.connect(postgres_url)
    async with connection.transaction():
        await connection.execute("SELECT FROM abide.sessions WHERE id = $1 FOR UPDATE", first.turn.session_id)
        blocked = asyncio.create_task(store.delete_session(scene.key()))
        while store.statistics().idle:
            await asyncio.sleep(0)
        blocked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await blocked
        assert store.statistics().open == 0
        assert await store.count_sessions(scene.agent) == 1
    await connection.close()
    await store.aclose()


async def test_broken_idle_connections_are_replaced_unnoticed(postgres_url: str, store: PostgresStore) -> None:
    scene = Scene(store)
    owner = await scene.start()
    await asyncio.gather(*(scene.say(owner, session=f"s{n}") for n in range(5)))
    execute(
        postgres_url,
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()",
    )
    results = await asyncio.gather(*(scene.say(owner, "more", session=f"s{n}") for n in range(5)))
    assert {accepted.disposition for accepted in results} == {Disposition.QUEUED}


async def test_outage_is_over_when_postgres_is_back(tmp_path_factory: pytest.TempPathFactory) -> None:
    server = EmbeddedPostgres(tmp_path_factory.mktemp("outage") / "data")
    await asyncio.to_thread(server.start)
    store = PostgresStore(server.url, QUICK)
    try:
        with pytest.raises(StoreUnavailable) as caught:
            await store.check()
        assert caught.value.reason is Reason.SCHEMA_TOO_OLD
        await asyncio.to_thread(server.stop)
        with pytest.raises(StoreUnavailable) as caught:
            await store.check()
        assert caught.value.reason is Reason.CONNECTION_REFUSED
        await asyncio.to_thread(server.start)
        with pytest.raises(StoreUnavailable) as caught:
            await store.check()
        assert caught.value.reason is Reason.SCHEMA_TOO_OLD
    finally:
        await store.aclose()
        await asyncio.to_thread(server.stop)


async def test_idle_store_closes_its_connections(postgres_url: str) -> None:
    store = PostgresStore(postgres_url, StoreSettings(idle_seconds=0.3))
    assert store.statistics().open == 0
    scene = Scene(store)
    owner = await scene.start()
    await asyncio.gather(*(store.open_session(scene.key(f"s{n}")) for n in range(20)))
    assert 2 <= store.statistics().open <= 5
    async with asyncio.timeout(10):
        while store.statistics().open > 1:  # what a process does when idle: renew its lease
            await store.renew(scene.agent, owner, ttl=8.0)
            await asyncio.sleep(0.02)
        while store.statistics().open:
            await asyncio.sleep(0.02)
    await store.aclose()


async def test_statements_work_without_a_statement_cache(postgres_url: str) -> None:
    store = PostgresStore(postgres_url, StoreSettings(statement_cache=False))
    scene = Scene(store)
    owner = await scene.start()
    claim = await scene.claim(owner)
    assert (await scene.finish(owner, claim, "hi")).turn.reply == "hi"
    await store.aclose()


async def test_lost_answer_of_a_claim_is_found_by_the_sweep(postgres_url: str) -> None:
    failpoints = Failpoints({"store.accept.1.after": Action("error"), "store.start_next.1.after": Action("error")})
    store = PostgresStore(postgres_url, failpoints=failpoints)
    scene = Scene(store)
    owner = await scene.start()
    turn = scene.turn("hello")
    with pytest.raises(StoreUnavailable) as caught:
        await store.accept(turn, owner)
    assert caught.value.sent
    (claim,) = await store.claim_orphans(scene.agent, owner, limit=5)
    assert (claim.turn_id, claim.attempts) == (turn.id, 1)
    with pytest.raises(StoreUnavailable):
        await scene.say(owner, "two")
    assert (await scene.finish(owner, claim)).waiting
    with pytest.raises(StoreUnavailable):
        await store.start_next(scene.agent, claim.session_id, owner)
    (claim,) = await store.claim_orphans(scene.agent, owner, limit=5)
    assert (claim.content, claim.attempts) == ("two", 1)
    await store.aclose()


async def test_lost_answer_of_a_completion_is_given_by_the_next_call(postgres_url: str) -> None:
    flaky = PostgresStore(postgres_url, failpoints=Failpoints({"store.complete.1.after": Action("error")}))
    store = PostgresStore(postgres_url)
    scene = Scene(store)
    owner = await scene.start()
    claim = await scene.claim(owner)
    with pytest.raises(StoreUnavailable):
        await Scene(flaky, scene.agent).finish(owner, claim, "hi")
    assert (await scene.finish(owner, claim, "hi")).turn.reply == "hi"
    assert [text for _, _, text in await scene.history()] == ["hello", "hi"]
    await flaky.aclose()
    await store.aclose()
