"""What must hold after any fault, judged from outside.

Known are: what clients sent and were answered (`driver.Message`), what GET …/messages returns, and the columns of
Postgres other programs may read. `observe` collects that once everything is settled, `violations` is pure: each check
names the promise it stands for and returns one sentence per breach.
"""

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import asyncpg

from tests.faults.driver import FINAL, Conversation, Message, until

SAMPLE_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class SessionRow:
    """One row of abide.sessions."""

    id: UUID
    user: str
    name: str


@dataclass(frozen=True, slots=True)
class TurnRow:
    """One row of abide.turns."""

    id: UUID
    session_id: UUID
    turn_seq: int
    status: str
    attempts: int
    finished_at: datetime | None


@dataclass(frozen=True, slots=True)
class MessageRow:
    """One row of abide.messages."""

    session_id: UUID
    seq: int
    turn_id: UUID
    role: str


@dataclass(frozen=True, slots=True)
class Line:
    """One item of GET …/messages."""

    seq: int
    role: str
    content: str
    turn_id: str


@dataclass(frozen=True, slots=True)
class Observed:
    """Everything the checks look at; `overlaps` are the sessions seen with two running turns at one moment."""

    said: tuple[Message, ...]
    sessions: tuple[SessionRow, ...]
    turns: tuple[TurnRow, ...]
    messages: tuple[MessageRow, ...]
    histories: dict[tuple[str, str], tuple[Line, ...]]
    overlaps: frozenset[UUID] = frozenset()

    def turns_of(self, session_id: UUID) -> list[TurnRow]:
        """Return the session's turns in their order."""
        return sorted((turn for turn in self.turns if turn.session_id == session_id), key=lambda turn: turn.turn_seq)

    def messages_of(self, session_id: UUID) -> list[MessageRow]:
        """Return the session's messages in their order."""
        return sorted((row for row in self.messages if row.session_id == session_id), key=lambda row: row.seq)


class Overlaps:
    """Watches a database for sessions with more than one running turn."""

    def __init__(self) -> None:
        self.seen: set[UUID] = set()
        self.samples = 0

    async def sample(self, connection: asyncpg.Connection) -> None:
        """Look once."""
        rows = await connection.fetch(
            "select session_id from abide.turns where status = 'running' group by session_id having count(*) > 1"
        )
        self.seen.update(row["session_id"] for row in rows)
        self.samples += 1


@asynccontextmanager
async def watched(postgres_url: str) -> AsyncIterator[Overlaps]:
    """Sample the database for overlapping turns while the block runs; goes on after Postgres was away."""
    overlaps = Overlaps()

    async def watch() -> None:
        while True:
            try:
                connection = await asyncpg.connect(postgres_url, timeout=5, command_timeout=5)
            except (OSError, asyncpg.PostgresError, TimeoutError):
                await asyncio.sleep(SAMPLE_SECONDS)
                continue
            try:
                while True:
                    await overlaps.sample(connection)
                    await asyncio.sleep(SAMPLE_SECONDS)
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError):
                continue
            finally:
                connection.terminate()

    task = asyncio.create_task(watch(), name="overlaps")
    try:
        yield overlaps
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def observe(postgres_url: str, conversation: Conversation, overlaps: Overlaps | None = None) -> Observed:
    """Collect what the checks need. Call it once every message is settled and while a process answers."""
    connection = await asyncpg.connect(postgres_url, timeout=10, command_timeout=10)
    try:
        agent = conversation.agent.id
        sessions = await connection.fetch("select id, user_id, name from abide.sessions where agent_id = $1", agent)
        ids = [row["id"] for row in sessions]
        turns = await connection.fetch(
            "select id, session_id, turn_seq, status, attempts, finished_at from abide.turns"
            " where session_id = any($1)",
            ids,
        )
        messages = await connection.fetch(
            "select session_id, seq, turn_id, role from abide.messages where session_id = any($1)", ids
        )
        if overlaps is not None:
            await overlaps.sample(connection)
    finally:
        await connection.close()
    session_rows = tuple(SessionRow(row["id"], row["user_id"], row["name"]) for row in sessions)
    histories = {
        (row.user, row.name): tuple(_line(item) for item in await conversation.history(row.user, row.name))
        for row in session_rows
    }
    return Observed(
        said=tuple(conversation.said),
        sessions=session_rows,
        turns=tuple(TurnRow(**dict(row)) for row in turns),
        messages=tuple(MessageRow(**dict(row)) for row in messages),
        histories=histories,
        overlaps=frozenset(overlaps.seen) if overlaps is not None else frozenset(),
    )


def _line(item: dict[str, Any]) -> Line:
    return Line(item["seq"], item["role"], item["content"], item["turnId"])


