"""Laws that a document breaks although it is not valid: pydantic tests an object's rules once its fields are right.

Whoever writes a manifest wants to know everything at once, so the rules are tested on the document as it stands. A rule
that would have to look at a wrong or missing field says nothing.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, get_args

from pydantic import AliasChoices
from pydantic.fields import FieldInfo

from agent_api.rules import Rule
from agent_api.v1alpha1 import Model

Location = tuple[int | str, ...]

_UNTESTABLE: Final = (AttributeError, TypeError, ValueError, LookupError, ArithmeticError)
"""What a rule may raise on values of types it does not expect."""


def broken_rules(model: type[Model], document: Any, wrong: frozenset[Location]) -> Iterator[tuple[Location, Rule]]:
    """Yield the rules that do not hold anywhere in a document, each with the place of its object.

    `document` is in its wire form; `wrong` has the places of the values that are not what they should be.
    """
    if isinstance(document, Mapping):
        yield from _broken(_Object(model, document, (), wrong))


@dataclass(frozen=True, slots=True)
class _Object:
    """An unchecked mapping, and the model it should be one day."""

    model: type[Model]
    value: Mapping[str, Any]
    location: Location
    wrong: frozenset[Location]

    def key(self, name: str, field: FieldInfo) -> str | None:
        """Return the key under which a field stands here, or None if it is absent."""
        return next((key for key in _keys(name, field) if key in self.value), None)

    def _has_unknown(self) -> bool:
        fields = self.model.model_fields.items()
        known = {key for name, field in fields for key in _keys(name, field)}
        return self.model.model_config.get("extra") == "forbid" and not known.issuperset(self.value)

    def parts(self) -> Iterator["_Object"]:
        """Yield the objects in this one's fields."""
        for name, field in self.model.model_fields.items():
            model, key = _model_of(field.annotation), self.key(name, field)
            if model is None or key is None:
                continue
            value, location = self.value[key], (*self.location, key)
            for place, entry in _entries(value, location):
                if isinstance(entry, Mapping):
                    yield _Object(model, entry, place, self.wrong)

    def attribute(self, name: str) -> Any:
        """Return what the model's attribute would be. Raises AttributeError for wrong and missing ones."""
        field = self.model.model_fields.get(name)
        if field is None:
            return vars(self.model)[name].fget(_Seen(self))  # a property, or KeyError
        key = self.key(name, field)
        if key is not None:
            return self._seen(_model_of(field.annotation), self.value[key], (*self.location, key))
        if field.is_required() or self._has_unknown():
            raise AttributeError(name)  # an unknown field may be this one, misspelt
        return field.get_default(call_default_factory=True)

    def _seen(self, model: type[Model] | None, value: Any, location: Location) -> Any:
        if location in self.wrong:
            raise AttributeError(str(location[-1]))
        if isinstance(value, list):
            return [self._seen(model, entry, place) for place, entry in _entries(value, location)]
        if model is not None and isinstance(value, Mapping):
            return _Seen(_Object(model, value, location, self.wrong))
        return value


class _Seen:
    """An unchecked object with the attributes its model would have, and no others."""

    def __init__(self, seen: _Object) -> None:
        self.__seen = seen

    def __getattr__(self, name: str) -> Any:
        return self.__seen.attribute(name)


def _broken(seen: _Object) -> Iterator[tuple[Location, Rule]]:
    for rule in seen.model.rules:
        try:
            holds = rule.holds(_Seen(seen))
        except _UNTESTABLE:
            continue
        if not holds:
            yield seen.location, rule
    for part in seen.parts():
        yield from _broken(part)


def _keys(name: str, field: FieldInfo) -> list[str]:
    alias = field.validation_alias
    choices = alias.choices if isinstance(alias, AliasChoices) else [alias or name]
    return [key for key in choices if isinstance(key, str)]


def _entries(value: Any, location: Location) -> Iterator[tuple[Location, Any]]:
    """Yield a list's entries with their places, or the value itself with its own."""
    if not isinstance(value, list):
        yield location, value
        return
    for index, entry in enumerate(value):
        yield (*location, index), entry


def _model_of(annotation: Any) -> type[Model] | None:
    """Return the model among the parts of a type, such as ModelSpec of `list[ModelSpec]`."""
    if isinstance(annotation, type) and issubclass(annotation, Model):
        return annotation
    return next((found for part in get_args(annotation) if (found := _model_of(part))), None)
