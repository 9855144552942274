"""Reads the commands of the guides, and compares what they print with what the guide shows.

A fenced block ```console KIND holds commands (`$ …`) and, below each, what it prints; `…` stands for anything. Kinds:

    (none)   on this machine, beside the page's `abide dev`
    dev      starts `abide dev` in a terminal; `you> …` is typed; it runs until the next such block or the page's end
    cluster  against the cluster of `make up`
    install  on a cluster of the reader's: rendered, not done
    docker   with Compose
    machine  changes the machine; another test does it

A block ```yaml FILE is a file that the reader writes.
"""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GUIDES = ("README.md", "docs/getting-started.md", "docs/plain-containers.md", "docs/upgrade.md")
KINDS = ("", "dev", "cluster", "install", "docker", "machine")

_BLOCK = re.compile(r"^```(\w+)[ \t]*([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Command:
    """One command line and the lines that the guide shows below it."""

    text: str
    shown: tuple[str, ...] = ()


@dataclass(frozen=True)
class Block:
    """One block: commands of a kind, or a file to write (then `file` and `content`)."""

    kind: str
    commands: tuple[Command, ...] = ()
    file: str = ""
    content: str = ""


def read_guide(page: str) -> list[Block]:
    """Return the blocks of a page that a reader carries out, in order."""
    blocks = []
    for language, argument, content in _BLOCK.findall((ROOT / page).read_text()):
        if language == "console":
            blocks.append(Block(argument.strip(), commands=tuple(_commands(content))))
        elif language == "yaml" and argument.strip():
            blocks.append(Block("file", file=argument.strip(), content=content))
    return blocks


def _commands(content: str) -> list[Command]:
    found: list[Command] = []
    for line in content.splitlines():
        if line.startswith("$ "):
            found.append(Command(line.removeprefix("$ ")))
        elif line:
            found[-1] = Command(found[-1].text, (*found[-1].shown, line))
    return found


def missing_lines(shown: tuple[str, ...], printed: str) -> list[str]:
    """Return what the guide shows and the command did not print, in the guide's order; `…` is anything."""
    lines = iter(printed.splitlines())
    return [line for line in shown if not any(_matches(line, found) for found in lines)]


def _matches(shown: str, printed: str) -> bool:
    pattern = ".*".join(re.escape(part.strip()) for part in shown.split("…"))
    return re.fullmatch(pattern, printed.strip()) is not None
