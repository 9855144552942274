"""The checks themselves: what is whole passes, and each way of breaking it is found by the check made for it."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import asyncpg
import pytest

from tests.faults.driver import Answer, Message, until
from tests.faults.invariants import CHECKS, Line, MessageRow, Observed, SessionRow, TurnRow, observe, violations
from tests.faults.scene import staged

START = datetime(2030, 1, 1, tzinfo=UTC)
USERS = ("alice", "bob")


def uid(number: int) -> UUID:
    return UUID(int=number)


def make_whole(turns_each: int = 3) -> Observed:
    """Build what two users with a session of the same name leave behind when nothing goes wrong."""
    said: list[Message] = []
    sessions: list[SessionRow] = []
    turns: list[TurnRow] = []
    rows: list[MessageRow] = []
    histories: dict[tuple[str, str], tuple[Line, ...]] = {}
    for number, user in enumerate(USERS, start=1):
        session = SessionRow(uid(number), user, "main")
        sessions.append(session)
        lines: list[Line] = []
        for n in range(1, turns_each + 1):
            turn = uid(number * 100 + n)
            content = f"{user}/main/{n}"
            reply = f"{content} [{n}]"
            turns.append(TurnRow(turn, session.id, n, "completed", 1, START + timedelta(seconds=n)))
            rows += [MessageRow(session.id, 2 * n - 1, turn, "user"), MessageRow(session.id, 2 * n, turn, "assistant")]
            lines += [Line(2 * n - 1, "user", content, str(turn)), Line(2 * n, "assistant", reply, str(turn))]
            message = Message(user, "main", content, f"key-{content}", tuple(f"{user}/main/{i}" for i in range(1, n)))
            message.answers = [Answer(202, str(turn), "queued", None), Answer(200, str(turn), "completed", reply)]
            said.append(message)
        histories[user, "main"] = tuple(lines)
    return Observed(tuple(said), tuple(sessions), tuple(turns), tuple(rows), histories)


def with_answers(seen: Observed, index: int, *answers: Answer) -> Observed:
    message = replace(seen.said[index], answers=list(answers))
    return replace(seen, said=(*seen.said[:index], message, *seen.said[index + 1 :]))


def with_turn(seen: Observed, index: int, turn: TurnRow) -> Observed:
    return replace(seen, turns=(*seen.turns[:index], turn, *seen.turns[index + 1 :]))


def with_lines(seen: Observed, user: str, change: Callable[[list[Line]], object]) -> Observed:
    lines = list(seen.histories[user, "main"])
    change(lines)
    return replace(seen, histories={**seen.histories, (user, "main"): tuple(lines)})


def with_rows(seen: Observed, change: Callable[[list[MessageRow]], object]) -> Observed:
    rows = list(seen.messages)
    change(rows)
    return replace(seen, messages=tuple(rows))


def lose_the_reply(seen: Observed) -> Observed:
    return with_rows(with_lines(seen, "alice", lambda lines: lines.pop()), lambda rows: rows.pop(5))


def lose_an_acknowledged_message(seen: Observed) -> Observed:
    last = seen.turns[2].id
    kept = tuple(row for row in seen.messages if row.turn_id != last)
    seen = replace(seen, turns=(*seen.turns[:2], *seen.turns[3:]), messages=kept)
    return with_lines(seen, "alice", lambda lines: lines.__delitem__(slice(4, 6)))


def never_answer(seen: Observed) -> Observed:
    return with_answers(seen, 2, seen.said[2].answers[0])


def answer_twice_differently(seen: Observed) -> Observed:
    first = seen.said[0].answers[1]
    return with_answers(seen, 0, first, replace(first, reply="alice/main/1 [2]"))


def fail_for_no_reason(seen: Observed) -> Observed:
    return with_answers(seen, 0, replace(seen.said[0].answers[1], turn_status="failed", reply=None))


def make_two_turns_for_one_key(seen: Observed) -> Observed:
    first = seen.said[0].answers[1]
    return with_answers(seen, 0, first, replace(first, turn_id=str(seen.turns[1].id)))


def answer_two_messages_with_one_turn(seen: Observed) -> Observed:
    return with_answers(seen, 1, seen.said[0].answers[1])


def store_a_message_twice(seen: Observed) -> Observed:
    return with_lines(seen, "bob", lambda lines: lines.insert(2, replace(lines[0], seq=3, turn_id=str(uid(299)))))


def answer_a_message_twice(seen: Observed) -> Observed:
    return with_lines(seen, "bob", lambda lines: lines.append(replace(lines[1], seq=7, content="bob/main/1 [4]")))


def forget_the_history(seen: Observed) -> Observed:
    return with_lines(seen, "bob", lambda lines: lines.__setitem__(3, replace(lines[3], content="bob/main/2 [1]")))


def tell_the_client_something_else(seen: Observed) -> Observed:
    return with_answers(seen, 1, replace(seen.said[1].answers[1], reply="alice/main/2 [7]"))


def leave_a_turn_running(seen: Observed) -> Observed:
    return with_turn(seen, 2, replace(seen.turns[2], status="running", finished_at=None))


def finish_without_an_attempt(seen: Observed) -> Observed:
    return with_turn(seen, 2, replace(seen.turns[2], attempts=0))


def leave_a_message_without_turn(seen: Observed) -> Observed:
    return with_rows(seen, lambda rows: rows.append(MessageRow(uid(1), 7, uid(999), "user")))


def make_up_a_message(seen: Observed) -> Observed:
    return replace(seen, said=seen.said[1:])


def swap_two_turns(seen: Observed) -> Observed:
    one, two = seen.turns[0], seen.turns[1]
    return with_turn(with_turn(seen, 0, replace(one, turn_seq=2)), 1, replace(two, turn_seq=1))


def overtake_an_acknowledged_message(seen: Observed) -> Observed:
    message = replace(seen.said[0], after=("alice/main/2",))
    return replace(seen, said=(message, *seen.said[1:]))


def skip_a_turn_number(seen: Observed) -> Observed:
    return with_turn(seen, 2, replace(seen.turns[2], turn_seq=4))


def skip_a_sequence_number(seen: Observed) -> Observed:
    return with_rows(seen, lambda rows: rows.__setitem__(5, replace(rows[5], seq=7)))


def repeat_a_sequence_number(seen: Observed) -> Observed:
    return with_rows(seen, lambda rows: rows.__setitem__(5, replace(rows[5], seq=5)))


def hide_a_line_from_readers(seen: Observed) -> Observed:
    return with_lines(seen, "bob", lambda lines: lines.pop())


def run_two_turns_at_once(seen: Observed) -> Observed:
    return replace(seen, overlaps=frozenset({seen.sessions[0].id}))


def show_a_line_of_another_user(seen: Observed) -> Observed:
    foreign = seen.histories["alice", "main"][0]
    return with_lines(seen, "bob", lambda lines: lines.append(replace(foreign, seq=7)))


BREACHES: dict[Callable[[Observed], Observed], str] = {
    lose_the_reply: "nothing_is_half",
    lose_an_acknowledged_message: "acknowledged_messages_have_one_outcome",
    never_answer: "acknowledged_messages_have_one_outcome",
    answer_twice_differently: "acknowledged_messages_have_one_outcome",
    fail_for_no_reason: "acknowledged_messages_have_one_outcome",
    make_two_turns_for_one_key: "same_key_is_the_same_turn",
    answer_two_messages_with_one_turn: "same_key_is_the_same_turn",
    store_a_message_twice: "no_message_twice",
    answer_a_message_twice: "no_message_twice",
    forget_the_history: "replies_echo_their_message",
    tell_the_client_something_else: "replies_echo_their_message",
    leave_a_turn_running: "nothing_is_half",
    finish_without_an_attempt: "nothing_is_half",
    leave_a_message_without_turn: "nothing_is_half",
    make_up_a_message: "nothing_is_half",
    swap_two_turns: "order_is_kept",
    overtake_an_acknowledged_message: "order_is_kept",
    skip_a_turn_number: "order_is_kept",
    skip_a_sequence_number: "sequence_numbers",
    repeat_a_sequence_number: "sequence_numbers",
    hide_a_line_from_readers: "sequence_numbers",
    run_two_turns_at_once: "one_running_turn",
    show_a_line_of_another_user: "users_are_apart",
}


def test_a_whole_conversation_breaks_nothing() -> None:
    assert violations(make_whole()) == []


def test_a_message_that_was_never_acknowledged_may_be_absent() -> None:
    seen = make_whole()
    lost = Message("alice", "main", "alice/main/4", None)
    assert violations(replace(seen, said=(*seen.said, lost))) == []


@pytest.mark.parametrize("breach", BREACHES, ids=lambda breach: breach.__name__)
def test_a_breach_is_found_by_the_check_made_for_it(breach: Callable[[Observed], Observed]) -> None:
    found = violations(breach(make_whole()))
    assert any(line.startswith(f"{BREACHES[breach]}: ") for line in found), found


def test_every_check_is_proven_to_find_something() -> None:
    assert {check.__name__.removeprefix("check_") for check in CHECKS} == set(BREACHES.values())


async def test_what_is_broken_in_postgres_is_found(tmp_path: Path, postgres_url: str) -> None:
    async with staged(tmp_path, postgres_url, delay_seconds=0) as scene:
        await scene.start("only")
        for _ in range(2):
            await scene.clients.say("alice", "main")
        await scene.assert_invariants()
        for damage, expected in DAMAGES.items():
            connection = await asyncpg.connect(postgres_url, timeout=5, command_timeout=5)
            try:
                await connection.execute(damage)
            finally:
                await connection.close()
            found = violations(await observe(postgres_url, scene.clients))
            assert any(line.startswith(f"{expected}: ") for line in found), (damage, found)


# In this order, each on top of the ones before.
DAMAGES = {
    "update abide.turns set status = 'running', finished_at = null where turn_seq = 2": "nothing_is_half",
    "delete from abide.messages where seq = 4": "sequence_numbers",
    "update abide.turns set turn_seq = 7 where turn_seq = 1": "order_is_kept",
    "update abide.sessions set user_id = 'bob'": "users_are_apart",
    "delete from abide.turns": "acknowledged_messages_have_one_outcome",
}


async def test_two_running_turns_of_one_session_are_seen(tmp_path: Path, postgres_url: str) -> None:
    async with staged(tmp_path, postgres_url, delay_seconds=0) as scene:
        await scene.start("only")
        for _ in range(2):
            await scene.clients.say("alice", "main")
        connection = await asyncpg.connect(postgres_url, timeout=5, command_timeout=5)
        try:
            await connection.execute("update abide.turns set status = 'running'")
        finally:
            await connection.close()
        await until(lambda: len(scene.overlaps.seen) == 1, 5, "the watch sees them")
