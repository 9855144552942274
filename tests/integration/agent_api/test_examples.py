"""Every example answers: all of them served at once by `abide dev`, as the guides say."""

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from queue import Empty, Queue
from typing import Any

import httpx
import pytest

from agent_api.manifest import load_manifests
from agent_api.v1alpha1 import KEYED_PROVIDERS
from tests.integration.agent_api.conftest import ROOT

EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))


def needs_no_account(path: Path) -> bool:
    (agent,) = load_manifests(path.read_text(), source=path.name)
    models = agent.spec.models
    return any(model.is_built_in for model in models) and not any(model.provider in KEYED_PROVIDERS for model in models)


SERVED = [path for path in EXAMPLES if needs_no_account(path)]
"""Those that answer without an account anywhere, and call nobody who exists; the others are checked, not run."""
START_TIMEOUT = 120.0
STOP_TIMEOUT = 60.0


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address under which all examples are served."""
    folder = tmp_path_factory.mktemp("dev")
    secrets = ["--secret", "llm.api-key=env:EXAMPLE_KEY"]
    command = [Path(sys.executable).with_name("abide"), "dev", *SERVED, *secrets, "--no-chat", "--port", "0"]
    with (folder / "stderr").open("w") as errors:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=errors,
            stdin=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1", "EXAMPLE_KEY": "not-a-real-key"},
        )
    lines: Queue[str] = Queue()
    assert process.stdout is not None

    def read() -> None:
        for line in process.stdout or ():
            lines.put(line)
        lines.put("(it ended)")

    reader = threading.Thread(target=read)
    reader.start()
    try:
        try:
            said = lines.get(timeout=START_TIMEOUT)
        except Empty:
            pytest.fail(f"abide dev said nothing within {START_TIMEOUT} s: {(folder / 'stderr').read_text()}")
        found = re.fullmatch(r"listening on (http://\S+)\n", said)
        assert found, f"{said} {(folder / 'stderr').read_text()}"
        yield found[1]
    finally:
        process.send_signal(signal.SIGINT)
        code = process.wait(timeout=STOP_TIMEOUT)
        reader.join(timeout=STOP_TIMEOUT)
        process.stdout.close()
    assert code == 0, (folder / "stderr").read_text()


def send(url: str, name: str, content: str, *, session: str) -> dict[str, Any]:
    path = f"/v1/agents/default/{name}/sessions/{session}/messages"
    answer = httpx.post(url + path, json={"content": content}, timeout=30, trust_env=False)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


@pytest.mark.parametrize("path", SERVED, ids=lambda path: path.name)
def test_the_example_answers(served: str, path: Path) -> None:
    (agent,) = load_manifests(path.read_text(), source=path.name)
    said = send(served, agent.metadata.name, "hello", session="first")
    assert said["turn"]["status"] == "completed"
    assert said["turn"]["model"] == next(model.display for model in agent.spec.models if model.is_built_in)
    assert said["reply"]["content"]


def test_the_assistant_counts_as_its_comments_say(served: str) -> None:
    replies = [send(served, "assistant", "hello", session="counted")["reply"] for _ in range(2)]
    assert replies == [{"content": "hello [1]"}, {"content": "hello [2]"}]


def test_the_tour_guide_falls_back_to_the_stand_in(served: str) -> None:
    said = [send(served, "tour-guide", "next", session="tour") for _ in range(4)]
    assert [answer["turn"]["model"] for answer in said] == [
        "scripted/scripted",
        "scripted/scripted",
        "echo/echo",
        "scripted/scripted",
    ]
    assert said[2]["reply"] == {"content": "next [3]"}
