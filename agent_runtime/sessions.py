"""What is kept in memory of sessions: the messages the model needs next, nothing else.

A cached session is valid for exactly the next turn (`turn_seq` one higher than the last it saw); anything else, such as
a turn another process ran, has it rebuilt from the stored messages. Losing an entry never loses anything but one read.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from sys import getsizeof
from typing import Final
from uuid import UUID

from agent_runtime.llm.port import ChatMessage

REST_SECONDS: Final = 60.0
REST_BYTES: Final = 3000
"""Of the 4 kB that an idle session may take, the rest is for the session itself; a larger one costs its next turn one
read."""
MESSAGE_BYTES: Final = 80
"""What a message takes besides its text."""


@dataclass(slots=True)
class CachedSession:
    """One session. `unsaved_turns` counts turns since the last snapshot.

    `plain_version` is the version of the snapshot this process wrote last (0: none was there, as far as it knows), if
    it holds nothing but the cursor; None: it has to be read before it is written. `summary` stands for what came before
    the messages, of which `uncovered` were added since. A `stale` session is read from the store before its next turn.
    """

    session_id: UUID
    turn_seq: int
    accepted_messages: int
    messages: tuple[ChatMessage, ...]
    chars: int
    used_at: float
    unsaved_turns: int = 0
    save_due: bool = False
    plain_version: int | None = 0
    summary: str | None = None
    uncovered: int = 0
    stale: bool = False


class SessionCache:
    """The sessions of one agent, bounded in number and in characters; the least recently used go first."""

    def __init__(self, *, history_limit: int, most_sessions: int, most_chars: int, idle_seconds: float) -> None:
        self._history_limit = history_limit
        self._most_sessions = most_sessions
        self._most_chars = most_chars
        self._idle_seconds = idle_seconds
        self._sessions: OrderedDict[UUID, CachedSession] = OrderedDict()
        self._chars = 0
        self._rested_until = float("-inf")

    def __len__(self) -> int:
        """Return how many sessions are in memory."""
        return len(self._sessions)

    @property
    def chars(self) -> int:
        """Return how many characters of messages are in memory."""
        return self._chars

    def messages_before(self, session_id: UUID, turn_seq: int) -> tuple[ChatMessage, ...] | None:
        """Return the history before that turn, or None if it must be read from the store."""
        if turn_seq == 1:
            return ()
        session = self._sessions.get(session_id)
        if session is None or session.stale or session.turn_seq != turn_seq - 1:
            return None
        return session.messages

    def summary_of(self, session_id: UUID) -> str | None:
        """Return what stands for the history before messages_before(), if anything does."""
        session = self._sessions.get(session_id)
        return None if session is None else session.summary

    def put(
        self,
        session_id: UUID,
        *,
        turn_seq: int,
        accepted_messages: int,
        history: tuple[ChatMessage, ...],
        added: Sequence[ChatMessage],
        now: float,
        summary: str | None = None,
        fresh: bool = False,
    ) -> CachedSession:
        """Remember a session after a turn that added messages to its history, and return it.

        `fresh`: history and summary were read from the store for this turn.
        """
        session = self._sessions.get(session_id)
        if session is None:
            session = self._sessions[session_id] = CachedSession(session_id, 0, 0, (), 0, now)
        # The history is as long as the limit allows, so it is counted again only when it came from the store.
        chars = session.chars if session.messages is history else count_chars(history)
        messages = (*history, *added)
        surplus = max(0, len(messages) - self._history_limit)
        chars += count_chars(added) - count_chars(messages[:surplus])
        self._chars += chars - session.chars
        session.turn_seq, session.accepted_messages = turn_seq, accepted_messages
        session.messages, session.chars, session.used_at = messages[surplus:], chars, now
        session.unsaved_turns += 1
        if fresh:
            session.stale, session.uncovered = False, len(history)
        session.summary = summary
        session.uncovered += len(added)
        self._sessions.move_to_end(session_id)
        return session

    def find(self, session_id: UUID) -> CachedSession | None:
        """Return the session if it is in memory."""
        return self._sessions.get(session_id)

    def reload(self, session_id: UUID) -> None:
        """Have the session read from the store before its next turn, since its summary changed there."""
        session = self._sessions.get(session_id)
        if session is not None:
            session.stale, session.plain_version = True, None
            self._shed(session)

    def rest(self, now: float) -> None:
        """Let sessions that were quiet for REST_SECONDS keep REST_BYTES at most: larger ones drop their messages."""
        until = now - REST_SECONDS
        for session in reversed(self._sessions.values()):
            if session.used_at <= self._rested_until:
                break  # it and all before it rest already
            if session.used_at <= until and size_of(session) > REST_BYTES:
                session.stale = True
                self._shed(session)
        self._rested_until = until

    def _shed(self, session: CachedSession) -> None:
        self._chars -= session.chars
        session.messages, session.chars, session.summary = (), 0, None

    def forget(self, session_id: UUID) -> None:
        """Drop a session that was deleted, with everything unsaved."""
        session = self._sessions.pop(session_id, None)
        if session is not None:
            self._chars -= session.chars

    def surplus(self, now: float) -> list[CachedSession]:
        """Return the sessions that should leave memory: idle too long, or too many. They stay until forgotten."""
        chars, count, found = self._chars, len(self._sessions), []
        for session in self._sessions.values():
            idle = now - session.used_at >= self._idle_seconds
            if not idle and count <= self._most_sessions and chars <= self._most_chars:
                break
            found.append(session)
            chars -= session.chars
            count -= 1
        return found

    def unsaved(self) -> Iterator[CachedSession]:
        """Yield the sessions with turns since their last snapshot."""
        return (session for session in list(self._sessions.values()) if session.unsaved_turns)

    def due(self) -> list[CachedSession]:
        """Return the sessions whose automatic save failed and is owed."""
        return [session for session in self._sessions.values() if session.save_due]


def size_of(session: CachedSession) -> int:
    """Return about how many bytes of memory a session's messages and summary take."""
    texts = [session.summary or "", *(message.content for message in session.messages)]
    calls = (getsizeof(str(call.arguments)) for message in session.messages for call in message.tool_calls)
    return sum(map(getsizeof, texts)) + sum(calls) + MESSAGE_BYTES * len(session.messages)


def count_chars(messages: Sequence[ChatMessage]) -> int:
    """Return the length of all contents."""
    return sum(len(message.content) for message in messages)
