"""An image's files and settings, taken out of a `docker save` archive."""

import json
import shutil
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_WHITEOUT = ".wh."
_OPAQUE = ".wh..wh..opq"


@dataclass(frozen=True)
class Image:
    """An unpacked image: its root directory, and what its configuration says about starting it."""

    root: Path
    entrypoint: tuple[str, ...]
    command: tuple[str, ...]
    environ: dict[str, str]
    user: str
    folder: str


def unpack(archive: Path, root: Path) -> Image:
    """Lay an image's layers out below `root`, with owners and modes; needs root."""
    root.mkdir(parents=True)
    with tarfile.open(archive) as tar:
        manifest = json.loads(_read(tar, "manifest.json"))[0]
        config: dict[str, Any] = json.loads(_read(tar, manifest["Config"]))["config"]
        for layer in manifest["Layers"]:
            with tarfile.open(fileobj=tar.extractfile(layer), mode="r:*") as content:
                _lay(content, root)
    return Image(
        root=root,
        entrypoint=tuple(config.get("Entrypoint") or ()),
        command=tuple(config.get("Cmd") or ()),
        environ=dict(line.split("=", 1) for line in config.get("Env") or ()),
        user=config.get("User") or "0:0",
        folder=config.get("WorkingDir") or "/",
    )


def _lay(layer: tarfile.TarFile, root: Path) -> None:
    members = []
    for member in layer.getmembers():
        path = root / member.name
        if path.name == _OPAQUE:
            for below in path.parent.iterdir():
                _remove(below)
        elif path.name.startswith(_WHITEOUT):
            _remove(path.with_name(path.name.removeprefix(_WHITEOUT)))
        elif not member.isdev():  # a container's devices come from whoever runs it
            if not member.isdir() or (path.exists() and not path.is_dir()):
                _remove(path)
            members.append(member)
    layer.extractall(root, members, numeric_owner=True, filter="fully_trusted")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _read(tar: tarfile.TarFile, name: str) -> bytes:
    file = tar.extractfile(name)
    assert file is not None, f"{name} is no file of the archive"
    return file.read()
