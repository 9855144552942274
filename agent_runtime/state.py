"""The state document of a session: what a snapshot holds (docs/state.md).

A snapshot is a cursor, variables and a reference to a summary, not a copy of the history: with the stored messages it
rebuilds a session. Encoding and decoding are inverse; documents of every older format version still load.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from agent_runtime.errors import InvalidState

FORMAT: Final = "abide.dev/session-state"
FORMAT_VERSION: Final = 2
CURSOR: Final = ("turnSeq", "acceptedMessages", "summarySeq")
MOST_BYTES: Final = 262_144
"""Largest document that is taken, as compact JSON: a state is read and written whole."""
MOST_DEPTH: Final = 32
MOST_INTEGER: Final = 2**63 - 1


@dataclass(frozen=True, slots=True)
class SessionDocument:
    """A session's state.

    `turn_seq` is the last turn the snapshot covers (0: none), `accepted_messages` the user messages accepted by then;
    `variables` are free for the agent's user, `summary` stands for history that was condensed (None: none was): for the
    messages up to the one numbered `summary_seq`.
    """

    turn_seq: int = 0
    accepted_messages: int = 0
    variables: Mapping[str, Any] = field(default_factory=dict)
    summary: str | None = None
    summary_seq: int = 0


def encode(document: SessionDocument) -> dict[str, Any]:
    """Return the JSON form, in the present format version."""
    return {
        "format": FORMAT,
        "formatVersion": FORMAT_VERSION,
        "cursor": {
            "turnSeq": document.turn_seq,
            "acceptedMessages": document.accepted_messages,
            **({"summarySeq": document.summary_seq} if document.summary_seq else {}),
        },
        "variables": dict(document.variables),
        "summary": document.summary,
    }


def decode(data: object) -> SessionDocument:
    """Read a JSON document of this or an older format version. Raises InvalidState naming each wrong field."""
    if not isinstance(data, Mapping):
        raise InvalidState([("", "write a JSON object")])
    data = _upgrade(data)
    check = _Checker()
    document = check.document(data)
    if check.problems:
        raise InvalidState(check.problems)
    return document


def _from_first(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """The first version did not say for which messages a summary stands."""
    return {**data, "formatVersion": 2}


_UPGRADES: Final[Mapping[int, Callable[[Mapping[str, Any]], Mapping[str, Any]]]] = {1: _from_first}
"""For each older format version, how a document of it becomes one of the next."""


def _upgrade(data: Mapping[str, Any]) -> Mapping[str, Any]:
    if data.get("format", FORMAT) != FORMAT:
        raise InvalidState([("format", f"write {FORMAT}")])
    version = data.get("formatVersion", FORMAT_VERSION)
    if not _is_integer(version) or version < 1:
        raise InvalidState([("formatVersion", f"write a whole number from 1 to {FORMAT_VERSION}")])
    if version > FORMAT_VERSION:
        raise InvalidState([("formatVersion", f"{version} is newer than {FORMAT_VERSION}; upgrade Abide first")])
    while version < FORMAT_VERSION:
        data = _UPGRADES[version](data)
        version += 1
    return data


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


class _Checker:
    def __init__(self) -> None:
        self.problems: list[tuple[str, str]] = []

    def document(self, data: Mapping[str, Any]) -> SessionDocument:
        known = {"format", "formatVersion", "cursor", "variables", "summary"}
        self.problems += [(str(name), "no such field") for name in data if name not in known]
        cursor = self._object(data, "cursor")
        self.problems += [(f"cursor.{name}", "no such field") for name in cursor if name not in CURSOR]
        summary = data.get("summary")
        if summary is not None and not isinstance(summary, str):
            self.problems.append(("summary", "write a text or null"))
        document = SessionDocument(
            turn_seq=self._count(cursor, "turnSeq"),
            accepted_messages=self._count(cursor, "acceptedMessages"),
            variables=self._object(data, "variables"),
            summary=summary if isinstance(summary, str) else None,
            summary_seq=self._count(cursor, "summarySeq"),
        )
        self._check_size(data)
        return document

    def _object(self, data: Mapping[str, Any], name: str) -> Mapping[str, Any]:
        value = data.get(name, {})
        if isinstance(value, Mapping):
            return value
        self.problems.append((name, "write a JSON object"))
        return {}

    def _count(self, cursor: Mapping[str, Any], name: str) -> int:
        value = cursor.get(name, 0)
        if _is_integer(value) and 0 <= value <= MOST_INTEGER:
            return int(value)
        self.problems.append((f"cursor.{name}", "write a whole number, 0 or more"))
        return 0

    def _check_size(self, data: Mapping[str, Any]) -> None:
        problem = storable_problem(data)
        if problem:
            self.problems.append(("variables", problem))


def storable_problem(data: object) -> str | None:
    """Return why this JSON value cannot be kept, or None if it can."""
    if _depth(data) > MOST_DEPTH:
        return f"nested deeper than {MOST_DEPTH}"
    try:
        encoded = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except ValueError:  # UnicodeEncodeError is one too
        return "holds NaN, Infinity or half a surrogate pair, which JSON cannot carry"
    if len(encoded) > MOST_BYTES:
        return f"the document has {len(encoded)} bytes; at most {MOST_BYTES} are kept"
    return None


def _depth(value: object) -> int:
    """Return how deep a JSON value nests, without recursion."""
    deepest, stack = 0, [(value, 1)]
    while stack:
        item, depth = stack.pop()
        deepest = max(deepest, depth)
        if depth > MOST_DEPTH:
            return depth
        if isinstance(item, Mapping):
            stack += [(child, depth + 1) for child in item.values()]
        elif isinstance(item, list | tuple):
            stack += [(child, depth + 1) for child in item]
    return deepest
