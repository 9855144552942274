"""A chat in the terminal, the same for an agent in a cluster and one served by `abide dev`."""

import re
import secrets
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final, TextIO

from agent_api.wire import CONTENT_MAX_LENGTH, SESSION_PATTERN, MessageOut, TurnOut, TurnResponse, TurnStatus
from agent_cli.errors import CliError
from agent_cli.talk.client import AgentClient
from agent_cli.talk.streamed import Final as FinalOutput
from agent_cli.talk.streamed import Output, TakenBack, Text

SHOWN_HISTORY: Final = 20
READ_TIMEOUT: Final = 30.0
CONTROL_CHARACTERS: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")

HELP: Final = """\
  /new [NAME]      start another session, or go to the one of that name
  /history         show the latest messages of this session
  /retry           send the last message again, if its outcome is unknown; it is never answered twice
{agents}  /help            show this
  /quit            end the chat (so do Ctrl-C and Ctrl-D)
  A message that starts with a slash: double it, //like this."""
HELP_AGENTS: Final = "  /agent [NAME]    show the agents, or talk to that one\n"


def clean(text: str) -> str:
    """Return text without the control characters that would steer the terminal; newlines and tabs stay."""
    return CONTROL_CHARACTERS.sub("", text)


def outcome_note(turn: TurnOut) -> str:
    """Return what to tell about a turn that was not simply completed, "" if it was."""
    why = f": {turn.error.type}: {turn.error.message}" if turn.error else ""
    match turn.status:
        case TurnStatus.COMPLETED:
            return ""
        case TurnStatus.FALLBACK:
            return f"fallback reply, no model answered{why}"
        case _:
            return f"the turn {'was cancelled' if turn.status is TurnStatus.CANCELLED else turn.status.value}{why}"


def new_session_name(now: datetime) -> str:
    """Return a session name that was not used before: the time and a random end."""
    return f"{now:%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def new_key() -> str:
    """Return a fresh idempotency key."""
    return f"abide-cli-{secrets.token_hex(16)}"


def history_line(message: MessageOut, agent_name: str) -> str:
    """Return one message as the chat shows it."""
    speaker = {"user": "you", "assistant": agent_name}.get(message.role, message.role)
    return f"{speaker}> {clean(message.content)}"


def label_clients(clients: Sequence[AgentClient]) -> dict[str, AgentClient]:
    """Return the clients by their agents' names, with the namespace where names alone are not unique."""
    names = [client.agent.name for client in clients]
    return {
        client.agent.name if names.count(client.agent.name) == 1 else str(client.agent): client for client in clients
    }


@dataclass(slots=True)
class Screen:
    """Where a chat reads and writes. `interactive`: a person types at a terminal, so prompts and notes are welcome."""

    source: TextIO = field(default_factory=lambda: sys.stdin)
    out: TextIO = field(default_factory=lambda: sys.stdout)
    err: TextIO = field(default_factory=lambda: sys.stderr)
    interactive: bool = False

    def read(self, prompt: str) -> str | None:
        """Return the next line without its end, None at the end of input."""
        if not self.interactive:
            line = self.source.readline()
            return line.rstrip("\r\n") if line else None
        import readline  # noqa: F401 - gives input() editing and recall

        try:
            return input(prompt)
        except EOFError:
            self.write("\n")
            return None

    def write(self, text: str) -> None:
        """Write to the terminal at once."""
        self.out.write(text)
        self.out.flush()

    def note(self, text: str) -> None:
        """Tell something about the chat that is not part of it."""
        self.err.write(f"[{clean(text)}]\n")
        self.err.flush()


@dataclass(frozen=True, slots=True)
class Unfinished:
    """A message whose outcome is not known: sent again under the same key it is the same turn."""

    content: str
    key: str


