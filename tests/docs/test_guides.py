"""The commands of the guides that need no cluster, run as a reader would, and what they print."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.guide import GUIDES, KINDS, ROOT, Block, Command, missing_lines, read_guide
from tests.fakes.provider import ModelProvider
from tests.integration.agent_cli.dev_process import environment, private_folder, until
from tests.integration.agent_cli.test_chat import Terminal

# What changes the machine is done by other tests or by whoever runs all of them: .ci/run, tests/e2e, the image tests.
ELSEWHERE = {
    "make up",
    "make test",
    "make down",
    "pip install .",
    "docker build --target runtime -t abide/runtime:0.1.0 .",
    "docker build --target postgres -t abide/postgres:0.1.0 .",
    "kubectl delete agents.abide.dev --all --all-namespaces",
    "helm uninstall abide --namespace abide-system",
    "kubectl delete crd agents.abide.dev",
    "kubectl delete namespace abide-system",
}
KEY = "sk-test-of-the-guides"
PROVIDER = "https://llm.example.com/v1"
PRINTED_IN = 60.0


class Reader:
    """Somebody who carries a page out in a clone: a folder with the examples, a shell, and the page's `abide dev`."""

    def __init__(self, home: Path, provider: ModelProvider) -> None:
        self._home = home
        self._provider = provider
        self._terminal: Terminal | None = None
        shutil.copytree(ROOT / "examples", home / "examples")

    def carry_out(self, block: Block) -> None:
        """Do what one block says. Raises AssertionError with what was printed instead."""
        if block.kind == "file":
            content = block.content.replace(PROVIDER, self._provider.base_url)
            (self._home / block.file).parent.mkdir(exist_ok=True)
            (self._home / block.file).write_text(content)
        elif block.kind == "dev":
            (command,) = block.commands
            self.close()
            self._talk(command)
        elif block.kind == "":
            for command in block.commands:
                self._run(command)

    def close(self) -> None:
        """End the running `abide dev` with Ctrl-C."""
        if self._terminal is not None:
            assert self._terminal.press_until_end("\x03") == 0
            self._terminal = None

    def _talk(self, command: Command) -> None:
        program, *arguments = shlex.split(command.text)
        assert program == "abide"
        terminal = self._terminal = Terminal(self._home, *arguments, environ={"LLM_API_KEY": KEY})
        for line in command.shown:
            if line.startswith("you> "):
                terminal.wait_for("you> ")
                before = terminal.read()
                terminal.type(line.removeprefix("you> ") + "\n")
                until(lambda: len(terminal.read()) > len(before), PRINTED_IN, "an answer")  # noqa: B023
            else:
                shown = line.replace("127.0.0.1:8080", "127.0.0.1:…")  # the guide's port may be taken
                until(lambda: not missing_lines((shown,), terminal.read()), PRINTED_IN, f"{shown}: {terminal.shown}")  # noqa: B023

    def _run(self, command: Command) -> None:
        environ = environment(self._home)
        environ["PATH"] = f"{Path(sys.executable).parent}:{environ['PATH']}"
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", self._here(command.text)],
            cwd=self._home,
            env=environ,
            capture_output=True,
            text=True,
            timeout=PRINTED_IN,
            check=False,
        )
        assert done.returncode == 0, f"{command.text}: {done.stdout}{done.stderr}"
        missing = missing_lines(command.shown, done.stdout)
        assert missing == [], f"{command.text} printed {done.stdout!r}"

    def _here(self, text: str) -> str:
        """Return text with the address that `abide dev` really has: the guide's port may be taken."""
        listening = (
            re.search(r"listening on http://127\.0\.0\.1:(\d+)", self._terminal.read()) if self._terminal else None
        )
        return text.replace("127.0.0.1:8080", f"127.0.0.1:{listening[1]}") if listening else text


@pytest.fixture
def provider() -> Iterator[ModelProvider]:
    with ModelProvider(valid_keys=(KEY,)) as provider:
        yield provider


@pytest.mark.parametrize("page", ["README.md", "docs/getting-started.md"])
def test_commands_without_a_cluster_print_what_the_guide_shows(page: str, provider: ModelProvider) -> None:
    with private_folder() as home:
        reader = Reader(home, provider)
        try:
            for block in read_guide(page):
                reader.carry_out(block)
        finally:
            reader.close()


@pytest.mark.parametrize("page", GUIDES)
def test_every_block_of_commands_has_a_kind(page: str) -> None:
    assert {block.kind for block in read_guide(page)} <= {*KINDS, "file"}
    plain = re.findall(
        r"^```(?:sh|bash|shell|)\n(?:\$ |kubectl|helm|abide|docker|curl|make)", (ROOT / page).read_text(), re.MULTILINE
    )
    assert plain == [], "write ```console KIND, so that the commands are run"


@pytest.mark.parametrize("page", GUIDES)
def test_what_changes_the_machine_is_done_by_another_test(page: str) -> None:
    told = {command.text for block in read_guide(page) if block.kind == "machine" for command in block.commands}
    assert told <= ELSEWHERE


@pytest.fixture(scope="session")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with helm and kubectl, built first if need be."""
    folder = tmp_path_factory.mktemp("tools")
    for name in ("helm", "kubectl"):
        command = [sys.executable, "-m", "tests.cluster", "tool", name]
        found = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=1800)
        (folder / name).symlink_to(found.stdout.strip())
    return folder


def rendered(command: str) -> str:
    """Return a command of an installation as one that only shows what it would make."""
    helm = re.sub(r"^helm (?:install|upgrade) (.*)$", r"helm template \1", command)
    helm = helm.replace(" --reset-then-reuse-values", "").replace(" --create-namespace", "")
    return re.sub(r"^kubectl (.*) create (.*)$", r"kubectl \1 create \2 --dry-run=client --output=yaml", helm)


@pytest.mark.parametrize("page", GUIDES)
def test_installations_render(page: str, tools: Path, tmp_path: Path) -> None:
    environ = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "HOME": str(tmp_path), "KUBECONFIG": "/dev/null"}
    for block in read_guide(page):
        for command in block.commands if block.kind == "install" else ():
            changed = rendered(command.text)
            assert changed != command.text, f"not known how to show without doing: {command.text}"
            done = subprocess.run(
                ["bash", "-euc", changed],
                cwd=ROOT,
                env=environ,
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            assert done.returncode == 0, done.stderr
            assert "kind: " in done.stdout


def test_a_guide_that_shows_something_else_is_noticed() -> None:
    assert missing_lines(("a … c", "d"), "x\na b c\nd\n") == []
    assert missing_lines(("d", "a … c"), "a b c\nd\n") == ["a … c"]
    assert missing_lines(("hello [1]",), "hello [2]\n") == ["hello [1]"]
