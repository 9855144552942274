"""Container images as archives in the `docker save` layout, made without any container tool."""

import hashlib
import io
import json
import platform
import tarfile
from pathlib import Path
from typing import Any

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def architecture() -> str:
    """Return the machine's architecture in the words of container images."""
    machine = platform.machine()
    return _ARCHITECTURES.get(machine, machine)


def write_image(archive: Path, reference: str, layer: Path, config: dict[str, Any]) -> None:
    """Write a one-layer image: `layer` is an uncompressed tar of its root, `config` as in the OCI image spec.

    Whole or not at all: a killed call leaves no file under the archive's name.
    """
    with layer.open("rb") as file:
        layer_digest = hashlib.file_digest(file, "sha256").hexdigest()
    image = json.dumps(
        {
            "architecture": architecture(),
            "os": "linux",
            "config": config,
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{layer_digest}"]},
            "created": "1970-01-01T00:00:00Z",  # the same input gives the same image
            "history": [{"created": "1970-01-01T00:00:00Z"}],
        }
    ).encode()
    image_name = f"{hashlib.sha256(image).hexdigest()}.json"
    layer_name = f"{layer_digest}.tar"
    manifest = json.dumps([{"Config": image_name, "RepoTags": [reference], "Layers": [layer_name]}]).encode()
    partial = archive.with_name(archive.name + ".partial")
    with tarfile.open(partial, "w") as tar:
        _add(tar, "manifest.json", manifest)
        _add(tar, image_name, image)
        tar.add(layer, arcname=layer_name, recursive=False)
    partial.replace(archive)


def write_program_image(archive: Path, reference: str, program: Path) -> None:
    """Write an image that holds one static program and runs it as an ordinary user."""
    layer = archive.with_name(archive.name + ".layer")
    with tarfile.open(layer, "w") as tar:
        entry = tarfile.TarInfo(program.name)
        entry.mode, entry.size = 0o555, program.stat().st_size
        with program.open("rb") as file:
            tar.addfile(entry, file)
    write_image(archive, reference, layer, {"Entrypoint": [f"/{program.name}"], "User": "65535:65535"})
    layer.unlink()


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))
