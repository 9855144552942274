"""A tool that is one HTTP request: the arguments fill its address, its query or its body."""

import asyncio
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, urlencode, urlsplit

from agent_api.v1alpha1 import HttpTool, ToolEntry
from agent_api.wire import ToolCheck
from agent_runtime.clock import Clock
from agent_runtime.supervisor import Pulse
from agent_runtime.tools.headers import SecretHeaders
from agent_runtime.tools.port import ToolContext
from agent_runtime.tools.standing import Standing, Unusable, after_failure, after_success, pause_before_look
from agent_runtime.tools.toolset import MOST_OUTPUT, Offered, ToolFailed, cut

if TYPE_CHECKING:
    import httpx

IDEMPOTENCY_HEADER: Final = "Idempotency-Key"
WITHOUT_BODY: Final = ("GET", "DELETE")
MOST_REDIRECTS: Final = 3
WELL_SECONDS: Final = 60.0
"""Between two looks at a server that is well: a connection is made and closed."""
TICK: Final = 1.0
_TEXTS: Final = ("json", "text", "xml", "javascript", "yaml", "x-www-form-urlencoded", "csv")
_KEY: Final = re.compile(r"[A-Za-z0-9._:~-]{1,200}")


class HttpToolset:
    """One entry of type HTTP.

    Two things are known of it: whether the service takes connections, which looks find out, and what it answers to
    calls, which only calls find out. One that refuses calls is down, and offered all the same.
    """

    def __init__(self, entry: ToolEntry, headers: SecretHeaders, clock: Clock, on_change: Callable[[], None]) -> None:
        assert entry.http is not None  # noqa: S101 - the entry's type says so
        self.name = entry.name
        self.discovered = True
        self._http: HttpTool = entry.http
        self._tools = (Offered(self.name, entry.http.description, entry.http.parameters, entry.http.method != "GET"),)
        self._headers = headers
        self._clock = clock
        self._on_change = on_change
        self._connection = Standing()
        self._answers = Standing()
        self._refused_with: dict[str, str] = {}
        self._client: httpx.AsyncClient | None = None
        self._due = clock.monotonic()
        parts = urlsplit(entry.http.url)
        self._host, self._port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)

    @property
    def is_up(self) -> bool:
        """Whether models are offered it: not while it takes no connections."""
        return self._connection.ok is not False

    def tools(self) -> Sequence[Offered]:
        """Return the one tool it is."""
        return self._tools

    def check(self) -> ToolCheck:
        """Return what is known of it."""
        return self._standing().to_check(self.name, "HTTP", [self.name])

    async def aclose(self) -> None:
        """Close its connections."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    # ---- calling

    async def call(self, tool: str, arguments: Mapping[str, Any], context: ToolContext, *, timeout: float) -> str:
        """Send the request and return the answer's text. Raises ToolFailed."""
        url, query, body = build_request(self._http, arguments)
        headers = {"Accept": "application/json, text/*;q=0.9, */*;q=0.1"}
        if self._http.method != "GET":
            headers[IDEMPOTENCY_HEADER] = header_key(context.key)
        try:
            sent = self._headers.values()
            status, text = await self._send(url, query, body, headers, timeout)
        except (ToolFailed, asyncio.CancelledError):
            raise
        except Exception as error:  # a client's exceptions are many, and all mean that there is no answer
            failure = self._note(error)
            unsure = "" if self._http.method == "GET" else "; whether it took effect is not known"
            raise ToolFailed(f"the service {failure.phrase}{unsure}") from None
        if status in (401, 403) or status >= 500:
            self._refused_with = sent
            refusal = Unusable(f"answers {status}", passing=status >= 500)
            self._reached(after_failure(self._answers, refusal, self._clock.now()))
        else:
            self._reached(after_success(self._answers, self._clock.now()))
        if status >= 400:
            words = f": {text}" if text.strip() else ""
            raise ToolFailed(f"the service answered {status}{words}")
        if not text.strip():
            return f"done: the service answered {status} without content"
        return text

    async def _send(self, url: str, query: str, body: Any, headers: dict[str, str], timeout: float) -> tuple[int, str]:
        client = self._ready_client()
        target = f"{url}{'&' if '?' in url else '?'}{query}" if query else url
        for _ in range(MOST_REDIRECTS + 1):
            request = client.build_request(self._http.method, target, headers=headers, json=body, timeout=timeout)
            response = await client.send(request, stream=True)
            try:
                if not response.is_redirect:
                    kind = response.headers.get("content-type", "")
                    return response.status_code, await _read_text(response, kind)
                onward = request.url.join(response.headers["location"])
                if self._http.method != "GET" or _origin(onward) != _origin(request.url):
                    raise ToolFailed(f"the service answered {response.status_code}, a redirect that is not followed")
                target = str(onward)
            finally:
                await response.aclose()
        raise ToolFailed("the service redirects without end")

    def _ready_client(self) -> "httpx.AsyncClient":
        if self._client is None:
            from agent_runtime.tools.net import make_client

            self._client = make_client(
                self._headers.values, allow_private=self._http.allow_private_addresses, silence=3600.0
            )
        return self._client

    # ---- what is known

    async def watch(self, pulse: Pulse) -> None:
        """See now and then whether a connection can be made; more often while none can."""
        while True:
            pulse()
            if self._headers.changed():
                self._due = self._clock.monotonic()
            self._forgive()
            if self._clock.monotonic() >= self._due:
                await self._look()
            await self._clock.sleep(TICK)

    async def _look(self) -> None:
        from agent_runtime.tools.net import CONNECT_TIMEOUT, MOST_ADDRESSES, find_addresses

        try:
            self._headers.values()
            addresses = await find_addresses(self._host, self._port, allow_private=self._http.allow_private_addresses)
            await _connect(addresses[:MOST_ADDRESSES], self._port, CONNECT_TIMEOUT)
            self._reached(self._answers)
        except Exception as error:
            self._note(error)

    def _forgive(self) -> None:
        """Forget refusals of other headers than those that are sent now."""
        with suppress(Unusable):
            if self._answers.failures and self._headers.values() != self._refused_with:
                self._update(self._connection, Standing(since=self._clock.now()))

    def _note(self, error: Exception) -> Unusable:
        from agent_runtime.tools.net import explain

        failure = explain(error)
        self._update(after_failure(self._connection, failure, self._clock.now()), self._answers)
        self._due = self._clock.monotonic() + pause_before_look(self._connection)
        return failure

    def _reached(self, answers: Standing) -> None:
        self._update(after_success(self._connection, self._clock.now()), answers)
        self._due = self._clock.monotonic() + WELL_SECONDS

    def _update(self, connection: Standing, answers: Standing) -> None:
        before, self._connection, self._answers = self._standing(), connection, answers
        now = self._standing()
        if (before.ok, before.phrase) != (now.ok, now.phrase):
            self._on_change()

    def _standing(self) -> Standing:
        return combine(self._connection, self._answers)


