"""Tables and instants on stdout."""

import json
import os
import pty
import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from agent_cli.errors import UsageError
from agent_cli.operate.kept import parse_duration
from agent_cli.output import Cell, OutputFormat, age, emit, one_line, parse_instant, print_table, stamp

NOW = datetime(2026, 1, 31, 14, 2, 11, tzinfo=UTC)
TABLE = """
from agent_cli.output import Cell, print_table
print_table(["NAME", "READY", "WHAT"], [["bot", Cell("False", "red"), "word " * 40]])
"""


def test_a_pipe_gets_neither_colours_nor_cut_lines(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(["NAME", "WHAT"], [["a", Cell("x" * 300, "red")], ["longer", "[bold]\x1b[31m :smile:"]])
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["NAME    WHAT", "a       " + "x" * 300, "longer  [bold] [31m :smile:"]


def on_terminal(columns: int, **environ: str) -> str:
    main, side = pty.openpty()
    settings = {"PATH": os.environ["PATH"], "COLUMNS": str(columns), "TERM": "xterm", **environ}
    process = subprocess.Popen(
        [sys.executable, "-c", TABLE], stdout=side, stdin=side, env=settings, cwd=Path(__file__).parents[3]
    )
    os.close(side)
    shown = b""
    try:
        while chunk := os.read(main, 4096):
            shown += chunk
    except OSError:
        """The process has closed its side."""
    finally:
        os.close(main)
        assert process.wait(30) == 0
    return shown.decode()


def test_a_terminal_of_80_columns_wraps_the_last_column_only() -> None:
    shown = on_terminal(80, NO_COLOR="1")
    lines = re.sub(r"\x1b\[\d*m", "", shown).splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert "\x1b[31m" not in shown
    assert lines[1].split()[:2] == ["bot", "False"]
    assert len(lines) > 2
    assert "\x1b[31m" in on_terminal(80)


def test_a_narrow_terminal_cuts_no_name_and_no_state() -> None:
    words = re.sub(r"\x1b\[\d*m", "", on_terminal(10, NO_COLOR="1")).split()
    assert words[:5] == ["NAME", "READY", "WHAT", "bot", "False"]
    assert "…" not in "".join(words)


def test_answers_for_programs_are_whole(capsys: pytest.CaptureFixture[str]) -> None:
    value = {"items": [{"name": "ü", "none": None}]}
    emit(OutputFormat.JSON, value, lambda: None)
    assert json.loads(capsys.readouterr().out) == value
    emit(OutputFormat.YAML, value, lambda: None)
    assert capsys.readouterr().out == "items:\n- name: ü\n  none: null\n"


def test_instants_and_ages() -> None:
    assert parse_instant("2026-01-31T14:02:11Z") == NOW
    assert parse_instant("2026-01-31T14:02:11") == NOW
    assert parse_instant("soon") is None
    assert (stamp(NOW), stamp(None)) == ("2026-01-31T14:02:11Z", "-")
    for seconds, told in ((5, "5s"), (119, "119s"), (120, "2m"), (7200, "2h"), (172800, "2d"), (-9, "0s")):
        assert age(NOW - timedelta(seconds=seconds), NOW) == told
    assert one_line("a\n b\x1b[0m") == "a b [0m"


def test_durations() -> None:
    assert parse_duration("1h30m") == timedelta(minutes=90)
    assert parse_duration("7d") == timedelta(days=7)
    for wrong in ("", "10", "m", "-5m", "5m "):
        with pytest.raises(UsageError, match="write a duration"):
            parse_duration(wrong)
