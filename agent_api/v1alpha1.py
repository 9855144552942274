"""The Agent resource, version v1alpha1: spec, status, defaults and validation.

The CRD (`make generate`), the operator, the runtime and `abide dev` all use these models; fields appear here only when
they work. Python names are snake_case, wire names camelCase. Durations are integers with their unit in the name.
"""

from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

from agent_api.labels import NAME_MAX_LENGTH

DNS_LABEL = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
DNS_SUBDOMAIN = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"
CONFIG_KEY = r"^[-._a-zA-Z0-9]+$"


class Model(BaseModel):
    """Base of all resource models: camelCase on the wire, unknown fields refused."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid")


class KeyRef(Model):
    """A key of a Secret or ConfigMap in the Agent's own namespace."""

    name: str = Field(min_length=1, max_length=253, pattern=DNS_SUBDOMAIN, description="Name of the object.")
    key: str = Field(min_length=1, max_length=253, pattern=CONFIG_KEY, description="Key in its data.")


class PromptSource(Model):
    """Where the system prompt comes from when it is not written inline."""

    config_map_key_ref: KeyRef = Field(description="A key of a ConfigMap in the same namespace.")


class ScriptedToolCall(Model):
    """One tool call a scripted model asks for."""

    name: str = Field(min_length=1, max_length=128, description="Name of the tool.")
    arguments: dict[str, Any] = Field(default_factory=dict, description="Arguments, as the tool's schema tells.")


class ScriptedReply(Model):
    """One step of a scripted model in its long form: text, tool calls or an error, after an optional delay."""

    content: str | None = Field(
        default=None, validation_alias=AliasChoices("content", "text", "reply"), description="Text to answer."
    )
    tool_calls: list[ScriptedToolCall] = Field(default_factory=list, max_length=32, description="Tools to call.")
    error: int | None = Field(default=None, ge=400, le=599, description="HTTP status to fail with.")
    delay_seconds: float = Field(default=0, ge=0, le=3600, description="Wait before answering, in seconds.")

    @model_validator(mode="after")
    def _has_one_outcome(self) -> Self:
        if self.error is not None and (self.content is not None or self.tool_calls):
            raise ValueError("a reply is either an error or content and toolCalls; remove one of them")
        if self.error is None and self.content is None and not self.tool_calls and self.delay_seconds == 0:
            raise ValueError("an empty reply; set content, toolCalls, error or delaySeconds")
        return self


class ModelParameters(Model):
    """Parameters of one model call."""

    delay_seconds: float = Field(
        default=0, ge=0, le=3600, description="echo: wait this long before replying, in seconds."
    )
    replies: list[str | ScriptedReply] = Field(
        default_factory=list,
        max_length=1000,
        description=(
            "scripted: one entry per model step of a session, then from the start again. An entry is a text, or an "
            "object with `content`, `toolCalls` [{name, arguments}], `error` (an HTTP status) and `delaySeconds`."
        ),
    )


class ModelSpec(Model):
    """One model the agent may use."""

    name: str | None = Field(
        default=None,
        min_length=1,
        max_length=63,
        description="Name of this entry, unique in the list. Default: the model's name.",
    )
    provider: Literal["echo", "scripted"] = Field(
        description="Who serves the model. echo and scripted are built in and need neither key nor network."
    )
    model: str | None = Field(
        default=None,
        min_length=1,
        max_length=253,
        description="The provider's name of the model. Default: the provider.",
    )
    api_key_secret_ref: KeyRef | None = Field(
        default=None, description="Key of a Secret that holds the API key; read again when it changes."
    )
    timeout_seconds: int = Field(
        default=30, ge=1, le=3600, description="Longest wait for the first token of one attempt, in seconds."
    )
    parameters: ModelParameters = Field(default_factory=ModelParameters, description="Parameters of the model.")

    @property
    def display(self) -> str:
        """Return `provider/model`, as turns and status name it."""
        return f"{self.provider}/{self.model or self.provider}"

    @property
    def effective_name(self) -> str:
        """Return the entry's name, or the default for it."""
        return self.name or self.model or self.provider


