"""Bodies of the OpenAI-compatible endpoints, as far as they are understood here.

Loaded with the first request that needs them. Source: the API reference of OpenAI's chat completions. Unknown fields
(temperature, tools and the like) are accepted and have no effect: the Agent decides on its models.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from agent_api.wire import CONTENT_MAX_LENGTH


class ContentPart(BaseModel):
    """One part of a message's content; only text is understood."""

    model_config = ConfigDict(extra="ignore")

    type: Literal["text"]
    text: str = Field(max_length=CONTENT_MAX_LENGTH)


class ChatMessageIn(BaseModel):
    """One message of the conversation."""

    model_config = ConfigDict(extra="ignore")

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[ContentPart] | None = None

    def text(self) -> str:
        """Return the content as one text."""
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""


class StreamOptions(BaseModel):
    """How a stream looks."""

    model_config = ConfigDict(extra="ignore")

    include_usage: bool = False


class ChatCompletionRequest(BaseModel):
    """A request for a completion. `model` is `{namespace}/{name}` of an agent."""

    model_config = ConfigDict(extra="ignore")

    model: str = Field(min_length=1, max_length=200, examples=["default/assistant"])
    messages: list[ChatMessageIn] = Field(min_length=1, max_length=1000)
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: str | None = Field(
        default=None, max_length=128, description="The user; the session unless metadata names it."
    )
    metadata: dict[str, Any] | None = Field(
        default=None, description="`session` names a session kept on the server; only the last message counts then."
    )


class CompletionMessage(BaseModel):
    """The reply."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: str | None = None


class Choice(BaseModel):
    """The one choice."""

    index: int = 0
    message: CompletionMessage
    logprobs: None = None
    finish_reason: Literal["stop"] = "stop"


class Usage(BaseModel):
    """What it cost, in tokens of the model that answered."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ChatCompletion(BaseModel):
    """A whole completion."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage


class ModelCard(BaseModel):
    """An agent, shown as a model."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "abide"


class ModelList(BaseModel):
    """The agents of this process, as models."""

    object: Literal["list"] = "list"
    data: list[ModelCard]
