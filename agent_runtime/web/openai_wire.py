"""Bodies of the OpenAI-compatible endpoints, as far as they are understood here.

Loaded with the first request that needs them. Source: the API reference of OpenAI's chat completions. Fields that only
say how a model should answer (temperature and the like) are accepted and have no effect: the Agent decides on its
models. Fields that ask for another kind of answer (tools, several choices, audio, a schema) are refused, as are fields
that the protocol does not have: a client must not take for an answer what is none.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from agent_api.wire import CONTENT_MAX_LENGTH, SESSION_PATTERN, USER_PATTERN


class ContentPart(BaseModel):
    """One part of a message's content; only text is understood."""

    model_config = ConfigDict(extra="ignore")

    type: Literal["text"] = Field(description="Only text; images, audio and files are refused.")
    text: str = Field(max_length=CONTENT_MAX_LENGTH)


class ChatMessageIn(BaseModel):
    """One message of the conversation."""

    model_config = ConfigDict(extra="ignore")

    role: Literal["system", "developer", "user", "assistant"]
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


class PlainText(BaseModel):
    """The only format of an answer."""

    type: Literal["text"]


NothingList = Annotated[list[Any], Field(max_length=0)] | None
"""Null or an empty list: nothing is asked for."""


def _no_effect() -> Any:
    return Field(default=None, description="Accepted, without effect: the Agent decides on its models.")


def _refused(why: str) -> Any:
    return Field(default=None, description=f"Not supported: {why}.")


class ChatCompletionRequest(BaseModel):
    """A request for a completion. `model` is `{namespace}/{name}` of an agent."""

    model_config = ConfigDict(extra="forbid")

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

    frequency_penalty: Any = _no_effect()
    logit_bias: Any = _no_effect()
    max_completion_tokens: Any = _no_effect()
    max_tokens: Any = _no_effect()
    parallel_tool_calls: Any = _no_effect()
    presence_penalty: Any = _no_effect()
    prompt_cache_key: Any = _no_effect()
    prompt_cache_options: Any = _no_effect()
    prompt_cache_retention: Any = _no_effect()
    reasoning_effort: Any = _no_effect()
    safety_identifier: Any = _no_effect()
    seed: Any = _no_effect()
    service_tier: Any = _no_effect()
    store: Any = _no_effect()
    temperature: Any = _no_effect()
    top_p: Any = _no_effect()
    verbosity: Any = _no_effect()

    n: Literal[1] | None = _refused("one answer is given")
    logprobs: Literal[False] | None = _refused("the agent's models tell no probabilities")
    top_logprobs: Literal[0] | None = _refused("the agent's models tell no probabilities")
    modalities: list[Literal["text"]] | None = _refused("answers are text")
    response_format: PlainText | None = _refused("answers are plain text")
    tool_choice: Literal["none", "auto"] | None = _refused("the Agent has its own tools")
    function_call: Literal["none", "auto"] | None = _refused("the Agent has its own tools")
    tools: NothingList = _refused("the Agent has its own tools, and calls them itself")
    functions: NothingList = _refused("the Agent has its own tools, and calls them itself")
    stop: NothingList = _refused("answers are not cut")
    audio: None = _refused("answers are text")
    moderation: None = _refused("the Agent decides")
    prediction: None = _refused("the Agent decides")
    web_search_options: None = _refused("the Agent has its own tools")

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
    system_fingerprint: str | None = Field(description="Revision of the Agent that answered.")
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


class ErrorDetail(BaseModel):
    """What is wrong, for programs and people."""

    message: str
    type: str = Field(examples=["invalid_request_error"])
    param: str | None = Field(description="The parameter that is wrong.")
    code: str | None = Field(examples=["model_not_found"])


class OpenAIError(BaseModel):
    """An error of the OpenAI-compatible endpoints."""

    error: ErrorDetail
