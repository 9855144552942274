"""The Agent resource, version v1alpha1: spec, status, defaults and validation.

The CRD (`make generate`), the operator, the runtime and `abide dev` all use these models; fields appear here only when
they work. Python names are snake_case, wire names camelCase. Durations are integers with their unit in the name.
"""

from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, ClassVar, Final, Literal, Self

from pydantic import (
    AliasChoices,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    GetJsonSchemaHandler,
    Tag,
    model_validator,
)
from pydantic.alias_generators import to_camel
from pydantic_core import CoreSchema

from agent_api.labels import GROUP, NAME_MAX_LENGTH
from agent_api.rules import Matches, Rule, cel_rules, check_rules

DNS_LABEL = Matches(
    r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$",
    "use lower case letters, digits and '-', with a letter or digit at both ends, for example shop-support",
)
DNS_SUBDOMAIN = Matches(
    r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$",
    "use lower case letters, digits, '-' and '.', with a letter or digit at both ends, for example llm-keys",
)
CONFIG_KEY = Matches(r"^[-._a-zA-Z0-9]+$", "use letters, digits, '-', '_' and '.' only, for example api-key")
CPU_QUANTITY = Matches(r"^[0-9]+(\.[0-9]+)?m?$", "write cores or thousandths of a core, for example 1, 0.5 or 250m")
MEMORY_QUANTITY = Matches(
    r"^[0-9]+(\.[0-9]+)?(Ki|Mi|Gi|Ti|k|M|G|T)?$", "write bytes, or a number with a unit, for example 256Mi or 1Gi"
)
QUANTITY_MAX_LENGTH: Final = 32
HTTP_URL = Matches(
    r"^https?://[^\s/?#@]+(/[^\s?#]*)?$",
    "write http:// or https://, a host and a path, without user, password, query and fragment, "
    "for example https://llm.example.com/v1",
)
ENV_NAME = Matches(
    r"^[A-Za-z_][A-Za-z0-9_]*$", "use letters, digits and '_', with no digit at the start, for example HTTPS_PROXY"
)
BUILT_IN_PROVIDERS: Final = ("echo", "scripted")
PROMPT_MAX_LENGTH: Final = 100_000
OWN_REQUEST_FIELDS: Final = (
    "max_completion_tokens", "max_tokens", "messages", "model", "n", "stream", "stream_options", "temperature", "tools",
    "top_p",
)  # fmt: skip
"""Fields of a provider's request that the runtime fills in itself; `parameters.extra` may not hold them."""

_UNITS: Final[Mapping[str, Decimal]] = {
    "m": Decimal("0.001"),
    "k": Decimal(1000),
    "M": Decimal(1000**2),
    "G": Decimal(1000**3),
    "T": Decimal(1000**4),
    "Ki": Decimal(1024),
    "Mi": Decimal(1024**2),
    "Gi": Decimal(1024**3),
    "Ti": Decimal(1024**4),
}


def quantity(text: str) -> Decimal:
    """Return a Kubernetes quantity (`250m`, `256Mi`) as a number of cores or bytes."""
    number = text.rstrip("mkMGTi")
    unit = text[len(number) :]
    return Decimal(number) * _UNITS[unit] if unit else Decimal(number)


class Model(BaseModel):
    """Base of all resource models: camelCase on the wire, unknown fields refused, rules checked."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid")

    rules: ClassVar[tuple[Rule, ...]] = ()
    """Laws over several fields; the CRD has them as CEL, this class as Python, with one message."""

    @model_validator(mode="after")
    def _keep_rules(self) -> Self:
        check_rules(self, self.rules)
        return self

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """Add the rules as CEL to the model's own definition."""
        json_schema = handler(schema)
        if validations := cel_rules(cls.rules):
            handler.resolve_ref_schema(json_schema)["x-kubernetes-validations"] = validations
        return json_schema


class KeyRef(Model):
    """A key of a Secret or ConfigMap in the Agent's own namespace."""

    model_config = ConfigDict(json_schema_extra={"x-kubernetes-map-type": "atomic"})

    name: Annotated[str, DNS_SUBDOMAIN] = Field(min_length=1, max_length=253, description="Name of the object.")
    key: Annotated[str, CONFIG_KEY] = Field(min_length=1, max_length=253, description="Key in its data.")


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

    rules = (
        Rule(
            field="error",
            cel=None,
            holds=lambda reply: reply.error is None or (reply.content is None and not reply.tool_calls),
            message="a reply is either an error, or content and toolCalls: remove one of them",
        ),
        Rule(
            field="",
            cel=None,
            holds=lambda reply: (
                reply.error is not None
                or reply.content is not None
                or bool(reply.tool_calls)
                or reply.delay_seconds > 0
            ),
            message="an empty reply: set content, toolCalls, error or delaySeconds",
        ),
    )


