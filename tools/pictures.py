"""Pictures for README and guides: real commands, run here, and what they printed, as SVG in docs/pictures.

    python -m tools.pictures             what needs no cluster
    python -m tools.pictures --cluster   what `make up` shows; needs KUBECONFIG, and an agent `assistant`

A picture holds text, not pixels, so it is sharp at any size, and its font is whatever fixed-width font the reader has.
Nothing is made up: a command that fails makes no picture. Only the password in the embedded Postgres' URL is left out.
"""

import argparse
import io
import os
import pty
import re
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

ROOT: Final = Path(__file__).resolve().parents[1]
PICTURES: Final = ROOT / "docs" / "pictures"
COLUMNS: Final = 100
WAIT_SECONDS: Final = 60.0
_FONT: Final = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', 'Liberation Mono', monospace"
_THEME: Final = TerminalTheme(
    (250, 250, 250),
    (36, 41, 47),
    [
        (36, 41, 47),
        (207, 34, 46),
        (17, 99, 41),
        (77, 45, 0),
        (9, 105, 218),
        (130, 80, 223),
        (27, 124, 131),
        (110, 119, 129),
    ],
    [
        (87, 96, 106),
        (164, 14, 38),
        (26, 127, 55),
        (99, 60, 1),
        (33, 139, 255),
        (164, 117, 249),
        (49, 146, 170),
        (140, 149, 159),
    ],
)
_WRONG: Final = """\
apiVersion: abide.dev/v1alpha1
kind: Agent
metadata: {name: support}
spec:
  systemPrompt: You help customers.
  models:
  - provider: openai
    timeout: 30
  history: {limit: 0}
"""
_KEYLESS: Final = """\
apiVersion: abide.dev/v1alpha1
kind: Agent
metadata: {name: support}
spec:
  systemPrompt: You help customers.
  models:
  - provider: openai
    model: gpt-5-mini
    apiKeySecretRef: {name: llm, key: openai}
"""


@dataclass(frozen=True)
class Picture:
    """One picture: its file, its title, and what makes its text (with ANSI colours)."""

    name: str
    title: str
    take: Callable[[], str]


@dataclass(frozen=True)
class Typed:
    """A line to type once the prompt is shown."""

    prompt: str
    line: str


def shown(command: Sequence[str], *, allowed: Sequence[int] = (0,), folder: Path = ROOT) -> str:
    """Return `$ command` and what it prints on a terminal. Raises: RuntimeError for another exit code."""
    return _prompt(" ".join(command)) + talk(command, (), allowed=allowed, folder=folder)


def talk(
    command: Sequence[str],
    lines: Sequence[Typed],
    *,
    allowed: Sequence[int] = (0,),
    folder: Path = ROOT,
    until: str = "",
) -> str:
    """Return what a command shows on a terminal of COLUMNS while these lines are typed.

    With `until` the command is ended by Ctrl-C once that is shown. Raises: RuntimeError for another exit code, or when
    something is not shown within WAIT_SECONDS.
    """
    main, side = pty.openpty()
    environ = {**os.environ, "COLUMNS": str(COLUMNS), "LINES": "40", "TERM": "xterm-256color", "PATH": _path()}
    process = subprocess.Popen(  # noqa: S603 - commands of this module
        list(command), stdin=side, stdout=side, stderr=side, cwd=folder, env=environ, start_new_session=True,
        preexec_fn=_take_terminal,
    )  # fmt: skip
    os.close(side)
    screen = _Screen(main)
    try:
        for typed in lines:
            screen.wait(typed.prompt)
            os.write(main, f"{typed.line}\n".encode())
        if until:
            screen.wait(until)
            seen = screen.text
            os.write(main, b"\x03")
            process.wait(WAIT_SECONDS)
            return seen
        screen.read_to_end()
        code = process.wait(WAIT_SECONDS)
        if code not in allowed:
            raise RuntimeError(f"{' '.join(command)} ended with {code}: {screen.text}")
        return screen.text
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        os.close(main)


