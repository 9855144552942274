"""What a pod must not pay for: modules the runtime has no use for are never loaded by it."""

import subprocess
import sys

import pytest

HEAVY = (
    "alembic",
    "psycopg",
    "httpx",
    "httpx2",
    "openai",
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