def _reply_form(value: object) -> str | None:
    """Return the tag of a scripted reply's form, so that an error speaks of the form that was written."""
    if isinstance(value, str):
        return "<text>"
    return "<object>" if isinstance(value, Mapping | ScriptedReply) else None


Reply = Annotated[
    Annotated[str, Tag("<text>")] | Annotated[ScriptedReply, Tag("<object>")],
    Discriminator(
        _reply_form,
        custom_error_type="reply_form",
        custom_error_message="write a text, or an object with content, toolCalls, error or delaySeconds",
    ),
]


class ModelParameters(Model):
    """Parameters of one model call. What is not set is left to the provider."""

    temperature: float | None = Field(
        default=None, ge=0, le=2, description="Randomness of the reply: 0 is the steadiest. Not for built-in models."
    )
    max_output_tokens: int | None = Field(
        default=None, ge=1, le=1_000_000, description="Longest reply, in tokens. Not for built-in models."
    )
    top_p: float | None = Field(
        default=None, ge=0, le=1, description="Share of the likeliest tokens to choose from. Not for built-in models."
    )
    extra: dict[str, Any] = Field(
        default_factory=dict,
        max_length=32,
        description="Further fields of the provider's request, sent as they are. Not for built-in models.",
    )

    delay_seconds: float = Field(
        default=0,
        ge=0,
        le=3600,
        description="Wait this long before every reply, in seconds; a scripted reply's own delay comes on top.",
    )
    replies: list[Reply] = Field(
        default_factory=list,
        max_length=1000,
        description=(
            "scripted: one entry per model step of a session, then from the start again. An entry is a text, or an "
            "object with `content`, `toolCalls` [{name, arguments}], `error` (an HTTP status) and `delaySeconds`."
        ),
    )

    @property
    def for_providers(self) -> bool:
        """Whether a typed parameter is set that only a real provider understands."""
        typed = (self.temperature, self.max_output_tokens, self.top_p)
        return any(value is not None for value in typed)


