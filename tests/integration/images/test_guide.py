"""The guide for plain containers, carried out: `docker compose` is done by the project runner, the rest by a shell."""

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.guide import Block, Command, missing_lines, read_guide
from tests.fakes.provider import ModelProvider
from tests.integration.images.compose import Project, load
from tests.integration.images.rootfs import Image

PAGE = "docs/plain-containers.md"
PROVIDER = "https://llm.example.com/v1"
KEY = "sk-test-of-the-guide"
_COMPOSE = re.compile(r"docker compose -f (\S+) (.*?)(?: ([<>]) (\S+))?$")


class Reader:
    """Carries the guide out in a checkout. One project runs at a time, as in the guide."""

    def __init__(self, checkout: Path, loader: Path, images: dict[str, Image], provider: ModelProvider) -> None:
        self._checkout = checkout
        self._loader = loader
        self._images = images
        self._provider = provider
        self._project: Project | None = None

    def carry_out(self, block: Block) -> None:
        """Do what one block says. Raises AssertionError with what was printed instead."""
        if block.kind == "file":
            (self._checkout / block.file).write_text(block.content.replace(PROVIDER, self._provider.base_url))
        for command in block.commands if block.kind == "docker" else ():
            compose = _COMPOSE.fullmatch(command.text)
            printed = self._compose(*compose.groups()) if compose else self._shell(command)
            assert missing_lines(command.shown, printed) == [], f"{command.text} printed {printed!r}"

    def close(self) -> None:
        """End whatever runs."""
        if self._project is not None:
            self._project.__exit__(None, None, None)
            self._project = None

    def _compose(self, file: str, words: str, redirect: str | None, path: str | None) -> str:
        verb, *arguments = shlex.split(words)
        if verb == "up":
            assert arguments == ["-d"]
            self._up(self._checkout / file)
            return ""
        assert self._project is not None, f"nothing runs: {verb}"
        if verb == "down":
            self.close()
            return ""
        if verb == "stop":
            (service,) = arguments
            assert self._project.container(service).stop(60) == 0
            return ""
        assert verb == "exec", f"not known how to do: docker compose {verb}"
        without_terminal, service, *command = arguments
        assert without_terminal == "-T"
        given = (self._checkout / path).read_bytes() if redirect == "<" and path else None
        done = self._project.container(service).execute(*command, given=given)
        assert done.returncode == 0, done.stderr
        if redirect == ">" and path:
            (self._checkout / path).write_bytes(done.stdout)
        return done.stdout.decode(errors="replace")

    def _up(self, file: Path) -> None:
        loaded = load(self._loader, file)
        if self._project is None:
            self._project = Project(loaded, self._images, self._checkout / f"run-{loaded['name']}").__enter__()
            self._project.let_reach(self._provider.port)
        changed = [name for name, old in self._project.services.items() if old != loaded["services"][name]]
        for name in changed:  # as Compose does: what is described differently is made anew
            if self._project.container(name).exit_code is None:
                self._project.container(name).stop(60)
        self._project.services = loaded["services"]
        self._project.up()

    def _shell(self, command: Command) -> str:
        shell = ["bash", "-euo", "pipefail", "-c", command.text]
        if self._project is not None:  # published ports are not emulated: the shell is where the services are
            shell = ["nsenter", f"--target={self._project.pod_pid}", "--net", *shell]
        done = subprocess.run(
            shell,
            cwd=self._checkout,
            env={"PATH": "/usr/local/bin:/usr/bin:/bin", "LLM_API_KEY": KEY},
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
        assert done.returncode == 0, f"{command.text}: {done.stdout}{done.stderr}"
        return done.stdout


@pytest.fixture
def provider() -> Iterator[ModelProvider]:
    with ModelProvider(valid_keys=(KEY,)) as provider:
        yield provider


def test_the_guide_works_from_first_to_last_command(
    checkout: Path, loader: Path, images: dict[str, Image], provider: ModelProvider
) -> None:
    reader = Reader(checkout, loader, images, provider)
    try:
        for block in read_guide(PAGE):
            reader.carry_out(block)
    finally:
        reader.close()


def test_a_restored_backup_brings_the_conversation_back(
    checkout: Path, loader: Path, images: dict[str, Image], provider: ModelProvider
) -> None:
    """The guide's own commands, with a loss of everything between backup and restore."""
    blocks = [block for block in read_guide(PAGE) if block.kind == "docker"]
    backup = next(block for block in blocks if "pg_dump" in block.commands[0].text)
    restore = next(block for block in blocks if any("pg_restore" in command.text for command in block.commands))
    start = next(block for block in blocks if block.commands[0].text == "compose/prepare.sh")
    reader = Reader(checkout, loader, images, provider)
    try:
        reader.carry_out(start)
        reader.carry_out(backup)
        ask = start.commands[-1]
        reader.carry_out(Block("docker", (Command(ask.text, ('{…"reply":{"content":"hello [2]"}}',)),)))
        reader.carry_out(restore)
        reader.carry_out(Block("docker", (Command(ask.text, ('{…"reply":{"content":"hello [2]"}}',)),)))
    finally:
        reader.close()
