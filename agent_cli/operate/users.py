"""Everything an agent keeps of one user, through its REST API: `abide user`."""

import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from agent_api.wire import USER_PATTERN
from agent_cli.errors import CliError, UsageError
from agent_cli.output import note
from agent_cli.talk.chat import Reach, check_name, connected
from agent_cli.talk.conversation import Screen

LONGEST: Final = 3600.0
IN_MEMORY: Final = 8 * 1024 * 1024


def run_user_export(reach: Reach, user: str, file: Path | None, environ: Mapping[str, str]) -> None:
    """Write everything about a user to a file, or to stdout, once all of it is here. Raises CliError, UsageError."""
    check_name("USER", user, USER_PATTERN)
    with tempfile.SpooledTemporaryFile(max_size=IN_MEMORY) as kept:
        with connected(reach, "anonymous", Screen(), environ) as client:
            items = client.export_user(user, kept, timeout=LONGEST)
            agent = client.agent
        kept.seek(0)
        if file is None:
            shutil.copyfileobj(kept, sys.stdout.buffer)
            sys.stdout.buffer.flush()
        else:
            try:
                with file.open("wb") as written:
                    shutil.copyfileobj(kept, written)
            except OSError as error:
                raise CliError(f"{file}: cannot be written: {error.strerror}") from error
    note(f"agent {agent}: {items} items of user {user!r}")


def run_user_erase(reach: Reach, user: str, environ: Mapping[str, str], *, yes: bool) -> None:
    """Erase everything about a user, after asking. Raises CliError, UsageError."""
    check_name("USER", user, USER_PATTERN)
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError(f"this erases everything about user {user!r} for good: add --yes")
        answer = input(f"Erase everything that {reach.name} keeps of user {user!r}, for good? [y/N] ")
        if answer.strip().lower() not in ("y", "yes"):
            raise CliError("nothing was erased")
    with connected(reach, "anonymous", Screen(), environ) as client:
        erased = client.erase_user(user, timeout=LONGEST)
        agent = client.agent
    sys.stdout.write(f"Agent {agent}: erased user {user!r}: {erased.sessions} sessions, {erased.memories} memories\n")