def check_acknowledged_messages_have_one_outcome(seen: Observed) -> list[str]:
    """I2: what a client was promised has its outcome, in Postgres and in the client's hand."""
    turns = {str(turn.id): turn for turn in seen.turns}
    found = []
    for message in seen.said:
        if not message.acknowledged:
            continue
        ids = {answer.turn_id for answer in message.answers}
        if missing := ids - turns.keys():
            found.append(f"{message.content}: acknowledged as turn {sorted(missing)}, which does not exist")
        if message.final is None:
            found.append(f"{message.content}: acknowledged but never answered")
        outcomes = {(answer.turn_status, answer.reply) for answer in message.answers if answer.final}
        if len(outcomes) > 1:
            found.append(f"{message.content}: {len(outcomes)} outcomes: {sorted(map(str, outcomes))}")
        found += [
            f"{message.content}: {status}, though nothing was wrong with it" for status, _ in outcomes - _good(outcomes)
        ]
    return found


def _good(outcomes: set[tuple[str, str | None]]) -> set[tuple[str, str | None]]:
    return {outcome for outcome in outcomes if outcome[0] == "completed" and outcome[1] is not None}


def check_same_key_is_the_same_turn(seen: Observed) -> list[str]:
    """I4: however often a message was sent with its key, there is one turn, and two messages never share one."""
    found = [
        f"{message.content}: one key, {len(ids)} turns"
        for message in seen.said
        if message.key is not None and len(ids := {answer.turn_id for answer in message.answers}) > 1
    ]
    owners: defaultdict[str, set[str]] = defaultdict(set)
    for message in seen.said:
        for answer in message.answers:
            owners[answer.turn_id].add(message.content)
    return found + [f"turn {turn} answers {sorted(texts)}" for turn, texts in owners.items() if len(texts) > 1]


def check_no_message_twice(seen: Observed) -> list[str]:
    """I4: nothing said once is stored or answered twice, also what was never acknowledged."""
    found = []
    for key, lines in seen.histories.items():
        texts = Counter((line.role, line.content) for line in lines)
        found += [f"{key}: {role} {text!r} {count} times" for (role, text), count in texts.items() if count > 1]
        asked = Counter(line.content for line in lines if line.role == "user")
        answered = Counter(_without_count(line.content) for line in lines if line.role == "assistant")
        found += [f"{key}: {text!r} answered {count} times" for text, count in answered.items() if count > asked[text]]
    return found


def _without_count(reply: str) -> str:
    return reply.rpartition(" [")[0]


def check_replies_echo_their_message(seen: Observed) -> list[str]:
    """The reply belongs to its message, and its [n] shows that the model was given all that came before."""
    found = []
    replies: dict[str, str] = {}
    for key, lines in seen.histories.items():
        questions = {line.turn_id: line for line in lines if line.role == "user"}
        order = {turn: number for number, turn in enumerate(questions, start=1)}
        for line in (line for line in lines if line.role == "assistant"):
            replies[line.turn_id] = line.content
            question = questions.get(line.turn_id)
            expected = None if question is None else f"{question.content} [{order[line.turn_id]}]"
            if line.content != expected:
                found.append(f"{key}: seq {line.seq} is {line.content!r}, expected {expected!r}")
    return found + [
        f"{message.content}: the client read {answer.reply!r}, the history says {replies.get(answer.turn_id)!r}"
        for message in seen.said
        for answer in message.answers
        if answer.final and answer.reply != replies.get(answer.turn_id)
    ]


def check_nothing_is_half(seen: Observed) -> list[str]:
    """I1, I2: a turn is absent or complete, acknowledged or not; no message without turn, none without session."""
    found = []
    roles: defaultdict[UUID, list[str]] = defaultdict(list)
    for row in sorted(seen.messages, key=lambda row: row.seq):
        roles[row.turn_id].append(row.role)
    for turn in seen.turns:
        if turn.status not in FINAL or turn.finished_at is None:
            found.append(f"turn {turn.id} stays {turn.status}, finished_at {turn.finished_at}")
        if roles[turn.id] != ["user", "assistant"]:
            found.append(f"turn {turn.id} ({turn.status}) has messages {roles[turn.id]}")
        if turn.attempts < 1:
            found.append(f"turn {turn.id} is {turn.status} after {turn.attempts} attempts")
    known = {turn.id for turn in seen.turns}
    found += [
        f"message {row.seq} of session {row.session_id} has no turn"
        for row in seen.messages
        if row.turn_id not in known
    ]
    return found + _unknown_texts(seen)


