"""The key in the data folder of `abide dev`."""

import stat
from pathlib import Path

import pytest

from agent_cli.errors import CliError
from agent_cli.local.keys import keep_key
from agent_store.codec_keys import read_wrapping_keys


def test_a_key_is_made_once_and_for_this_user_alone(tmp_path: Path) -> None:
    folder = keep_key(tmp_path / "data")
    first = read_wrapping_keys(folder)
    assert [path.name for path in folder.iterdir()] == ["1"]
    assert (stat.S_IMODE(folder.stat().st_mode), stat.S_IMODE((folder / "1").stat().st_mode)) == (0o700, 0o600)
    assert read_wrapping_keys(keep_key(tmp_path / "data")) == first
    assert read_wrapping_keys(keep_key(tmp_path / "other")) != first


def test_keys_that_the_user_put_there_stay(tmp_path: Path) -> None:
    folder = keep_key(tmp_path)
    (folder / "1").rename(folder / "2026-11")
    assert keep_key(tmp_path) == folder
    assert [path.name for path in folder.iterdir()] == ["2026-11"]


def test_a_half_written_key_is_none(tmp_path: Path) -> None:
    """A process that ended in the middle left a hidden file; it is written anew."""
    (tmp_path / "encryption-keys").mkdir()
    (tmp_path / "encryption-keys" / ".1.new").write_text("half")
    assert len(read_wrapping_keys(keep_key(tmp_path)).newest) == 32


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CliError, match=r"cannot be kept in .*encryption-keys"):
        keep_key(tmp_path / "file")
