"""What a pod must not pay for: modules the runtime has no use for are never loaded by it."""

import subprocess
import sys

import pytest

HEAVY = (
    "alembic",
    "psycopg",
    "httpcore",
    "httpx",
    "httpx2",
    "jsonschema",
    "jwt",
    "mcp",
    "openai",
    "anthropic",
    "google.genai",
    "pydantic_ai",
    "rich",
    "typer",
    "yaml",
    "kopf",
    "kubernetes",
    "sqlalchemy",
    "jinja2",
    "h11",
    "pydantic.v1",
)
CODE = """
import sys
import agent_runtime.app
from agent_runtime.settings import RuntimeSettings
agent_runtime.app.build_app(RuntimeSettings(postgres_url="postgresql://x/x"))
print(" ".join(sorted({name.split(".")[0] for name in sys.modules} | set(sys.modules))))
"""


@pytest.fixture(scope="module")
def loaded() -> set[str]:
    result = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, timeout=60, check=True)
    return set(result.stdout.split())


@pytest.mark.parametrize("module", HEAVY)
def test_the_runtime_starts_without(module: str, loaded: set[str]) -> None:
    assert module not in loaded


def test_it_is_the_runtime_that_was_loaded(loaded: set[str]) -> None:
    assert {"fastapi", "asyncpg", "uvicorn", "structlog"} <= loaded


CHATS = {"openai": "openai", "anthropic": "anthropic", "google": "google.genai"}
LOAD = """
import asyncio, sys
from agent_runtime.llm.dialects import DIALECTS
from agent_runtime.llm.provider import Library
asyncio.run(Library().load(DIALECTS[sys.argv[1]]))
print(" ".join(sys.modules))
"""


@pytest.mark.parametrize("provider", CHATS)
def test_an_agent_loads_the_library_of_its_provider_and_no_other(provider: str) -> None:
    command = [sys.executable, "-c", LOAD, provider]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    modules = set(result.stdout.split())
    assert {name for name in CHATS.values() if name in modules} == {CHATS[provider]}
    assert not {"aiohttp", "httpx", "rich", "mcp", "anthropic.resources.beta.dreams"} & modules
