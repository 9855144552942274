"""What an agent keeps, through its REST API: `abide sessions`, `abide errors`, `abide state`."""

import json
import re
import sys
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from agent_api.wire import SESSION_PATTERN, USER_PATTERN, ErrorOut, SessionOut
from agent_cli.cluster.agents import read_agent, read_events
from agent_cli.errors import CliError, UsageError
from agent_cli.output import OutputFormat, emit, note, parse_instant, print_table, stamp
from agent_cli.talk.chat import Reach, check_name, connected
from agent_cli.talk.client import PATIENCE, AgentClient
from agent_cli.talk.conversation import Screen

SESSIONS_MAX: Final = 100
ERRORS_WAIT: Final = 15.0
"""How long to try the pods before the errors come from the status instead: who asks for errors is in a hurry."""
DURATION: Final = re.compile(r"(\d+)([smhd])")
UNITS: Final[Mapping[str, int]] = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def run_sessions(reach: Reach, user: str, output: OutputFormat, environ: Mapping[str, str]) -> None:
    """Print the user's sessions, newest activity first. Raises CliError, UsageError."""
    check_name("--user", user, USER_PATTERN)
    with connected(reach, user, Screen(), environ) as client:
        page = client.sessions(limit=SESSIONS_MAX, timeout=PATIENCE)
    value = {
        "items": [item.model_dump(mode="json", by_alias=True) for item in page.items],
        "more": bool(page.next_cursor),
    }

    def table() -> None:
        if not page.items:
            note(f"user {user!r} has no sessions with agent {client.agent}")
            return
        print_table(["SESSION", "MESSAGES", "LAST USED", "CREATED"], [_session_row(item) for item in page.items])
        if page.next_cursor:
            note(f"there are more; these are the {len(page.items)} latest")

    emit(output, value, table)


def _session_row(item: SessionOut) -> list[str]:
    return [item.name, str(item.messages), stamp(item.last_active_at), stamp(item.created_at)]


def parse_duration(text: str) -> timedelta:
    """Return a duration such as 90s, 10m, 1h30m or 7d. Raises UsageError."""
    if not re.fullmatch(rf"(?:{DURATION.pattern})+", text):
        raise UsageError(f"--since {text!r}: write a duration such as 90s, 10m, 2h or 7d")
    return timedelta(seconds=sum(int(number) * UNITS[unit] for number, unit in DURATION.findall(text)))


def run_errors(
    reach: Reach,
    *,
    error_type: str | None,
    limit: int,
    since: str | None,
    output: OutputFormat,
    environ: Mapping[str, str],
) -> None:
    """Print the agent's errors, newest first; from its status where no pod answers. Raises CliError, UsageError."""
    oldest = datetime.now(UTC) - parse_duration(since) if since else None
    source = "records"
    try:
        with connected(reach, "anonymous", Screen(), environ) as client:
            items = read_errors(client, error_type=error_type, limit=limit, oldest=oldest)
    except UsageError:
        raise
    except CliError as error:
        if reach.url is not None:
            raise
        told = f"{error.lines[0].rstrip('.')}; these are the newest error and the Events that its status still tells"
        items, source = _told_by_status(reach, error_type, limit, oldest, environ), "status"
        note(told)
    value = {"items": [item.model_dump(mode="json", by_alias=True) for item in items], "source": source}

    def table() -> None:
        if not items:
            note(f"agent {reach.name} has no errors{' of that kind' if error_type or since else ''}")
            return
        print_table(["TIME", "TYPE", "TURN", "MESSAGE"], [_error_row(item) for item in items])

    emit(output, value, table)


def read_errors(client: AgentClient, *, error_type: str | None, limit: int, oldest: datetime | None) -> list[ErrorOut]:
    """Return the newest errors, page by page, until there are enough or they are too old. Raises CliError."""
    found: list[ErrorOut] = []
    cursor: str | None = None
    while len(found) < limit:
        page = client.errors(error_type=error_type, cursor=cursor, limit=limit - len(found), timeout=ERRORS_WAIT)
        recent = [item for item in page.items if oldest is None or item.time >= oldest]
        found += recent
        cursor = page.next_cursor
        if not cursor or len(recent) < len(page.items):
            break
    return found[:limit]


