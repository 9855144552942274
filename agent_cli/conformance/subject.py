"""What is under test: one agent at an address, as any HTTP client sees it."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

import httpx

from agent_cli.talk.sse import SseEvent, parse_sse

FINAL: Final = ("completed", "fallback", "failed", "cancelled")
STATUSES: Final = ("queued", "running", "waiting", *FINAL)
PROBLEM: Final = "application/problem+json"


class NonconformityError(Exception):
    """The runtime does something else than it should; the text says what it should do and what it did."""


def expect(holds: bool, should: str, instead: object = "") -> None:
    """Raise NonconformityError unless it holds."""
    if not holds:
        seen = str(instead)
        raise NonconformityError(f"{should}; instead: {seen[:300]}" if seen else should)


@dataclass(frozen=True, slots=True)
class Subject:
    """One agent. `session` and `user` are of this run alone; `longest` bounds a turn, in seconds."""

    http: httpx.Client
    namespace: str
    name: str
    key: str
    user: str
    session: str
    longest: float = 120.0

    @property
    def path(self) -> str:
        """The canonical path of the agent."""
        return f"/v1/agents/{quote(self.namespace)}/{quote(self.name)}"

    @property
    def messages(self) -> str:
        """Path of the session's messages."""
        return f"{self.path}/sessions/{self.session}/messages"

    def request(
        self, method: str, path: str, *, key: str | None = None, user: str | None = None, **more: Any
    ) -> httpx.Response:
        """Send a request. Raises NonconformityError where no HTTP answer comes."""
        key = self.key if key is None else key
        headers = {
            "Abide-User": user or self.user,
            **({"Authorization": f"Bearer {key}"} if key else {}),
            **more.pop("headers", {}),
        }
        try:
            return self.http.request(method, path, headers=headers, **more)
        except httpx.HTTPError as error:
            raise NonconformityError(f"{method} {path} must answer; instead: {type(error).__name__} {error}") from None

    def send(self, content: object, *, session: str | None = None, **more: Any) -> httpx.Response:
        """Post a message."""
        path = self.messages if session is None else f"{self.path}/sessions/{session}/messages"
        return self.request("POST", path, json={"content": content}, **more)

    def say(self, content: str, *, session: str | None = None, **more: Any) -> dict[str, Any]:
        """Post a message and return the answer once the turn has its outcome."""
        answer = self.send(content, session=session, **more)
        if answer.status_code == 202:
            return self.outcome(answer.headers["Location"])
        found = body_of(answer, 200)
        expect(found.get("turn", {}).get("status") in FINAL, "200 means that the turn has its outcome", found)
        return found

    def outcome(self, location: str) -> dict[str, Any]:
        """Ask for a turn until it has its outcome."""
        deadline = time.monotonic() + self.longest
        while True:
            found = body_of(self.request("GET", location), 200)
            if found["turn"]["status"] in FINAL:
                return found
            expect(time.monotonic() < deadline, f"a turn has its outcome within {self.longest:g} s", found)
            time.sleep(0.1)

    @contextmanager
    def stream(self, method: str, path: str, **more: Any) -> Iterator[httpx.Response]:
        """Send a request whose answer is read as it comes."""
        headers = {
            "Abide-User": self.user,
            "Accept": "text/event-stream",
            **({"Authorization": f"Bearer {self.key}"} if self.key else {}),
            **more.pop("headers", {}),
        }
        try:
            with self.http.stream(method, path, headers=headers, **more) as response:
                yield response
        except httpx.HTTPError as error:
            raise NonconformityError(f"{method} {path} must stream; instead: {type(error).__name__} {error}") from None

    def events(self, method: str, path: str, **more: Any) -> list[SseEvent]:
        """Return the events of a stream up to the turn's outcome."""
        found: list[SseEvent] = []
        with self.stream(method, path, **more) as response:
            expect(response.status_code == 200, "a stream answers 200", response.status_code)
            media = response.headers.get("content-type", "")
            expect(media.startswith("text/event-stream"), "a stream is text/event-stream", media)
            for event in parse_sse(response.iter_bytes()):
                found.append(event)
                if event.event in ("completed", "failed"):
                    return found
        raise NonconformityError("a stream ends with completed or failed; instead: it ended without")


Check = Callable[[Subject], None]


def body_of(answer: httpx.Response, status: int) -> dict[str, Any]:
    """Return the JSON object of an answer with this status. Raises NonconformityError."""
    where = f"{answer.request.method} {answer.request.url.path}"
    expect(answer.status_code == status, f"{where} answers {status}", f"{answer.status_code} {answer.text}")
    media = answer.headers.get("content-type", "")
    expect(media.startswith("application/json"), f"{where} answers application/json", media)
    return json_of(answer, where)


def json_of(answer: httpx.Response, where: str) -> dict[str, Any]:
    """Return the JSON object of an answer. Raises NonconformityError."""
    try:
        found = answer.json()
    except (json.JSONDecodeError, UnicodeDecodeError):
        found = None
    if not isinstance(found, dict):
        raise NonconformityError(f"{where} answers with a JSON object; instead: {answer.text[:300]}")
    return found


def problem_of(answer: httpx.Response, status: int, kind: str = "") -> dict[str, Any]:
    """Return the problem details of an answer with this status, of this kind. Raises NonconformityError."""
    where = f"{answer.request.method} {answer.request.url.path}"
    expect(answer.status_code == status, f"{where} answers {status}", f"{answer.status_code} {answer.text}")
    media = answer.headers.get("content-type", "")
    expect(media.startswith(PROBLEM), f"errors are {PROBLEM} (RFC 9457)", f"{where} answers {media}")
    found = json_of(answer, where)
    expect(isinstance(found.get("type"), str) and bool(found.get("title")), "a problem has type and title", found)
    expect(found.get("status") == status, "a problem's status is that of the answer", found)
    expect(not kind or found["type"].rpartition("/")[2] == kind, f"the problem's type ends with /{kind}", found["type"])
    return found
