"""The built-in model that follows a script: one entry per model step of a session, then from the start again."""

from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import dataclass

from agent_api.v1alpha1 import ScriptedReply
from agent_runtime.clock import Clock
from agent_runtime.llm.port import NO_PRICE, ModelEnd, ModelError, ModelRequest, Price, TextDelta, ToolCall, count_words

MOST_PIECES = 16


@dataclass(frozen=True, slots=True)
class ScriptedModel:
    """Plays `replies[step mod length]`: waits, then fails, or gives text and tool calls.

    `delay` seconds come before every entry, an entry's own on top.
    """

    display: str
    timeout: float
    clock: Clock
    replies: Sequence[str | ScriptedReply]
    delay: float = 0.0
    stream_idle: float = 30.0
    price: Price = NO_PRICE

    async def prepare(self) -> None:
        """There is nothing to load."""

    async def stream(self, request: ModelRequest) -> AsyncGenerator[TextDelta | ModelEnd, None]:
        """Yield the entry's text in pieces, then its tool calls."""
        entry = self.replies[request.step % len(self.replies)]
        reply = ScriptedReply(content=entry) if isinstance(entry, str) else entry
        if delay := self.delay + reply.delay_seconds:
            await self.clock.sleep(delay)
        if reply.error is not None:
            raise ModelError.from_status(reply.error)
        text = reply.content or ""
        for piece in pieces(text):
            yield TextDelta(piece)
        calls = tuple(
            ToolCall(id=f"call-{request.step}-{index}", name=call.name, arguments=call.arguments)
            for index, call in enumerate(reply.tool_calls)
        )
        words = count_words(*(message.content for message in request.messages))
        yield ModelEnd(tool_calls=calls, input_tokens=words, output_tokens=count_words(text))


def pieces(text: str) -> Iterator[str]:
    """Cut a text behind its spaces into at most MOST_PIECES parts that join to it again."""
    words = text.split(" ")
    per_piece = -(-len(words) // MOST_PIECES)
    for start in range(0, len(words), per_piece):
        last = start + per_piece >= len(words)
        piece = " ".join(words[start : start + per_piece]) + ("" if last else " ")
        if piece:
            yield piece
