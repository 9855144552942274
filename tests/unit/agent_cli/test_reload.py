"""Noticing that files changed."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from agent_cli.local.reload import Watcher, fingerprint

DEADLINE = 10.0


@contextmanager
def watching(path: Path) -> Iterator[threading.Event]:
    changed = threading.Event()
    with Watcher([path], poll=0.01).calling(changed.set):
        yield changed


def test_a_written_a_replaced_and_a_removed_file_are_noticed(tmp_path: Path) -> None:
    path, other = tmp_path / "a.yaml", tmp_path / "b.yaml"
    path.write_text("one")
    with watching(path) as changed:
        path.write_text("longer")
        assert changed.wait(DEADLINE)
        changed.clear()
        other.write_text("longer")
        other.replace(path)
        assert changed.wait(DEADLINE)
        changed.clear()
        path.unlink()
        assert changed.wait(DEADLINE)


def test_a_change_between_making_and_starting_the_watcher_is_noticed(tmp_path: Path) -> None:
    path, changed = tmp_path / "a.yaml", threading.Event()
    path.write_text("one")
    watcher = Watcher([path], poll=0.01)
    path.write_text("another")
    with watcher.calling(changed.set):
        assert changed.wait(DEADLINE)


def test_files_that_stay_the_same_have_the_same_fingerprint(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("one")
    assert fingerprint([path, tmp_path / "missing"]) == fingerprint([path, tmp_path / "missing"])
    assert fingerprint([tmp_path / "missing"]) == (None,)
