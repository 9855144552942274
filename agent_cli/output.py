"""Answers on stdout: tables for people, JSON and YAML with fixed shapes for programs (docs/cli.md describes them)."""

import json
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final

WIDTH_WITHOUT_TERMINAL: Final = 4000
"""A pipe has no width: nothing is cut or wrapped there."""
GAP: Final = 2
LAST_COLUMN_MIN: Final = 20
"""Characters a line of the last column has at least, however narrow the terminal is."""


class OutputFormat(StrEnum):
    """How a reading command answers."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


@dataclass(frozen=True, slots=True)
class Cell:
    """A word of a table with a style of rich, such as `red`; styles show on terminals only."""

    text: str
    style: str = ""


Row = Sequence[str | Cell]


def emit(output: OutputFormat, value: Any, table: Callable[[], None]) -> None:
    """Print `value`, made of what JSON can hold, as asked; `table` prints it for people."""
    match output:
        case OutputFormat.JSON:
            print(json.dumps(value, indent=2, ensure_ascii=False))
        case OutputFormat.YAML:
            import yaml

            print(yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=100), end="")
        case OutputFormat.TABLE:
            table()


def print_table(columns: Sequence[str], rows: Sequence[Row]) -> None:
    """Print rows under their column names. On a terminal the last column wraps, the others stay whole on one line."""
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    cells = [[one_line(cell.text if isinstance(cell, Cell) else cell) for cell in row] for row in (columns, *rows)]
    widths = [max(map(cell_len, column)) for column in zip(*cells, strict=True)]
    # Better lines that the terminal wraps than names and states of which only a few letters are left.
    needed = sum(widths[:-1]) + GAP * len(widths) + min(widths[-1], LAST_COLUMN_MIN)
    width = max(shutil.get_terminal_size().columns, needed) if sys.stdout.isatty() else WIDTH_WITHOUT_TERMINAL
    console = Console(width=width, highlight=False, markup=False, emoji=False)
    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="bold")
    for position, column in enumerate(columns):
        is_last = position == len(columns) - 1
        table.add_column(column, no_wrap=not is_last, overflow="fold" if is_last else "ellipsis")
    for row, texts in zip(rows, cells[1:], strict=True):
        styles = [cell.style if isinstance(cell, Cell) else "" for cell in row]
        table.add_row(*(Text(text, style=style) for text, style in zip(texts, styles, strict=True)))
    with console.capture() as captured:
        console.print(table)
    print("\n".join(line.rstrip() for line in captured.get().splitlines()))


def one_line(text: str) -> str:
    """Return text on one line without control characters, which would steer the terminal."""
    return "".join(character if character.isprintable() else " " for character in " ".join(text.split()))


def note(text: str) -> None:
    """Tell something beside the answer, on stderr."""
    print(f"[{one_line(text)}]", file=sys.stderr, flush=True)


def stamp(instant: datetime | None) -> str:
    """Return an instant as tables show it: UTC, whole seconds."""
    return "-" if instant is None else f"{instant.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


def parse_instant(text: object) -> datetime | None:
    """Return an instant as Kubernetes writes it, None for anything else."""
    try:
        found = datetime.fromisoformat(str(text))
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def age(since: datetime | None, now: datetime) -> str:
    """Return how long ago that was, as kubectl says it: 45s, 12m, 5h, 3d."""
    if since is None:
        return "-"
    seconds = max(0, int((now - since).total_seconds()))
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"