class ModelSpec(Model):
    """One model the agent may use."""

    name: str | None = Field(
        default=None,
        min_length=1,
        max_length=63,
        description="Name of this entry, unique in the list. Default: the model's name.",
    )
    provider: Literal["openai", "openai-compatible", "echo", "scripted"] = Field(
        description="Who serves the model: openai, or any service that speaks the same protocol (openai-compatible). "
        "echo and scripted are built in and need neither key nor network."
    )
    model: str | None = Field(
        default=None,
        min_length=1,
        max_length=253,
        description="The provider's name of the model. Built-in models have one of their own.",
    )
    base_url: Annotated[str, HTTP_URL] | None = Field(
        default=None,
        alias="baseURL",
        max_length=2048,
        description="Where the provider is reached, up to and with its /v1. Needed for openai-compatible.",
    )
    api_key_secret_ref: KeyRef | None = Field(
        default=None, description="Key of a Secret that holds the API key; read again when it changes."
    )
    timeout_seconds: int = Field(
        default=30, ge=1, le=3600, description="Longest wait for the first token of one attempt, in seconds."
    )
    stream_idle_seconds: int = Field(
        default=30, ge=1, le=3600, description="Longest silence between two tokens of one attempt, in seconds."
    )
    parameters: ModelParameters = Field(default_factory=ModelParameters, description="Parameters of the model.")

    rules = (
        Rule(
            field="parameters.replies",
            # dyn: entries of replies are a text or an object, a type CEL cannot have, so the field is hidden from it.
            cel="self.provider != 'scripted' "
            "|| (has(dyn(self.parameters).replies) && size(dyn(self.parameters).replies) > 0)",
            holds=lambda model: model.provider != "scripted" or bool(model.parameters.replies),
            message="provider scripted needs at least one reply, for example: parameters: {replies: [Hello]}",
        ),
        Rule(
            field="parameters.replies",
            cel="self.provider == 'scripted' "
            "|| !has(dyn(self.parameters).replies) || size(dyn(self.parameters).replies) == 0",
            holds=lambda model: model.provider == "scripted" or not model.parameters.replies,
            message="only provider scripted gives replies: write provider: scripted, or remove the replies",
        ),
        Rule(
            field="model",
            cel="self.provider in ['echo', 'scripted'] || has(self.model)",
            holds=lambda model: model.is_built_in or model.model is not None,
            message="this provider needs the name of a model, for example model: gpt-5-mini",
        ),
        Rule(
            field="baseURL",
            cel="self.provider != 'openai-compatible' || has(self.baseURL)",
            holds=lambda model: model.provider != "openai-compatible" or model.base_url is not None,
            message="provider openai-compatible needs the address of the service, for example "
            "baseURL: https://llm.example.com/v1",
        ),
        Rule(
            field="baseURL",
            cel="!(self.provider in ['echo', 'scripted']) || !has(self.baseURL)",
            holds=lambda model: not model.is_built_in or model.base_url is None,
            message="a built-in model has no address: remove baseURL, or name another provider",
        ),
        Rule(
            field="apiKeySecretRef",
            cel="self.provider != 'openai' || has(self.apiKeySecretRef)",
            holds=lambda model: model.provider != "openai" or model.api_key_secret_ref is not None,
            message="provider openai needs an API key, for example apiKeySecretRef: {name: llm, key: openai}",
        ),
        Rule(
            field="parameters.delaySeconds",
            cel="self.provider in ['echo', 'scripted'] || !has(dyn(self.parameters).delaySeconds) "
            "|| dyn(self.parameters).delaySeconds == 0",
            holds=lambda model: model.is_built_in or model.parameters.delay_seconds == 0,
            message="only built-in models wait before a reply: remove delaySeconds",
        ),
        Rule(
            field="parameters",
            cel="!(self.provider in ['echo', 'scripted']) || !(has(dyn(self.parameters).temperature) "
            "|| has(dyn(self.parameters).topP) || has(dyn(self.parameters).maxOutputTokens))",
            holds=lambda model: not model.is_built_in or not model.parameters.for_providers,
            message="built-in models take none of temperature, topP and maxOutputTokens: remove them",
        ),
        Rule(
            field="parameters.extra",
            cel=None,  # CEL does not see fields whose values may be anything
            holds=lambda model: not model.parameters.extra.keys() & set(OWN_REQUEST_FIELDS),
            message="the runtime sets model, messages, tools, n and stream itself, and temperature, top_p and the "
            "most tokens have fields of their own: remove them from extra",
        ),
        Rule(
            field="parameters.extra",
            cel=None,
            holds=lambda model: not model.is_built_in or not model.parameters.extra,
            message="built-in models take no extra fields: remove them",
        ),
    )

    @property
    def is_built_in(self) -> bool:
        """Whether the model is part of the runtime and needs no network."""
        return self.provider in BUILT_IN_PROVIDERS

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
    deletion_policy: Literal["Retain", "Delete"] = Field(
        default="Retain",
        description="What becomes of the agent's rows in Postgres when the Agent is deleted: kept, or erased.",
    )


class ResourceList(Model):
    """Amounts of compute resources, as Kubernetes quantities."""

    cpu: Annotated[str, CPU_QUANTITY] | None = Field(
        default=None, max_length=QUANTITY_MAX_LENGTH, description="CPU, for example 250m or 1."
    )
    memory: Annotated[str, MEMORY_QUANTITY] | None = Field(
        default=None, max_length=QUANTITY_MAX_LENGTH, description="Memory, for example 256Mi."
    )


def _requests_within_limits(resource: str) -> Rule:
    def holds(resources: "Resources") -> bool:
        request, limit = getattr(resources.requests, resource), getattr(resources.limits, resource)
        return request is None or limit is None or quantity(request) <= quantity(limit)

    return Rule(
        field=f"requests.{resource}",
        cel=f"!has(self.requests) || !has(self.requests.{resource}) || !has(self.limits) "
        f"|| !has(self.limits.{resource}) "
        f"|| quantity(self.requests.{resource}).compareTo(quantity(self.limits.{resource})) <= 0",
        holds=holds,
        message=f"a request may not exceed its limit: lower requests.{resource} or raise limits.{resource}",
    )


class Resources(Model):
    """Requests and limits of the runtime container."""

    requests: ResourceList = Field(
        default_factory=lambda: ResourceList(cpu="50m", memory="96Mi"), description="What the pod is sure to get."
    )
    limits: ResourceList = Field(
        default_factory=lambda: ResourceList(memory="256Mi"), description="What the pod may use at most."
    )

    rules = (_requests_within_limits("cpu"), _requests_within_limits("memory"))


