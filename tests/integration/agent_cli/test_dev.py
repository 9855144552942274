"""`abide dev` as a process: ready in seconds, remembers, survives kill -9, ends without a trace."""

import signal
import socket
import stat
import subprocess
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import psycopg

from tests.integration.agent_cli.dev_process import (
    COMMAND,
    EXAMPLE,
    REPOSITORY,
    STOP_SECONDS,
    Dev,
    echo_agent,
    environment,
    running,
    until,
)


def run(home: Path, *arguments: str | Path, **environ: str) -> "subprocess.CompletedProcess[str]":
    """Run `abide dev` that is expected to end by itself."""
    return subprocess.run(
        [*COMMAND, "dev", *map(str, arguments)],
        cwd=home,
        env=environment(home, environ),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_it_answers_remembers_and_keeps_users_apart_without_a_key(assistant: Dev) -> None:
    assert assistant.reply("hello") == "hello [1]"
    assert assistant.reply("again") == "again [2]"
    assert assistant.reply("hello", Abide_User="eve") == "hello [1]"
    assert assistant.history() == ["user: hello", "assistant: hello [1]", "user: again", "assistant: again [2]"]


def test_the_same_endpoints_as_in_a_cluster_are_there(assistant: Dev) -> None:
    for path in ("/livez", "/readyz", "/health", "/metrics", "/openapi.json", "/docs"):
        assert httpx.get(assistant.url + path, trust_env=False, timeout=30).status_code == 200, path
    assert assistant.post("hello", agent="default/nobody").status_code == 404


def test_the_printed_postgres_holds_the_conversation(assistant: Dev) -> None:
    assistant.reply("hello", session="kept")
    with psycopg.connect(assistant.postgres, connect_timeout=10) as connection:
        rows = connection.execute(
            "SELECT t.status FROM abide.turns t JOIN abide.sessions s ON s.id = t.session_id WHERE s.name = 'kept'"
        ).fetchall()
    assert rows == [("completed",)]


def test_it_prints_where_it_is_and_listens_on_loopback_only(assistant: Dev) -> None:
    first, second = assistant.stdout.splitlines()
    assert first == f"listening on {assistant.url}"
    assert first.startswith("listening on http://127.0.0.1:")
    assert second.startswith("postgres: postgresql://")


def test_sigterm_stops_everything_and_leaves_nothing(home: Path) -> None:
    dev = Dev(home, [EXAMPLE, "--port", "0"]).start().wait_ready()
    assert dev.reply("hello") == "hello [1]"
    assert len(dev.started) >= 2
    assert dev.end(signal.SIGTERM) == 0
    assert dev.left_over == set()
    assert list((home / "tmp").iterdir()) == []


def test_a_signal_while_it_starts_stops_everything_too(home: Path) -> None:
    dev = Dev(home, [EXAMPLE, "--port", "0"]).start()
    until(dev.note_descendants, STOP_SECONDS, "Postgres is being started")
    assert dev.end() == 0
    until(lambda: not dev.left_over, STOP_SECONDS, "every process has ended")
    assert list((home / "tmp").iterdir()) == []


def test_after_kill_9_the_history_is_there_and_an_acknowledged_message_gets_its_reply(home: Path) -> None:
    manifest, data = echo_agent(home, delay=1.5), home / "data"
    dev = Dev(home, [manifest, "--port", "0", "--data", data]).start().wait_ready()
    assert dev.reply("first") == "first [1]"
    acknowledged = dev.post("second", Prefer="respond-async", Idempotency_Key="k2")
    assert acknowledged.status_code == 202
    dev.note_descendants()
    assert dev.end(signal.SIGKILL) == -signal.SIGKILL
    until(lambda: not dev.left_over, STOP_SECONDS, "Postgres ends when abide was killed")
    (left_in_tmp,) = (home / "tmp").iterdir()
    subprocess.run(["touch", "-d", "1 hour ago", left_in_tmp / "in-use"], check=True)

    with running(home, manifest, "--port", "0", "--data", data) as again:
        assert not left_in_tmp.exists()
        expected = ["user: first", "assistant: first [1]", "user: second", "assistant: second [2]"]
        until(lambda: again.history() == expected, 20, "the acknowledged message was answered once")
        repeated = again.post("second", Idempotency_Key="k2")
        assert repeated.json()["turn"]["id"] == acknowledged.json()["turn"]["id"]
        assert again.history() == expected


def test_a_stop_in_mid_turn_is_quick_and_the_turn_goes_on_next_time(home: Path) -> None:
    manifest, data = echo_agent(home, delay=25), home / "data"
    dev = Dev(home, [manifest, "--port", "0", "--data", data]).start().wait_ready()
    assert dev.post("slow", Prefer="respond-async").status_code == 202
    begin = time.monotonic()
    assert dev.end() == 0
    assert time.monotonic() - begin < 20
    echo_agent(home, delay=0)
    with running(home, manifest, "--port", "0", "--data", data) as again:
        until(lambda: again.history() == ["user: slow", "assistant: slow [1]"], 20, "the turn was finished")


def test_one_data_folder_has_one_user_at_a_time(home: Path) -> None:
    with running(home, EXAMPLE, "--port", "0", "--data", home / "data") as dev:
        second = run(home, EXAMPLE, "--port", "0", "--data", home / "data")
        assert second.returncode == 1
        assert "is in use by another Abide" in second.stderr
        assert len(second.stderr.splitlines()) == 1
        assert dev.reply("still here") == "still here [1]"


def test_a_port_that_is_taken_is_one_sentence(home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run(home, EXAMPLE, "--port", str(port))
    assert done.returncode == 2
    assert done.stderr.startswith(f"Port {port} on 127.0.0.1 cannot be used (Address already in use)")
    assert len(done.stderr.splitlines()) == 1


def test_every_error_of_a_bad_manifest_is_told_on_a_line_of_its_own(home: Path) -> None:
    (home / "bad.yaml").write_text(
        "apiVersion: abide.dev/v1alpha1\nkind: Agent\nmetadata: {name: bad}\nspec:\n"
        "  systemPrompt: One.\n  systemPromptFrom: {configMapKeyRef: {name: p, key: k}}\n"
        "  models: [{provider: nobody}]\n  history: {limit: -1}\n"
        "---\napiVersion: abide.dev/v1alpha1\nkind: Agent\nmetadata: {name: empty}\nspec: {systemPrompt: Two.}\n"
    )
    done = run(home, "bad.yaml", "missing.yaml")
    assert (done.returncode, done.stdout) == (2, "")
    assert [": ".join(line.split(": ")[:2]) for line in done.stderr.splitlines()] == [
        "bad.yaml:1: spec.models[0].provider",
        "bad.yaml:1: spec.history.limit",
        "bad.yaml:1: spec.systemPromptFrom",
        "bad.yaml:2: spec.models",
        "missing.yaml: cannot be read",
    ]


def test_several_agents_and_files_are_served_by_one_process_on_a_free_port(home: Path) -> None:
    files = [EXAMPLE, echo_agent(home, name="other"), REPOSITORY / "examples" / "prompt-from-configmap.yaml"]
    with ExitStack() as stack:
        # Taken by this test, or by somebody else before.
        with suppress(OSError):
            stack.enter_context(socket.create_server(("127.0.0.1", 8080)))
        dev = stack.enter_context(running(home, *files))
        assert not dev.url.endswith(":8080")
        for name in ("assistant", "other", "shop-support"):
            assert dev.reply("hello", agent=f"default/{name}") == "hello [1]"
        assert dev.end(signal.SIGINT) == 0


def test_secrets_of_the_file_and_the_command_line_are_laid_out_privately(home: Path) -> None:
    keyed = REPOSITORY / "examples" / "with-secret.yaml"
    second = home / "second.yaml"
    second.write_text(
        "apiVersion: abide.dev/v1alpha1\nkind: Agent\nmetadata: {name: second}\n"
        "spec: {systemPrompt: Echo., models: [{provider: echo, apiKeySecretRef: {name: given, key: k}}]}\n"
    )
    option = ["--secret", "given.k=env:MY_KEY"]
    with running(home, keyed, second, "--port", "0", *option, MY_KEY="from-the-environment") as dev:
        values = {"llm/api-key": "not-a-real-key", "given/k": "from-the-environment"}
        for path, value in values.items():
            (file,) = (home / "tmp").glob(f"abide-dev-*/secrets/{path}")
            assert file.read_text() == value
            assert stat.S_IMODE(file.stat().st_mode) == 0o600
            assert value not in dev.stdout + dev.stderr
        assert dev.reply("hello", agent="default/keyed") == "hello [1]"
        assert dev.reply("hello", agent="default/second") == "hello [1]"


def test_a_missing_secret_is_named_and_nothing_is_started(home: Path) -> None:
    text = (REPOSITORY / "examples" / "with-secret.yaml").read_text().replace("api-key: not", "other: not")
    (home / "keyed.yaml").write_text(text)
    done = run(home, "keyed.yaml")
    assert done.returncode == 2
    assert done.stderr == (
        'Agent default/keyed: spec.models[0].apiKeySecretRef: Secret default/llm has no key "api-key"; '
        "add it to the file, or give --secret llm.api-key=env:VARIABLE\n"
    )
    assert list((home / "tmp").iterdir()) == []


def test_a_changed_file_is_served_and_a_broken_one_is_not(home: Path) -> None:
    manifest = echo_agent(home, name="assistant")
    with running(home, manifest, "--port", "0") as dev:
        assert dev.reply("one") == "one [1]"
        good = manifest.read_text()
        manifest.write_text(good.replace("provider: echo", "provider: nonsense"))
        until(lambda: "the last good version keeps serving" in dev.stderr, 10, "the broken file is noticed")
        assert f"{manifest}:1: spec.models[0].provider" in dev.stderr
        assert dev.reply("two") == "two [2]"
        scripted = "provider: scripted, parameters: {replies: [changed]}"
        manifest.write_text(good.replace("provider: echo, parameters: {delaySeconds: 0}", scripted))
        until(lambda: "the new version serves" in dev.stderr, 20, "the changed file is served")
        assert dev.reply("three") == "changed"
        assert len(dev.history()) == 6
