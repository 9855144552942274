"""An agent with HTTP tools, and the service behind them, which counts what really happened."""

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.faults.driver import AgentUnderTest

DONE = "all is done"


@dataclass(frozen=True, slots=True)
class Call:
    """One request that took effect."""

    tool: str
    key: str


class Shop:
    """The service: every request takes effect when it arrives, and is answered afterwards."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.before_answer: Callable[[Call], None] = lambda _call: None
        """Told of each call after it took effect and before it is answered; from a thread of the service."""
        self._lock = threading.Lock()
        self._server: ThreadingHTTPServer | None = None

    @property
    def url(self) -> str:
        """Return where the service is."""
        assert self._server is not None, "serving() first"
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def count(self, tool: str) -> int:
        """Return how often a tool took effect."""
        with self._lock:
            return sum(call.tool == tool for call in self.calls)

    def keys(self, tool: str) -> set[str]:
        """Return the keys with which a tool was called."""
        with self._lock:
            return {call.key for call in self.calls if call.tool == tool}

    def counts(self) -> Counter[str]:
        """Return how often each tool took effect."""
        with self._lock:
            return Counter(call.tool for call in self.calls)

    def take(self, tool: str, key: str) -> int:
        """Note a call and return how many there were of its tool."""
        call = Call(tool, key)
        with self._lock:
            self.calls.append(call)
            number = sum(one.tool == tool for one in self.calls)
        self.before_answer(call)
        return number

    @contextmanager
    def serving(self) -> Iterator["Shop"]:
        """Answer while the block runs."""
        self._server = _QuietServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()
            thread.join(timeout=10)


class _QuietServer(ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        """Callers are killed in the middle of their requests; that is no news."""


def _handler(shop: Shop) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", "0")))
            tool = self.path.strip("/").partition("?")[0]
            number = shop.take(tool, self.headers.get("Idempotency-Key", ""))
            body = json.dumps({"did": tool, "number": number}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_PUT = _answer  # noqa: N815 - the names that the server looks for

        def log_message(self, *_: object) -> None:
            pass

    return Handler


def http_tool(shop: Shop, name: str, method: str, **more: Any) -> dict[str, Any]:
    """Return the entry of spec.tools for one request to the shop."""
    request = {"method": method, "url": f"{shop.url}/{name}", "description": name, "allowPrivateAddresses": True}
    return {"name": name, "type": "HTTP", "http": request, **more}


def asks(*tools: str) -> dict[str, Any]:
    """Return a scripted answer that wants these tools called."""
    calls = [{"name": tool, "arguments": {}} for tool in tools]
    return {"content": f"calling {' and '.join(tools)}", "toolCalls": calls}


@dataclass(frozen=True, slots=True)
class Buyer(AgentUnderTest):
    """An agent that buys something in each turn, by a script.

    `pay`, `wire` and `post` have side effects, `wire` waits for a person, `book` takes a key that makes repeating safe,
    `look` only reads.
    """

    tools: tuple[dict[str, Any], ...] = ()
    replies: tuple[Any, ...] = ()

    def spec(self) -> dict[str, Any]:
        """Return the Agent's spec."""
        model = {"provider": "scripted", "parameters": {"replies": list(self.replies)}}
        return {"systemPrompt": "Buy.", "models": [model], "tools": list(self.tools)}


SCRIPT = (asks("pay", "look", "book"), asks("look"), asks("wire", "look"), asks("post"), DONE)


def tools_of(shop: Shop) -> tuple[dict[str, Any], ...]:
    """Return the shop's tools as an Agent has them."""
    safe = {"book": {"idempotencyArgument": "Idempotency-Key"}}
    return (
        http_tool(shop, "pay", "POST"),
        http_tool(shop, "post", "POST"),
        http_tool(shop, "wire", "POST", approval={"for": ["wire"]}),
        http_tool(shop, "book", "PUT", sideEffects=safe),
        http_tool(shop, "look", "GET"),
    )
