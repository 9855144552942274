"""What the generators of the reference pages share."""

import argparse
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path

WIDTH = 118


def cell(text: object) -> str:
    """Return text for a cell of a table: one line, with its bars escaped."""
    return " ".join(str(text).split()).replace("|", "\\|")


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table, ended by an empty line."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(cell(column) for column in line) + " |\n" for line in lines) + "\n"


def paragraph(text: str) -> str:
    """Return text wrapped, ended by an empty line."""
    return textwrap.fill(" ".join(text.split()), WIDTH, break_long_words=False, break_on_hyphens=False) + "\n\n"


def write_page(description: str, render: str) -> None:
    """Write a page to the file that the command line names by --output."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--output", type=Path, required=True, help="the file to write")
    output: Path = parser.parse_args().output
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(render.rstrip("\n") + "\n")
