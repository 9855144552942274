"""An agent's REST API as a terminal uses it: every message is sent under an idempotency key until its outcome is known.

Connections break when a pod is replaced. The same key and body attach to the same turn, so trying again is always safe:
this module does so until a deadline, over a new connection each time, and says plainly what is known when it gives up.
"""

import json
import math
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import IO, Any, Final, Protocol, Self, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel, ValidationError

from agent_api.wire import (
    ANONYMOUS,
    USER_HEADER,
    ErrorPage,
    KeyPassOut,
    KeysOut,
    MessagePage,
    Problem,
    SessionPage,
    TurnResponse,
    UserErased,
)
from agent_cli.errors import CliError
from agent_cli.talk.sse import parse_sse
from agent_cli.talk.streamed import Final as FinalOutput
from agent_cli.talk.streamed import Output, StreamedReply

CONNECT_TIMEOUT: Final = 5.0
READ_TIMEOUT: Final = 60.0
"""A stream that says nothing for this long is opened again; the key makes that harmless."""
PATIENCE: Final = 60.0
"""How long to try while nothing says that the message was accepted. Taking over a turn needs 10 s at most."""
FIRST_PAUSE: Final = 0.25
LONGEST_PAUSE: Final = 5.0
SHORTEST_WAIT: Final = 0.1
PAGE_SIZE: Final = 200
END_LINE_MOST: Final = 256
NOTHING_THERE: Final = ("/state-not-found", "/session-not-found")

M = TypeVar("M", bound=BaseModel)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class AgentRef:
    """Which agent."""

    namespace: str
    name: str

    def __str__(self) -> str:
        """Return `namespace/name`."""
        return f"{self.namespace}/{self.name}"

    @property
    def path(self) -> str:
        """Return the agent's canonical REST path."""
        return f"/v1/agents/{quote(self.namespace, safe='')}/{quote(self.name, safe='')}"


@dataclass(frozen=True, slots=True)
class Connection:
    """A way in: where to send requests, and the API key if one is needed."""

    base_url: str
    api_key: str | None = field(default=None, repr=False)
    trust_env: bool = True


class Target(Protocol):
    """Finds ways in to one agent."""

    def connect(self, deadline: float) -> Connection:
        """Return a way in, made now or kept from before. Raises CliError when there is none by the deadline."""
        ...

    def drop(self) -> None:
        """Forget the present way in, so that the next connect() makes a new one."""
        ...

    def unreachable(self, reason: str) -> CliError:
        """Return the sentence for an agent that cannot be reached."""
        ...

    def unauthorized(self) -> CliError:
        """Return the sentence for a refused or missing API key."""
        ...


@dataclass(frozen=True, slots=True)
class Clock:
    """Time as the client sees it; tests put their own here."""

    monotonic: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