class Messages(Model):
    """What users read instead of a reply."""

    fallback: str = Field(
        default="Sorry, I cannot answer right now. Your message is kept; please try again in a moment.",
        min_length=1,
        max_length=4000,
        description="Shown when every model failed.",
    )


class History(Model):
    """What the model sees of the conversation; the full record stays in Postgres."""

    limit: int = Field(default=50, ge=1, le=10000, description="Most messages given to the model, the newest kept.")


class Limits(Model):
    """Bounds of one turn, so that a loop ends."""

    max_steps: int = Field(default=20, ge=1, le=1000, description="Most model calls of one turn.")
    turn_seconds: int = Field(default=300, ge=1, le=86400, description="Longest time one turn may run, in seconds.")


class SessionSpec(Model):
    """Behaviour of sessions."""

    evict_after_seconds: int = Field(
        default=900, ge=1, le=86400, description="An idle session leaves memory after this time; nothing is lost."
    )
    queue_limit: int = Field(
        default=20, ge=0, le=1000, description="Most messages that wait behind the running one; more get 429."
    )


class State(Model):
    """How a session's state is saved."""

    auto_save_every_messages: int = Field(
        default=5, ge=1, le=1000, description="Save a snapshot after this many accepted user messages of a session."
    )


class ResourceList(Model):
    """Amounts of compute resources, as Kubernetes quantities."""

    cpu: str | None = Field(default=None, pattern=r"^[0-9]+(\.[0-9]+)?m?$", description="CPU, for example 250m or 1.")
    memory: str | None = Field(
        default=None, pattern=r"^[0-9]+(\.[0-9]+)?(Ki|Mi|Gi|Ti|k|M|G|T)?$", description="Memory, for example 256Mi."
    )


class Resources(Model):
    """Requests and limits of the runtime container."""

    requests: ResourceList = Field(
        default_factory=lambda: ResourceList(cpu="50m", memory="96Mi"), description="What the pod is sure to get."
    )
    limits: ResourceList = Field(
        default_factory=lambda: ResourceList(memory="256Mi"), description="What the pod may use at most."
    )


class Runtime(Model):
    """The pod the agent runs in."""

    image: str = Field(
        default="", max_length=512, description="Runtime image. Default: the one that matches the operator."
    )
    resources: Resources = Field(default_factory=Resources, description="Compute resources of the container.")


class AgentSpec(Model):
    """What the user wants."""

    display_name: str = Field(default="", max_length=200, description="Name shown to people.")
    system_prompt: str | None = Field(
        default=None, min_length=1, max_length=100_000, description="The system prompt, inline."
    )
    system_prompt_from: PromptSource | None = Field(
        default=None, description="The system prompt, from a ConfigMap. Exactly one of this and systemPrompt."
    )
    models: Annotated[list[ModelSpec], Field(min_length=1, max_length=16)] = Field(
        description="The primary model first, then the fallback chain, in order."
    )
    messages: Messages = Field(default_factory=Messages, description="What users read instead of a reply.")
    history: History = Field(default_factory=History, description="What the model sees of the conversation.")
    limits: Limits = Field(default_factory=Limits, description="Bounds of one turn.")
    session: SessionSpec = Field(default_factory=SessionSpec, description="Behaviour of sessions.")
    state: State = Field(default_factory=State, description="How a session's state is saved.")
    replicas: int = Field(default=1, ge=0, le=1, description="Pods that should run: 0 or 1 in this version.")
    suspend: bool = Field(default=False, description="Stop the pods, keep the state; false resumes where it was.")
    runtime: Runtime = Field(default_factory=Runtime, description="The pod the agent runs in.")

    @model_validator(mode="after")
    def _check_unions(self) -> Self:
        if (self.system_prompt is None) == (self.system_prompt_from is None):
            raise ValueError("set exactly one of systemPrompt and systemPromptFrom")
        names = [model.effective_name for model in self.models]
        if len(set(names)) != len(names):
            raise ValueError("models: every entry needs a unique name; set models[].name")
        for index, model in enumerate(self.models):
            if model.provider == "scripted" and not model.parameters.replies:
                raise ValueError(f"models[{index}].parameters.replies: provider scripted needs at least one reply")
        return self


