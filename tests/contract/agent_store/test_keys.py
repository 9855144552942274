"""Content of agents with keys: unreadable without them, readable with them, never written with wrong ones."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from uuid import UUID, uuid4

import psycopg
import pytest

from agent_api.conditions import Reason
from agent_api.wire import TurnStatus
from agent_store.codec_aes import UndecryptableError, new_key
from agent_store.codec_keys import format_key
from agent_store.errors import StoreUnavailable
from agent_store.ports import NewMessage, Outcome, Store
from agent_store.postgres import keys as keys_module
from agent_store.postgres.content import CONTENT, PLAIN_TABLES
from agent_store.postgres.store import PostgresStore
from agent_store.settings import KeySettings
from agent_store.steps import NewApproval, NewStep, StepKind, StepStatus
from tests.contract.agent_store.scene import Scene

SECRET = "the parcel number is 4711"
SOURCE = "Secret shop/agent-a-encryption"
Open = Callable[..., PostgresStore]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with one wrapping key, called 1."""
    path = tmp_path / "keys"
    path.mkdir()
    put_key(path, "1")
    return path


@pytest.fixture
async def open_store(postgres_url: str, folder: Path) -> AsyncIterator[Open]:
    """Makes stores on the same database: with the folder's keys, with those of another one, or without any."""
    async with AsyncExitStack() as stack:

        def make(where: Path | None = folder, *, plain: frozenset[UUID] = frozenset()) -> PostgresStore:
            store = PostgresStore(postgres_url, keys=KeySettings(where, SOURCE, plain))
            stack.push_async_callback(store.aclose)
            return store

        yield make


def put_key(folder: Path, name: str, key: bytes | None = None) -> None:
    (folder / name).write_text(format_key(key or new_key()))


def read_all(url: str) -> list[tuple[object, ...]]:
    """Return every row of every table with content or keys, and of those that register() writes."""
    tables = [table.name for table in CONTENT]
    with psycopg.connect(url) as connection:
        return [
            (table, *row)
            for table in (*tables, "agent_keys", "agents", "runtime_instances")
            for row in connection.execute(f"SELECT * FROM abide.{table}").fetchall()
        ]


def key_ids(url: str, table: str = "messages") -> Counter[str | None]:
    with psycopg.connect(url) as connection:
        return Counter(row[0] for row in connection.execute(f"SELECT key_id FROM abide.{table}"))


def with_tools() -> Outcome:
    call = {"id": "c1", "name": "look_up", "arguments": {"what": SECRET}}
    lines = [
        NewMessage("assistant", "", tool_calls=[call]),
        NewMessage("tool", SECRET, tool_call_id="c1"),
        NewMessage("assistant", f"It is: {SECRET}"),
    ]
    return Outcome(TurnStatus.COMPLETED, lines, "echo/echo", 2)


async def talk(scene: Scene, session: str = "chat") -> None:
    """Have a turn with tools, a queued message behind it, and a snapshot."""
    owner = await scene.start()
    claim = await scene.claim(owner, SECRET, session=session)
    await scene.say(owner, f"queued: {SECRET}", session=session)
    await scene.store.complete(claim, owner, with_tools())
    await scene.store.save_state(scene.agent, claim.session_id, {"variables": {"parcel": SECRET}})


async def drive(store: Store, agent: UUID, *, rewrite: bool) -> tuple[Counter[str | None], int, int]:
    """Pass over all content; return rows by key id, rows rewritten and rows unreadable."""
    found: Counter[str | None] = Counter()
    rewritten = unreadable = 0
    cursor: str | None = None
    while True:
        step = await store.pass_keys(agent, cursor, rewrite=rewrite)
        found.update(step.values)
        rewritten += step.rewritten
        unreadable += step.unreadable
        if (cursor := step.cursor) is None:
            return found, rewritten, unreadable