class Toleration(Model):
    """A taint of nodes that the pod bears, as in a pod's spec."""

    key: str | None = Field(default=None, max_length=317, description="Key of the taint; empty: all of them.")
    operator: Literal["Exists", "Equal"] | None = Field(default=None, description="How value is compared.")
    value: str | None = Field(default=None, max_length=63, description="Value of the taint.")
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(
        default=None, description="Effect of the taint; empty: all of them."
    )
    toleration_seconds: int | None = Field(
        default=None, ge=0, le=31536000, description="How long NoExecute is borne, in seconds."
    )


class ObjectName(Model):
    """Names an object in the Agent's own namespace."""

    name: Annotated[str, DNS_SUBDOMAIN] = Field(min_length=1, max_length=253, description="Name of the object.")


class EnvSource(Model):
    """Where the value of an environment variable comes from."""

    secret_key_ref: KeyRef = Field(description="A key of a Secret in the same namespace.")


class EnvVar(Model):
    """An environment variable of the runtime container."""

    name: Annotated[str, ENV_NAME] = Field(min_length=1, max_length=253, description="Name of the variable.")
    value: str | None = Field(default=None, max_length=32768, description="Its value.")
    value_from: EnvSource | None = Field(default=None, description="Its value, from a Secret.")

    rules = (
        Rule(
            field="name",
            cel="!self.name.startsWith('ABIDE_')",
            holds=lambda variable: not variable.name.startswith("ABIDE_"),
            message="names that start with ABIDE_ belong to the runtime: take another name",
        ),
        Rule(
            field="",
            cel="has(self.value) != has(self.valueFrom)",
            holds=lambda variable: (variable.value is None) != (variable.value_from is None),
            message="write exactly one of value and valueFrom",
        ),
    )


LabelValue = Annotated[str, Field(max_length=63)]
AnnotationValue = Annotated[str, Field(max_length=4096)]


def _is_reserved(key: str) -> bool:
    prefix, slash, _ = key.partition("/")
    return bool(slash) and (prefix == GROUP or prefix.endswith(f".{GROUP}"))


def _no_reserved_keys(field: str, attribute: str) -> Rule:
    reserved = "k.startsWith('abide.dev/') || k.matches('^[^/]*[.]abide[.]dev/')"
    return Rule(
        field=field,
        cel=f"!has(self.{field}) || self.{field}.all(k, !({reserved}))",
        holds=lambda runtime: not any(_is_reserved(key) for key in getattr(runtime, attribute)),
        message=f"keys below {GROUP}/ belong to the operator: take another prefix",
    )


