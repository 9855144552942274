"""A real model in `abide dev`: the key comes from the environment, and the same manifest runs as in a cluster."""

import json

import httpx

from tests.fakes.provider import GREETING, KEY, MODEL, ModelProvider
from tests.integration.agent_cli.dev_process import private_folder, running
from tests.integration.agent_runtime.harness import manifest
from tests.integration.agent_runtime.models import compatible


def test_a_key_given_on_the_command_line_is_used_and_shown_nowhere(provider: ModelProvider) -> None:
    with private_folder() as home:
        path = home / "agent.yaml"
        path.write_text(json.dumps(manifest("assistant", compatible(provider))))
        options = ("--secret", "llm.key=env:MY_KEY", "--no-chat", "--port", "0")
        with running(home, path, *options, MY_KEY=KEY) as dev:
            response = dev.post("hello", agent="tests/assistant")
            body = response.json()
            assert (body["reply"]["content"], body["turn"]["model"]) == (GREETING, f"openai-compatible/{MODEL}")
            models = httpx.get(f"{dev.url}/readyz", trust_env=False).json()["models"]
            assert [(model["name"], model["ok"]) for model in models] == [(MODEL, True)]
        assert KEY not in dev.stdout + dev.stderr
    assert {request.key for request in provider.requests} == {KEY}