async def test_nothing_readable_is_in_postgres_and_all_of_it_comes_back(open_store: Open, postgres_url: str) -> None:
    scene = Scene(open_store())
    await talk(scene)
    rows = read_all(postgres_url)
    assert not [row for row in rows if b"4711" in repr(row).encode() or "4711" in repr(row)]
    other = Scene(open_store(), scene.agent)
    owner = await other.start("pod-2")
    lines = await other.store.list_messages(other.key(), after_seq=0, limit=100)
    assert [line.content for line in lines] == [SECRET, "", SECRET, f"It is: {SECRET}"]
    assert lines[1].tool_calls[0]["arguments"] == {"what": SECRET}
    claim = await other.store.start_next(scene.agent, (await other.store.find_session(other.key())).id, owner)  # type: ignore[union-attr]
    assert claim is not None
    assert claim.content == f"queued: {SECRET}"
    state = await other.store.load_state(scene.agent, claim.session_id)
    assert state is not None
    assert state.document == {"variables": {"parcel": SECRET}}


async def test_each_agent_has_a_data_key_of_its_own(open_store: Open, postgres_url: str) -> None:
    store = open_store()
    one, two = Scene(store), Scene(store)
    await talk(one)
    await talk(two)
    (first,), (second,) = await store.list_keys(one.agent), await store.list_keys(two.agent)
    assert first.id != second.id
    assert (first.wrapping_key_id, first.is_current) == ("1", True)
    assert set(key_ids(postgres_url)) == {first.id, second.id}


async def test_processes_that_start_at_once_read_each_other(open_store: Open) -> None:
    agent = uuid4()
    scenes = [Scene(open_store(), agent) for _ in range(4)]
    owners = await asyncio.gather(*(scene.start(f"pod-{n}") for n, scene in enumerate(scenes)))
    for n, (scene, owner) in enumerate(zip(scenes, owners, strict=True)):
        await scene.finish(owner, await scene.claim(owner, f"from {n}"), f"reply of {n}")
    for scene in scenes:
        assert len(await scene.history()) == 8
        assert (await scene.history())[-1][2] == "reply of 3"


async def test_what_was_written_before_there_were_keys_is_read(open_store: Open, postgres_url: str) -> None:
    before = Scene(open_store(None))
    await talk(before)
    assert set(key_ids(postgres_url)) == {None}
    after = Scene(open_store(), before.agent)
    owner = await after.start("pod-2")
    assert (await after.history())[0] == (1, "user", SECRET)
    claim = await after.store.start_next(after.agent, (await after.store.find_session(after.key())).id, owner)  # type: ignore[union-attr]
    assert claim is not None
    assert claim.content == f"queued: {SECRET}", "accepted plainly, begun by a process with keys"
    await after.finish(owner, claim, "encrypted")
    assert len(key_ids(postgres_url)) == 2
    assert len(await after.history()) == 6


async def refused(store: PostgresStore, agent: UUID) -> str:
    with pytest.raises(StoreUnavailable) as caught:
        await store.register(agent, "default", "assistant", "pod-9", ttl=30)
    assert (caught.value.reason, caught.value.sent) == (Reason.ENCRYPTION_KEY_MISMATCH, False)
    return caught.value.message


async def test_wrong_or_missing_keys_are_refused_by_name_and_nothing_is_written(
    open_store: Open, postgres_url: str, folder: Path, tmp_path: Path
) -> None:
    scene = Scene(open_store())
    await talk(scene)
    before = read_all(postgres_url)
    right = (folder / "1").read_text()
    empty = tmp_path / "empty"
    empty.mkdir()
    assert await refused(open_store(empty), scene.agent) == (
        f'{SOURCE} holds no encryption key; put one there: 32 random bytes in base64 (expected key: "1")'
    )
    put_key(folder, "1")
    store = open_store()
    assert await refused(store, scene.agent) == (
        f'key "1" of {SOURCE} is not the one that the state was encrypted with; put that one back'
    )
    (folder / "1").rename(folder / "2")
    assert await refused(open_store(), scene.agent) == (
        f'{SOURCE} has no key "1", which the state was encrypted with; put it back there'
    )
    (folder / "2").write_text("no key at all")
    assert 'key "2" of' in await refused(open_store(), scene.agent)
    assert "set ABIDE_ENCRYPTION_KEYS_DIR" in await refused(open_store(None), scene.agent)
    assert read_all(postgres_url) == before
    (folder / "2").unlink()
    (folder / "1").write_text(right)
    await store.register(scene.agent, "default", "assistant", "pod-9", ttl=30)


