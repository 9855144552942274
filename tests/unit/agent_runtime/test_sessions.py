"""The cache of sessions: bounded, exact about what it is valid for."""

import gc
import tracemalloc
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from agent_runtime.llm.port import ChatMessage
from agent_runtime.sessions import REST_BYTES, REST_SECONDS, SessionCache


def cache(history_limit: int = 50, sessions: int = 100, chars: int = 1000, idle: float = 10.0) -> SessionCache:
    return SessionCache(history_limit=history_limit, most_sessions=sessions, most_chars=chars, idle_seconds=idle)


def put(into: SessionCache, number: int, turn_seq: int = 1, text: str = "abcde", now: float = 0.0) -> None:
    """Remember a session whose whole history is one message."""
    added = [ChatMessage("user", text)]
    session_id = UUID(int=number)
    into.put(session_id, turn_seq=turn_seq, accepted_messages=turn_seq, history=(), added=added, now=now)


def test_the_first_turn_has_no_history_and_needs_no_read() -> None:
    assert cache().messages_before(UUID(int=1), 1) == ()


def test_a_session_is_valid_for_exactly_the_next_turn() -> None:
    made = cache()
    put(made, 1, turn_seq=3)
    known = made.messages_before(UUID(int=1), 4)
    assert known is not None
    assert [message.content for message in known] == ["abcde"]
    assert made.messages_before(UUID(int=1), 5) is None, "another process ran a turn in between"
    assert made.messages_before(UUID(int=1), 3) is None
    assert made.messages_before(UUID(int=2), 2) is None


def test_no_more_than_the_history_limit_is_kept() -> None:
    made = cache(history_limit=2)
    history = tuple(ChatMessage("user", str(n)) for n in range(4))
    added = [ChatMessage("user", "4")]
    session = made.put(UUID(int=1), turn_seq=1, accepted_messages=1, history=history, added=added, now=0)
    assert [message.content for message in session.messages] == ["3", "4"]
    assert made.chars == 2


def test_idle_sessions_leave_and_used_ones_stay() -> None:
    made = cache(idle=10)
    put(made, 1, now=0)
    put(made, 2, now=5)
    put(made, 1, turn_seq=2, now=8)
    assert [session.session_id.int for session in made.surplus(15)] == [2]
    assert [session.session_id.int for session in made.surplus(18)] == [2, 1]


def test_too_many_sessions_or_characters_push_out_the_least_recently_used() -> None:
    few = cache(sessions=2)
    for number in (1, 2, 3):
        put(few, number)
    assert [session.session_id.int for session in few.surplus(0)] == [1]
    small = cache(chars=11)
    for number in (1, 2, 3):
        put(small, number)
    assert [session.session_id.int for session in small.surplus(0)] == [1]


def test_characters_are_counted_once_over_put_and_forget() -> None:
    made = cache()
    put(made, 1, text="12345")
    put(made, 1, turn_seq=2, text="123")
    put(made, 2, text="1")
    assert made.chars == 4
    made.forget(UUID(int=1))
    made.forget(UUID(int=1))
    assert (made.chars, len(made)) == (1, 1)


def test_turns_since_the_last_snapshot_are_counted() -> None:
    made = cache()
    put(made, 1)
    put(made, 1, turn_seq=2)
    (session,) = made.unsaved()
    assert session.unsaved_turns == 2
    session.unsaved_turns = 0
    assert list(made.unsaved()) == []


@given(st.lists(st.lists(st.text(max_size=9), max_size=4), max_size=12), st.integers(1, 6), st.booleans())
def test_characters_are_those_of_the_messages_however_they_came(
    turns: list[list[str]], limit: int, reread: bool
) -> None:
    made = cache(history_limit=limit)
    for number, texts in enumerate(turns, start=1):
        known = made.messages_before(UUID(int=1), number)
        assert known is not None
        history = (*known,) if reread else known
        added = [ChatMessage("user", text) for text in texts]
        session = made.put(UUID(int=1), turn_seq=number, accepted_messages=number, history=history, added=added, now=0)
        assert session.chars == made.chars == sum(len(message.content) for message in session.messages)
        assert len(session.messages) <= limit


def test_quiet_sessions_keep_little_and_are_read_again() -> None:
    made = cache(chars=10**6)
    put(made, 1, text="x" * (REST_BYTES + 1), now=0.0)
    put(made, 2, text="short", now=0.0)
    put(made, 3, text="x" * (REST_BYTES + 1), now=50.0)
    made.rest(REST_SECONDS)
    assert made.messages_before(UUID(int=1), 2) is None
    assert made.messages_before(UUID(int=2), 2) is not None
    assert made.messages_before(UUID(int=3), 2) is not None
    assert made.chars == 5 + REST_BYTES + 1
    assert [session.unsaved_turns for session in made.unsaved()] == [1, 1, 1]
    made.rest(REST_SECONDS + 50.0)
    assert made.chars == 5


def test_ten_thousand_idle_sessions_take_no_more_than_four_kilobytes_each() -> None:
    gc.collect()
    tracemalloc.start()
    made = SessionCache(history_limit=50, most_sessions=20_000, most_chars=10**9, idle_seconds=900.0)
    for number in range(10_000):
        history: tuple[ChatMessage, ...] = ()
        for turn in range(1, number % 25 + 2):
            said = f"{number} {turn}"
            added = (ChatMessage("user", said.ljust(200, "?")), ChatMessage("assistant", said.ljust(400, "!")))
            session = made.put(
                UUID(int=number), turn_seq=turn, accepted_messages=turn, history=history, added=added, now=0.0
            )
            history = session.messages
    made.rest(REST_SECONDS)
    taken, _ = tracemalloc.get_traced_memory()
    sessions = [made.find(UUID(int=number)) for number in range(10_000)]
    for resting in sessions:
        assert resting is not None
        made.forget(resting.session_id)
    del sessions, resting, session, history, added
    gc.collect()
    left, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert taken / 10_000 <= 4096
    # An emptied dictionary keeps its table.
    assert left / 10_000 <= 150


def test_a_session_whose_state_changed_is_read_again() -> None:
    made = cache()
    put(made, 1)
    made.reload(UUID(int=1))
    assert made.messages_before(UUID(int=1), 2) is None
    added = [ChatMessage("user", "b")]
    # A turn that was under way with the old history does not make it good again; one that read the store does.
    made.put(UUID(int=1), turn_seq=2, accepted_messages=2, history=(), added=added, now=0.0)
    assert made.messages_before(UUID(int=1), 3) is None
    made.put(UUID(int=1), turn_seq=3, accepted_messages=3, history=(), added=added, now=0.0, summary="met", fresh=True)
    assert made.messages_before(UUID(int=1), 4) == (added[0],)
    assert made.summary_of(UUID(int=1)) == "met"
