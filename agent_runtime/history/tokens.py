"""How many tokens messages take, estimated from their length: providers count them only after a call."""

from collections.abc import Sequence
from typing import Final

from agent_runtime.llm.port import ChatMessage

CHARS_PER_TOKEN: Final = 4.0
"""The usual estimate for English text, until a provider has counted."""
BOUNDS: Final = (1.0, 8.0)
LEAST_TOKENS: Final = 50
"""Counts of shorter requests say little: what every request has around it weighs too much."""
WEIGHT: Final = 0.1
MESSAGE_CHARS: Final = 16
"""What a message takes besides its text: about four tokens."""


class TokenGauge:
    """Learns from what providers counted how many characters a token of this agent's conversations has."""

    def __init__(self) -> None:
        self.chars_per_token = CHARS_PER_TOKEN

    def observe(self, chars: int, tokens: int) -> None:
        """Take note of a request of so many characters, for which the provider counted so many tokens."""
        if tokens >= LEAST_TOKENS:
            found = min(max(chars / tokens, BOUNDS[0]), BOUNDS[1])
            self.chars_per_token += WEIGHT * (found - self.chars_per_token)

    def chars_for(self, tokens: int) -> int:
        """Return how many characters about so many tokens are."""
        return int(tokens * self.chars_per_token)


def chars_of(message: ChatMessage) -> int:
    """Return how long a message is, tool calls included."""
    calls = sum(len(call.name) + len(str(call.arguments)) for call in message.tool_calls)
    return len(message.content) + calls + MESSAGE_CHARS


def newest_within(messages: Sequence[ChatMessage], most_chars: int) -> Sequence[ChatMessage]:
    """Return the longest end of the conversation that is not longer than that."""
    left = most_chars
    for index in range(len(messages) - 1, -1, -1):
        left -= chars_of(messages[index])
        if left < 0:
            return messages[index + 1 :]
    return messages
