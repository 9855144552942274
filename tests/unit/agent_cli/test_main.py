"""The command line itself: commands, options, exit codes, and how quickly it starts."""

import io
import json
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pytest
import typer
from typer.testing import CliRunner

from agent_api.version import VERSION
from agent_cli.main import app, command_name, main

HEAVY = ("agent_runtime", "agent_store", "fastapi", "httpx", "yaml", "rich", "asyncpg", "alembic", "agent_api.v1alpha1")


@dataclass(frozen=True)
class Done:
    """How a command ended and what it printed."""

    returncode: int
    stdout: str
    stderr: str


def run(*arguments: str) -> Done:
    """Run the command line as its entry point does, in an environment without kubectl; here it ends before it acts."""
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.dict(os.environ, {"PATH": "/nowhere", "HOME": "/nowhere"}, clear=True),
        mock.patch.object(sys, "argv", ["abide", *arguments]),
        redirect_stdout(out),
        redirect_stderr(err),
        pytest.raises(SystemExit) as ended,
    ):
        main()
    return Done(int(ended.value.code or 0), out.getvalue(), err.getvalue())


COMMANDS = sorted(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    result = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "80"})
    assert result.exit_code == 0
    assert "Usage:" in result.output


def test_all_promised_commands_are_there() -> None:
    assert set(COMMANDS) >= {
        "chat", "completion", "dev", "diff", "doctor", "errors", "history", "logs", "migrate", "rollback", "schema",
        "sessions", "start", "state", "status", "stop", "validate", "version",
    }  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_explained_in_the_guide_and_the_reference(command: str) -> None:
    docs = Path(__file__).parents[3] / "docs"
    for page in ("cli.md", "cli-reference.md"):
        assert f"abide {command}" in (docs / page).read_text()


def test_help_is_quick_because_it_imports_nothing_heavy() -> None:
    code = f"import sys, agent_cli.main; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("arguments", [["version"], ["--version"]])
def test_the_version_is_shown(arguments: list[str]) -> None:
    result = CliRunner().invoke(app, arguments)
    assert (result.exit_code, result.output) == (0, f"abide {VERSION}\n")


def test_the_plugin_is_called_as_kubectl_calls_it() -> None:
    assert command_name("/usr/local/bin/kubectl-abide") == "kubectl abide"
    assert command_name("/usr/bin/abide") == "abide"


@pytest.mark.parametrize("command", ["validate", "dev"])
def test_a_bad_manifest_gives_one_line_per_error_and_exit_code_2(command: str, tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text(
        "apiVersion: abide.dev/v1alpha1\nkind: Agent\nmetadata: {name: x}\n"
        "spec: {systemPrompt: a, history: {limit: -1}, models: [{provider: nonsense}]}\n"
    )
    done = run(command, str(bad))
    assert done.returncode == 2
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 2
    assert all(line.startswith(f"{bad}:1: spec.") for line in lines)
    assert any("models[0].provider" in line and "echo" in line for line in lines)
    assert any("history.limit" in line for line in lines)


def test_a_valid_manifest_is_named() -> None:
    example = Path(__file__).parents[3] / "examples" / "assistant.yaml"
    done = run("validate", str(example))
    assert (done.returncode, done.stdout) == (0, "Agent default/assistant is valid\n")


def test_stdin_and_folders_are_validated(tmp_path: Path) -> None:
    example = (Path(__file__).parents[3] / "examples" / "assistant.yaml").read_text()
    with mock.patch.object(sys, "stdin", io.StringIO(example.replace("echo", "nosuch"))):
        done = run("validate", "-")
    assert done.returncode == 2
    assert done.stderr.startswith("stdin:1: spec.models[0].provider")
    empty = run("validate", str(tmp_path))
    assert empty.returncode == 2
    assert "no manifests in this folder" in empty.stderr
    (tmp_path / "b.yml").write_text(example.replace("name: assistant", "name: second"))
    (tmp_path / "a.yaml").write_text(example)
    (tmp_path / "notes.txt").write_text("not a manifest")
    both = run("validate", str(tmp_path))
    assert both.stdout.splitlines() == ["Agent default/assistant is valid", "Agent default/second is valid"]


def test_the_version_is_told_to_programs_too() -> None:
    assert json.loads(run("version", "-o", "json").stdout) == {"version": VERSION}


def test_without_kubectl_the_error_is_one_sentence() -> None:
    reading = ("chat", "status", "sessions", "errors", "history", "diff", "logs", "start", "stop", "rollback")
    for command in reading:
        done = run(command, "assistant")
        assert done.returncode == 1
        assert done.stdout == ""
        assert done.stderr.startswith("error: kubectl was not found")
        assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["chat", "a", "hi", "--session", "no spaces"], "--session 'no spaces': write 1 to 128 characters"),
        (["chat", "a", "hi", "--user", ""], "--user '': write 1 to 128 characters"),
        (["chat", "a", "hi", "--idempotency-key", "a b"], "--idempotency-key: write 1 to 255 visible ASCII"),
        (["chat", "a", "--idempotency-key", "k"], "--idempotency-key belongs to one message"),
        (["chat", "a", "hi", "--url", "localhost:8080"], "--url localhost:8080: write http://host:port"),
        (["errors", "a", "--since", "soon", "--url", "http://x"], "--since 'soon': write a duration such as 90s"),
        (["state", "show", "a", "no spaces", "--url", "http://x"], "SESSION 'no spaces': write 1 to 128 characters"),
        (["status", "a", "-A"], "--all-namespaces is for the table"),
        (["logs", "a", "-f", "-p"], "--follow and --previous exclude each other"),
        (["logs", "a", "--since", "abc"], "--since 'abc': write a duration such as 90s, 10m, 2h or 7d"),
        (["diff", "a", "1", "2", "3"], "Give at most two revisions."),
        (["validate", "-", "-"], "-: stdin can be read once only"),
        (["dev", "nothing.yaml"], "nothing.yaml: cannot be read: No such file or directory"),
        (["dev", "nothing.yaml", "--secret", "x"], "--secret x: write NAME.KEY=env:VARIABLE"),
    ],
)
def test_a_wrong_command_line_is_one_sentence_and_exit_code_2(arguments: list[str], message: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith(message)


def test_migrate_without_a_database_says_which_variable_to_set() -> None:
    done = run("migrate")
    assert done.returncode == 1
    assert "ABIDE_POSTGRES_URL" in done.stderr
