"""`abide keys`: an agent's data keys and what is encrypted with them, through its REST API."""

import sys
from collections import Counter
from collections.abc import Mapping

from agent_api.wire import KeyCount, KeyPassOut, KeysOut
from agent_cli.errors import CliError
from agent_cli.output import OutputFormat, emit, note, print_table, stamp
from agent_cli.talk.chat import Reach, connected
from agent_cli.talk.client import PATIENCE, AgentClient
from agent_cli.talk.conversation import Screen

USER = "anonymous"


def run_keys_status(reach: Reach, output: OutputFormat, environ: Mapping[str, str], *, count: bool) -> None:
    """Print an agent's data keys, with `count` also how much is under each. Raises CliError, UsageError."""
    with connected(reach, USER, Screen(), environ) as client:
        keys = client.keys(timeout=PATIENCE)
        passed = pass_over(client, dry_run=True) if count else None
        _show(client, keys, passed, output)


def run_keys_rotate(reach: Reach, output: OutputFormat, environ: Mapping[str, str]) -> None:
    """Make a new data key and print all. Raises CliError, UsageError."""
    with connected(reach, USER, Screen(), environ) as client:
        _show(client, client.rotate_key(timeout=PATIENCE), None, output)


def run_keys_reencrypt(reach: Reach, output: OutputFormat, environ: Mapping[str, str]) -> None:
    """Encrypt everything anew and print what was done. Raises CliError, also for rows that do not decrypt."""
    with connected(reach, USER, Screen(), environ) as client:
        passed = pass_over(client, dry_run=False)
        looked_at = sum(one.rows for one in passed.rows)
        emit(
            output,
            {"rows": looked_at, "rewritten": passed.rewritten, "unreadable": passed.unreadable},
            lambda: print(f"Agent {client.agent}: {passed.rewritten} of {looked_at} rows were encrypted anew"),
        )
    if passed.unreadable:
        raise CliError(
            f"{passed.unreadable} rows do not decrypt with any key of the agent and stay as they are: they were "
            "changed or moved in Postgres. Restore them from a backup."
        )


def pass_over(client: AgentClient, *, dry_run: bool) -> KeyPassOut:
    """Go over all content of an agent, and return the sums. Raises CliError."""
    found: Counter[str | None] = Counter()
    rewritten = unreadable = 0
    cursor: str | None = None
    while True:
        step = client.reencrypt(cursor, dry_run=dry_run, timeout=PATIENCE)
        found.update({one.key: one.rows for one in step.rows})
        rewritten += step.rewritten
        unreadable += step.unreadable
        if (cursor := step.cursor) is None:
            break
        if sys.stderr.isatty():
            done = "" if dry_run else f", {rewritten} encrypted anew"
            print(f"\r{sum(found.values())} rows looked at{done}", end="", file=sys.stderr, flush=True)
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr, flush=True)
    rows = [KeyCount(key=key, rows=count) for key, count in found.items()]
    return KeyPassOut(cursor=None, rows=rows, rewritten=rewritten, unreadable=unreadable)


def _show(client: AgentClient, keys: KeysOut, passed: KeyPassOut | None, output: OutputFormat) -> None:
    counts = None if passed is None else {one.key: one.rows for one in passed.rows}
    value = keys.model_dump(mode="json", by_alias=True)
    if counts is not None:
        ordered = sorted(counts.items(), key=lambda one: one[0] or "")
        value["rows"] = [{"key": key, "rows": rows} for key, rows in ordered]

    def table() -> None:
        if not keys.encrypts:
            note(f"agent {client.agent} does not encrypt new content")
        header = ["DATA KEY", "MADE", "WRAPPED WITH", "CURRENT"]
        rows = [[key.id, stamp(key.created_at), key.wrapping_key, "yes" if key.current else "-"] for key in keys.items]
        if counts is not None:
            header = [*header, "ROWS"]
            rows = [[*row, str(counts.get(row[0], 0))] for row in rows]
            rows.append(["(not encrypted)", "-", "-", "-", str(counts.get(None, 0))])
        if rows:
            print_table(header, rows)

    emit(output, value, table)
