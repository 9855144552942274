"""The reference of the command line, from the commands themselves: `make generate` runs this.

`python -m tools.cli_reference --output FILE` writes every command with its arguments and options as Markdown.
"""

import argparse
import sys
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any, Final

import typer.main

from agent_cli.main import app

HEADER: Final = """\
# Reference: the `abide` command

Generated from `agent_cli/commands/` by `make generate`; edit those files instead. [cli.md](cli.md) explains what the
commands are for. `kubectl abide …` takes the same arguments. Every command has `--help` too.
"""


_TYPES: Final = {int: "N", float: "N", Path: "FILE"}


def render_reference() -> str:
    """Return the page."""
    root: Any = typer.main.get_command(app)
    parts = [HEADER]
    for path, command in _walk(root, "abide"):
        parts.append(_render_command(path, command))
    return "\n".join(parts)


def _walk(command: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yield every command that does something, by its path, alphabetically."""
    for name in sorted(command.commands):
        child = command.commands[name]
        if hasattr(child, "commands"):
            yield from _walk(child, f"{path} {name}")
        else:
            yield f"{path} {name}", child


def _render_command(path: str, command: Any) -> str:
    arguments = [one for one in command.params if one.param_type_name == "argument"]
    options = [one for one in command.params if one.param_type_name == "option" and "--help" not in one.opts]
    usage = " ".join([path, *(_usage(one) for one in arguments), *(["[OPTIONS]"] if options else [])])
    text = "\n".join(line.strip() for line in (command.help or "").splitlines()).strip()
    lines = [f"## `{path}`", "", "```text", usage, "```", "", text, ""]
    if arguments:
        lines += ["| argument | meaning |", "| --- | --- |"]
        lines += [f"| `{_name(one)}` | {_escape(_help(one))} |" for one in arguments]
        lines.append("")
    if options:
        lines += ["| option | default | meaning |", "| --- | --- | --- |"]
        lines += [f"| {_flags(one)} | {_default(one)} | {_escape(_help(one))} |" for one in options]
        lines.append("")
    return "\n".join(lines)


def _usage(argument: Any) -> str:
    name = _name(argument) + (" …" if argument.nargs == -1 and " " not in _name(argument) else "")
    return name if argument.required else f"[{name}]"


def _name(argument: Any) -> str:
    return str(argument.metavar or argument.name.upper())


def _flags(option: Any) -> str:
    names = ", ".join(f"`{name}`" for name in sorted(option.opts, key=len))
    if getattr(option, "is_flag", False):
        return names
    kind = option.type_descriptor.annotation
    if isinstance(kind, type) and issubclass(kind, Enum):
        return f"{names} {' '.join(f'`{choice.value}`' for choice in kind)}"
    return f"{names} {_escape(option.metavar or _TYPES.get(kind, 'TEXT'))}"


def _default(option: Any) -> str:
    value = option.default
    if getattr(option, "is_flag", False) or value is None or not isinstance(value, str | int | float):
        return ""
    return f"`{value:g}`" if isinstance(value, float) else f"`{getattr(value, 'value', value)}`"


def _help(parameter: Any) -> str:
    variable = f" (environment: `{parameter.envvar}`)" if getattr(parameter, "envvar", None) else ""
    return f"{parameter.help or ''}{variable}"


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def main(arguments: list[str]) -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(prog="python -m tools.cli_reference", description="Write the CLI's reference.")
    parser.add_argument("--output", type=Path, required=True, help="file to write")
    options = parser.parse_args(arguments)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(render_reference(), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