async def test_without_any_key_of_an_agent_an_empty_folder_is_refused_too(
    open_store: Open, postgres_url: str, tmp_path: Path
) -> None:
    """Else its messages would be kept plainly because of a slip in a mount."""
    agent = uuid4()
    assert "No such file" in await refused(open_store(tmp_path / "none"), agent)
    assert read_all(postgres_url) == []
    await open_store(tmp_path / "none", plain=frozenset([agent])).register(agent, "default", "a", "pod-1", ttl=30)


async def test_encryption_can_be_turned_off_and_what_is_encrypted_stays_readable(
    open_store: Open, postgres_url: str
) -> None:
    scene = Scene(open_store())
    await talk(scene)
    off = Scene(open_store(plain=frozenset([scene.agent])), scene.agent)
    owner = await off.start("pod-2")
    await off.finish(owner, await off.claim(owner, "plain", session="other"), "plain too")
    assert (await off.history())[0][2] == SECRET
    assert key_ids(postgres_url)[None] == 2
    _, rewritten, _ = await drive(off.store, scene.agent, rewrite=True)
    assert rewritten == 6
    assert set(key_ids(postgres_url)) == {None}
    assert (await off.history())[0][2] == SECRET


async def test_a_rotation_reaches_the_other_processes_without_a_pause(open_store: Open, postgres_url: str) -> None:
    agent = uuid4()
    one, two = Scene(open_store(), agent), Scene(open_store(), agent)
    first, second = await one.start("pod-1"), await two.start("pod-2")
    await one.finish(first, await one.claim(first, "before"), "reply before")
    (old,) = await one.store.list_keys(agent)
    rotated = await one.store.rotate_key(agent)
    assert [key.is_current for key in rotated] == [False, True]
    await one.finish(first, await one.claim(first, "after"), "reply after")
    assert key_ids(postgres_url) == {old.id: 2, rotated[1].id: 2}
    assert [line[2] for line in await two.history()] == ["before", "reply before", "after", "reply after"]
    await two.finish(second, await two.claim(second, "from two"), "reply of two")
    assert key_ids(postgres_url) == {old.id: 2, rotated[1].id: 4}, "having met the new key it encrypts with it"
    assert len(await one.history()) == 6


async def test_a_rotation_moves_data_keys_to_the_newest_wrapping_key(
    open_store: Open, postgres_url: str, folder: Path
) -> None:
    scene = Scene(open_store())
    await talk(scene)
    put_key(folder, "2")
    assert [key.wrapping_key_id for key in await scene.store.rotate_key(scene.agent)] == ["2", "2"]
    (folder / "1").unlink()
    again = Scene(open_store(), scene.agent)
    await again.start("pod-2")
    assert (await again.history())[0][2] == SECRET


async def test_a_process_without_the_new_wrapping_key_stops_being_ready(
    open_store: Open, postgres_url: str, folder: Path, tmp_path: Path
) -> None:
    scene = Scene(open_store())
    owner = await scene.start()
    behind_folder = tmp_path / "behind"
    behind_folder.mkdir()
    (behind_folder / "1").write_text((folder / "1").read_text())
    behind = Scene(open_store(behind_folder), scene.agent)
    late = await behind.start("pod-2")
    put_key(folder, "2")
    await scene.store.rotate_key(scene.agent)
    await scene.finish(owner, await scene.claim(owner, SECRET), "ok")
    for _ in range(2):  # the second time soon after a reading that failed
        with pytest.raises(StoreUnavailable, match='has no key "2"'):
            await behind.history()
    with pytest.raises(StoreUnavailable, match='has no key "2"'):
        await behind.store.renew(scene.agent, late, ttl=30)
    (behind_folder / "2").write_text((folder / "2").read_text())
    await behind.start("pod-2")
    assert len(await behind.history()) == 2


