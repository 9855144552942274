"""Environment variables → docs/environment.md: from the tables in the docstrings of both processes' settings.

What has no settings module (the CLI, the Postgres image, the development tools) is listed here.
"""

import re
from typing import Final

import agent_operator.settings
import agent_runtime.settings
from tools.markdown import table, write_page

Row = tuple[str, str, str]

_HEADER: Final = """\
# Reference: environment variables

Generated from the settings modules by `make generate`; edit those instead. In a cluster the chart and the operator set
them; [plain containers](plain-containers.md) set them by hand. `ABIDE_*` names are refused in `spec.runtime.env` of an
Agent. A variable that is set to an empty text counts as not set.

"""
_RUNTIME: Final = """\
## Runtime

`python -m agent_runtime`, the command of the image `abide/runtime`.

"""
_SIGNALS: Final = """\
SIGTERM and SIGINT drain: unready at once, new messages get 503, running turns finish, sessions are saved, the lease is
released, exit code 0. A second signal cuts the wait short. Exit code 2: environment or manifest cannot be used, each
mistake on its own line of stderr; 1: the port cannot be had.

"""
_OPERATOR: Final = """\
## Operator

`python -m agent_operator`, the command of the image `abide/operator`.

"""
CLI: Final[tuple[Row, ...]] = (
    ("ABIDE_URL", "(none)", "where `abide chat` and others reach an agent without a cluster, as http://host:port"),
    ("ABIDE_API_KEY", "(none)", "the key for ABIDE_URL"),
    ("KUBECTL", "(`kubectl` on the PATH)", "the kubectl to call"),
    ("ABIDE_POSTGRES_URL", "(required by `abide migrate`)", "the database to migrate"),
    (
        "ABIDE_POSTGRES_DIRECT_URL",
        "ABIDE_POSTGRES_URL",
        "the same past a connection pooler; `abide migrate` prefers it",
    ),
)
POSTGRES: Final[tuple[Row, ...]] = (
    ("ABIDE_POSTGRES_PASSWORD_FILE", "/run/secrets/abide/password", "file with the password of the role `abide`"),
    ("ABIDE_POSTGRES_VOLUME", "/var/lib/postgresql/data", "the volume; the database is in its folder `pgdata`"),
    ("ABIDE_POSTGRES_SOCKETS", "/var/run/postgresql", "folder of the Unix socket"),
)
HIDDEN: Final = ("ABIDE_FAILPOINTS", "ABIDE_FAILPOINTS_TRACE")
"""Variables of tests alone: a process that honours them by accident would be killed at once."""

_ROW = re.compile(r"^\| (ABIDE_\w+) \| (.*?) \| (.*) \|$", re.MULTILINE)


def rows(docstring: str | None) -> list[Row]:
    """Return the rows of a settings module's table, one per variable: name, default, meaning."""
    return [(name, default, meaning) for name, default, meaning in _ROW.findall(docstring or "") if name not in HIDDEN]


def sections() -> dict[str, list[Row]]:
    """Return the rows by process: runtime, operator, cli and postgres."""
    return {
        "runtime": rows(agent_runtime.settings.__doc__),
        "operator": rows(agent_operator.settings.__doc__),
        "cli": list(CLI),
        "postgres": list(POSTGRES),
    }


def render() -> str:
    """Return the page."""
    found = sections()

    def listed(section: str) -> str:
        return table(
            ["variable", "default", "meaning"],
            [[f"`{name}`", _default(text), what] for name, text, what in found[section]],
        )

    return "".join(
        [
            *(_HEADER, _RUNTIME, listed("runtime"), _SIGNALS, _OPERATOR, listed("operator")),
            *("## Command line\n\n", listed("cli")),
            *("## Postgres image\n\n`abide/postgres`; its arguments are handed to postgres.\n\n", listed("postgres")),
        ]
    )


def _default(text: str) -> str:
    """Return a default as code; one in brackets is a description."""
    return text[1:-1] if text.startswith("(") else f"`{text}`"


if __name__ == "__main__":
    write_page("Write the reference of environment variables.", render())