class Chat:
    """Reads lines, sends them, shows the replies. One session at a time; one agent of several at a time."""

    def __init__(
        self, screen: Screen, clients: Sequence[AgentClient], *, session: str = "default", timeout: float = 300.0
    ) -> None:
        self._screen = screen
        self._clients = label_clients(clients)
        self._client = clients[0]
        self._session = session
        self._timeout = timeout
        self._unfinished: Unfinished | None = None
        self._failed = False

    def run(self) -> bool:
        """Chat until the end of input, /quit or Ctrl-C; return False if a message had no reply."""
        if self._screen.interactive:
            who = f"agent {self._client.agent}, session {self._session!r}, user {self._client.user!r}"
            self._screen.note(f"{who}; /help lists commands")
        try:
            while (line := self._screen.read("you> ")) is not None:
                if not self._take(line.strip()):
                    break
        except KeyboardInterrupt:
            self._screen.write("\n")
            if self._unfinished is not None:
                self._screen.note("the last message may have been accepted; its reply would be in the history")
        return not self._failed

    def _take(self, line: str) -> bool:
        """Do what a line says; return False to end the chat."""
        if not line:
            return True
        if line.startswith("//"):
            self._say(Unfinished(line[1:], new_key()))
        elif line.startswith("/"):
            word, _, argument = line.partition(" ")
            return self._command(word, argument.strip())
        else:
            self._say(Unfinished(line, new_key()))
        return True

    def _command(self, word: str, argument: str) -> bool:
        actions: dict[str, Callable[[str], None]] = {
            "/new": self._new,
            "/history": self._history,
            "/retry": self._retry,
            "/help": self._help,
        }
        if len(self._clients) > 1:
            actions["/agent"] = self._agent
        if word in ("/quit", "/exit"):
            return False
        if word in actions:
            actions[word](argument)
        else:
            self._screen.note(f"unknown command {word}; /help lists them, and //{word[1:]} sends it as a message")
        return True

    def _say(self, message: Unfinished) -> None:
        if len(message.content) > CONTENT_MAX_LENGTH:
            self._screen.note(f"a message has at most {CONTENT_MAX_LENGTH:,} characters; this one was not sent")
            self._failed = True
            return
        self._unfinished = message
        if self._screen.interactive:
            self._screen.write(f"{self._client.agent.name}> ")
        try:
            self._client.send(self._session, message.content, key=message.key, timeout=self._timeout, sink=self._show)
        except CliError as error:
            self._failed = True
            self._screen.write("\n" if self._screen.interactive else "")
            for line in error.lines:
                self._screen.note(line)
            if self._screen.interactive:
                self._screen.note("/retry sends the message again; it is never answered twice")
        else:
            self._unfinished = None

    def _show(self, output: Output) -> None:
        match output:
            case Text(text):
                self._screen.write(clean(text))
            case TakenBack():
                self._screen.write("\n")
                self._screen.note("the reply starts again")
            case FinalOutput(response):
                self._finish(response)

    def _finish(self, response: TurnResponse) -> None:
        self._screen.write("\n")
        note = outcome_note(response.turn)
        if note:
            self._screen.note(note)
        self._failed = self._failed or response.turn.status in (TurnStatus.FAILED, TurnStatus.CANCELLED)

    def _new(self, name: str) -> None:
        name = name or new_session_name(datetime.now(UTC))
        if not re.fullmatch(SESSION_PATTERN, name):
            self._screen.note("a session name has 1 to 128 characters of A-Z a-z 0-9 . _ : @ -")
            return
        self._session, self._unfinished = name, None
        self._screen.note(f"session {name!r}")

    def _history(self, _: str) -> None:
        try:
            page = self._client.history(self._session, newest=SHOWN_HISTORY, timeout=READ_TIMEOUT)
        except CliError as error:
            self._screen.note(error.lines[0])
            return
        for message in page.items:
            self._screen.write(history_line(message, self._client.agent.name) + "\n")
        if not page.items:
            self._screen.note(f"session {self._session!r} has no messages yet")

    def _retry(self, _: str) -> None:
        if self._unfinished is None:
            self._screen.note("nothing to send again: every message has its outcome")
        else:
            self._say(self._unfinished)

    def _agent(self, name: str) -> None:
        if name in self._clients:
            self._client, self._unfinished = self._clients[name], None
        elif name:
            self._screen.note(f"no agent {name!r} here")
        self._screen.note(
            "agents: " + ", ".join(f"{n}{' *' if c is self._client else ''}" for n, c in self._clients.items())
        )

    def _help(self, _: str) -> None:
        self._screen.write(HELP.format(agents=HELP_AGENTS if len(self._clients) > 1 else "") + "\n")
