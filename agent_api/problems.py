"""Validation errors → one line per problem: the field's wire path, what is wrong, what to write instead.

`abide validate`, `abide dev`, the runtime and the operator say the same about a bad Agent, in the words of the manifest
and not of the validator.
"""

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from agent_api.partial import broken_rules
from agent_api.rules import RULES_ERROR
from agent_api.schema import Schema, build_schema
from agent_api.v1alpha1 import Model

SHOWN_VALUE_MAX_LENGTH: Final = 60


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: `field` is a wire path such as `spec.models[0].provider`, or "" for the whole."""

    field: str
    message: str

    def __str__(self) -> str:
        """Return `field: message`."""
        return f"{self.field}: {self.message}" if self.field else self.message


def explain(error: ValidationError) -> list[Problem]:
    """Return what is wrong with an Agent, in the order of its fields."""
    return [problem for details in error.errors(include_url=False) for problem in _explain_one(details)]


def explain_document(model: type[Model], document: Any, error: ValidationError) -> list[Problem]:
    """Return everything that is wrong with a document in its wire form: what `error` tells, and the laws it breaks.

    pydantic leaves out the laws about objects that have a wrong field.
    """
    problems = explain(error)
    wrong = frozenset(
        tuple(part for part in details["loc"] if not _is_union_tag(part))
        for details in error.errors(include_url=False)
        if not isinstance(details["input"], Mapping | list) and details["type"] != "missing"
    )
    for location, rule in broken_rules(model, document, wrong):
        path = format_path(location)
        problem = Problem(".".join(filter(None, (path, rule.field))), rule.message)
        if problem not in problems:
            problems.append(problem)
    return problems


def suggest(unknown: str, known: Iterable[str]) -> str:
    """Return which known name was probably meant, or else all of them."""
    names = sorted(known)
    if close := difflib.get_close_matches(unknown, names, n=1, cutoff=0.6):
        return f"did you mean {close[0]}?"
    folded = {name.replace("_", "").casefold(): name for name in names}
    if same := folded.get(unknown.replace("_", "").casefold()):
        return f"did you mean {same}?"
    return f"known here: {', '.join(names)}" if names else "remove it"


def _explain_one(details: ErrorDetails) -> Iterator[Problem]:
    location = [part for part in details["loc"] if not _is_union_tag(part)]
    path = format_path(location)
    if details["type"] == RULES_ERROR:
        for broken in details["ctx"]["problems"]:
            yield Problem(".".join(filter(None, (path, broken["field"]))), broken["message"])
    else:
        yield Problem(path, _message(details, location))


def _is_union_tag(part: int | str) -> bool:
    return isinstance(part, str) and part.startswith("<")


def format_path(location: Iterable[int | str]) -> str:
    """Return `spec.models[0].provider` for ("spec", "models", 0, "provider")."""
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}"
    return path.removeprefix(".")


def _schema_at(location: Iterable[int | str]) -> Schema:
    """Return the schema of a field, or {} where the models know none."""
    schema = build_schema()
    for part in location:
        schema = schema.get("items", {}) if isinstance(part, int) else schema.get("properties", {}).get(part, {})
    return schema


def _message(details: ErrorDetails, location: list[int | str]) -> str:
    kind, value = details["type"], details["input"]
    if kind == "missing":
        description = _schema_at(location).get("description", "")
        return f"required but missing{'. ' if description else ''}{description}"
    if kind == "extra_forbidden":
        return f"unknown field; {suggest(str(location[-1]), _schema_at(location[:-1]).get('properties', {}))}"
    if kind == "literal_error":
        return f"{shown(value)} is not supported; write one of: {_allowed(details)}"
    if kind in _WANTED_TYPES:
        return f"must be {_WANTED_TYPES[kind]}, not {_described(value)}{_quotes_hint(kind, value)}"
    if kind in _BOUNDS:
        return _BOUNDS[kind](shown(value), details.get("ctx", {}))
    return details["msg"]


def _allowed(details: ErrorDetails) -> str:
    return str(details["ctx"]["expected"]).replace("'", "").replace(" or ", ", ")


_WANTED_TYPES: Final[Mapping[str, str]] = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "string_type": "a text",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
}

_BOUNDS: Final[Mapping[str, Callable[[str, Mapping[str, Any]], str]]] = {
    "greater_than_equal": lambda value, ctx: f"{value} is too small; write {ctx['ge']:g} or more",
    "less_than_equal": lambda value, ctx: f"{value} is too large; write {ctx['le']:g} or less",
    "string_too_short": lambda _, ctx: f"too short; write at least {_counted(ctx['min_length'], 'character')}",
    "string_too_long": lambda _, ctx: f"too long; write at most {_counted(ctx['max_length'], 'character')}",
    "too_short": lambda _, ctx: f"too few; write at least {_counted(ctx['min_length'], 'entry')}",
    "too_long": lambda _, ctx: f"too many; write at most {_counted(ctx['max_length'], 'entry')}",
}


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun if number == 1 else noun.removesuffix('y') + ('ies' if noun.endswith('y') else 's')}"


def shown(value: object) -> str:
    """Return a scalar as a message shows it: quoted text, shortened."""
    text = str(value)
    if len(text) > SHOWN_VALUE_MAX_LENGTH:
        text = text[:SHOWN_VALUE_MAX_LENGTH] + "…"
    return f'"{text}"' if isinstance(value, str) else text


def _described(value: object) -> str:
    if value is None:
        return "empty"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    return f"the text {shown(value)}" if isinstance(value, str) else f"the number {shown(value)}"


def _quotes_hint(kind: str, value: object) -> str:
    if kind == "string_type" and isinstance(value, int | float):
        return "; put it in quotes"
    if kind in ("int_type", "float_type", "bool_type") and isinstance(value, str):
        return "; write it without quotes"
    return ""
