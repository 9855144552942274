"""The environment: everything wrong is named at once, with what to write instead."""

import json
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from agent_api.v1alpha1 import Agent
from agent_runtime.errors import SettingsError
from agent_runtime.ids import default_agent_id, new_turn_id
from agent_runtime.settings import AuthMode, RuntimeSettings

URL = "postgresql://u:p@db/abide"


def manifest(name: str = "a", **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "abide.dev/v1alpha1",
        "kind": "Agent",
        "metadata": {"name": name},
        "spec": {"systemPrompt": "hi", "models": [{"provider": "echo"}], **spec},
    }


def settings_for(path: Path, **environ: str) -> RuntimeSettings:
    return RuntimeSettings.from_environ({"ABIDE_POSTGRES_URL": URL, "ABIDE_MANIFEST": str(path), **environ})


def test_defaults() -> None:
    settings = RuntimeSettings.from_environ({"ABIDE_POSTGRES_URL": URL})
    assert settings.manifest == Path("/etc/abide/agent.json")
    assert (settings.host, settings.port, settings.drain_seconds) == ("0.0.0.0", 8080, 20)
    assert settings.auth is AuthMode.KEY
    assert settings.instance
    assert settings.instance != RuntimeSettings.from_environ({"ABIDE_POSTGRES_URL": URL}).instance


def test_every_wrong_variable_is_named() -> None:
    with pytest.raises(SettingsError) as caught:
        RuntimeSettings.from_environ(
            {
                "ABIDE_POSTGRES_URL": "mysql://x",
                "ABIDE_PORT": "70000",
                "ABIDE_AUTH": "maybe",
                "ABIDE_AGENT_ID": "seven",
                "ABIDE_LOG_LEVEL": "loud",
                "ABIDE_DRAIN_SECONDS": "-1",
            }
        )
    named = [problem.split("=")[0].split()[0] for problem in caught.value.problems]
    assert sorted(named) == [
        "ABIDE_AGENT_ID",
        "ABIDE_AUTH",
        "ABIDE_DRAIN_SECONDS",
        "ABIDE_LOG_LEVEL",
        "ABIDE_PORT",
        "ABIDE_POSTGRES_URL",
    ]
    with pytest.raises(SettingsError, match="ABIDE_POSTGRES_URL is not set"):
        RuntimeSettings.from_environ({})


def test_a_json_manifest_is_read_and_the_agent_gets_its_derived_id(tmp_path: Path) -> None:
    path = tmp_path / "agent.json"
    path.write_text(json.dumps(manifest()))
    settings = settings_for(path)
    (agent,) = settings.load_agents()
    assert settings.id_of(agent) == default_agent_id("default", "a") == default_agent_id("default", "a")
    given = settings_for(path, ABIDE_AGENT_ID="019c147e-5d3c-7b1a-9a3e-0c7d2f4b8a11")
    assert given.id_of(agent) == UUID("019c147e-5d3c-7b1a-9a3e-0c7d2f4b8a11")


def test_a_yaml_manifest_with_a_prompt_in_a_config_map(tmp_path: Path) -> None:
    path = tmp_path / "agents.yaml"
    path.write_text(
        """
apiVersion: v1
kind: ConfigMap
metadata: {name: prompts}
data: {main: You are kind.}
---
apiVersion: abide.dev/v1alpha1
kind: Agent
metadata: {name: b}
spec:
  systemPromptFrom: {configMapKeyRef: {name: prompts, key: main}}
  models: [{provider: echo}]
"""
    )
    (agent,) = settings_for(path).load_agents()
    assert agent.spec.system_prompt == "You are kind."


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (json.dumps(manifest(models=[])), "models"),
        (json.dumps(manifest(limits={"maxSteps": -1})), "maxSteps"),
        ("{", ":"),
        (
            json.dumps(manifest(systemPrompt=None, systemPromptFrom={"configMapKeyRef": {"name": "x", "key": "y"}})),
            "a: ",
        ),
    ],
)
def test_a_manifest_that_cannot_be_used_is_explained(tmp_path: Path, text: str, named: str) -> None:
    path = tmp_path / "agent.json"
    path.write_text(text)
    with pytest.raises(SettingsError) as caught:
        settings_for(path).load_agents()
    assert any(named in problem for problem in caught.value.problems)


def test_a_missing_manifest_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"nowhere\.json cannot be read"):
        settings_for(tmp_path / "nowhere.json").load_agents()


def test_agents_given_in_process_are_served_and_namesakes_refused() -> None:
    agent = Agent.model_validate(manifest())
    settings = RuntimeSettings(postgres_url=URL, agents=(agent,))
    assert settings.load_agents() == (agent,)
    with pytest.raises(SettingsError, match="default/a is there twice"):
        RuntimeSettings(postgres_url=URL, agents=(agent, agent)).load_agents()
    two = (agent, Agent.model_validate(manifest("b")))
    with pytest.raises(SettingsError, match="ABIDE_AGENT_ID"):
        RuntimeSettings(postgres_url=URL, agents=two, agent_id=UUID(int=1)).load_agents()


def test_turn_ids_are_version_7_and_sort_by_time() -> None:
    from datetime import UTC, datetime, timedelta

    start = datetime(2026, 1, 1, tzinfo=UTC)
    ids = [new_turn_id(start + timedelta(milliseconds=n)) for n in range(100)]
    assert ids == sorted(ids)
    assert {(one.version, one.variant) for one in ids} == {(7, "specified in RFC 4122")}
    assert len({new_turn_id(start) for _ in range(1000)}) == 1000


def test_encryption_keys_are_a_folder_or_none(tmp_path: Path) -> None:
    path = tmp_path / "agent.json"
    path.write_text(json.dumps(manifest()))
    assert settings_for(path).encryption_keys_dir is None
    given = settings_for(path, ABIDE_ENCRYPTION_KEYS_DIR="/keys", ABIDE_ENCRYPTION_SOURCE="Secret shop/keys")
    assert (given.encryption_keys_dir, given.encryption_source) == (Path("/keys"), "Secret shop/keys")
