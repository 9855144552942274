"""What an agent's messages and replies must be, where its spec says so: JSON that fits a schema."""

from collections.abc import Mapping
from typing import Any, Final

from agent_runtime.errors import InvalidContent
from agent_runtime.tools.arguments import JsonContent, unfence

SHOWN_PROBLEMS: Final = 5


class InputContract:
    """Checks messages (spec.input.schema) before they are accepted."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self._content = JsonContent(schema)

    def check(self, content: str) -> None:
        """Return if the message fits. Raises InvalidContent naming each field."""
        misfits = self._content.misfits(content)
        if misfits:
            raise InvalidContent([(f"content.{one.field}".rstrip("."), one.message) for one in misfits])


class ReplyContract:
    """Checks replies (spec.output.schema), and tells models what they must be."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self._content = JsonContent(schema)

    @property
    def instructions(self) -> str:
        """What is added to the system prompt."""
        return (
            "Your reply must be one JSON value that fits this JSON Schema, and nothing else: no explanation, no code "
            f"fence.\n{self._content.schema_text}"
        )

    def read(self, reply: str) -> tuple[str, str]:
        """Return the reply as users get it, and why it does not fit, empty if it does."""
        text = unfence(reply)
        misfits = self._content.misfits(text)
        return text, "; ".join(map(str, misfits[:SHOWN_PROBLEMS]))

    def complain(self, problem: str) -> str:
        """Return what a model is told whose reply did not fit."""
        return f"Your reply does not fit: {problem}. Give the whole reply again as JSON that fits, and nothing else."
