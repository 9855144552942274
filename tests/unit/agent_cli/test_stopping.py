"""Signals as a request to stop, in a process of its own."""

import signal
import subprocess
import sys

import pytest

PREAMBLE = """
import sys, threading
from agent_cli.local.stopping import StopRequest
stop = StopRequest()
"""
WAIT = (
    PREAMBLE
    + """
print("ready", flush=True)
stop.wait()
stop.finish()
print("stopped", stop.requested)
"""
)
READ = (
    PREAMBLE
    + """
try:
    with stop.interrupting():
        print("ready", flush=True)
        sys.stdin.readline()
except KeyboardInterrupt:
    print("stopped", stop.requested)
"""
)
FROM_A_THREAD = (
    PREAMBLE
    + """
print("ready", flush=True)
threading.Timer(0.05, stop.request).start()
stop.wait()
print("stopped", stop.requested)
"""
)
BEFORE = (
    PREAMBLE
    + """
stop.request()
print("ready", flush=True)
try:
    with stop.interrupting():
        print("entered")
except KeyboardInterrupt:
    print("stopped", stop.requested)
"""
)

# The module asks to stop while it is being imported.
IMPORTING = (
    PREAMBLE
    + """
import os, pathlib, tempfile, time
folder = tempfile.TemporaryDirectory()
pathlib.Path(folder.name, "slow.py").write_text(
    "import os, signal\\nos.kill(os.getpid(), signal.SIGTERM)\\nwhole = True\\n"
)
sys.path.insert(0, folder.name)
print("ready", flush=True)
try:
    with stop.interrupting():
        import slow
        time.sleep(20)
except KeyboardInterrupt:
    print("stopped", stop.requested, slow.whole)
"""
)


def play(code: str, *numbers: signal.Signals) -> tuple[int, str]:
    """Run the code, send the signals once it is ready, return exit code and the rest of what it printed."""
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        for number in numbers:
            process.send_signal(number)
        try:
            return process.wait(20), process.stdout.read()
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("code", [WAIT, READ])
def test_a_signal_ends_waiting_and_reading(code: str, number: signal.Signals) -> None:
    assert play(code, number) == (0, "stopped True\n")


def test_a_signal_does_not_tear_an_import_apart() -> None:
    assert play(IMPORTING) == (0, "stopped True True\n")


def test_several_signals_are_one_request() -> None:
    assert play(WAIT, signal.SIGINT, signal.SIGTERM, signal.SIGINT) == (0, "stopped True\n")


def test_another_thread_may_ask_to_stop() -> None:
    assert play(FROM_A_THREAD) == (0, "stopped True\n")


def test_a_request_made_before_interrupts_what_begins_after() -> None:
    assert play(BEFORE) == (0, "stopped True\n")
