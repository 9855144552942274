"""Laws about resources, written once: as CEL for the API server, as Python for every other way in, with one message.

`Rule` is about several fields of an object, `Matches` about one text. agent_api.v1alpha1 declares them,
agent_api.crdgen writes them into the CRD, and a test holds both forms against each other on a real API server.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

RULES_ERROR: Final = "abide_rules"
"""Type of the pydantic error of broken rules; its context has `problems`: a list of {field, message}."""


@dataclass(frozen=True)
class Rule:
    """One law about an object: `cel` and `holds` say the same, `message` says what to write instead.

    `field` is the wire path of the culprit below the object (`parameters.replies`), or "" for the object itself.
    `cel` is None where the API server cannot check it: inside a value that is a text or an object, a type CEL does not
    have.
    """

    field: str
    cel: str | None
    holds: Callable[[Any], bool]
    message: str


def cel_rules(rules: Iterable[Rule], *, below: str = "") -> list[dict[str, str]]:
    """Return the rules that CEL can say, as `x-kubernetes-validations` lists them; `below` goes before their fields."""
    return [
        {"rule": rule.cel, "message": rule.message} | ({"fieldPath": f".{below}{rule.field}"} if rule.field else {})
        for rule in rules
        if rule.cel is not None
    ]


def check_rules(value: object, rules: Iterable[Rule]) -> None:
    """Raise one pydantic error that names every broken rule, or return when all hold."""
    broken = [{"field": rule.field, "message": rule.message} for rule in rules if not rule.holds(value)]
    if broken:
        text = "; ".join(f"{problem['field']}: {problem['message']}".removeprefix(": ") for problem in broken)
        raise PydanticCustomError(RULES_ERROR, "{text}", {"text": text, "problems": broken})


@dataclass(frozen=True)
class Matches:
    """Annotation of a text that must match a pattern whole; `message` says what to write instead.

    The pattern must mean the same to Python's re and to RE2, anchors included.
    """

    pattern: str
    message: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Check after the text's own type and length."""
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """Write CEL and not `pattern`: only CEL has a message."""
        cel = {"rule": f"self.matches(r'{self.pattern}')", "message": self.message}
        return handler(schema) | {"x-kubernetes-validations": [cel]}

    def _check(self, text: str) -> str:
        if not re.fullmatch(self.pattern, text):
            problem = {"field": "", "message": self.message}
            raise PydanticCustomError(RULES_ERROR, "{text}", {"text": self.message, "problems": [problem]})
        return text
