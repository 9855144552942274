"""The generators of the reference pages: complete, and they notice what nobody documented."""

import json
import re
from pathlib import Path
from uuid import UUID

import pytest

from agent_api.v1alpha1 import Agent
from agent_operator.resources.deployment import GRACE_SECONDS
from agent_operator.settings import OperatorSettings
from agent_runtime.settings import LEASE_TTL, RuntimeSettings
from tools.environment_reference import HIDDEN, Row, sections
from tools.pictures import render as render_picture
from tools.rest_reference import document
from tools.rest_reference import render as render_rest
from tools.values_reference import UndocumentedValueError, values
from tools.values_reference import render as render_values

ROOT = Path(__file__).resolve().parents[3]
CHART = ROOT / "helm" / "abide"
URL = "postgresql://abide:x@localhost/abide"
# Set by tests or by tools for developers; nobody who runs Abide has to know them.
DEVELOPMENT = {"ABIDE_CACHE_DIR", "ABIDE_IMAGE_TAG", "ABIDE_IMAGE_REGISTRY", *HIDDEN}


def names_in(*places: str) -> set[str]:
    """Return the variables that code or templates below these places name."""
    files = [
        file for place in places for file in ([ROOT / place] if (ROOT / place).is_file() else (ROOT / place).rglob("*"))
    ]
    texts = (file.read_text() for file in files if file.suffix in {".py", ".sh", ".yaml", ".tpl"})
    return {name for text in texts for name in re.findall(r"\bABIDE_[A-Z]+(?:_[A-Z]+)*\b", text)} - DEVELOPMENT


def documented(section: str) -> set[str]:
    return {name for name, _, _ in sections()[section]}


def test_every_variable_of_the_runtime_is_documented() -> None:
    assert names_in("agent_runtime/settings.py") == documented("runtime")


def test_every_variable_of_the_operator_is_documented() -> None:
    read = names_in("operator/agent_operator/settings.py", "operator/agent_operator/migrations.py")
    assert read <= documented("operator")
    assert documented("operator") <= read | {"ABIDE_POSTGRES_DIRECT_URL"}


def test_every_variable_anywhere_is_documented() -> None:
    every = names_in(
        "agent_api", "agent_store", "agent_runtime", "agent_cli", "operator", "docker", "helm/abide", "compose"
    )
    given_by_the_chart = {"ABIDE_INSTALL_ID"}
    of_compose_files = {"ABIDE_RUNTIME_IMAGE", "ABIDE_POSTGRES_IMAGE", "ABIDE_AGENT_FILE", "ABIDE_PUBLISH"}
    everything = {name for section in sections() for name in documented(section)}
    assert every - everything - given_by_the_chart - of_compose_files == set()


@pytest.mark.parametrize("row", sections()["runtime"], ids=lambda row: row[0])
def test_defaults_of_the_runtime_are_true(row: Row) -> None:
    name, default, _ = row
    environ = {
        "ABIDE_POSTGRES_URL": URL,
        "ABIDE_INSTANCE": "i",
        "ABIDE_POD_NAME": "p",
        "ABIDE_AGENT_ID": str(UUID(int=1)),
    }
    if not default.startswith("("):
        assert RuntimeSettings.from_environ({**environ, name: default}) == RuntimeSettings.from_environ(environ)


@pytest.mark.parametrize("row", sections()["operator"], ids=lambda row: row[0])
def test_defaults_of_the_operator_are_true(row: Row) -> None:
    name, default, _ = row
    if default.startswith("("):
        return
    settings = OperatorSettings.from_environ({"ABIDE_POSTGRES_URL": URL})
    value = URL if default == "ABIDE_POSTGRES_URL" else default
    given = OperatorSettings.from_environ({"ABIDE_POSTGRES_URL": URL, name: value})
    plain = {field: getattr(settings, field) for field in OperatorSettings.__slots__ if field != "environ"}
    assert {field: getattr(given, field) for field in OperatorSettings.__slots__ if field != "environ"} == plain


def test_every_value_of_the_chart_is_listed_with_its_default() -> None:
    text, schema = (CHART / "values.yaml").read_text(), json.loads((CHART / "values.schema.json").read_text())
    page = render_values(text, schema)
    for value in values(text, schema):
        assert f"`{value.path}`" in page
    assert '| `image.pullPolicy` | `IfNotPresent` or `Always` or `Never` | `"IfNotPresent"` |' in page


