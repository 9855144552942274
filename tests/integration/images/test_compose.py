"""The Compose files, with the images' own commands in the images' own files, on the Postgres of the project."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from agent_store.codec_keys import read_wrapping_keys
from tests.cluster.images import project_version
from tests.cluster.settings import REPOSITORY
from tests.integration.images.compose import Project, load, until
from tests.integration.images.rootfs import Image

FILES = ("compose.dev.yaml", "compose.prod.yaml")
AGENT = "/v1/agents/default/assistant"


def seconds(text: str) -> float:
    """Return the seconds of a duration as the loader prints it, for example 1m30s."""
    total, number = 0.0, ""
    for character in text:
        if character in "hms":
            total += float(number) * {"h": 3600, "m": 60, "s": 1}[character]
            number = ""
        else:
            number += character
    return total


@dataclass
class Api:
    """Callers of the agent, in the network of its containers."""

    project: Project
    key: str = ""

    def call(self, method: str, path: str, **options: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        return self.project.inside(
            lambda: httpx.request(
                method, f"http://127.0.0.1:8080{path}", headers=headers, timeout=30, trust_env=False, **options
            )
        )

    def reply(self, content: str) -> str:
        response = self.call("POST", f"{AGENT}/sessions/s/messages", json={"content": content})
        assert response.status_code == 200, response.text
        return str(response.json()["reply"]["content"])

    def history(self) -> list[str]:
        items = self.call("GET", f"{AGENT}/sessions/s/messages").json()["items"]
        return [item["content"] for item in items]


def mounts_and_processes(folder: Path) -> list[str]:
    """Return what uses this folder: mounts of this namespace, and processes whose root is below it."""
    found = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(folder) in line]
    for process in Path("/proc").glob("[0-9]*"):
        try:
            root = os.readlink(process / "root")
        except OSError:
            continue
        if root.startswith(str(folder)):
            found.append(f"{process} {root}")
    return found


@pytest.fixture
def production(loader: Path, images: dict[str, Image], checkout: Path) -> Iterator[Project]:
    """compose.prod.yaml, prepared as the guide says and not started yet."""
    subprocess.run([checkout / "compose" / "prepare.sh"], check=True, capture_output=True, timeout=30)
    with Project(load(loader, checkout / "compose" / "compose.prod.yaml"), images, checkout / "run") as project:
        yield project


def key_of(checkout: Path) -> str:
    return (checkout / "compose" / "secrets" / "api-keys" / "main").read_text()


def test_dev_answers_without_a_key_and_keeps_the_chat_over_down_and_up(
    loader: Path, images: dict[str, Image], checkout: Path
) -> None:
    loaded = load(loader, checkout / "compose" / "compose.dev.yaml")
    for reply in ("hello [1]", "hello [2]"):
        with Project(loaded, images, checkout / "run") as project:
            project.up()
            project.wait_healthy("agent")
            assert Api(project).reply("hello") == reply


def test_production_wants_the_key_and_runs_without_rights(production: Project, checkout: Path) -> None:
    production.up()
    production.wait_healthy("agent")
    assert Api(production).call("GET", f"{AGENT}/sessions").status_code == 401
    assert Api(production, key_of(checkout)).reply("hello") == "hello [1]"
    for name, user in (("agent", "65532"), ("postgres", "70001")):
        container = production.container(name)
        status = container.status()
        assert set(status["Uid"].split()) == {user}
        assert set(status["Gid"].split()) == {user}
        assert status["NoNewPrivs"] == "1"
        assert int(status["CapEff"], 16) == 0
        assert container.execute("sh", "-c", "echo x > /var/tmp/x").returncode != 0
        assert container.execute("sh", "-c", "echo x > /tmp/x").returncode == 0
    assert '"level":"error"' not in production.container("agent").log


def test_a_killed_agent_goes_on_with_the_chat(production: Project, checkout: Path) -> None:
    production.up()
    production.wait_healthy("agent")
    api = Api(production, key_of(checkout))
    assert api.reply("hello") == "hello [1]"
    production.container("agent").kill()
    production.start("agent")  # as `restart: unless-stopped` does
    production.wait_healthy("agent")
    assert api.history() == ["hello", "hello [1]"]
    assert api.reply("again") == "again [2]"


def test_a_restart_of_postgres_is_waited_for(production: Project, checkout: Path) -> None:
    production.up()
    production.wait_healthy("agent")
    api = Api(production, key_of(checkout))
    assert api.reply("hello") == "hello [1]"
    assert production.container("postgres").stop(seconds(production.services["postgres"]["stop_grace_period"])) == 0
    until(lambda: not production.healthy("agent"), 30, "the agent says that it is not ready")
    assert api.call("POST", f"{AGENT}/sessions/s/messages", json={"content": "x"}).status_code == 503
    production.start("postgres")
    production.wait_healthy("agent")
    assert api.reply("again") == "again [2]"
    assert production.container("agent").exit_code is None


def test_stopping_drains_within_the_grace_period(production: Project, checkout: Path) -> None:
    production.up()
    production.wait_healthy("agent")
    assert Api(production, key_of(checkout)).reply("hello") == "hello [1]"
    grace = seconds(production.services["agent"]["stop_grace_period"])
    begin = time.monotonic()
    assert production.container("agent").stop(grace) == 0
    assert time.monotonic() - begin < grace / 2
    # Draining may take ABIDE_DRAIN_SECONDS; saving, telemetry and closing take at most 13 s after it.
    assert grace >= float(production.services["agent"]["environment"]["ABIDE_DRAIN_SECONDS"]) + 13


def test_a_new_password_is_taken_over_at_the_next_start(production: Project, checkout: Path, loader: Path) -> None:
    secrets = checkout / "compose" / "secrets"
    production.up()
    production.wait_healthy("agent")
    old = (secrets / "postgres-password").read_text()
    for path in (secrets / "postgres-password", secrets / "abide.env"):
        path.write_text(path.read_text().replace(old, "another-one"))
    for name in ("agent", "postgres"):
        assert production.container(name).stop(120) == 0
    production.services = load(loader, checkout / "compose" / "compose.prod.yaml")["services"]
    assert "another-one" in production.services["agent"]["environment"]["ABIDE_POSTGRES_URL"]
    production.up()
    production.wait_healthy("agent")
    assert Api(production, key_of(checkout)).reply("hello") == "hello [1]"


def test_keys_may_change_while_it_runs(production: Project, checkout: Path) -> None:
    production.up()
    production.wait_healthy("agent")
    keys = checkout / "compose" / "secrets" / "api-keys"
    (keys / "second").write_text("a-second-key-of-some-length")
    second = Api(production, "a-second-key-of-some-length")
    until(lambda: second.call("GET", f"{AGENT}/sessions").status_code == 200, 10, "the second key is known")
    (keys / "main").unlink()
    (keys / "second").unlink()
    until(lambda: second.call("GET", f"{AGENT}/sessions").status_code == 401, 10, "the second key is forgotten")


def test_nothing_is_left_of_a_project(loader: Path, images: dict[str, Image], checkout: Path) -> None:
    roots = next(iter(images.values())).root.parent
    with Project(load(loader, checkout / "compose" / "compose.dev.yaml"), images, checkout / "run") as project:
        project.up()
        assert mounts_and_processes(roots), "running services are seen"
        pods = project.pod_pid
    assert mounts_and_processes(roots) == []
    assert not Path(f"/proc/{pods}").exists()


@pytest.mark.parametrize("file", FILES)
def test_files_are_what_they_should_be(loader: Path, checkout: Path, file: str) -> None:
    subprocess.run([checkout / "compose" / "prepare.sh"], check=True, capture_output=True, timeout=30)
    services = load(loader, checkout / "compose" / file)["services"]
    version = project_version((REPOSITORY / "pyproject.toml").read_text())
    images = {name: service["image"] for name, service in services.items()}
    runtime = f"abide/runtime:{version}"
    assert images == {"agent": runtime, "migrate": runtime, "postgres": f"abide/postgres:{version}"}
    assert [port["host_ip"] for service in services.values() for port in service.get("ports", ())] == ["127.0.0.1"]


def test_production_is_closed_and_bounded(loader: Path, checkout: Path) -> None:
    subprocess.run([checkout / "compose" / "prepare.sh"], check=True, capture_output=True, timeout=30)
    for name, service in load(loader, checkout / "compose" / "compose.prod.yaml")["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["user"].partition(":")[0] != "0", name
        assert {"cpus", "memory"} <= set(service["deploy"]["resources"]["limits"]), name
        assert service["restart"] in {"unless-stopped", "on-failure:5"}, name
        assert service.get("environment", {}).get("ABIDE_AUTH", "key") == "key", name


def test_images_and_address_can_be_chosen(loader: Path, checkout: Path) -> None:
    subprocess.run([checkout / "compose" / "prepare.sh"], check=True, capture_output=True, timeout=30)
    chosen = {"ABIDE_RUNTIME_IMAGE": "registry.example.com/runtime:1", "ABIDE_PUBLISH": "0.0.0.0:9000"}
    agent = load(loader, checkout / "compose" / "compose.prod.yaml", chosen)["services"]["agent"]
    assert agent["image"] == "registry.example.com/runtime:1"
    assert (agent["ports"][0]["host_ip"], agent["ports"][0]["published"]) == ("0.0.0.0", "9000")


def test_the_loader_refuses_what_compose_would_refuse(loader: Path, checkout: Path) -> None:
    file = checkout / "compose" / "compose.dev.yaml"
    file.write_text(file.read_text().replace("stop_grace_period:", "stop_grace:"))
    with pytest.raises(AssertionError, match="stop_grace"):
        load(loader, file)


def test_prepare_closes_the_folder_and_changes_nothing_twice(checkout: Path) -> None:
    secrets = checkout / "compose" / "secrets"

    def prepare() -> dict[str, str]:
        subprocess.run([checkout / "compose" / "prepare.sh"], check=True, capture_output=True, timeout=30)
        return {path.name: path.read_text() for path in secrets.rglob("*") if path.is_file()}

    first = prepare()
    assert prepare() == first
    assert set(first) == {"postgres-password", "abide.env", "main", "1"}
    assert len(read_wrapping_keys(secrets / "encryption-keys").newest) == 32
    assert first["postgres-password"] in first["abide.env"]
    assert len(first["main"]) >= 32
    assert secrets.stat().st_mode & 0o777 == 0o700
    assert (secrets / "abide.env").stat().st_mode & 0o777 == 0o600
    shutil.rmtree(secrets)
    assert prepare()["main"] != first["main"]
