"""Named statements from sql/queries/*.sql: each follows a line `-- name: NAME`; comments above it explain it."""

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType

_FOLDER = Path(__file__).parents[1] / "sql" / "queries"
_NAME = re.compile(r"^-- name: (\w+)$", re.MULTILINE)


def parse_queries(text: str) -> dict[str, str]:
    """Return the statements of one file by name, without comments. Raises ValueError if a name comes twice."""
    parts = _NAME.split(text)
    names, bodies = parts[1::2], parts[2::2]
    if len(set(names)) != len(names):
        raise ValueError(f"a statement is named twice: {sorted(names)}")
    return {name: _strip(body) for name, body in zip(names, bodies, strict=True)}


@cache
def load_queries() -> Mapping[str, str]:
    """Return all statements of the package."""
    return MappingProxyType(parse_queries("\n".join(path.read_text() for path in sorted(_FOLDER.glob("*.sql")))))


def _strip(body: str) -> str:
    return "\n".join(line for line in body.splitlines() if not line.startswith("--")).strip()
