"""API keys from files."""

import os
from pathlib import Path

import pytest

from agent_runtime.auth import KeyRing, bearer_token
from agent_runtime.clock import ManualClock


def swap(folder: Path, name: str, keys: dict[str, str]) -> None:
    """Replace the files of a folder the way Kubernetes does: a new data folder behind a link, switched at once."""
    data = folder / f"..{name}"
    data.mkdir()
    for file, text in keys.items():
        (data / file).write_text(text)
        link = folder / file
        if not link.is_symlink():
            link.symlink_to(Path("..data") / file)
    new = folder / "..data_tmp"
    new.symlink_to(data.name)
    os.replace(new, folder / "..data")
    for link in folder.iterdir():
        if link.is_symlink() and not link.exists():
            link.unlink()


def test_every_file_is_a_key_without_its_line_end(tmp_path: Path) -> None:
    (tmp_path / "one").write_text("first-key\n")
    (tmp_path / "two").write_text("second-key")
    (tmp_path / "empty").write_text("\n")
    (tmp_path / ".hidden").write_text("hidden-key")
    ring = KeyRing(tmp_path, ManualClock())
    assert ring.is_valid("first-key")
    assert ring.is_valid("second-key")
    for wrong in ("", "\n", "hidden-key", "first-key\n", "first-ke", "first-key1", "\udcff"):
        assert not ring.is_valid(wrong)
    assert len(ring) == 2


@pytest.mark.parametrize("make", [True, False])
def test_without_files_no_key_is_valid(tmp_path: Path, make: bool) -> None:
    folder = tmp_path / "keys"
    if make:
        folder.mkdir()
    ring = KeyRing(folder, ManualClock())
    assert not ring.is_valid("")
    assert not ring.is_valid("anything")


async def test_a_key_that_was_replaced_is_noticed_within_a_second(tmp_path: Path) -> None:
    clock = ManualClock()
    swap(tmp_path, "v1", {"key": "old-key"})
    ring = KeyRing(tmp_path, clock)
    assert ring.is_valid("old-key")
    swap(tmp_path, "v2", {"key": "new-key", "second": "other-key"})
    assert ring.is_valid("old-key"), "files are looked at once a second, not once a request"
    await clock.advance(1)
    assert not ring.is_valid("old-key")
    assert ring.is_valid("new-key")
    assert ring.is_valid("other-key")


@pytest.mark.parametrize(
    ("header", "token"),
    [
        ("Bearer abc", "abc"),
        ("bearer  abc ", "abc"),
        ("Bearer", None),
        ("Bearer ", None),
        ("Basic abc", None),
        ("abc", None),
        ("", None),
    ],
)
def test_bearer_tokens(header: str, token: str | None) -> None:
    assert bearer_token(header) == token