def _unknown_texts(seen: Observed) -> list[str]:
    """Stored user messages and messages sent are the same, save that what was never acknowledged may be absent."""
    stored = {(key, line.content) for key, lines in seen.histories.items() for line in lines if line.role == "user"}
    sent = {((message.user, message.session), message.content) for message in seen.said}
    promised = {((message.user, message.session), message.content) for message in seen.said if message.acknowledged}
    return [f"{key}: {text!r} was never sent there" for key, text in stored - sent] + [
        f"{key}: {text!r} was acknowledged and is gone" for key, text in promised - stored
    ]


def check_order_is_kept(seen: Observed) -> list[str]:
    """I3: turns of a session are numbered without gap, run in that order, and that is the order clients were told."""
    found = []
    for session in seen.sessions:
        turns = seen.turns_of(session.id)
        numbers = [turn.turn_seq for turn in turns]
        if numbers != list(range(1, len(turns) + 1)):
            found.append(f"{session.user}/{session.name}: turn_seq {numbers}")
        ends = [turn.finished_at for turn in turns if turn.finished_at is not None]
        if ends != sorted(ends):
            found.append(f"{session.user}/{session.name}: turns finished out of order")
        rank = {str(turn.id): turn.turn_seq for turn in turns}
        lines = [line.turn_id for line in seen.histories.get((session.user, session.name), ())]
        if (ranks := [rank.get(turn, 0) for turn in lines]) != sorted(ranks):
            found.append(f"{session.user}/{session.name}: history shows turns in order {ranks}")
    place = {line.content: line.seq for lines in seen.histories.values() for line in lines if line.role == "user"}
    for message in seen.said:
        mine = place.get(message.content)
        late = [text for text in message.after if mine is not None and place.get(text, 0) >= mine]
        found += [f"{message.content} was sent after {text} was acknowledged, but comes before it" for text in late]
    return found


def check_sequence_numbers(seen: Observed) -> list[str]:
    """`seq` is unique and gapless in each session, the same in SQL and over HTTP, and a turn's lines are adjacent."""
    found = []
    for session in seen.sessions:
        rows = seen.messages_of(session.id)
        numbers = [row.seq for row in rows]
        if numbers != list(range(1, len(rows) + 1)):
            found.append(f"{session.user}/{session.name}: seq {numbers}")
        lines = seen.histories.get((session.user, session.name), ())
        if [(line.seq, line.role, line.turn_id) for line in lines] != [(r.seq, r.role, str(r.turn_id)) for r in rows]:
            found.append(f"{session.user}/{session.name}: GET …/messages and Postgres differ")
        if [row.turn_id for row in rows[::2]] != [row.turn_id for row in rows[1::2]]:
            found.append(f"{session.user}/{session.name}: lines of two turns are mixed")
    return found


def check_one_running_turn(seen: Observed) -> list[str]:
    """I3: no session was ever seen with two running turns."""
    return [f"session {session} had two running turns at one moment" for session in seen.overlaps]


def check_users_are_apart(seen: Observed) -> list[str]:
    """I9: a history holds what its own user said."""
    return [
        f"{key}: shows {line.content!r}"
        for key, lines in seen.histories.items()
        for line in lines
        if not line.content.startswith(f"{key[0]}/{key[1]}/")
    ]


CHECKS: Final[Sequence[Callable[[Observed], list[str]]]] = (
    check_acknowledged_messages_have_one_outcome,
    check_same_key_is_the_same_turn,
    check_no_message_twice,
    check_replies_echo_their_message,
    check_nothing_is_half,
    check_order_is_kept,
    check_sequence_numbers,
    check_one_running_turn,
    check_users_are_apart,
)


def violations(seen: Observed) -> list[str]:
    """Return one sentence per broken promise; empty when all hold."""
    return [f"{check.__name__.removeprefix('check_')}: {breach}" for check in CHECKS for breach in check(seen)]


async def _wait_settled(postgres_url: str, timeout: float) -> None:
    """Wait until no turn is open, also those nobody was told of; returns at the deadline too, the checks then tell."""
    connection = await asyncpg.connect(postgres_url, timeout=10, command_timeout=10)

    async def settled() -> bool:
        return not await connection.fetchval("select exists(select from abide.turns where finished_at is null)")

    try:
        with suppress(TimeoutError):
            await until(settled, timeout, "every turn has its outcome")
    finally:
        await connection.close()


async def assert_invariants(postgres_url: str, conversation: Conversation, overlaps: Overlaps) -> Observed:
    """Settle every message, send each again, collect everything and fail with the list of broken promises.

    Raises as well when the overlap watch never looked: a check that saw nothing proves nothing.
    """
    await conversation.settle_all()
    await conversation.repeat_all()
    await _wait_settled(postgres_url, 15)
    seen = await observe(postgres_url, conversation, overlaps)
    assert overlaps.samples > 1, "the watch for overlapping turns never looked"
    assert seen.turns, "nothing was stored"
    broken = violations(seen)
    assert not broken, "\n".join(broken)
    return seen