async def test_a_process_that_holds_all_data_keys_goes_on_with_wrong_wrapping_keys(
    open_store: Open, folder: Path
) -> None:
    scene = Scene(open_store())
    owner = await scene.start()
    await scene.finish(owner, await scene.claim(owner, SECRET), "ok")
    put_key(folder, "1")
    (key,) = await scene.store.list_keys(scene.agent)
    assert key.is_current
    assert (await drive(scene.store, scene.agent, rewrite=True))[1:] == (0, 0)
    with pytest.raises(StoreUnavailable, match="put that one back"):
        await scene.store.rotate_key(scene.agent)
    await scene.store.renew(scene.agent, owner, ttl=30)
    await scene.finish(owner, await scene.claim(owner, "more"), "ok")
    assert [line[2] for line in await scene.history()] == [SECRET, "ok", "more", "ok"]
    (row,) = await scene.store.list_keys(scene.agent)
    assert row == key, "and it goes on encrypting with the same key"
    (folder / "1").unlink()
    assert await scene.store.list_keys(scene.agent) == [key]
    await scene.store.renew(scene.agent, owner, ttl=30)
    assert "holds no encryption key" in await refused(open_store(), scene.agent), "a new process needs it"


async def test_looking_at_keys_breaks_no_process_that_has_not_met_the_new_one(
    open_store: Open, folder: Path, tmp_path: Path
) -> None:
    scene = Scene(open_store())
    await scene.start()
    behind_folder = tmp_path / "behind"
    behind_folder.mkdir()
    (behind_folder / "1").write_text((folder / "1").read_text())
    behind = Scene(open_store(behind_folder), scene.agent)
    late = await behind.start("pod-2")
    put_key(folder, "2")
    await scene.store.rotate_key(scene.agent)
    assert [key.is_current for key in await behind.store.list_keys(scene.agent)] == [True, False]
    await behind.store.renew(scene.agent, late, ttl=30)
    await behind.finish(late, await behind.claim(late, SECRET), "ok")
    assert len(await scene.history()) == 2
    (behind_folder / "2").write_text((folder / "2").read_text())
    assert [key.is_current for key in await behind.store.list_keys(scene.agent)] == [False, True]


async def test_everything_is_encrypted_anew_in_bounded_steps_while_others_write(
    open_store: Open, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys_module, "ROWS_PER_STEP", 3)
    plain = Scene(open_store(None))
    for n in range(5):
        await talk(plain, session=f"plain-{n}")
    store = open_store()
    scene = Scene(store, plain.agent)
    owner = await scene.start("pod-2")
    (key,) = await store.list_keys(scene.agent)
    found, rewritten, _ = await drive(store, scene.agent, rewrite=False)
    assert (found, rewritten) == ({None: 30}, 0)
    first = await store.pass_keys(scene.agent, None, rewrite=True)
    assert (first.rewritten, first.values) == (3, {None: 3})
    # Somebody else goes on from the cursor, or begins again; turns run meanwhile.
    other = Scene(open_store(), scene.agent)
    await other.start("pod-3")

    async def chat() -> None:
        for n in range(20):
            await scene.finish(owner, await scene.claim(owner, f"meanwhile {n}", session="busy"), "ok")

    await asyncio.gather(drive(store, scene.agent, rewrite=True), drive(other.store, scene.agent, rewrite=True), chat())
    found, rewritten, unreadable = await drive(store, scene.agent, rewrite=True)
    assert (set(found), rewritten, unreadable) == ({key.id}, 0, 0)
    assert {key.id} == set(key_ids(postgres_url)) == set(key_ids(postgres_url, "agent_states"))
    assert not [row for row in read_all(postgres_url) if "4711" in repr(row)]
    for n in range(5):
        assert len(await other.history(f"plain-{n}")) == 4
    assert len(await other.history("busy")) == 40


STEP = NewStep(0, StepKind.TOOL, "look_up", StepStatus.FINISHED, {"content": SECRET}, finished=0.0)
ASKED = NewApproval("call-1", "pay", {"what": SECRET}, 60.0, "Reject")