def test_a_value_without_comment_is_noticed() -> None:
    with pytest.raises(UndocumentedValueError, match="b"):
        values("# -- What a is.\na: 1\n\nb: 2\n", {})


def test_a_mapping_whose_keys_have_no_comments_is_one_value() -> None:
    (found,) = values("# -- Sizes.\nsizes:\n  cpu: 1\n  memory: 2\n", {})
    assert (found.path, found.default, found.has_children) == ("sizes", "{cpu: 1, memory: 2}", False)


def test_every_call_parameter_and_schema_of_the_api_is_listed() -> None:
    described = document()
    page = render_rest(described)
    calls = [(method, path, found) for path, methods in described["paths"].items() for method, found in methods.items()]
    assert len(calls) >= 18
    for method, path, operation in calls:
        section = page.split(f"### `{method.upper()} {path}`\n")[1].split("\n### ")[0]
        for parameter in operation.get("parameters", []):
            assert f"| `{parameter['name']}` |" in section
        for status in operation["responses"]:
            assert f"| {'other' if status == 'default' else status} |" in section
    for name in described["components"]["schemas"]:
        assert f"### {name}\n" in page


def test_links_inside_the_api_reference_lead_to_headings() -> None:
    page = render_rest(document())
    headings = {
        re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.*)$", page, re.MULTILINE)
    }
    assert set(re.findall(r"\]\(#([^)]+)\)", page)) <= headings


def test_pictures_hold_text_need_no_font_and_hide_the_password() -> None:
    picture = render_picture("\x1b[1mpostgres\x1b[0m: postgresql://abide:secret@127.0.0.1:1/postgres\n", "title")
    assert "secret" not in picture
    assert "@font-face" not in picture
    assert "http" not in re.sub(r'xmlns="[^"]*"|<!--.*?-->', "", picture, flags=re.DOTALL)
    assert "abide:…@127.0.0.1:1/postgres" in picture.replace("&#160;", " ")


@pytest.mark.parametrize("picture", sorted((ROOT / "docs" / "pictures").glob("*.svg")), ids=lambda path: path.stem)
def test_pictures_are_of_this_tool(picture: Path) -> None:
    assert "@font-face" not in picture.read_text()
    assert "generated with" in picture.read_text().lower()


def test_the_table_of_defaults_says_what_the_code_does() -> None:
    page = (ROOT / "docs" / "defaults.md").read_text()
    spec = Agent.model_validate(
        {
            "apiVersion": "abide.dev/v1alpha1",
            "kind": "Agent",
            "metadata": {"name": "a"},
            "spec": {"systemPrompt": "x", "models": [{"provider": "echo"}]},
        }
    ).spec
    runtime = RuntimeSettings.from_environ({"ABIDE_POSTGRES_URL": URL})
    bounds = runtime.bounds
    expected = {
        "messages the model is given": f"the newest {spec.history.limit}",
        "messages that wait behind the running one": f"{spec.session.queue_limit}, then 429",
        "model calls of one turn": f"{spec.limits.max_steps}",
        "length of one turn": f"{spec.limits.turn_seconds} s",
        "wait for a model's first token": f"{spec.models[0].timeout_seconds} s",
        "an idle session leaves memory": f"after {spec.session.evict_after_seconds} s",
        "a snapshot of the state": f"every {spec.state.auto_save_every_messages} accepted",
        "rows of a deleted Agent": {"Retain": "kept", "Delete": "erased"}[spec.state.deletion_policy],
        "body of a request": f"{bounds.body_bytes // 2**20} MiB",
        "headers of a request": f"{bounds.header_bytes // 2**10} KiB",
        "turns that run at once, per agent and process": f"{bounds.running_turns}",
        "requests that wait at once, per process": f"{bounds.waiters}",
        "pods of an agent": f"{spec.replicas}",
        "connections to Postgres, per pod": f"at most {runtime.postgres_connections};",
        "time to finish running turns when stopped": f"{runtime.drain_seconds:g} s, the pod's grace is {GRACE_SECONDS}",
        "a process that died is replaced by another": f"its lease lasts {LEASE_TTL:g} s",
        "revisions kept for a rollback": f"{spec.revision_history_limit}",
    }
    for what, default in expected.items():
        assert f"\n| {what} | " in page
        row = page.split(f"\n| {what} | ")[1].splitlines()[0]
        assert default in row, f"{what}: {default}"