class Metadata(BaseModel):
    """The part of Kubernetes object metadata that Abide reads; the rest is ignored."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="ignore")

    name: str = Field(min_length=1, max_length=NAME_MAX_LENGTH, pattern=DNS_LABEL)
    namespace: str = Field(default="default", min_length=1, max_length=63, pattern=DNS_LABEL)
    uid: str | None = None
    generation: int = 0
    resource_version: str | None = None
    labels: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)
    creation_timestamp: datetime | None = None
    deletion_timestamp: datetime | None = None


class Condition(Model):
    """One observation, in the shape of Kubernetes' metav1.Condition."""

    type: str = Field(max_length=316, description="What the condition is about.")
    status: Literal["True", "False", "Unknown"] = Field(description="Whether it holds.")
    reason: str = Field(min_length=1, max_length=1024, description="Why, in one word; each has a page.")
    message: str = Field(default="", max_length=32768, description="What, since when, effect on users, remedy.")
    observed_generation: int = Field(default=0, ge=0, description="Generation of the spec this was seen for.")
    last_transition_time: datetime = Field(description="When status last changed.")


class RevisionStatus(Model):
    """Which revision is wanted and which one serves."""

    current: str = Field(default="", description="Revision of the present spec.")
    ready: str = Field(default="", description="Newest revision that was ready.")


class ModelStatus(Model):
    """Which model is configured and which one answers."""

    configured: str = Field(default="", description="Primary model, provider/model.")
    answering: str = Field(default="", description="Model of the latest reply, provider/model.")


class SessionCounts(Model):
    """How many sessions the agent has."""

    active: int = Field(default=0, ge=0, description="Sessions in the memory of pods.")
    total: int = Field(default=0, ge=0, description="Sessions kept in Postgres.")


class HealthCheck(Model):
    """One check of the runtime's /readyz."""

    name: str = Field(description="What was checked.")
    ok: bool = Field(description="Whether it passed.")
    message: str = Field(default="", max_length=1000, description="What is wrong, without secrets.")


class Health(Model):
    """The runtime's own checks, as last read."""

    checks: list[HealthCheck] = Field(default_factory=list, max_length=32, description="One entry per check.")


class LastError(Model):
    """The newest error of the agent."""

    time: datetime = Field(description="When it happened.")
    type: str = Field(max_length=200, description="Kind of error.")
    message: str = Field(max_length=1000, description="What happened, without secrets.")


class AgentStatus(Model):
    """What is true now."""

    observed_generation: int = Field(default=0, ge=0, description="Generation of the spec that was processed.")
    conditions: list[Condition] = Field(default_factory=list, max_length=16, description="See docs/reasons.")
    desired_replicas: int = Field(default=0, ge=0, description="Pods that should run.")
    ready_replicas: int = Field(default=0, ge=0, description="Pods that are ready.")
    selector: str = Field(default="", description="Label selector of the pods, for the scale subresource.")
    endpoint: str = Field(default="", description="Where the agent answers inside the cluster.")
    runtime_version: str = Field(default="", description="Version of the runtime that serves.")
    revision: RevisionStatus = Field(default_factory=RevisionStatus, description="Wanted and serving revision.")
    model: ModelStatus = Field(default_factory=ModelStatus, description="Configured and answering model.")
    sessions: SessionCounts = Field(default_factory=SessionCounts, description="How many sessions there are.")
    health: Health = Field(default_factory=Health, description="The runtime's own checks.")
    last_error: LastError | None = Field(default=None, description="The newest error.")
    observed_at: datetime | None = Field(default=None, description="When counters and checks were last seen.")


class Agent(BaseModel):
    """A durable AI agent."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid")

    api_version: Literal["abide.dev/v1alpha1"] = "abide.dev/v1alpha1"
    kind: Literal["Agent"] = "Agent"
    metadata: Metadata
    spec: AgentSpec
    status: AgentStatus = Field(default_factory=AgentStatus)