class _Screen:
    """What a terminal has shown so far. `wait` looks behind what it found last."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._seen = 0
        self._raw = b""

    @property
    def text(self) -> str:
        return self._raw.decode(errors="replace").replace("\r\n", "\n")

    def wait(self, text: str) -> None:
        deadline = time.monotonic() + WAIT_SECONDS
        while (found := self.text.find(text, self._seen)) < 0:
            if not self._read(deadline):
                raise RuntimeError(f"{text!r} was not shown, but: {self.text}")
        self._seen = found + len(text)

    def read_to_end(self) -> None:
        deadline = time.monotonic() + WAIT_SECONDS
        while self._read(deadline):
            pass

    def _read(self, deadline: float) -> bool:
        if not select.select([self._descriptor], [], [], max(0.0, deadline - time.monotonic()))[0]:
            return False
        try:
            chunk = os.read(self._descriptor, 65536)
        except OSError:  # the other side is closed
            return False
        self._raw += chunk
        return bool(chunk)


def _take_terminal() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def _path() -> str:
    return f"{Path(sys.executable).parent}:{os.environ['PATH']}"


def _prompt(command: str) -> str:
    return f"\x1b[1;32m$\x1b[0m \x1b[1m{command}\x1b[0m\n"


def render(text: str, title: str) -> str:
    """Return the SVG of a terminal that shows this text."""
    cleaned = re.sub(r"\x1b\[\?[0-9]+[hl]|\x1b\[[0-9]*[JKGABCD]|\x07", "", text).rstrip("\n")
    cleaned = re.sub(r"(://abide:)[^@\s]+@", r"\1…@", cleaned)
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    console.print(Text.from_ansi(cleaned))
    picture = console.export_svg(title=title, theme=_THEME, unique_id="abide")
    # Without the web font: readers without internet, and pages that forbid it, show text of the wrong width.
    picture = re.sub(r"\s*@font-face \{.*?\}", "", picture, flags=re.DOTALL)
    return re.sub(r"font-family: (?:Fira Code, monospace|arial)", f"font-family: {_FONT}", picture) + "\n"


def _dev() -> str:
    command = ["abide", "dev", "examples/assistant.yaml"]
    typed = (Typed("you> ", "hello"), Typed("you> ", "do you remember me?"))
    return _prompt(" ".join(command)) + talk(command, typed, until="[2]")


def _validate() -> str:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "support.yaml").write_text(_WRONG)
        return shown(["abide", "validate", "support.yaml"], allowed=[2], folder=Path(folder))


def _with_an_agent_without_a_key(*commands: Sequence[str]) -> str:
    """Return what commands print while there is an agent whose Secret is missing."""

    def kubectl(*arguments: str, stdin: str = "") -> None:
        command = ["kubectl", *arguments]
        subprocess.run(command, input=stdin, text=True, check=True, timeout=60, capture_output=True)  # noqa: S603

    kubectl("apply", "-f", "-", stdin=_KEYLESS)
    try:
        told = "jsonpath={.status.conditions[?(@.type=='Ready')].reason}=SecretMissing"
        kubectl("wait", f"--for={told}", "agents.abide.dev/support", "--timeout=30s")
        return "\n".join(shown(command) for command in commands)
    finally:
        kubectl("delete", "agents.abide.dev/support")


def _trouble() -> str:
    return _with_an_agent_without_a_key(["kubectl", "get", "agents.abide.dev"], ["abide", "status", "support"])


LOCAL: Final = (
    Picture("dev", "an agent on this machine", _dev),
    Picture("validate", "a wrong manifest", _validate),
)
CLUSTER: Final = (Picture("status", "an agent whose key is missing", _trouble),)


def main() -> int:
    """Take the pictures and write them; print the path of each."""
    parser = argparse.ArgumentParser(description="Take the pictures of the documentation.")
    parser.add_argument("--cluster", action="store_true", help="take those of a cluster")
    parser.add_argument("--only", metavar="NAME", help="take one")
    parser.add_argument("--output", type=Path, default=PICTURES, help="folder to write to")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    for picture in CLUSTER if arguments.cluster else LOCAL:
        if arguments.only in (None, picture.name):
            path = arguments.output / f"{picture.name}.svg"
            path.write_text(render(picture.take(), picture.title))
            sys.stdout.write(f"{path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
