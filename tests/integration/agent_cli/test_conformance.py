"""`abide conformance` passes the product's own runtime, and finds what a runtime that differs does differently."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from agent_cli.conformance.checks import CHECKS
from agent_cli.conformance.command import run
from agent_runtime.settings import AuthMode
from tests.integration.agent_runtime.harness import Serving, echo, manifest, serving

REPOSITORY = Path(__file__).resolve().parents[3]
KEY = "key-of-this-test"


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """A folder with one API key."""
    folder = tmp_path / "keys"
    folder.mkdir()
    (folder / "key").write_text(KEY)
    return folder


async def test_the_runtime_conforms(postgres_url: str, keys: Path) -> None:
    settings = {"auth": AuthMode.KEY, "api_keys_dir": keys}
    async with serving(postgres_url, manifest("a", echo()), **settings) as served:
        command = [sys.executable, "-m", "agent_cli.main", "conformance", served.base, "--key", KEY, "-o", "json"]
        done = await asyncio.to_thread(
            subprocess.run,
            command,
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            env={**os.environ},
        )
        found = json.loads(done.stdout)
        assert [one for one in found["checks"] if not one["ok"]] == []
        assert (done.returncode, found["conforms"], len(found["checks"])) == (0, True, len(CHECKS))
        wrong = await asyncio.to_thread(
            subprocess.run,
            [*command[:4], served.base, "--key", "wrong"],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert wrong.returncode == 1
        assert "valid --key" in wrong.stderr


@asynccontextmanager
async def different(
    served: Serving, *, request: Callable[[str, dict[str, str]], None] | None = None, answer: Callable[..., bytes]
) -> AsyncIterator[str]:
    """Yield the address of a front that changes requests or answers on their way."""

    async def pass_on(asked: web.Request) -> web.StreamResponse:
        headers = {name: value for name, value in asked.headers.items() if name.lower() != "host"}
        if request is not None:
            request(asked.path, headers)
        async with client.request(
            asked.method, served.base + asked.path_qs, headers=headers, data=await asked.read(), allow_redirects=False
        ) as got:
            body = await got.read()
            kept = {
                name: value
                for name, value in got.headers.items()
                if name.lower() not in ("content-length", "transfer-encoding", "connection")
            }
            body = answer(asked, kept, body)
            return web.Response(status=got.status, headers=kept, body=body)

    app = web.Application(client_max_size=10 * 1024 * 1024)
    app.router.add_route("*", "/{path:.*}", pass_on)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    async with aiohttp.ClientSession() as client:
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        try:
            yield f"http://{host}:{port}"
        finally:
            await runner.cleanup()


def same(_asked: web.Request, _headers: dict[str, str], body: bytes) -> bytes:
    return body


def without_location(_asked: web.Request, headers: dict[str, str], body: bytes) -> bytes:
    headers.pop("Location", None)
    return body


def plain_errors(_asked: web.Request, headers: dict[str, str], body: bytes) -> bytes:
    if headers.get("Content-Type", "").startswith("application/problem"):
        headers["Content-Type"] = "text/plain"
    return body


def other_events(asked: web.Request, _headers: dict[str, str], body: bytes) -> bytes:
    return body.replace(b"event: delta", b"event: token") if "/turns/" in asked.path or asked.method == "POST" else body


def backwards(asked: web.Request, _headers: dict[str, str], body: bytes) -> bytes:
    if asked.method != "GET" or not asked.path.endswith("/messages"):
        return body
    page = json.loads(body)
    page.get("items", []).reverse()
    return json.dumps(page).encode()


@pytest.mark.parametrize(
    ("drop", "answer", "failing"),
    [
        ("Idempotency-Key", same, {"same-key"}),
        ("Abide-User", same, {"users"}),
        ("", without_location, {"asynchronous"}),
        ("", plain_errors, {"same-key", "users", "bad-input", "state", "deleting", "patience"}),
        ("", other_events, {"streaming"}),
        ("", backwards, {"history"}),
    ],
    ids=["keys-ignored", "users-ignored", "no-location", "plain-errors", "other-events", "newest-first"],
)
async def test_what_differs_is_found(
    postgres_url: str, drop: str, answer: Callable[..., bytes], failing: set[str]
) -> None:
    def without(_path: str, headers: dict[str, str]) -> None:
        headers.pop(drop, None)

    async with (
        serving(postgres_url, manifest("a", echo())) as served,
        different(served, request=without, answer=answer) as url,
    ):
        results = await asyncio.to_thread(run, url, "tests/a", "", 20.0)
        failed = {one["check"] for one in results if not one["ok"]}
        assert failing <= failed, results
        assert all(one["message"] for one in results if not one["ok"])
        assert {"health", "metrics", "documents"} & failed == set()
