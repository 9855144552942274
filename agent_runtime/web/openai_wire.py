"""Bodies of the OpenAI-compatible endpoints, as far as they are understood here.

Loaded with the first request that needs them. Source: the API reference of OpenAI's chat completions. Unknown fields
(temperature, tools and the like) are accepted and have no effect: the Agent decides on its models.
"""

import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from agent_api.wire import CONTENT_MAX_LENGTH, SESSION_PATTERN, USER_PATTERN


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
        default=None, pattern=USER_PATTERN, description="Who speaks, unless the header Abide-User says so."
    )
    metadata: dict[str, Any] | None = Field(
        default=None,
        description="`session` names a session that is kept: then only the last message is new, the rest is known.",
    )

    @field_validator("metadata")
    @classmethod
    def _session_is_a_name(cls, metadata: dict[str, Any] | None) -> dict[str, Any] | None:
        session = (metadata or {}).get("session")
        if session is not None and not (isinstance(session, str) and re.fullmatch(SESSION_PATTERN, session)):
            raise ValueError(f"session: write a text that matches {SESSION_PATTERN}")
        return metadata

    @property
    def session(self) -> str | None:
        """Name of the session that is kept, if one is asked for."""
        return (self.metadata or {}).get("session")


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


class TurnInfo(BaseModel):
    """What became of the turn behind a completion; not part of OpenAI's protocol."""

    id: str | None = Field(description="Id of the turn, if it is kept.")
    status: str
    model: str | None
    error: str | None = None


class ChatCompletion(BaseModel):
    """A whole completion."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    abide: TurnInfo


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
