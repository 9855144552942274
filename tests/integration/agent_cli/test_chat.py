"""Chatting: in the terminal of `abide dev`, and with `abide chat` over a restart of what answers."""

import fcntl
import os
import pty
import signal
import subprocess
import termios
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent_store.embedded.processes import Process
from tests.integration.agent_cli.dev_process import (
    COMMAND,
    EXAMPLE,
    READY_SECONDS,
    STOP_SECONDS,
    Dev,
    descendants,
    echo_agent,
    environment,
    running,
    until,
)


def _as_a_terminal_starts_it() -> None:
    """Make standard input the terminal of the new session, so that Ctrl-C becomes a signal, and heed that signal.

    What a script runs in the background is started with SIGINT ignored, and hands that on.
    """
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Terminal:
    """A person at a terminal: a process on a pseudo terminal, what it showed, what is typed."""

    def __init__(self, home: Path, *arguments: str | Path, environ: Mapping[str, str] | None = None) -> None:
        self._main, side = pty.openpty()
        self.process = subprocess.Popen(
            [*COMMAND, *map(str, arguments)],
            cwd=home,
            env=environment(home, {"TERM": "dumb", **(environ or {})}),
            stdin=side,
            stdout=side,
            stderr=side,
            start_new_session=True,
            preexec_fn=_as_a_terminal_starts_it,
        )
        os.close(side)
        os.set_blocking(self._main, False)
        self.shown = ""
        self.started: set[Process] = set()

    def read(self) -> str:
        """Return everything shown so far, with plain line ends."""
        try:
            while chunk := os.read(self._main, 65536):
                self.shown += chunk.decode(errors="replace")
        except BlockingIOError:
            pass
        except OSError:
            """The process has closed its side."""
        return self.shown.replace("\r\n", "\n")

    def wait_for(self, text: str, timeout: float = READY_SECONDS) -> str:
        """Return what is shown once it contains `text`."""
        until(lambda: text in self.read(), timeout, f"{text!r} is shown; shown is {self.shown!r}")
        return self.read()

    def type(self, text: str) -> None:
        os.write(self._main, text.encode())

    def press_until_end(self, key: str) -> int:
        """Press a key until the process ends, as a person would, and return its exit code.

        Python sees a signal that comes in the instant before it begins to wait for a key only with the next key.
        """
        pressed = 0.0

        def ended() -> bool:
            nonlocal pressed
            if self.process.poll() is None and time.monotonic() - pressed > 2.0:
                self.type(key)
                pressed = time.monotonic()
            return self.process.poll() is not None

        until(lambda: (self.read(), ended())[1], STOP_SECONDS, "the process has ended")
        return int(self.process.returncode)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(STOP_SECONDS)
        os.close(self._main)


@contextmanager
def terminal(home: Path, *arguments: str | Path) -> Iterator[Terminal]:
    it = Terminal(home, *arguments)
    try:
        yield it
    finally:
        it.close()


@contextmanager
def dev_terminal(home: Path, *arguments: str | Path) -> Iterator[Terminal]:
    """`abide dev` at a terminal, its prompt shown."""
    with terminal(home, "dev", *arguments) as it:
        shown = it.wait_for("you> ")
        assert "listening on http://127.0.0.1:" in shown
        it.started = descendants(it.process.pid)
        yield it
        until(lambda: not any(process.is_alive for process in it.started), STOP_SECONDS, "every process has ended")


