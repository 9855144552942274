"""The commands of the guides that need a cluster, run as a reader would, on the cluster of `make up`.

The page's blocks run in order in one clone of the examples, in the namespace `default` where `make up` has its agent.
What they add is removed afterwards.
"""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.guide import ROOT, Block, missing_lines, read_guide
from tests.e2e.kube import Kube
from tests.e2e.surroundings import expose
from tests.fakes.provider import ModelProvider

PROVIDER = "https://llm.example.com/v1"
KEY = "sk-test-of-the-guides"
MADE = ("agents.abide.dev/support", "secret/llm", "service/model-of-the-guide")
COMMAND_SECONDS = 180.0


@pytest.fixture
def provider_url(kube: Kube) -> Iterator[str]:
    """A provider on this machine, as pods of the namespace reach it."""
    provider = ModelProvider(valid_keys=(KEY,)).start("0.0.0.0")
    try:
        yield expose(kube, "default", provider.port, name="model-of-the-guide")
    finally:
        provider.stop()


@pytest.fixture
def folder(kube: Kube, tmp_path: Path) -> Iterator[Path]:
    """Where a reader works: the examples, and a shell whose PATH has kubectl and abide."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    yield tmp_path
    kube.run("delete", "-n", "default", "--ignore-not-found", "--timeout=60s", *MADE)


def carry_out(kube: Kube, folder: Path, block: Block) -> None:
    """Run a block's commands in one shell, which ends what they left running; compare what each printed."""
    marker = "=== end of command ==="
    lines = ["set -euo pipefail"]
    for command in block.commands:
        lines += [command.text, f"echo; echo '{marker}'"]
    environ = {**kube.environ, "LLM_API_KEY": KEY}
    environ["PATH"] = f"{Path(sys.executable).parent}:{environ['PATH']}"
    with (folder / "printed").open("w+b") as printed:  # a pipe would stay open as long as anything in the background
        shell = subprocess.Popen(
            ["bash", "-m", "-c", "\n".join(lines)],
            cwd=folder,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=printed,
            stderr=subprocess.STDOUT,
        )
        try:
            code = shell.wait(COMMAND_SECONDS)
        finally:
            shell.kill()
            shell.wait()
        printed.seek(0)
        told = printed.read().decode(errors="replace")
    assert code == 0, told
    parts = told.split(marker)
    for command, part in zip(block.commands, parts, strict=False):
        assert missing_lines(command.shown, part) == [], f"{command.text} printed {part}"


@pytest.mark.parametrize("page", ["README.md", "docs/getting-started.md"])
def test_commands_for_a_cluster_print_what_the_guide_shows(
    kube: Kube, folder: Path, provider_url: str, page: str
) -> None:
    for block in read_guide(page):
        if block.kind == "file":
            (folder / block.file).write_text(block.content.replace(PROVIDER, provider_url))
        elif block.kind == "cluster":
            carry_out(kube, folder, block)


def test_a_backup_is_restored_with_the_guide(kube: Kube, folder: Path) -> None:
    def chat(message: str) -> str:
        command = [str(Path(sys.executable).with_name("abide")), "chat", "assistant", message, "-n", "default"]
        done = subprocess.run(
            [*command, "-s", "backup"], env=kube.environ, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    kube.run("apply", "-f", "examples/assistant.yaml", "-n", "default")
    kube.wait_ready("assistant", "default")
    first = int(chat("before").rpartition("[")[2].rstrip("]"))
    blocks = [block for block in read_guide("docs/upgrade.md") if block.kind == "cluster"]
    upgraded, backup, restore = blocks
    carry_out(kube, folder, upgraded)
    carry_out(kube, folder, backup)
    assert (folder / "abide.dump").stat().st_size > 1000
    assert chat("lost") == f"lost [{first + 1}]"
    carry_out(kube, folder, restore)
    assert chat("after") == f"after [{first + 1}]", "what was said after the backup is gone, the rest is there"
