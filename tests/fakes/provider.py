"""A model provider to test against: aimock (an npm package, see tests/fakes/aimock) behind a front of our own.

aimock speaks the protocols of OpenAI, Anthropic and Google; the front checks keys and misbehaves as told, each time in
the way of the protocol that is asked in: statuses, delays, silence, cut streams. It runs in a thread, so that it serves
synchronous and asynchronous tests alike, and ends with `stop` or with the process.
"""

import asyncio
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
import threading
import time
import urllib.request
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import aiohttp
from aiohttp import web

PACKAGE: Final = Path(__file__).resolve().parent / "aimock"
INSTALL_SECONDS: Final = 300.0
START_SECONDS: Final = 30.0
STOP_SECONDS: Final = 10.0
LONGEST: Final = 600.0
"""Upper bound of everything that is said to hang."""
KEY: Final = "sk-test-valid-key-0001"
MODEL: Final = "gpt-5-mini"
GREETING: Final = "Hello from the provider."
KEY_HEADERS: Final = {
    "openai": ("Authorization", "Bearer "),
    "anthropic": ("x-api-key", ""),
    "google": ("x-goog-api-key", ""),
}
PASSED_ON: Final = ("anthropic-version", "anthropic-beta", "x-api-key", "x-goog-api-key", "authorization")
ANTHROPIC_TYPES: Final = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    529: "overloaded_error",
}
GOOGLE_STATUSES: Final = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
REMEDY: Final = "install Node.js 20 or newer (Debian: apt-get install nodejs npm), then run the tests again"


class ProviderError(RuntimeError):
    """The fake provider cannot be used here; the message says what to do."""


@dataclass
class Fault:
    """One way to misbehave. `on` is chat or list; `left` None means for ever; the rest belongs to its kind."""

    kind: str
    on: str
    left: int | None
    status: int = 0
    body: str | None = None
    events: int = 0
    seconds: float = 0.0
    code: str = ""
    param: str | None = None
    message: str = ""
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Request:
    """One request as the provider saw it; `kind` is chat or list, `protocol` openai, anthropic or google."""

    kind: str
    key: str
    status: int
    body: dict[str, Any] = field(default_factory=dict)
    at: float = 0.0
    protocol: str = "openai"


