"""Typed Python functions as tools: the schema comes from annotations, arguments are checked against them."""

import inspect
import json
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, create_model
from pydantic.errors import PydanticSchemaGenerationError, PydanticUserError

from abide.agent import Call, ToolOptions, options_of
from agent_runtime.tools.port import ToolContext
from agent_runtime.tools.toolset import Offered

MOST_DESCRIPTION: Final = 1024
NAME_CHARS: Final = 64


class BadFunction(ValueError):  # noqa: N818
    """A function that cannot be a tool; the text says why and what to write instead."""


class FunctionTool:
    """One function. Raises BadFunction."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.options: ToolOptions = options_of(function)
        self.name: str = self.options.name or str(getattr(function, "__name__", ""))
        self._context_name: str | None = None
        self._fields: dict[str, str] = {}
        """Field of the model by parameter: a parameter may have a name that models use for something else."""
        if not (self.name.isascii() and self.name.replace("-", "_").isidentifier() and len(self.name) <= NAME_CHARS):
            raise BadFunction(f"tool {self.name!r}: name it with letters, digits, '_' and '-', at most {NAME_CHARS}")
        self._model = self._make_model()
        wanted = self.options.idempotency_argument
        if wanted is not None and wanted not in self._fields:
            raise BadFunction(f"tool {self.name}: idempotency_argument {wanted!r} is no parameter of it")
        description = inspect.cleandoc(function.__doc__ or "")
        if not description:
            raise BadFunction(f"tool {self.name}: write a docstring, models choose tools by it")
        self.offered = Offered(
            self.name,
            description[:MOST_DESCRIPTION],
            self._schema(),
            self.options.side_effects,
            idempotency_argument=wanted,
        )

    def bind(self, arguments: Mapping[str, Any], context: ToolContext) -> dict[str, Any]:
        """Return the function's arguments as its annotations want them. Raises BadFunction naming each wrong one."""
        try:
            checked = self._model.model_validate(dict(arguments))
        except ValidationError as error:
            problems = (
                f"{'.'.join(str(part) for part in one['loc']) or 'arguments'}: {one['msg']}" for one in error.errors()
            )
            raise BadFunction("; ".join(problems)) from None
        given = checked.model_fields_set
        named = {name: getattr(checked, field) for name, field in self._fields.items() if field in given}
        if self._context_name is not None:
            named[self._context_name] = Call(
                context.user, context.session, context.session_id, context.turn_id, context.key
            )
        return named

    def _make_model(self) -> type[BaseModel]:
        try:
            hints = typing.get_type_hints(self.function, include_extras=True)
        except Exception as error:  # annotations are code of the user's
            raise BadFunction(f"tool {self.name}: its annotations cannot be read: {error}") from error
        fields: dict[str, Any] = {}
        for name, parameter in inspect.signature(self.function).parameters.items():
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
                raise BadFunction(f"tool {self.name}: parameter {name} cannot be passed by name; write a named one")
            if name not in hints:
                raise BadFunction(f"tool {self.name}: parameter {name} has no type; annotate it")
            if hints[name] is Call:
                self._context_name = name
                continue
            field = self._fields[name] = f"parameter_{len(self._fields)}"
            default = ... if parameter.default is parameter.empty else parameter.default
            fields[field] = (Annotated[hints[name], Field(alias=name)], default)
        try:
            made: type[BaseModel] = create_model(
                f"{self.name}_arguments", __config__=ConfigDict(extra="forbid"), **fields
            )
        except (PydanticSchemaGenerationError, PydanticUserError, NameError) as error:
            raise BadFunction(f"tool {self.name}: its annotations make no schema: {error}") from error
        return made

    def _schema(self) -> dict[str, Any]:
        try:
            schema = self._model.model_json_schema()
        except PydanticUserError as error:
            raise BadFunction(f"tool {self.name}: its annotations make no JSON Schema: {error}") from error
        schema.pop("title", None)
        for part in schema.get("properties", {}).values():
            part.pop("title", None)
        return schema


def to_text(value: Any) -> str:
    """Return what a model reads of a function's result. Raises BadFunction for what is no JSON value."""
    if isinstance(value, str):
        return value
    if value is None:
        return "done"
    try:
        return json.dumps(TypeAdapter(Any).dump_python(value, mode="json"), ensure_ascii=False)
    except (ValueError, TypeError) as error:
        raise BadFunction(f"its result cannot be shown as JSON: {error}") from None
