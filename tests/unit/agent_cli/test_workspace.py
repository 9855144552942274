"""Temporary folders of `abide dev`."""

import os
import stat
import time
from pathlib import Path

from agent_cli.local.workspace import LOCK, PREFIX, SETTLED_SECONDS, Workspace, sweep


def abandon(parent: Path, name: str, *, age: float) -> Path:
    """Make what a killed run of `age` seconds ago left behind."""
    folder = parent / f"{PREFIX}{name}"
    (folder / "secrets" / "llm").mkdir(parents=True)
    (folder / "secrets" / "llm" / "key").write_text("value")
    (folder / LOCK).touch()
    os.utime(folder / LOCK, (time.time() - age,) * 2)
    return folder


def age(workspace: Workspace) -> None:
    os.utime(workspace.root / LOCK, (time.time() - 2 * SETTLED_SECONDS,) * 2)


def test_a_workspace_is_gone_afterwards_and_its_secrets_are_private(tmp_path: Path) -> None:
    with Workspace(tmp_path) as workspace:
        assert stat.S_IMODE(workspace.secrets.stat().st_mode) == 0o700
        assert stat.S_IMODE(workspace.root.stat().st_mode) == 0o711
        (workspace.secrets / "file").touch()
        assert workspace.root.parent == tmp_path
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_run_left_is_removed_by_the_next(tmp_path: Path) -> None:
    left = abandon(tmp_path, "killed", age=2 * SETTLED_SECONDS)
    with Workspace(tmp_path):
        assert not left.exists()


def test_a_run_in_progress_is_never_removed(tmp_path: Path) -> None:
    with Workspace(tmp_path) as workspace:
        age(workspace)
        assert sweep(tmp_path) == []
        assert workspace.secrets.exists()


def test_new_foreign_and_unmarked_folders_are_left_alone(tmp_path: Path) -> None:
    new = abandon(tmp_path, "new", age=0)
    unmarked = tmp_path / f"{PREFIX}unmarked"
    unmarked.mkdir()
    other = abandon(tmp_path / "other", "old", age=2 * SETTLED_SECONDS)
    link = tmp_path / f"{PREFIX}link"
    link.symlink_to(other)
    assert sweep(tmp_path) == []
    assert new.exists()
    assert unmarked.exists()
    assert other.exists()