class Runtime(Model):
    """The pod the agent runs in."""

    image: str = Field(
        default="", max_length=512, description="Runtime image. Default: the one that matches the operator."
    )
    resources: Resources = Field(default_factory=Resources, description="Compute resources of the container.")
    env: list[EnvVar] = Field(
        default_factory=list,
        max_length=64,
        description="Further environment variables, for example of a proxy.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )
    node_selector: dict[str, LabelValue] = Field(
        default_factory=dict, max_length=32, description="Labels of nodes the pods may run on."
    )
    tolerations: list[Toleration] = Field(
        default_factory=list, max_length=32, description="Taints of nodes the pods bear."
    )
    priority_class_name: str = Field(default="", max_length=253, description="PriorityClass of the pods.")
    image_pull_secrets: list[ObjectName] = Field(
        default_factory=list, max_length=16, description="Secrets of type dockerconfigjson to pull the image with."
    )
    pod_labels: dict[str, LabelValue] = Field(
        default_factory=dict, max_length=32, description="Further labels of the pods."
    )
    pod_annotations: dict[str, AnnotationValue] = Field(
        default_factory=dict, max_length=32, description="Further annotations of the pods."
    )

    rules = (
        _no_reserved_keys("podLabels", "pod_labels"),
        _no_reserved_keys("podAnnotations", "pod_annotations"),
        Rule(
            field="env",
            cel=None,  # the API server knows it from the list's key
            holds=lambda runtime: len({variable.name for variable in runtime.env}) == len(runtime.env),
            message="a variable stands there twice: keep one",
        ),
    )


def _effective_name_cel(entry: str) -> str:
    """Return `ModelSpec.effective_name` as CEL."""
    return f"(has({entry}.name) ? {entry}.name : has({entry}.model) ? {entry}.model : {entry}.provider)"


class AgentSpec(Model):
    """What the user wants."""

    display_name: str = Field(default="", max_length=200, description="Name shown to people.")
    system_prompt: str | None = Field(
        default=None, min_length=1, max_length=PROMPT_MAX_LENGTH, description="The system prompt, inline."
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
    replicas: int = Field(
        default=1,
        ge=0,
        le=100,
        description="Pods that should run. With more than one, another takes a broken one's sessions over.",
    )
    suspend: bool = Field(default=False, description="Stop the pods, keep the state; false resumes where it was.")
    runtime: Runtime = Field(default_factory=Runtime, description="The pod the agent runs in.")
    revision_history_limit: int = Field(
        default=5, ge=0, le=100, description="Old revisions kept for `abide history` and `abide rollback`."
    )

    rules = (
        Rule(
            field="",
            cel="has(self.systemPrompt) || has(self.systemPromptFrom)",
            holds=lambda spec: spec.system_prompt is not None or spec.system_prompt_from is not None,
            message="a system prompt is missing: write systemPrompt, or systemPromptFrom.configMapKeyRef",
        ),
        Rule(
            field="systemPromptFrom",
            cel="!(has(self.systemPrompt) && has(self.systemPromptFrom))",
            holds=lambda spec: spec.system_prompt is None or spec.system_prompt_from is None,
            message="two system prompts: keep exactly one of systemPrompt and systemPromptFrom",
        ),
        Rule(
            field="models",
            cel="self.models.all(a, self.models.exists_one(b, "
            f"{_effective_name_cel('a')} == {_effective_name_cel('b')}))",
            holds=lambda spec: len({model.effective_name for model in spec.models}) == len(spec.models),
            message="two models have the same name: give each a name of its own in models[].name "
            "(without one, an entry is called like its model, or else like its provider)",
        ),
    )


UNVERSIONED_FIELDS: Final = ("replicas", "suspend", "revisionHistoryLimit", "state.deletionPolicy")
"""Wire paths below spec that change without a new revision."""


class Metadata(Model):
    """The part of Kubernetes object metadata that Abide reads; the rest is ignored."""

    model_config = ConfigDict(extra="ignore")

    name: Annotated[str, DNS_SUBDOMAIN] = Field(min_length=1, max_length=253, description="Name of the agent.")
    namespace: Annotated[str, DNS_LABEL] = Field(
        default="default", min_length=1, max_length=63, description="Namespace of the agent."
    )
    uid: str | None = None
    generation: int = 0
    resource_version: str | None = None
    labels: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)
    creation_timestamp: datetime | None = None
    deletion_timestamp: datetime | None = None

    # Python's half looks at the metadata; the CEL half speaks from the object's root, since the API server takes no
    # rules below metadata.
    rules = (
        Rule(
            field="name",
            cel="!self.metadata.name.contains('.')",
            holds=lambda metadata: "." not in metadata.name,
            message="an agent's name may not contain '.': write '-' instead, for example shop-support",
        ),
        Rule(
            field="name",
            cel=f"size(self.metadata.name) <= {NAME_MAX_LENGTH}",
            holds=lambda metadata: len(metadata.name) <= NAME_MAX_LENGTH,
            message=f"an agent's name has at most {NAME_MAX_LENGTH} characters, since other names are made from it: "
            "shorten it",
        ),
    )


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

    checks: list[HealthCheck] = Field(
        default_factory=list,
        max_length=32,
        description="One entry per check.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )


class LastError(Model):
    """The newest error of the agent."""

    time: datetime = Field(description="When it happened.")
    type: str = Field(max_length=200, description="Kind of error.")
    message: str = Field(max_length=1000, description="What happened, without secrets.")


class AgentStatus(Model):
    """What is true now."""

    observed_generation: int = Field(default=0, ge=0, description="Generation of the spec that was processed.")
    conditions: list[Condition] = Field(
        default_factory=list,
        max_length=16,
        description="What is true of the agent; each reason has a page in docs/reasons.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )
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


class Agent(Model):
    """A durable AI agent: a conversation partner that forgets no acknowledged message and answers none twice."""

    api_version: Literal["abide.dev/v1alpha1"] = "abide.dev/v1alpha1"
    kind: Literal["Agent"] = "Agent"
    metadata: Metadata
    spec: AgentSpec
    status: AgentStatus = Field(default_factory=AgentStatus)