def combine(connection: Standing, answers: Standing) -> Standing:
    """Return what both say together; refused calls count while connections are taken."""
    if connection.ok is False:
        return connection
    if answers.ok is False:
        return answers
    return replace(connection, since=max((one.since for one in (connection, answers) if one.since), default=None))


async def _connect(addresses: Sequence[str], port: int, seconds: float) -> None:
    """Connect to the first address that takes it, within `seconds` in all; raise the first one's error."""
    failure: Exception | None = None
    for address in addresses:
        try:
            async with asyncio.timeout(seconds / len(addresses)):
                _, writer = await asyncio.open_connection(address, port)
        except OSError as error:  # TimeoutError is one
            failure = failure or error
        else:
            writer.transport.abort()
            return
    assert failure is not None  # noqa: S101 - there was an address
    raise failure


def build_request(http: HttpTool, arguments: Mapping[str, Any]) -> tuple[str, str, Any]:
    """Return address, query to add ("" for none) and JSON body (None for none). Raises ToolFailed.

    A value takes one segment of the path at most: it cannot reach another part of the service.
    """
    url = http.url
    for name in http.placeholders:
        value = _plain(arguments[name])
        if value in ("", ".", ".."):
            raise ToolFailed(f"{name}: {value!r} cannot stand in an address; give another value")
        url = url.replace(f"{{{name}}}", quote(value, safe=""))
    rest = {name: value for name, value in arguments.items() if name not in http.placeholders}
    if http.method in WITHOUT_BODY:
        pairs = [
            (name, _plain(one))
            for name, value in rest.items()
            for one in (value if isinstance(value, list) else [value])
            if one is not None
        ]
        return url, urlencode(pairs), None
    return url, "", rest


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def header_key(key: str) -> str:
    """Return a key as a header may hold it: ids of calls come from models, and hold anything."""
    return key if _KEY.fullmatch(key) else hashlib.sha256(key.encode()).hexdigest()


def _origin(url: "httpx.URL") -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port


async def _read_text(response: "httpx.Response", kind: str) -> str:
    if kind and not any(word in kind.lower() for word in _TEXTS):
        return f"[{response.headers.get('content-length', 'some')} bytes of {kind[:100]}, which is no text]"
    data = bytearray()
    async for chunk in response.aiter_raw():
        data += chunk
        if len(data) > 4 * MOST_OUTPUT:
            break
    try:
        text = data.decode(response.charset_encoding or "utf-8", errors="replace")
    except LookupError:
        text = data.decode("utf-8", errors="replace")
    return cut(text)
