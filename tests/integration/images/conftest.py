"""The images of this tree, unpacked, and the Compose loader."""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.commands import LOCK_TIMEOUT, exclusive
from tests.cluster.images import ImageBuilder
from tests.cluster.progress import Progress
from tests.cluster.settings import REPOSITORY, paths_from_environment
from tests.integration.images.rootfs import Image, unpack


@pytest.fixture(scope="session")
def loader() -> Path:
    """The program that loads Compose files as Docker Compose does."""
    command = [sys.executable, "-m", "tests.cluster", "tool", "compose"]
    done = subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True, timeout=1200)
    return Path(done.stdout.strip())


@pytest.fixture(scope="session")
def images() -> Iterator[dict[str, Image]]:
    """Runtime and Postgres by reference, built from this tree unless that is done."""
    paths = paths_from_environment()
    folder = Path(tempfile.mkdtemp(prefix="abide-images-"))
    try:
        with exclusive(paths.image_lock, waiting=lambda: None, timeout=LOCK_TIMEOUT):
            builder = ImageBuilder(paths, Progress())
            try:
                unpacked = {
                    builder.reference(target): unpack(builder.archive(target), folder / target)
                    for target in ("runtime", "postgres")
                }
            finally:
                builder.tidy()
        yield unpacked
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The folders a user of the Compose files needs, without what a user made there."""
    for name in ("compose", "examples"):
        shutil.copytree(REPOSITORY / name, tmp_path / name, ignore=shutil.ignore_patterns("secrets"))
    return tmp_path
