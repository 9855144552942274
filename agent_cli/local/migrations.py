"""`abide migrate`, and migrations as `abide dev` runs them: in a process of their own."""

import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Final

from agent_cli.errors import CliError

MIGRATE_TIMEOUT: Final = 180.0


def run_migrations(environ: Mapping[str, str]) -> None:
    """Migrate the database the environment names and exit: 0 when it is up to date, 1 with one line otherwise."""
    from agent_store.migrate import main

    sys.exit(main(environ))


def migrate_in_subprocess(url: str) -> None:
    """Migrate the database at `url`; the migration tool's memory is gone afterwards. Raises CliError."""
    environ = {key: value for key, value in os.environ.items() if not key.startswith("ABIDE_")}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "agent_store.migrate"],
            env=environ | {"ABIDE_POSTGRES_URL": url},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=MIGRATE_TIMEOUT,
            check=False,
            # A Ctrl-C in the terminal must not end it half-way: this process waits for it and stops then.
            start_new_session=True,
        )
    except subprocess.TimeoutExpired as error:
        raise CliError(f"Migrating the database took longer than {MIGRATE_TIMEOUT:g} s; try again.") from error
    if done.returncode:
        raise CliError(done.stderr.strip().splitlines()[-1:] or "Migrating the database failed without a word.")
