"""Everything about one user, given away and erased from the command line."""

import json
from pathlib import Path

from tests.integration.agent_cli.dev_process import Dev
from tests.integration.agent_cli.test_kept import abide


def test_a_users_data_are_exported_and_erased(assistant: Dev, home: Path) -> None:
    url = ["--url", assistant.url]
    for session in ("one", "two"):
        abide(home, "chat", "assistant", f"hello {session}", "--session", session, "--user", "eva", *url)
    shown = abide(home, "user", "export", "assistant", "eva", *url)
    assert shown.returncode == 0, shown.stderr
    lines = [json.loads(line) for line in shown.stdout.splitlines()]
    assert [line["kind"] for line in lines].count("session") == 2
    assert lines[-1]["kind"] == "end"
    assert f"{lines[-1]['items']} items of user 'eva'" in shown.stderr
    saved = abide(home, "user", "export", "assistant", "eva", "-f", "eva.jsonl", *url)
    assert (saved.returncode, saved.stdout) == (0, "")
    assert len((home / "eva.jsonl").read_text().splitlines()) == len(lines)

    asked = abide(home, "user", "erase", "assistant", "eva", *url)
    assert (asked.returncode, "add --yes" in asked.stderr) == (2, True)
    erased = abide(home, "user", "erase", "assistant", "eva", "--yes", *url)
    assert (erased.returncode, erased.stderr) == (0, "")
    assert erased.stdout == "Agent default/assistant: erased user 'eva': 2 sessions, 0 memories\n"
    assert "0 items" in abide(home, "user", "export", "assistant", "eva", *url).stderr
    again = abide(home, "user", "erase", "assistant", "eva", "--yes", *url)
    assert "0 sessions, 0 memories" in again.stdout


def test_mistakes_are_told(assistant: Dev, home: Path) -> None:
    url = ["--url", assistant.url]
    wrong = abide(home, "user", "export", "assistant", "no blanks", *url)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    folder = abide(home, "user", "export", "assistant", "eva", "-f", ".", *url)
    assert folder.returncode != 0
    assert folder.stdout == ""
