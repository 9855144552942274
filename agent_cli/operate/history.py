"""`abide history` and `abide diff`: which revisions there were, and what changed between them."""

import difflib
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from agent_cli.cluster.agents import read_agent
from agent_cli.cluster.kubectl import Cluster
from agent_cli.cluster.targets import agent_label
from agent_cli.errors import CliError
from agent_cli.operate.revisions import (
    Revision,
    current_revision,
    find_changes,
    find_revision,
    read_revisions,
    summarize,
)
from agent_cli.output import Cell, OutputFormat, age, emit, note, print_table, stamp


def run_history(cluster: Cluster, name: str, output: OutputFormat) -> None:
    """Print an agent's revisions, newest first. Raises CliError."""
    cluster, agent = read_agent(cluster, name)
    items = describe_history(read_revisions(cluster, agent), agent)

    def table() -> None:
        if not items:
            note(f"agent {agent_label(agent)} has no revisions yet")
            return
        print_table(["NUMBER", "REVISION", "AGE", "STATE", "CHANGED"], list(_rows(items)))

    emit(output, {"items": items}, table)


def describe_history(revisions: Sequence[Revision], agent: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the revisions, newest first, each with what changed against the one before it."""
    status = (agent.get("status") or {}).get("revision") or {}
    items = []
    for revision, before in zip(revisions, [*revisions[1:], None], strict=True):
        changes = list(find_changes(before.comparable, revision.comparable)) if before else []
        items.append(
            {
                "number": revision.number,
                "revision": revision.name,
                "created": stamp(revision.created),
                "current": revision.name == status.get("current"),
                "ready": revision.name == status.get("ready"),
                "summary": summarize(changes) if before else "the oldest one that is kept",
            }
        )
    return items


def _rows(items: Sequence[dict[str, Any]]) -> Iterator[list[str | Cell]]:
    now = datetime.now(UTC)
    for item in items:
        marks = [word for word in ("current", "ready") if item[word]]
        style = "green" if "ready" in marks else "yellow" if marks else ""
        created = None if item["created"] == "-" else datetime.fromisoformat(item["created"])
        state = Cell(",".join(marks) or "-", style)
        yield [str(item["number"]), item["revision"], age(created, now), state, item["summary"]]


def run_diff(cluster: Cluster, name: str, wanted: Sequence[str], output: OutputFormat) -> None:
    """Print what changed between two revisions. Raises CliError.

    None wanted: the one before the present one and the present one; one: that one and the present one.
    """
    cluster, agent = read_agent(cluster, name)
    before, after = choose_pair(read_revisions(cluster, agent), wanted, agent)
    changes = list(find_changes(before.comparable, after.comparable))
    value = {
        "from": {"number": before.number, "revision": before.name},
        "to": {"number": after.number, "revision": after.name},
        "changes": [{"path": f"spec.{one.path}", "from": one.before, "to": one.after} for one in changes],
    }

    def table() -> None:
        if not changes:
            note(f"revisions {before.number} and {after.number} of agent {agent_label(agent)} have the same spec")
        else:
            print_diff(before.comparable, after.comparable, _title(before), _title(after))

    emit(output, value, table)


def choose_pair(
    revisions: Sequence[Revision], wanted: Sequence[str], agent: dict[str, Any]
) -> tuple[Revision, Revision]:
    """Return the two revisions to compare. Raises CliError."""
    chosen = [find_revision(revisions, one, agent) for one in wanted]
    if len(chosen) == 2:
        return chosen[0], chosen[1]
    current = current_revision(revisions, agent)
    if current is None:
        raise CliError(f"Agent {agent_label(agent)} has no revisions yet.")
    if chosen:
        return chosen[0], current
    older = [one for one in revisions if one.number < current.number]
    if not older:
        raise CliError(f"Agent {agent_label(agent)} has one revision only; there is nothing to compare it with.")
    return older[0], current


def print_diff(before: dict[str, Any], after: dict[str, Any], title: str, other: str) -> None:
    """Print a unified diff of two specs as YAML, coloured on a terminal."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
    styles = {"+": "green", "-": "red", "@": "cyan"}
    for line in unified_diff(before, after, title, other):
        if sys.stdout.isatty():
            console.print(Text(line, style=styles.get(line[:1], "")))
        else:
            print(line)


def unified_diff(before: dict[str, Any], after: dict[str, Any], title: str, other: str) -> list[str]:
    """Return the lines of a unified diff of two specs as YAML."""
    return list(difflib.unified_diff(_lines(before), _lines(after), title, other, lineterm="", n=2))


def _lines(spec: dict[str, Any]) -> list[str]:
    import yaml

    class Dumper(yaml.SafeDumper):
        """Writes texts of several lines as such, so that a changed line of a prompt is one line of the diff."""

    def represent(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
        return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)

    Dumper.add_representer(str, represent)
    return yaml.dump({"spec": spec}, Dumper=Dumper, sort_keys=True, allow_unicode=True, width=4000).splitlines()


def _title(revision: Revision) -> str:
    return f"revision {revision.number} ({revision.name})"