async def test_steps_approvals_and_feedback_are_encrypted_rotated_and_encrypted_anew(
    open_store: Open, postgres_url: str
) -> None:
    agent = uuid4()
    one, two = Scene(open_store(), agent), Scene(open_store(), agent)
    first = await one.start("pod-1")
    await two.start("pod-2")
    done = await one.claim(first, SECRET, session="done")
    await one.finish(first, done, "ok")
    await one.store.save_feedback(agent, done.turn_id, "ann", score=1, comment=SECRET)
    await one.store.rotate_key(agent)
    claim = await one.claim(first, SECRET, session="asks")
    await one.store.write_steps(claim, [STEP])
    # The other process begins to read before it has met the new key.
    assert (await two.store.load_journal(claim)).steps[0].result == {"content": SECRET}
    assert await one.store.park(claim, [ASKED])
    (waiting,) = await two.store.list_approvals(agent)
    assert waiting.arguments == {"what": SECRET}
    assert await two.store.decide(agent, waiting, approve=True, by="eve", comment=SECRET)
    assert not [row for row in read_all(postgres_url) if "4711" in repr(row)]
    rotated = await two.store.rotate_key(agent)
    _, rewritten, unreadable = await drive(one.store, agent, rewrite=True)
    assert (rewritten, unreadable) == (6, 0)
    for table in CONTENT:
        assert set(key_ids(postgres_url, table.name)) <= {rotated[-1].id, None}, table.name
    assert set(key_ids(postgres_url, "steps")) == set(key_ids(postgres_url, "approvals")) == {rotated[-1].id}
    assert (await two.store.load_journal(claim)).steps[0].result == {"content": SECRET}
    assert (await two.store.load_journal(claim)).decisions["call-1"].comment == SECRET
    feedback = await one.store.load_feedback(agent, done.turn_id, "ann")
    assert feedback is not None
    assert feedback.comment == SECRET


async def test_values_that_were_moved_or_changed_are_not_believed(open_store: Open, postgres_url: str) -> None:
    scene = Scene(open_store())
    await talk(scene)
    with psycopg.connect(postgres_url) as connection:
        connection.execute(
            "UPDATE abide.messages m SET content = o.content FROM abide.messages o WHERE m.seq = 4 AND o.seq = 1"
        )
    with pytest.raises(UndecryptableError, match="messages"):
        await scene.history()
    _, rewritten, unreadable = await drive(scene.store, scene.agent, rewrite=True)
    assert (rewritten, unreadable) == (0, 0), "what is under the current key already is not touched"
    await scene.store.rotate_key(scene.agent)
    _, rewritten, unreadable = await drive(scene.store, scene.agent, rewrite=True)
    assert (rewritten, unreadable) == (5, 1)


async def test_another_agents_rows_do_not_decrypt(open_store: Open, postgres_url: str) -> None:
    store = open_store()
    one, two = Scene(store), Scene(store)
    await talk(one)
    await talk(two)
    with psycopg.connect(postgres_url) as connection:
        for table in ("agent_keys", "sessions", "turns", "messages"):
            connection.execute(f"DELETE FROM abide.{table} WHERE agent_id = %s", [two.agent])
            connection.execute(f"UPDATE abide.{table} SET agent_id = %s WHERE agent_id = %s", [two.agent, one.agent])
    assert 'key "1" of' in await refused(open_store(), two.agent), "a data key is bound to its agent"


async def test_erasing_an_agent_takes_its_keys_along(open_store: Open, postgres_url: str) -> None:
    scene = Scene(open_store())
    await talk(scene)
    while not await scene.store.erase_agent(scene.agent):
        pass
    assert read_all(postgres_url) == []
    with pytest.raises(StoreUnavailable, match="erased for good"):
        await open_store().register(scene.agent, "default", "assistant", "pod-2", ttl=30)
    assert read_all(postgres_url) == []


@pytest.mark.parametrize("cursor", ["", "x", "bm90IGpzb24=", "WzldCg==", "WzAsIDFd", "WyJ4Il0="])
async def test_a_wrong_cursor_is_refused(open_store: Open, cursor: str) -> None:
    scene = Scene(open_store())
    await scene.start()
    with pytest.raises(ValueError, match="begin without one"):
        await scene.store.pass_keys(scene.agent, cursor, rewrite=True)


def test_every_table_with_a_key_id_is_passed_over(postgres_url: str) -> None:
    with psycopg.connect(postgres_url) as connection:
        tables = connection.execute(
            "SELECT c.table_name FROM information_schema.columns c JOIN pg_class t ON t.relname = c.table_name "
            "WHERE c.table_schema = 'abide' AND c.column_name = 'key_id' AND NOT t.relispartition "
            "AND t.relkind IN ('r', 'p')"
        ).fetchall()
    assert {name for (name,) in tables} == {"agent_keys"} | PLAIN_TABLES | {table.name for table in CONTENT}
