"""The `abide` command: which commands there are, and how errors end. Also installed as `kubectl abide`.

Each command imports what it needs when it runs, so that `abide --help` stays quick.
"""

import importlib
import importlib.util
import os
import sys
from pathlib import Path
from typing import Annotated, Final

import typer

from agent_cli.commands import COMPLETE_VARIABLE, keys, local, operate, state, user
from agent_cli.conformance.command import conformance
from agent_cli.errors import CliError, HungError, UsageError

INTERRUPTED: Final = 130
"""Exit code of a command ended by Ctrl-C, as shells have it (128 + SIGINT)."""
TALK: Final = "Talk"
OPERATE: Final = "Look after agents"
CHANGE: Final = "Revisions"
WITHOUT: Final = "Without a cluster"
TOOLS: Final = "Setup"

app = typer.Typer(
    help="Abide: durable AI agents on Kubernetes, and on this machine with `abide dev`.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        local.version()
        raise typer.Exit


@app.callback()
def options(
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Abide: durable AI agents on Kubernetes, and on this machine with `abide dev`."""


for _panel, _commands in (
    (TALK, (local.chat, operate.sessions)),
    (OPERATE, (operate.status, operate.start, operate.stop, operate.logs, operate.errors, operate.doctor)),
    (CHANGE, (operate.history, operate.diff, operate.rollback)),
    (WITHOUT, (local.dev, local.validate, local.schema)),
    (TOOLS, (local.migrate, local.completion, local.version)),
):
    for _command in _commands:
        app.command(rich_help_panel=_panel)(_command)
app.add_typer(state.app, name="state", rich_help_panel=TALK)
app.add_typer(keys.app, name="keys", rich_help_panel=OPERATE)
app.add_typer(user.app, name="user", rich_help_panel=OPERATE)
if importlib.util.find_spec("agent_cli.load") and importlib.util.find_spec("agent_cli.load.command"):
    app.command(rich_help_panel=OPERATE)(importlib.import_module("agent_cli.load.command").load)
app.command(rich_help_panel=TOOLS)(conformance)


def command_name(argv0: str) -> str:
    """Return how the user calls this program: `kubectl abide` when kubectl runs it as a plugin."""
    return "kubectl abide" if Path(argv0).name.startswith("kubectl-") else "abide"


def main() -> None:
    """Run the command line and exit."""
    if COMPLETE_VARIABLE in os.environ:
        from typer.completion import completion_init  # type: ignore[attr-defined]

        completion_init()
    try:
        app(prog_name=command_name(sys.argv[0]), complete_var=COMPLETE_VARIABLE)
    except CliError as error:
        prefix = "" if isinstance(error, UsageError) else "error: "
        for line in error.lines:
            print(f"{prefix}{line}", file=sys.stderr)
            prefix = ""
        if isinstance(error, HungError):
            # The interpreter would wait for the threads at its end.
            sys.stdout.flush()
            os._exit(error.exit_code)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        # The reader went away (`abide … | head`); nothing is left to tell anybody.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


if __name__ == "__main__":
    main()