class _Again(Exception):  # noqa: N818 - a decision, not a mistake
    """This attempt brought no answer and another may.

    `pause` in seconds if the server named one; `healthy` if the connection works and is to be kept.
    """

    def __init__(self, reason: str, *, pause: float | None = None, healthy: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.pause = pause
        self.healthy = healthy


class _Refused(Exception):  # noqa: N818
    """The server does not take the API key."""


class AgentClient:
    """Talks to one agent as one user. Not thread-safe; closes its connections on exit, not its target."""

    def __init__(
        self,
        target: Target,
        agent: AgentRef,
        *,
        user: str = ANONYMOUS,
        clock: Clock | None = None,
        note: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.agent = agent
        self.user = user
        self._target = target
        self._clock = clock or Clock()
        self._note = note
        self._http: httpx.Client | None = None
        self._reached = False
        self._deadline: Callable[[], float] = lambda: math.inf

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._close()

    def send(
        self, session: str, content: str, *, key: str, timeout: float, sink: Callable[[Output], None]
    ) -> TurnResponse:
        """Send a message and pass its reply on to `sink` as it comes; return the turn's outcome.

        Idempotent by `key`. Raises CliError when the message is refused, is not known to be accepted within PATIENCE,
        or has no outcome within `timeout` seconds.
        """
        reply = StreamedReply()

        def attempt(http: httpx.Client) -> TurnResponse:
            headers = self._headers(key) | {"Accept": "text/event-stream"}
            body = {"content": content}
            with http.stream("POST", self._messages_path(session), json=body, headers=headers) as response:
                if _is_stream(response):
                    for event in parse_sse(self._until_deadline(response.iter_bytes())):
                        for output in reply.on_event(event):
                            sink(output)
                            if isinstance(output, FinalOutput):
                                return output.response
                    raise _Again("the stream ended before the reply")
                response.read()
                turn = _final_turn(_parse(_checked(response), TurnResponse))
                for output in reply.finish(turn):
                    sink(output)
                return turn

        return self._until_answered(attempt, timeout=timeout, pending=lambda: reply.turn_id)

    def history(self, session: str, *, newest: int, timeout: float) -> MessagePage:
        """Return the newest messages of a session, oldest first; an unknown session has none."""

        def attempt(http: httpx.Client) -> MessagePage:
            page = MessagePage(items=[])
            cursor: str | None = None
            while True:
                params: dict[str, str | int] = {"limit": PAGE_SIZE} | ({"cursor": cursor} if cursor else {})
                response = http.get(self._messages_path(session), params=params, headers=self._headers())
                part = _parse(_checked(response), MessagePage)
                page = MessagePage(items=(page.items + part.items)[-newest:])
                cursor = part.next_cursor
                if not cursor or not part.items:
                    return page

        return self._until_answered(attempt, timeout=timeout)

    def sessions(self, *, limit: int, timeout: float) -> SessionPage:
        """Return the user's sessions, newest activity first; `next_cursor` tells that there are more."""

        def attempt(http: httpx.Client) -> SessionPage:
            params = {"limit": min(limit, PAGE_SIZE)}
            response = http.get(f"{self.agent.path}/sessions", params=params, headers=self._headers())
            return _parse(_checked(response), SessionPage)

        return self._until_answered(attempt, timeout=timeout)

    def errors(self, *, error_type: str | None, cursor: str | None, limit: int, timeout: float) -> ErrorPage:
        """Return a page of the agent's recorded errors, newest first, of all users."""

        def attempt(http: httpx.Client) -> ErrorPage:
            wanted = {"type": error_type, "cursor": cursor}
            params: dict[str, str | int] = {"limit": min(limit, PAGE_SIZE)}
            params |= {name: value for name, value in wanted.items() if value is not None}
            return _parse(
                _checked(http.get(f"{self.agent.path}/errors", params=params, headers=self._headers())), ErrorPage
            )

        return self._until_answered(attempt, timeout=timeout)

    def keys(self, *, timeout: float) -> KeysOut:
        """Return the agent's data keys, old to new."""
        path = f"{self.agent.path}/keys"
        return self._until_answered(
            lambda http: _parse(_checked(http.get(path, headers=self._headers())), KeysOut), timeout=timeout
        )

    def rotate_key(self, *, timeout: float) -> KeysOut:
        """Make a new data key; return all. After an answer that got lost there may be one more, which does no harm."""
        path = f"{self.agent.path}/keys/rotation"
        return self._until_answered(
            lambda http: _parse(_checked(http.post(path, headers=self._headers())), KeysOut), timeout=timeout
        )

    def reencrypt(self, cursor: str | None, *, dry_run: bool, timeout: float) -> KeyPassOut:
        """Encrypt a part of the agent's content anew, or only count it. Idempotent."""
        path, body = f"{self.agent.path}/keys/reencryption", {"cursor": cursor, "dryRun": dry_run}
        return self._until_answered(
            lambda http: _parse(_checked(http.post(path, json=body, headers=self._headers())), KeyPassOut),
            timeout=timeout,
        )

    def state(self, session: str, *, timeout: float) -> dict[str, Any]:
        """Return the newest snapshot of a session's state. Raises CliError, also when there is none."""
        return self._until_answered(
            lambda http: _document(_checked(http.get(self._state_path(session), headers=self._headers()))),
            timeout=timeout,
        )

    def save_state(self, session: str, document: Any, *, timeout: float) -> dict[str, Any]:
        """Write a session's state, and return what was saved. Raises CliError with a line for each wrong field."""
        path = self._state_path(session)
        return self._until_answered(
            lambda http: _document(_checked(http.put(path, json=document, headers=self._headers()))), timeout=timeout
        )

    def export_user(self, user: str, file: IO[bytes], *, timeout: float) -> int:
        """Write all that is kept of a user to `file`, as JSON lines; return how many items. Raises CliError."""
        path = f"{self._user_path(user)}/export"

        def attempt(http: httpx.Client) -> int:
            file.seek(0)
            file.truncate()
            last = b""
            with http.stream("GET", path, headers=self._headers()) as response:
                if not response.is_success:
                    response.read()
                for chunk in _checked(response).iter_bytes():
                    file.write(chunk)
                    last = (last + chunk)[-END_LINE_MOST:]
            items = _items_of(last)
            if items is None:
                raise _Again("the export was cut short")
            return items

        return self._until_answered(attempt, timeout=timeout)

    def erase_user(self, user: str, *, timeout: float) -> UserErased:
        """Erase all that is kept of a user. Idempotent; an answer that got lost counts what was left."""
        path = self._user_path(user)
        return self._until_answered(
            lambda http: _parse(_checked(http.delete(path, headers=self._headers())), UserErased), timeout=timeout
        )

    def delete_state(self, session: str, *, timeout: float) -> bool:
        """Delete a session's snapshot; False if there was none."""

        def attempt(http: httpx.Client) -> bool:
            response = http.delete(self._state_path(session), headers=self._headers())
            if response.status_code == httpx.codes.NOT_FOUND and parse_problem(response).type.endswith(NOTHING_THERE):
                return False
            _checked(response)
            return True

        return self._until_answered(attempt, timeout=timeout)

    def _user_path(self, user: str) -> str:
        return f"{self.agent.path}/users/{quote(user, safe=':@')}"

    def _messages_path(self, session: str) -> str:
        return f"{self.agent.path}/sessions/{quote(session, safe=':@')}/messages"

    def _state_path(self, session: str) -> str:
        return f"{self.agent.path}/sessions/{quote(session, safe=':@')}/state"

    def _headers(self, key: str | None = None) -> dict[str, str]:
        return {USER_HEADER: self.user} | ({"Idempotency-Key": key} if key else {})

    def _until_answered(
        self,
        attempt: Callable[[httpx.Client], T],
        *,
        timeout: float,
        pending: Callable[[], str | None] = lambda: None,
    ) -> T:
        start, pause, refusals, noted = self._clock.monotonic(), FIRST_PAUSE, 0, False

        def deadline() -> float:
            return start + (timeout if pending() else min(timeout, PATIENCE))

        self._deadline = deadline
        while True:
            try:
                http = self._connect(deadline())
                left = max(SHORTEST_WAIT, deadline() - self._clock.monotonic())
                http.timeout = httpx.Timeout(min(READ_TIMEOUT, left), connect=min(CONNECT_TIMEOUT, left))
                answer = attempt(http)
            except _Refused:
                # A key that was just replaced is read again, once.
                refusals += 1
                self._drop()
                if refusals > 1:
                    raise self._target.unauthorized() from None
                continue
            except _Again as decision:
                again = decision
            except httpx.TransportError as error:
                again = _Again(transport_reason(error))
                if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout) and not self._reached:
                    raise self._target.unreachable(again.reason) from error
            else:
                self._reached = True
                return answer
            self._reached = True
            if not again.healthy:
                self._drop()
            wait = min(again.pause if again.pause is not None else pause, LONGEST_PAUSE)
            if self._clock.monotonic() + wait >= deadline():
                raise self._gave_up(again.reason, timeout, pending())
            if not (noted or again.healthy):
                self._note(f"{again.reason}; trying again …")
                noted = True
            self._clock.sleep(wait)
            pause = min(pause * 2, LONGEST_PAUSE)

    def _until_deadline(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        """Yield what arrives until the deadline: a stream that only beats keeps nobody waiting longer than asked."""
        for chunk in chunks:
            yield chunk
            if self._clock.monotonic() >= self._deadline():
                raise _Again("the turn is still running", healthy=True)

    def _gave_up(self, reason: str, timeout: float, turn_id: str | None) -> CliError:
        if turn_id is None:
            return self._target.unreachable(reason)
        return CliError(
            f"Agent {self.agent} accepted the message (turn {turn_id}) and has not answered within {timeout:g} s: "
            f"{reason}. The reply will be in the session's history."
        )

    def _connect(self, deadline: float) -> httpx.Client:
        if self._http is None:
            way = self._target.connect(deadline)
            headers = {"Authorization": f"Bearer {way.api_key}"} if way.api_key else {}
            self._http = httpx.Client(
                base_url=way.base_url,
                headers=headers,
                timeout=httpx.Timeout(READ_TIMEOUT, connect=CONNECT_TIMEOUT),
                trust_env=way.trust_env,
                # Loading the certificates of all authorities takes longer than a whole plain request.
                verify=True if way.base_url.startswith("https:") else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
            )
        return self._http

    def _drop(self) -> None:
        self._close()
        self._target.drop()

    def _close(self) -> None:
        if self._http is not None:
            self._http.close()
            self._http = None


def transport_reason(error: httpx.TransportError) -> str:
    """Return what happened to a connection, as the start of a sentence."""
    match error:
        case httpx.ConnectError():
            return "the connection was refused" if "refused" in str(error).lower() else f"no connection ({error})"
        case httpx.ConnectTimeout():
            return "no connection in time"
        case httpx.TimeoutException():
            return "no answer in time"
    return "the connection broke"


def _items_of(end: bytes) -> int | None:
    """Return how many items an export says it has in its last line; None if that line is missing."""
    line = end.rstrip(b"\n").rpartition(b"\n")[2]
    try:
        document = json.loads(line) if end.endswith(b"\n") else None
    except ValueError:
        return None
    return int(document["items"]) if isinstance(document, dict) and document.get("kind") == "end" else None


def _is_stream(response: httpx.Response) -> bool:
    content_type = str(response.headers.get("content-type", ""))
    return response.status_code == httpx.codes.OK and content_type.startswith("text/event-stream")


def _final_turn(answer: TurnResponse) -> TurnResponse:
    if not answer.turn.status.is_final:
        raise _Again(f"the turn is still {answer.turn.status}", pause=FIRST_PAUSE, healthy=True)
    return answer


def _checked(response: httpx.Response) -> httpx.Response:
    """Return a 2xx response; else raise what is to be done about it."""
    if response.is_success:
        return response
    problem = parse_problem(response)
    match response.status_code:
        case 401:
            raise _Refused
        case 429 | 502 | 503 | 504:
            raise _Again(_sentence(problem), pause=retry_after(response))
    raise CliError(problem_lines(problem))


def parse_problem(response: httpx.Response) -> Problem:
    """Return the problem details of an error response, or as much as can be told without them (RFC 9457)."""
    try:
        return Problem.model_validate_json(response.content)
    except ValidationError:
        title = response.reason_phrase or "error"
        return Problem(type="about:blank", title=title, status=response.status_code)


def problem_lines(problem: Problem) -> list[str]:
    """Return one line for the problem and one for each wrong field."""
    fields = [f"  {error.get('field', '?')}: {error.get('message', '')}" for error in problem.errors]
    return [f"{_sentence(problem)} (HTTP {problem.status})", *fields]


def retry_after(response: httpx.Response) -> float | None:
    """Return the Retry-After header in seconds; None if it is absent or a date."""
    value = str(response.headers.get("retry-after", ""))
    return float(value) if value.isdecimal() else None


def _sentence(problem: Problem) -> str:
    return f"{problem.title}: {problem.detail}".rstrip(": .") if problem.detail else problem.title


def _document(response: httpx.Response) -> dict[str, Any]:
    try:
        found = response.json()
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise CliError(
            f"{response.url.copy_with(query=None)} did not answer as an Abide agent does; check the address."
        )
    return found


def _parse(response: httpx.Response, model: type[M]) -> M:
    try:
        return model.model_validate_json(response.content)
    except ValidationError as error:
        raise CliError(
            f"{response.url.copy_with(query=None)} did not answer as an Abide agent does; check the address."
        ) from error
