"""Sessions, state and errors through a real runtime, and what `abide dev` does beside serving."""

import json
import signal
import subprocess
import time
from pathlib import Path

import psycopg

from tests.integration.agent_cli.dev_process import (
    COMMAND,
    Dev,
    echo_agent,
    environment,
    running,
    until,
)


def abide(home: Path, *arguments: str, stdin: str = "") -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*COMMAND, *arguments],
        cwd=home,
        env=environment(home),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_state_is_saved_put_back_and_deleted(assistant: Dev, home: Path) -> None:
    url = ["--url", assistant.url]
    none = abide(home, "state", "show", "assistant", "kept", *url)
    assert none.returncode == 1
    assert len(none.stderr.splitlines()) == 1
    document = json.dumps({"variables": {"language": "en", "n": 1}, "summary": "short"})
    loaded = abide(home, "state", "load", "assistant", "kept", *url, stdin=document)
    assert (loaded.returncode, loaded.stderr) == (0, "")
    assert loaded.stdout == "Agent default/assistant: the state of session 'kept' is version 1 now\n"
    saved = abide(home, "state", "save", "assistant", "kept", "-f", "state.json", *url)
    assert (saved.returncode, saved.stdout) == (0, "")
    assert json.loads((home / "state.json").read_text())["variables"] == {"language": "en", "n": 1}
    shown = abide(home, "state", "show", "assistant", "kept", *url).stdout
    assert [line.split() for line in shown.splitlines() if "language" in line] == [["variables.language", "en"]]
    assert (
        json.loads(abide(home, "state", "show", "assistant", "kept", "-o", "json", *url).stdout)["summary"] == "short"
    )
    again = abide(home, "state", "load", "assistant", "kept", "-f", "state.json", *url)
    assert "version 2 now" in again.stdout
    other = abide(home, "state", "show", "assistant", "kept", "--user", "eve", *url)
    assert other.returncode == 1
    for words in ("is deleted; its messages stay", "was not there"):
        deleted = abide(home, "state", "delete", "assistant", "kept", *url)
        assert (deleted.returncode, deleted.stderr) == (0, "")
        assert words in deleted.stdout


def test_a_wrong_document_is_refused_with_its_fields(assistant: Dev, home: Path) -> None:
    url = ["--url", assistant.url]
    wrong = abide(home, "state", "load", "assistant", "s", *url, stdin='{"nonsense": 1}')
    assert wrong.returncode == 1
    assert "nonsense" in wrong.stderr
    no_json = abide(home, "state", "load", "assistant", "s", *url, stdin="{")
    assert (no_json.returncode, no_json.stderr[:18]) == (2, "stdin: is not JSON")
    missing = abide(home, "state", "load", "assistant", "s", "-f", "none.json", *url)
    assert (missing.returncode, missing.stderr) == (2, "none.json: cannot be read: No such file or directory\n")


def test_sessions_for_programs(assistant: Dev, home: Path) -> None:
    url = ["--url", assistant.url]
    abide(home, "chat", "assistant", "hello", "--session", "mine", "--user", "ada", *url)
    told = json.loads(abide(home, "sessions", "assistant", "--user", "ada", "-o", "json", *url).stdout)
    (session,) = told["items"]
    assert (session["name"], session["user"], session["messages"], told["more"]) == ("mine", "ada", 1, False)
    empty = abide(home, "sessions", "assistant", "--user", "bob", *url)
    assert (empty.returncode, empty.stdout) == (0, "")
    assert "has no sessions" in empty.stderr


FAILING = """
apiVersion: abide.dev/v1alpha1
kind: Agent
metadata: {name: failing}
spec:
  systemPrompt: You fail.
  models: [{provider: scripted, parameters: {replies: [{error: 500}]}}]
"""


def test_errors_are_listed_and_filtered(home: Path) -> None:
    manifest = home / "failing.yaml"
    manifest.write_text(FAILING)
    with running(home, manifest, "--port", "0") as dev:
        url = ["--url", dev.url]
        assert "has no errors" in abide(home, "errors", "failing", *url).stderr
        for _ in range(3):
            assert abide(home, "chat", "failing", "hello", *url).returncode == 0

        def told(*options: str) -> list[dict[str, str]]:
            return list(json.loads(abide(home, "errors", "failing", "-o", "json", *options, *url).stdout)["items"])

        until(lambda: len([one for one in told() if one["turnId"]]) == 3, 20, "the errors of three turns")
        turn_kind = next(one["type"] for one in told() if one["turnId"])
        assert {one["type"] for one in told("--type", turn_kind)} == {turn_kind}
        assert len(told("--limit", "2")) == 2
        assert told("--since", "1h") == told()
        with psycopg.connect(dev.postgres) as connection:
            connection.execute("UPDATE abide.agent_errors SET occurred_at = occurred_at - interval '2 hours'")
        assert told("--since", "1h") == []
        shown = abide(home, "errors", "failing", *url).stdout.splitlines()
        assert shown[0].split() == ["TIME", "TYPE", "TURN", "MESSAGE"]


def test_the_timeout_bounds_the_whole_wait(home: Path) -> None:
    with running(home, echo_agent(home, delay=40), "--port", "0") as dev:
        begun = time.monotonic()
        late = abide(home, "chat", "assistant", "hello", "--timeout", "3", "--url", dev.url)
        assert late.returncode == 1
        assert "accepted the message (turn " in late.stderr
        assert "has not answered within 3 s" in late.stderr
        assert time.monotonic() - begun < 15


def test_a_suspended_agent_is_not_served_and_resumes_by_the_file(home: Path) -> None:
    manifest = echo_agent(home)
    text = manifest.read_text()
    suspended = text.replace("spec: {", "spec: {suspend: true, ", 1)
    assert suspended != text
    manifest.write_text(suspended)
    refused = abide(home, "dev", str(manifest), "--port", "0")
    assert refused.returncode == 2
    assert refused.stderr == (
        "Agent default/assistant is suspended (spec.suspend: true) and not served; set it to false to serve it here\n"
    )
    manifest.write_text(text)
    with running(home, manifest, "--port", "0") as dev:
        assert abide(home, "chat", "assistant", "hello", "--url", dev.url).stdout == "hello [1]\n"
        manifest.write_text(suspended)
        until(lambda: "nothing is served" in dev.stderr, 20, "the change is told")
        gone = abide(home, "chat", "assistant", "hello", "--url", dev.url, "--timeout", "5")
        assert gone.returncode == 1
        manifest.write_text(text)
        until(lambda: "the new version serves" in dev.stderr, 20, "the resumed agent serves")
        assert abide(home, "chat", "assistant", "again", "--url", dev.url).stdout == "again [2]\n"
        assert dev.end(signal.SIGTERM) == 0


def test_dev_does_the_housekeeping_of_the_database(home: Path) -> None:
    with running(home, echo_agent(home), "--port", "0") as dev, psycopg.connect(dev.postgres) as connection:
        connection.autocommit = True

        def partitions() -> int:
            row = connection.execute(
                "SELECT count(*) FROM pg_inherits WHERE inhparent = 'abide.agent_metrics'::regclass"
            ).fetchone()
            return int(row[0]) if row else 0

        until(lambda: partitions() > 1, 20, "the partitions of the coming weeks are made")
