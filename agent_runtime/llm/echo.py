"""The built-in model that repeats what it is told. It needs no network, and shows that memory works."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass

from agent_runtime.clock import Clock
from agent_runtime.llm.port import NO_PRICE, ModelEnd, ModelRequest, Price, TextDelta, count_words


@dataclass(frozen=True, slots=True)
class EchoModel:
    """Replies with the last user message and ` [n]`, n = the user messages it was given."""

    display: str
    timeout: float
    clock: Clock
    delay: float = 0.0
    stream_idle: float = 30.0
    price: Price = NO_PRICE

    async def prepare(self) -> None:
        """There is nothing to load."""

    async def stream(self, request: ModelRequest) -> AsyncGenerator[TextDelta | ModelEnd, None]:
        """Yield the text, then the count."""
        if self.delay:
            await self.clock.sleep(self.delay)
        asked = [message for message in request.messages if message.role == "user"]
        text = asked[-1].content if asked else ""
        count = f" [{len(asked)}]"
        yield TextDelta(text)
        yield TextDelta(count)
        words = count_words(*(message.content for message in request.messages))
        yield ModelEnd(input_tokens=words, output_tokens=count_words(text + count))
