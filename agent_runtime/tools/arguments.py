"""Checks values against JSON Schemas (draft 2020-12), with words that models and people can act on.

The validator is imported when a schema is first used: an agent without tools and schemas need not pay for it.
"""

import copy
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from jsonschema.protocols import Validator

MOST_PROBLEMS: Final = 5
SHOWN: Final = 200
MOST_NESTING: Final = 64
_FENCED: Final = re.compile(r"\A\s*```[a-zA-Z]*\s*\n(?P<inside>.*?)\n?```\s*\Z", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Misfit:
    """One thing that does not fit: `field` is a path such as `items[0].city`, empty for the whole."""

    field: str
    message: str

    def __str__(self) -> str:
        """Return `field: message`."""
        return f"{self.field}: {self.message}" if self.field else self.message


class BadSchema(ValueError):  # noqa: N818 - said of the schema
    """A schema that nothing can be checked against."""


class Checker:
    """Checks values against one schema; made once, used often.

    `trusted` is False for schemas of other servers: their regular expressions are not run, since one may take for
    ever; the server checks them itself. Nothing outside the schema is ever read. Raises BadSchema.
    """

    def __init__(self, schema: Mapping[str, Any], *, trusted: bool = True) -> None:
        from jsonschema.exceptions import SchemaError
        from referencing import Registry

        validator = _validator_class(trusted)
        try:
            validator.check_schema(schema)
        except SchemaError as error:
            raise BadSchema(f"{_path(error.absolute_path)}: {error.message}"[:SHOWN]) from None
        # An empty registry: a $ref to elsewhere is an error instead of a request.
        self._validator: Validator = validator(dict(schema), registry=Registry())

    def misfits(self, value: Any) -> list[Misfit]:
        """Return what does not fit, MOST_PROBLEMS at most; nothing if the value fits."""
        from jsonschema.exceptions import best_match, relevance
        from referencing.exceptions import Unresolvable

        if _is_deeper(value, MOST_NESTING):
            return [Misfit("", f"nested more than {MOST_NESTING} deep")]
        try:
            errors = sorted(self._validator.iter_errors(value), key=relevance, reverse=True)
        except Unresolvable:
            return [Misfit("", "cannot be checked: the schema refers to something that is not in it")]
        except RecursionError:
            return [Misfit("", "cannot be checked: the schema refers to itself without end")]
        found: list[Misfit] = []
        for error in errors[:MOST_PROBLEMS]:
            deepest = best_match([error]) or error
            found.append(_to_misfit(deepest))
        return list(dict.fromkeys(found))


@cache
def _validator_class(trusted: bool) -> Any:
    from jsonschema import Draft202012Validator
    from jsonschema.validators import extend

    if trusted:
        return Draft202012Validator

    def fits(validator: Any, pattern: Any, instance: Any, schema: Any) -> None:
        return None

    return extend(Draft202012Validator, {"pattern": fits, "patternProperties": fits, "format": fits})


def _to_misfit(error: Any) -> Misfit:
    path = _path(error.absolute_path)
    match error.validator:
        case "required":
            missing = next((name for name in error.validator_value if name not in error.instance), "")
            return Misfit(f"{path}.{missing}".lstrip("."), "required but missing")
        case "additionalProperties" if error.validator_value is False:
            known = sorted(error.schema.get("properties", ()))
            extra = sorted(set(error.instance) - set(known))
            return Misfit(
                f"{path}.{extra[0]}".lstrip(".") if extra else path,
                f"unknown; known here: {', '.join(known) or 'nothing'}",
            )
        case "type":
            wanted = error.validator_value
            words = " or ".join(wanted) if isinstance(wanted, list) else str(wanted)
            return Misfit(path, f"must be of type {words}, not {_described(error.instance)}")
        case "enum":
            return Misfit(path, f"must be one of {_short(error.validator_value)}, not {_short(error.instance)}")
    return Misfit(path, error.message if len(error.message) <= SHOWN else f"does not fit {error.validator}")


def _path(parts: Sequence[Any]) -> str:
    path = ""
    for part in parts:
        path += f"[{part}]" if isinstance(part, int) else f".{part}"
    return path.removeprefix(".")[:SHOWN]


def _described(value: Any) -> str:
    names = {str: "string", bool: "boolean", int: "integer", float: "number", list: "array", dict: "object"}
    return "null" if value is None else names.get(type(value), type(value).__name__)


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def _is_deeper(value: Any, most: int) -> bool:
    """Whether a value is nested deeper than `most`; without recursion, since the value may be anything."""
    level = [value]
    for _ in range(most):
        level = [
            inner
            for one in level
            if isinstance(one, dict | list)
            for inner in (one.values() if isinstance(one, dict) else one)
        ]
        if not level:
            return False
    return True


def without_property(schema: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return a schema of an object without one of its properties, for a model that is not to fill it in."""
    changed = copy.deepcopy(dict(schema))
    if isinstance(changed.get("properties"), dict):
        changed["properties"].pop(name, None)
    if isinstance(changed.get("required"), list):
        changed["required"] = [one for one in changed["required"] if one != name]
    return changed


class JsonContent:
    """What texts must be: JSON that fits a schema. Used for an agent's own input and output."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self._schema = schema
        self._checker: Checker | None = None

    @property
    def schema_text(self) -> str:
        """The schema as JSON."""
        return json.dumps(self._schema, ensure_ascii=False)

    def misfits(self, text: str) -> list[Misfit]:
        """Return why a text does not fit, nothing if it does."""
        try:
            value = json.loads(text, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            words = f"{error.msg} at character {error.pos}" if isinstance(error, json.JSONDecodeError) else "not JSON"
            return [Misfit("", f"must be JSON: {words}")]
        if self._checker is None:
            try:
                self._checker = Checker(self._schema)
            except BadSchema as error:
                return [Misfit("", f"cannot be checked, the agent's schema is wrong: {error}")]
        return self._checker.misfits(value)


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def unfence(text: str) -> str:
    """Return what stands inside a code fence that is the whole text; models put JSON into one unasked."""
    found = _FENCED.match(text)
    return found["inside"].strip() if found else text.strip()