def _error_row(item: ErrorOut) -> list[str]:
    return [stamp(item.time), item.type, str(item.turn_id)[:8] if item.turn_id else "-", item.message]


def _told_by_status(
    reach: Reach, error_type: str | None, limit: int, oldest: datetime | None, environ: Mapping[str, str]
) -> list[ErrorOut]:
    cluster, agent = read_agent(reach.cluster(environ), reach.name)
    found = []
    if (last := (agent.get("status") or {}).get("lastError")) and (at := parse_instant(last.get("time"))):
        found.append(ErrorOut(time=at, type=str(last.get("type", "")), message=str(last.get("message", ""))))
    found += [
        ErrorOut(time=event.at, type=event.what, message=event.message)
        for event in read_events(cluster, reach.name, warnings_only=True)
    ]
    wanted = [one for one in found if error_type in (None, one.type) and (oldest is None or one.time >= oldest)]
    return sorted(wanted, key=lambda one: one.time, reverse=True)[:limit]


def run_state_show(reach: Reach, session: str, user: str, output: OutputFormat, environ: Mapping[str, str]) -> None:
    """Print a session's state. Raises CliError, UsageError."""
    document = _read_state(reach, session, user, environ)

    def table() -> None:
        cursor = document.get("cursor") or {}
        rows = [
            ["version", f"{document.get('version')}, saved {document.get('updatedAt')}"],
            ["cursor", f"turn {cursor.get('turnSeq', 0)}, {cursor.get('acceptedMessages', 0)} messages accepted"],
            ["summary", str(document.get("summary") or "-")],
        ]
        rows += [
            [f"variables.{name}", value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)]
            for name, value in (document.get("variables") or {}).items()
        ]
        print_table(["FIELD", "VALUE"], rows)

    emit(output, document, table)


def run_state_save(reach: Reach, session: str, user: str, file: Path | None, environ: Mapping[str, str]) -> None:
    """Write a session's state to a file or stdout. Raises CliError, UsageError."""
    text = json.dumps(_read_state(reach, session, user, environ), indent=2, ensure_ascii=False) + "\n"
    if file is None or str(file) == "-":
        print(text, end="")
        return
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise CliError(f"{file} cannot be written: {error.strerror}.") from error
    note(f"the state of session {session!r} is in {file}")


def run_state_load(reach: Reach, session: str, user: str, file: Path | None, environ: Mapping[str, str]) -> None:
    """Put a document back as a session's state. Raises CliError, UsageError."""
    _check_names(session, user)
    document = read_document(file)
    with connected(reach, user, Screen(), environ) as client:
        saved = client.save_state(session, document, timeout=PATIENCE)
    print(f"Agent {client.agent}: the state of session {session!r} is version {saved.get('version')} now")


def run_state_delete(reach: Reach, session: str, user: str, environ: Mapping[str, str]) -> None:
    """Delete a session's snapshot; its history stays. Idempotent. Raises CliError, UsageError."""
    _check_names(session, user)
    with connected(reach, user, Screen(), environ) as client:
        deleted = client.delete_state(session, timeout=PATIENCE)
    what = "is deleted; its messages stay" if deleted else "was not there"
    print(f"Agent {client.agent}: the state of session {session!r} {what}")


def read_document(file: Path | None) -> Any:
    """Return the JSON document of a file, of stdin without one. Raises UsageError."""
    if file is None or str(file) == "-":
        if sys.stdin is None or sys.stdin.isatty():
            raise UsageError("Which document? Give -f FILE, or pipe it in.")
        name, text = "stdin", sys.stdin.read()
    else:
        try:
            name, text = str(file), file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            raise UsageError(f"{file}: cannot be read: {reason}") from error
    try:
        return json.loads(text)
    except ValueError as error:
        raise UsageError(f"{name}: is not JSON: {error}") from error


def _read_state(reach: Reach, session: str, user: str, environ: Mapping[str, str]) -> dict[str, Any]:
    _check_names(session, user)
    with connected(reach, user, Screen(), environ) as client:
        return client.state(session, timeout=PATIENCE)


def _check_names(session: str, user: str) -> None:
    check_name("SESSION", session, SESSION_PATTERN)
    check_name("--user", user, USER_PATTERN)