class ModelProvider:
    """`with ModelProvider() as provider:` serves on loopback; `start(host)` and `stop` do the same by hand."""

    def __init__(self, *, valid_keys: Sequence[str] = (KEY,), models: Sequence[str] = (MODEL,)) -> None:
        self._defaults = (tuple(valid_keys), tuple(models))
        self.valid_keys: set[str] = set(valid_keys)
        self.models: list[str] = list(models)
        self.checks_keys = True
        self.lists_to_anybody = False
        self.requests: list[Request] = []
        self._host = ""
        self._port = 0
        self._faults: list[Fault] = []
        self._delay = 0.0
        self._node: subprocess.Popen[str] | None = None
        self._aimock = ""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._runner: web.AppRunner | None = None
        self._upstream: aiohttp.ClientSession | None = None

    # ---- life

    def start(self, host: str = "127.0.0.1", port: int = 0) -> Self:
        """Serve on this address; port 0 takes a free one. Raises ProviderError where node is missing."""
        self._host = host
        self._start_aimock()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="model-provider", daemon=True)
        self._thread.start()
        try:
            self._run(self._serve(host, port))
        except BaseException:
            self.stop()
            raise
        self.set_reply(GREETING)
        return self

    def stop(self) -> None:
        """End everything. Idempotent."""
        loop, self._loop = self._loop, None
        if loop is not None:
            with suppress(Exception):
                asyncio.run_coroutine_threadsafe(self._close(), loop).result(STOP_SECONDS)
            loop.call_soon_threadsafe(loop.stop)
            assert self._thread is not None
            self._thread.join(STOP_SECONDS)
            loop.close()
        node, self._node = self._node, None
        if node is not None:
            assert node.stdin is not None
            assert node.stdout is not None
            node.stdin.close()
            try:
                node.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                node.kill()
                node.wait(STOP_SECONDS)
            node.stdout.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def port(self) -> int:
        """Where it listens."""
        return self._port

    @property
    def base_url(self) -> str:
        """What an Agent names as baseURL, seen from this machine; for google it ends with /v1beta instead."""
        host = "127.0.0.1" if self._host in ("0.0.0.0", "") else self._host
        return f"http://{host}:{self._port}/v1"

    def url_of(self, protocol: str) -> str:
        """Return the address in a protocol."""
        return f"{self.base_url}beta" if protocol == "google" else self.base_url

    # ---- what it says

    def set_reply(
        self,
        text: str,
        *,
        tool_calls: Sequence[dict[str, Any]] = (),
        chunk: int = 20,
        chunk_seconds: float = 0.0,
    ) -> None:
        """Answer everything with this text in pieces of `chunk` characters, `chunk_seconds` between them.

        `tool_calls` ([{name, arguments}]) are asked for first; the text follows their results.
        """
        timing: dict[str, Any] = {"chunkSize": chunk, "latency": round(chunk_seconds * 1000)}
        fixtures: list[dict[str, Any]] = []
        if tool_calls:
            calls = {"toolCalls": list(tool_calls)}
            fixtures.append({"match": {"hasToolResult": False}, "response": calls, **timing})
        fixtures.append({"match": {}, "response": {"content": text}, **timing})
        self._control("DELETE", "/__aimock/fixtures")
        self._control("POST", "/__aimock/fixtures", {"fixtures": fixtures})

    def fail(
        self,
        status: int,
        times: int | None = None,
        *,
        on: str = "chat",
        code: str = "",
        param: str | None = None,
        message: str = "",
        retry_after: str = "",
    ) -> None:
        """Answer `times` requests (None: all from now on) with this status, as an error of the protocol asked in."""
        headers = {"Retry-After": retry_after} if retry_after else {}
        message = message or f"told to fail with {status}"
        self._faults.append(
            Fault("status", on, times, status=status, code=code, param=param, message=message, headers=headers)
        )

    def answer(self, status: int, body: str, times: int | None = None, *, on: str = "chat") -> None:
        """Answer with this text, whatever it is."""
        self._faults.append(Fault("status", on, times, status=status, body=body))

    def redirect(self, times: int | None = None, *, on: str = "chat") -> None:
        """Send whoever asks to another address."""
        self._faults.append(Fault("redirect", on, times, status=302))

    def hang(self, times: int | None = None, *, on: str = "chat") -> None:
        """Take requests and say nothing."""
        self._faults.append(Fault("hang", on, times))

    def drop(self, times: int | None = None, *, on: str = "chat") -> None:
        """Close the connection without an answer."""
        self._faults.append(Fault("drop", on, times))

    def cut(self, events: int, times: int | None = None, *, clean: bool = False) -> None:
        """Break streams off after this many events; `clean` ends them in order, as a proxy would."""
        self._faults.append(Fault("finish" if clean else "cut", "chat", times, events=events))

    def pause(self, events: int, seconds: float = LONGEST, times: int | None = None) -> None:
        """Fall silent in streams after this many events, for this long."""
        self._faults.append(Fault("pause", "chat", times, events=events, seconds=seconds))

    def inject(self, events: int, text: str, times: int | None = None) -> None:
        """Put this text into streams after so many events."""
        self._faults.append(Fault("inject", "chat", times, events=events, body=text))

    def delay(self, seconds: float) -> None:
        """Wait so long before every answer of a model."""
        self._delay = seconds

    def recover(self) -> None:
        """Behave again; replies, keys and models stay as they are."""
        self._faults.clear()
        self._delay = 0.0

    def reset(self) -> None:
        """Be as new, on the same address."""
        self.recover()
        self.valid_keys, self.models = set(self._defaults[0]), list(self._defaults[1])
        self.checks_keys, self.lists_to_anybody = True, False
        self.requests.clear()
        self.set_reply(GREETING)

    def close_port(self) -> None:
        """Refuse connections until `open_port`; the address stays the same."""
        self._run(self._close_site())

    def open_port(self) -> None:
        """Take connections again."""
        self._run(self._open_site(self._host, self._port))

    def asked(self, kind: str = "chat") -> list[Request]:
        """Return the requests of one kind, oldest first."""
        return [request for request in self.requests if request.kind == kind]

    # ---- aimock

    def _start_aimock(self) -> None:
        index = install() / "node_modules" / "@copilotkit" / "aimock" / "dist" / "index.js"
        self._node = subprocess.Popen(
            [_program("node"), str(PACKAGE / "serve.mjs"), str(index)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._node.stdout is not None
        stdout = self._node.stdout
        lines: list[str] = []
        reader = threading.Thread(target=lambda: lines.append(stdout.readline()), daemon=True)
        reader.start()
        reader.join(START_SECONDS)
        if not lines or not lines[0].startswith("http"):
            self.stop()
            raise ProviderError(f"aimock did not start within {START_SECONDS:g} s: remove {cache_folder()}, {REMEDY}")
        self._aimock = lines[0].strip()

    def _control(self, method: str, path: str, body: dict[str, Any] | None = None) -> None:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._aimock + path, data, {"Content-Type": "application/json"}, method=method)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=10) as response:
            response.read()

    # ---- the front

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        assert self._loop is not None, "started before use"
        asyncio.run_coroutine_threadsafe(work, self._loop).result(START_SECONDS)

    async def _serve(self, host: str, port: int) -> None:
        app = web.Application(client_max_size=64 * 1024 * 1024)
        app.router.add_get("/v1/models", self._list)
        app.router.add_get("/v1/models/{name}", self._one)
        app.router.add_get("/v1beta/models/{name}", self._one)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/v1/messages", self._chat)
        app.router.add_post("/v1beta/models/{name}:streamGenerateContent", self._chat)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
        await self._runner.setup()
        self._upstream = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=LONGEST))
        await self._open_site(host, port)

    async def _open_site(self, host: str, port: int) -> None:
        assert self._runner is not None
        site = web.TCPSite(self._runner, host, port, reuse_address=True)
        await site.start()
        server = site._server
        assert isinstance(server, asyncio.Server)
        self._port = int(server.sockets[0].getsockname()[1])

    async def _close_site(self) -> None:
        assert self._runner is not None
        for site in list(self._runner.sites):
            await site.stop()
        assert self._runner.server is not None
        for connection in list(self._runner.server.connections):
            if connection.transport is not None:
                connection.transport.abort()

    async def _close(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
        if self._upstream is not None:
            await self._upstream.close()

    async def _list(self, request: web.Request) -> web.StreamResponse:
        fault = self._take("list")
        if fault is not None:
            return await self._misbehave(request, "list", fault, {})
        if (refused := self._check_key(request, "list", {})) is not None:
            return refused
        self._note(request, "list", 200, {})
        now = int(time.time())
        return web.json_response(
            {
                "object": "list",
                "data": [{"id": name, "object": "model", "created": now, "owned_by": "test"} for name in self.models],
            }
        )

    async def _one(self, request: web.Request) -> web.StreamResponse:
        fault = self._take("list")
        if fault is not None:
            return await self._misbehave(request, "list", fault, {})
        if (refused := self._check_key(request, "list", {})) is not None:
            return refused
        name = request.match_info["name"]
        status = 200 if name in self.models else 404
        self._note(request, "list", status, {})
        if status == 404:
            return _error(request, 404, "", f"model: {name}")
        if _protocol(request) == "google":
            return web.json_response({"name": f"models/{name}", "version": "001", "displayName": name})
        created = "2026-01-01T00:00:00Z"
        return web.json_response({"id": name, "type": "model", "display_name": name, "created_at": created})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        if self._delay:
            await asyncio.sleep(self._delay)
        fault = self._take("chat")
        if fault is not None and not fault.events:
            return await self._misbehave(request, "chat", fault, body)
        if (refused := self._check_key(request, "chat", body)) is not None:
            return refused
        if request.match_info.get("name", body.get("model")) not in self.models:
            self._note(request, "chat", 404, body)
            return _error(request, 404, "model_not_found" if _protocol(request) == "openai" else "", "no such model")
        self._note(request, "chat", 200, body)
        return await self._pass_on(request, body, fault)

    async def _pass_on(self, request: web.Request, body: dict[str, Any], fault: Fault | None) -> web.StreamResponse:
        assert self._upstream is not None
        headers = {name: value for name, value in request.headers.items() if name.lower() in PASSED_ON}
        async with self._upstream.post(f"{self._aimock}{request.path_qs}", json=body, headers=headers) as upstream:
            response = web.StreamResponse(status=upstream.status)
            response.content_type = upstream.content_type
            await response.prepare(request)
            events = 0
            async for line in upstream.content:
                await response.write(line)
                if line.strip():
                    continue
                events += 1
                if fault is None or events != fault.events:
                    continue
                if fault.kind == "finish":
                    break
                if fault.kind == "cut":
                    _abort(request)
                    return response
                if fault.kind == "inject":
                    await response.write(str(fault.body).encode())
                if fault.kind == "pause":
                    await asyncio.sleep(fault.seconds)
            await response.write_eof()
            return response

    async def _misbehave(
        self, request: web.Request, kind: str, fault: Fault, body: dict[str, Any]
    ) -> web.StreamResponse:
        self._note(request, kind, fault.status, body)
        if fault.kind == "hang":
            await asyncio.sleep(LONGEST)
        if fault.kind in ("drop", "hang"):
            _abort(request)
            return web.Response()
        if fault.kind == "redirect":
            return web.Response(status=fault.status, headers={"Location": f"{self.base_url}/elsewhere"})
        if isinstance(fault.body, str):
            return web.Response(text=fault.body, status=fault.status, content_type="application/json")
        return _error(request, fault.status, fault.code, fault.message, param=fault.param, headers=fault.headers)

    def _take(self, on: str) -> Fault | None:
        for fault in list(self._faults):
            if fault.on == on:
                if fault.left is not None:
                    fault.left -= 1
                    if fault.left <= 0:
                        self._faults.remove(fault)
                return fault
        return None

    def _check_key(self, request: web.Request, kind: str, body: dict[str, Any]) -> web.Response | None:
        key = _key_of(request)
        if not self.checks_keys or key in self.valid_keys or (kind == "list" and self.lists_to_anybody):
            return None
        google = _protocol(request) == "google"
        self._note(request, kind, 400 if google else 401, body)
        # As providers do: the key comes back in the message.
        code = "invalid_api_key" if _protocol(request) == "openai" else ""
        details = [{"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"}] if google else []
        return _error(request, 400 if google else 401, code, f"Incorrect API key provided: {key}.", details=details)

    def _note(self, request: web.Request, kind: str, status: int, body: dict[str, Any]) -> None:
        now = time.monotonic()
        self.requests.append(Request(kind, _key_of(request), status, body, now, _protocol(request)))


def _protocol(request: web.Request) -> str:
    if request.path.startswith("/v1beta/"):
        return "google"
    return "anthropic" if "anthropic-version" in request.headers else "openai"


def _key_of(request: web.Request) -> str:
    """Return the key, which each protocol has a header of its own for."""
    name, prefix = KEY_HEADERS[_protocol(request)]
    return request.headers.get(name, "").removeprefix(prefix)


def _error(
    request: web.Request,
    status: int,
    code: str,
    message: str,
    *,
    param: str | None = None,
    details: Sequence[dict[str, Any]] = (),
    headers: dict[str, str] | None = None,
) -> web.Response:
    """Return an error as the protocol writes it; without a code, with the one that belongs to the status."""
    match _protocol(request):
        case "anthropic":
            error = {"type": code or ANTHROPIC_TYPES.get(status, "api_error"), "message": message}
            body: dict[str, Any] = {"type": "error", "error": error, "request_id": "req_test"}
        case "google":
            word = code or GOOGLE_STATUSES.get(status, "INTERNAL")
            body = {"error": {"code": status, "message": message, "status": word, "details": list(details)}}
        case _:
            body = {"error": {"message": message, "type": "test_error", "code": code or None, "param": param}}
    return web.json_response(body, status=status, headers=headers)


def _abort(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()


# ---- installing aimock


def cache_folder() -> Path:
    """Return where npm packages of tests are kept: below ABIDE_CACHE_DIR, XDG_CACHE_HOME/abide or ~/.cache/abide."""
    base = os.environ.get("ABIDE_CACHE_DIR")
    if base:
        return Path(base) / "npm"
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "abide" / "npm"


def install() -> Path:
    """Return the folder with aimock's node_modules, installed from the lock file on first use. Raises ProviderError."""
    lock = (PACKAGE / "package-lock.json").read_bytes()
    folder = cache_folder() / f"aimock-{hashlib.sha256(lock).hexdigest()[:12]}"
    if folder.is_dir():
        return folder
    npm = _program("npm")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / "lock").open("w") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)  # released with the file, also when this process is killed
        if folder.is_dir():
            return folder
        with tempfile.TemporaryDirectory(dir=folder.parent) as name:
            for file in ("package.json", "package-lock.json"):
                shutil.copy(PACKAGE / file, name)
            command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
            done = subprocess.run(
                command, cwd=name, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False
            )
            if done.returncode:
                raise ProviderError(f"{' '.join(command)} failed in tests/fakes/aimock:\n{done.stderr[-2000:]}")
            shutil.copytree(name, folder.with_suffix(".new"), symlinks=True, dirs_exist_ok=True)
        folder.with_suffix(".new").rename(folder)
    return folder


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise ProviderError(f"the tests with a model provider need {name}: {REMEDY}")
    return found
