"""What the benchmarks share: a database of their own, contestants that take turns, tables, and results as JSON.

Every benchmark runs its contestants alternately in rounds and reports medians with their spread, so that a noise on
the machine meets all of them and the ratio in one run means something where the absolute figures do not.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import psycopg

from agent_store.embedded import EmbeddedPostgres
from agent_store.migrate import migrate

REPOSITORY: Final = Path(__file__).resolve().parents[1]
USER_BYTES: Final = 200
REPLY_BYTES: Final = 400
CONTENT: Final = "u" * USER_BYTES
REPLY: Final = "a" * REPLY_BYTES
NAMESPACE: Final = "bench"


@dataclass(frozen=True, slots=True)
class Sample:
    """The rounds of one contestant: values in the order they were measured, all in the same unit."""

    values: Sequence[float]

    @property
    def median(self) -> float:
        """The middle value."""
        return statistics.median(self.values)

    @property
    def spread(self) -> float:
        """How far apart the rounds lie: (highest - lowest) / median."""
        return (max(self.values) - min(self.values)) / self.median if self.median else 0.0


@dataclass(frozen=True, slots=True)
class Target:
    """One sentence of the product's aims: what was seen, and where it should be. `at_most` or `at_least` is set."""

    what: str
    seen: float
    at_least: float | None = None
    at_most: float | None = None

    @property
    def reached(self) -> bool:
        """Whether the aim is reached in this run."""
        return (self.at_least is None or self.seen >= self.at_least) and (
            self.at_most is None or self.seen <= self.at_most
        )

    def text(self) -> str:
        """Return the line for people."""
        aim = f"≥ {self.at_least:g}" if self.at_least is not None else f"≤ {self.at_most:g}"
        return f"{'reached    ' if self.reached else 'NOT REACHED'}  {self.what}: {self.seen:.3g} (aim {aim})"


@dataclass(slots=True)
class Report:
    """What a benchmark found. Rows all have the same keys, in the order of the columns."""

    name: str
    rows: list[dict[str, Any]] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def publish(self, path: Path | None) -> None:
        """Print the table, and write everything as JSON if a path is given."""
        print(render_table(self.rows))
        for target in self.targets:
            print(target.text())
        for note in (*self.notes, machine_note()):
            print(f"note: {note}")
        if path is not None:
            path.write_text(json.dumps(self.as_json(), indent=2, ensure_ascii=False) + "\n")

    def as_json(self) -> dict[str, Any]:
        """Return {name, rows, targets: [{what, seen, at_least, at_most, reached}], notes, machine}."""
        targets = [{**asdict(target), "reached": target.reached} for target in self.targets]
        return {
            "name": self.name,
            "rows": self.rows,
            "targets": targets,
            "notes": self.notes,
            "machine": {"cpus": os.cpu_count(), "load": os.getloadavg(), "python": platform.python_version()},
        }


def machine_note() -> str:
    """Return what tells how quiet the machine was."""
    one, five, _ = os.getloadavg()
    return f"{os.cpu_count()} CPUs, load {one:.1f} over the last minute and {five:.1f} over five"


def render_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the rows as aligned text: the first column to the left, the others to the right."""
    if not rows:
        return "(nothing measured)"
    header = list(rows[0])
    lines = [header, *([_cell(row[name]) for name in header] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _cell(value: object) -> str:
    match value:
        case None:
            return "-"
        case float():
            return f"{value:,.0f}" if abs(value) >= 100 else f"{value:,.3g}"
        case int() if not isinstance(value, bool):
            return f"{value:,}"
    return str(value)


def parser(description: str | None) -> argparse.ArgumentParser:
    """Return an argument parser with the options every benchmark has."""
    made = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    made.add_argument("--quick", action="store_true", help="a short run that shows that it works; figures say little")
    made.add_argument("--json", type=Path, metavar="FILE", help="write what was measured there")
    return made


@contextmanager
def database(*, name: str = "abide_bench", max_connections: int = 60) -> Iterator[tuple[EmbeddedPostgres, str]]:
    """Yield a Postgres of this run with fsync on, and the URL of a migrated database in it; both go afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="abide-bench-"))
    folder.chmod(0o711)  # as root, Postgres runs as somebody else, who has to pass through
    server = EmbeddedPostgres(folder / "postgres", max_connections=max_connections)
    try:
        server.start()
        url = create_database(server, name)
        migrate(url)
        yield server, url
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


def create_database(server: EmbeddedPostgres, name: str) -> str:
    """Make an empty database and return its URL."""
    with psycopg.connect(server.url, autocommit=True, connect_timeout=10) as connection:
        connection.execute(f'CREATE DATABASE "{name}"'.encode())
    return f"{server.url.rpartition('/')[0]}/{name}"


def agent_manifest(name: str, model: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return an Agent whose model answers REPLY at once, and that takes as many requests as come."""
    model = model or {"provider": "scripted", "parameters": {"replies": [REPLY]}}
    return {
        "apiVersion": "abide.dev/v1alpha1",
        "kind": "Agent",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "systemPrompt": "You are measured.",
            "models": [dict(model)],
            "limits": {"requestsPerMinute": 0},
        },
    }


def runtime_environment(url: str, manifest: Path, port: int, **more: str) -> dict[str, str]:
    """Return the environment of a runtime process on loopback without API keys; all else as in a pod."""
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": str(manifest.parent),
        "PYTHONPATH": str(REPOSITORY),
        "ABIDE_MANIFEST": str(manifest),
        "ABIDE_POSTGRES_URL": url,
        "ABIDE_AUTH": "none",
        "ABIDE_HOST": "127.0.0.1",
        "ABIDE_PORT": str(port),
        **more,
    }


def progress(text: str) -> None:
    """Tell people who wait what is being done."""
    print(text, file=sys.stderr, flush=True)
