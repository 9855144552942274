"""An HTTP server on a real socket that does exactly what a test tells it, connection breaks included."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from uuid import UUID

from agent_api.wire import Reply, TurnOut, TurnResponse, TurnStatus

TURN = UUID(int=7)


@dataclass(frozen=True)
class Request:
    """What a client asked."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any


Step = Callable[["Handler"], None]


@dataclass
class Script:
    """The steps, one per request, the last one repeated; `requests` is what came."""

    steps: list[Step]
    url: str = ""
    requests: list[Request] = field(default_factory=list)


class Handler(BaseHTTPRequestHandler):
    """Plays the next step."""

    protocol_version = "HTTP/1.1"
    script: Script

    def handle_any(self) -> None:
        length = int(self.headers.get("content-length", 0))
        body = json.loads(self.rfile.read(length)) if length else None
        headers = {name.lower(): value for name, value in self.headers.items()}
        index = len(self.script.requests)
        self.script.requests.append(Request(self.command, self.path, headers, body))
        self.script.steps[min(index, len(self.script.steps) - 1)](self)

    do_GET = do_POST = handle_any  # noqa: N815 - names of the standard library

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def start_stream(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()

    def event(self, name: str, data: Any) -> None:
        self.wfile.write(f"event: {name}\ndata: {json.dumps(data)}\n\n".encode())
        self.wfile.flush()

    def hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)


def answer(status: int, body: Any, **headers: str) -> Step:
    """Return a step that answers with JSON."""

    def step(handler: Handler) -> None:
        text = json.dumps(body).encode()
        handler.send_response(status)
        handler.send_header("content-type", "application/json")
        handler.send_header("content-length", str(len(text)))
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(text)

    return step


def problem(
    status: int, title: str, detail: str = "", errors: list[dict[str, str]] | None = None, **headers: str
) -> Step:
    """Return a step that answers with problem details."""
    body = {
        "type": "https://abide.dev/problems/x",
        "title": title,
        "status": status,
        "detail": detail,
        "errors": errors or [],
    }
    return answer(status, body, **headers)


def turn(text: str | None, status: TurnStatus = TurnStatus.COMPLETED, **fields: Any) -> dict[str, Any]:
    """Return the wire form of a turn with its reply."""
    reply = Reply(content=text) if text is not None else None
    response = TurnResponse(turn=TurnOut(id=TURN, status=status, **fields), reply=reply)
    return response.model_dump(mode="json", by_alias=True)


def stream(*deltas: str, final: dict[str, Any] | None, accepted: bool = True) -> Step:
    """Return a step that streams a reply; without `final` the connection breaks after the deltas."""

    def step(handler: Handler) -> None:
        handler.start_stream()
        if accepted:
            handler.event("accepted", {"turn": {"id": str(TURN), "status": "running"}})
        for index, text in enumerate(deltas):
            handler.event("delta", {"attempt": 1, "index": index, "text": text})
        if final is None:
            handler.hang_up()
        else:
            handler.event("completed", final)

    return step


def hang_up(handler: Handler) -> None:
    """Break the connection without an answer."""
    handler.hang_up()


@contextmanager
def serve(*steps: Step) -> Iterator[Script]:
    """Serve the steps on a loopback port until the block ends."""
    script = Script(list(steps))
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"script": script}))
    server.daemon_threads = True
    script.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield script
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
