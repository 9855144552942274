"""Postgres refuses, vanishes, freezes and comes back; the runtime says so, keeps what it acknowledged, and goes on."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from psycopg import sql

from agent_store.embedded import EmbeddedPostgres
from tests.conftest import execute, in_database
from tests.integration.agent_runtime.harness import (
    Database,
    Proxy,
    Serving,
    echo,
    free_port,
    manifest,
    process,
    serving,
    until,
)
from tests.integration.agent_runtime.test_messages import problem_of

RECOVERY_SECONDS = 10.0


@pytest.fixture
async def proxy(postgres_url: str) -> AsyncIterator[Proxy]:
    """Postgres behind a proxy that can be taken down."""
    made = Proxy(postgres_url)
    await made.up()
    yield made
    await made.down()


async def check(served: Serving, name: str) -> dict[str, object]:
    body = (await served.http.get(f"{served.base}/readyz")).json()
    return next(one for one in body["checks"] if one["name"] == name)


async def wait_ready(served: Serving, ready: bool, timeout: float) -> float:
    started = time.monotonic()

    async def reached() -> bool:
        return (await served.http.get(f"{served.base}/readyz")).status_code == (200 if ready else 503)

    await until(reached, f"ready is {ready}", timeout)
    return time.monotonic() - started


async def test_an_outage_is_said_and_ends_by_itself(proxy: Proxy, database: Database) -> None:
    async with serving(proxy.url, manifest("a")) as served:
        talk = served.talk("a")
        await talk.say("before")
        await proxy.down()
        assert await wait_ready(served, ready=False, timeout=5.0) < 5.0
        store = await check(served, "store")
        assert (store["ok"], store["reason"]) == (False, "ConnectionRefused")
        assert "since" in str(store["message"])
        assert (await served.http.get(f"{served.base}/livez")).status_code == 200
        refused = await talk.post("during")
        assert refused.status_code == 503
        assert refused.headers["retry-after"]
        assert refused.json()["reason"] == "ConnectionRefused"
        assert "127.0.0.1" not in refused.text
        assert (await talk.request("GET", "/sessions")).status_code == 503
        await proxy.up()
        assert await wait_ready(served, ready=True, timeout=RECOVERY_SECONDS) < RECOVERY_SECONDS
        assert await talk.say("after") == "after [2]"

        async def recorded() -> bool:
            rows = await database.rows("SELECT message FROM abide.agent_errors WHERE error_type = 'StoreUnavailable'")
            return any("ConnectionRefused" in row["message"] for row in rows)

        await until(recorded, "the outage is written down afterwards")


async def test_a_result_is_kept_until_it_can_be_committed(proxy: Proxy, database: Database) -> None:
    async with serving(proxy.url, manifest("a", echo(0.5))) as served:
        talk = served.talk("a")
        waiting = asyncio.create_task(talk.post("precious"))

        async def started() -> bool:
            return bool(await database.rows("SELECT 1 FROM abide.active_turns"))

        await until(started, "it runs")
        await proxy.down()
        await asyncio.sleep(1.0)  # the outage: the model answers in its middle, and nothing can be committed
        assert not waiting.done()
        await proxy.up()
        response = await waiting
        assert response.json()["reply"] == {"content": "precious [1]"}
        assert response.json()["turn"]["attempts"] == 1, "the result was kept, not made again"


async def test_an_outage_longer_than_the_lease_ends_in_one_outcome_for_each_message(
    proxy: Proxy, database: Database
) -> None:
    async with serving(proxy.url, manifest("a", echo(0.5))) as served:
        talk = served.talk("a")
        waiting = [asyncio.create_task(talk.post("x", f"s{number}")) for number in range(5)]

        async def started() -> bool:
            return len(await database.rows("SELECT 1 FROM abide.active_turns")) == 5

        await until(started, "they run")
        await proxy.down()
        lost = 'abide_lease_losses_total{agent="a",agent_namespace="tests"} 1.0'

        async def lease_lost() -> bool:
            return lost in (await served.http.get(f"{served.base}/metrics")).text

        await until(lease_lost, "the lease runs out", 12.0)
        await proxy.up()
        for response in await asyncio.gather(*waiting):
            assert response.json()["reply"] == {"content": "x [1]"}
        rows = await database.rows("SELECT status, attempts FROM abide.turns")
        assert [(row["status"], row["attempts"]) for row in rows] == [("completed", 2)] * 5
        assert await database.value("SELECT count(*) FROM abide.messages") == 10


async def test_a_frozen_postgres_is_noticed_and_named(proxy: Proxy) -> None:
    async with serving(proxy.url, manifest("a")) as served:
        await served.talk("a").say("x")
        proxy.freeze()
        await wait_ready(served, ready=False, timeout=8.0)
        store = await check(served, "store")
        assert (store["ok"], store["reason"]) == (False, "Timeout")
        assert (await served.http.get(f"{served.base}/livez")).status_code == 200
        await proxy.up()
        await wait_ready(served, ready=True, timeout=RECOVERY_SECONDS)
        assert await served.talk("a").say("y") == "y [2]"


async def test_a_process_started_without_postgres_becomes_ready_by_itself(postgres_url: str, tmp_path: Path) -> None:
    proxy = Proxy(postgres_url)
    async with process(tmp_path, proxy.url, manifest("a")) as runtime, httpx.AsyncClient() as http:
        live = f"{runtime.base}/livez"

        async def alive() -> bool:
            try:
                return (await http.get(live)).status_code == 200
            except httpx.TransportError:
                return False

        await until(alive, "it is live")

        async def named() -> bool:
            response = await http.get(f"{runtime.base}/readyz")
            return response.status_code == 503 and "ConnectionRefused" in response.text

        await until(named, "it says why it is not ready")
        await proxy.up()
        started = time.monotonic()
        await runtime.wait_ready(http, RECOVERY_SECONDS)
        assert time.monotonic() - started < RECOVERY_SECONDS
        await proxy.down()


async def test_a_database_without_a_schema_is_named(postgres_server: EmbeddedPostgres, tmp_path: Path) -> None:
    url = postgres_server.url
    execute(url, sql.SQL("CREATE DATABASE empty_one"))
    try:
        async with (
            process(tmp_path, in_database(url, "empty_one"), manifest("a")) as runtime,
            httpx.AsyncClient() as http,
        ):

            async def named() -> bool:
                try:
                    return "SchemaTooOld" in (await http.get(f"{runtime.base}/readyz")).text
                except httpx.TransportError:
                    return False

            await until(named, "it names the schema")
    finally:
        execute(url, sql.SQL("DROP DATABASE empty_one WITH (FORCE)"))


async def test_without_postgres_it_refuses_and_stops_in_time(tmp_path: Path) -> None:
    url = f"postgresql://u:p@127.0.0.1:{free_port()}/x"
    async with process(tmp_path, url, manifest("a")) as runtime, httpx.AsyncClient() as http:

        async def alive() -> bool:
            try:
                return (await http.get(f"{runtime.base}/livez")).status_code == 200
            except httpx.TransportError:
                return False

        await until(alive, "it is live")
        refused = await http.post(f"{runtime.base}/v1/agents/tests/a/sessions/s/messages", json={"content": "x"})
        problem_of(refused, 503, "not-ready")
        runtime.signal(signal.SIGTERM)
        assert await runtime.wait_exit(5.0) == 0