def chat(home: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run `abide chat` to its end."""
    return subprocess.run(
        [*COMMAND, "chat", *arguments],
        cwd=home,
        env=environment(home),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("leave", ["\x03", "\x04"], ids=["ctrl-c", "ctrl-d"])
def test_a_chat_in_the_terminal_answers_remembers_and_ends_everything(home: Path, leave: str) -> None:
    with dev_terminal(home, EXAMPLE, "--port", "0") as it:
        it.type("hello\n")
        it.wait_for("assistant> hello [1]\n")
        it.type("again\n")
        it.wait_for("assistant> again [2]\n")
        it.type("/history\n")
        it.wait_for("you> again\nassistant> again [2]\n")
        it.type("/new\nfresh\n")
        # At the prompt: before it, a Ctrl-D would be taken by the terminal itself.
        it.wait_for("assistant> fresh [1]\nyou> ")
        assert it.press_until_end(leave) == 0
    assert list((home / "tmp").iterdir()) == []
    assert "Traceback" not in it.shown


def test_ctrl_c_in_mid_reply_ends_the_chat_and_the_message_is_kept(home: Path) -> None:
    manifest, data = echo_agent(home, delay=2), home / "data"
    with dev_terminal(home, manifest, "--port", "0", "--data", data) as it:
        it.type("hello\n")
        it.wait_for("assistant> ")
        until(lambda: it.read().endswith("assistant> "), 5, "the reply is awaited")
        # Typed only once the message was accepted: what is not acknowledged may be lost.
        port = it.shown.partition("http://127.0.0.1:")[2].split()[0]
        url = f"http://127.0.0.1:{port}"
        until(lambda: "default" in sessions(home, url), 20, "the session exists")
        assert it.press_until_end("\x03") == 0
    with running(home, manifest, "--port", "0", "--data", data) as dev:
        expected = ["user: hello", "assistant: hello [1]"]
        until(lambda: dev.history("default") == expected, 20, "the message was answered")


def sessions(home: Path, url: str) -> str:
    done = subprocess.run(
        [*COMMAND, "sessions", "assistant", "--url", url],
        cwd=home,
        env=environment(home),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout


def test_one_message_prints_its_reply_and_nothing_else(assistant: Dev, home: Path) -> None:
    for expected in ("hello [1]\n", "hello [2]\n"):
        done = chat(home, "assistant", "hello", "--url", assistant.url, "--session", "one")
        assert (done.returncode, done.stdout, done.stderr) == (0, expected, "")
    other = chat(home, "assistant", "hello", "--url", assistant.url, "--session", "one", "--user", "eve")
    assert other.stdout == "hello [1]\n"


def test_a_message_sent_again_under_its_key_is_the_same_turn(assistant: Dev, home: Path) -> None:
    for _ in range(2):
        options = ["--url", assistant.url, "--session", "keyed", "--idempotency-key", "k1"]
        assert chat(home, "assistant", "hello", *options).stdout == "hello [1]\n"
    other = chat(home, "assistant", "other", *options)
    assert other.returncode == 1
    assert "HTTP 409" in other.stderr


def test_sessions_lists_those_of_the_user(assistant: Dev, home: Path) -> None:
    chat(home, "assistant", "hello", "--url", assistant.url, "--session", "listed")
    chat(home, "assistant", "hello", "--url", assistant.url, "--session", "hidden", "--user", "eve")
    shown = sessions(home, assistant.url)
    assert shown.splitlines()[0].split() == ["SESSION", "MESSAGES", "LAST", "USED", "CREATED"]
    assert "listed" in shown
    assert "hidden" not in shown


def test_a_conversation_through_a_terminal_and_a_url(assistant: Dev, home: Path) -> None:
    with terminal(home, "chat", "assistant", "--url", assistant.url, "--session", "typed") as it:
        it.wait_for("you> ")
        it.type("hello\n")
        it.wait_for("assistant> hello [1]\n")
        assert it.press_until_end("\x03") == 0
    assert "Traceback" not in it.shown


def test_an_unknown_agent_and_a_silent_address_are_one_sentence(assistant: Dev, home: Path) -> None:
    for arguments in (["nobody", "hi", "--url", assistant.url], ["assistant", "hi", "--url", "http://127.0.0.1:1"]):
        done = chat(home, *arguments)
        assert done.returncode == 1
        assert done.stdout == ""
        assert done.stderr.startswith("error: ")
        assert len(done.stderr.splitlines()) == 1


def test_a_chat_gets_its_answer_although_what_answers_is_killed_in_mid_turn(home: Path) -> None:
    manifest, data = echo_agent(home, delay=1.5), home / "data"
    dev = Dev(home, [manifest, "--port", "0", "--data", data]).start().wait_ready()
    port = dev.url.rpartition(":")[2]
    client = subprocess.Popen(
        [*COMMAND, "chat", "assistant", "hello", "--url", dev.url],
        cwd=home,
        env=environment(home),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    until(lambda: dev.history("default") == ["user: hello"], 20, "the turn runs")
    dev.end(signal.SIGKILL)
    with running(home, manifest, "--port", port, "--data", data) as again:
        out, err = client.communicate(timeout=40)
        assert (client.returncode, out) == (0, "hello [1]\n")
        assert "trying again" in err
        assert again.history("default") == ["user: hello", "assistant: hello [1]"]
