"""The Agent resource, version v1alpha1: spec, status, defaults and validation.

The CRD (`make generate`), the operator, the runtime and `abide dev` all use these models; fields appear here only when
they work. Python names are snake_case, wire names camelCase. Durations are integers with their unit in the name.
"""

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from pathlib import Path
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

from agent_api.jsonschema import IsSchema
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
KUBERNETES_AUDIENCE: Final = "abide.dev"
"""Audience of Kubernetes tokens that are for agents."""
AMOUNT = Matches(
    r"^[0-9]{1,9}(\.[0-9]{1,6})?$", "write a decimal number in quotes, with at most 6 decimals, for example '0.25'"
)
AMOUNT_MAX_LENGTH: Final = 16
CURRENCY = Matches(r"^[A-Z]{3}$", "write a currency as three capital letters, for example USD")
TIME_ZONE = Matches(
    r"^(UTC|[A-Z][A-Za-z_]+(/[A-Z0-9][A-Za-z0-9_+-]*){1,2})$",
    "write UTC or a name of the time zone database, for example Europe/Berlin",
)
BUILT_IN_PROVIDERS: Final = ("echo", "scripted")
KEYED_PROVIDERS: Final = ("openai", "anthropic", "google")
"""Providers that answer nobody without a key."""
PROMPT_MAX_LENGTH: Final = 100_000
OWN_REQUEST_FIELDS: Final = (
    "contents", "max_completion_tokens", "max_tokens", "messages", "model", "n", "stream", "stream_options", "system",
    "systemInstruction", "system_instruction", "temperature", "tools", "top_p",
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


class Price(Model):
    """What the tokens of a model cost; tokens that the provider sells cheaper, from a cache, count like the others."""

    input_per_million: Annotated[str, AMOUNT] = Field(
        max_length=AMOUNT_MAX_LENGTH, description="Price of a million tokens that are sent, for example 0.25."
    )
    output_per_million: Annotated[str, AMOUNT] = Field(
        max_length=AMOUNT_MAX_LENGTH, description="Price of a million tokens that the model gives, for example 2.00."
    )
    currency: Annotated[str, CURRENCY] = Field(max_length=3, description="Currency of both, for example USD.")


def _needs_key(provider: str) -> Rule:
    return Rule(
        field="apiKeySecretRef",
        cel=f"self.provider != '{provider}' || has(self.apiKeySecretRef)",
        holds=lambda model: model.provider != provider or model.api_key_secret_ref is not None,
        message=f"provider {provider} needs an API key, for example apiKeySecretRef: {{name: llm, key: {provider}}}",
    )


class ModelSpec(Model):
    """One model the agent may use."""

    name: str | None = Field(
        default=None,
        min_length=1,
        max_length=63,
        description="Name of this entry, unique in the list. Default: the model's name.",
    )
    provider: Literal["openai", "openai-compatible", "anthropic", "google", "echo", "scripted"] = Field(
        description="Who serves the model: openai, any service that speaks the same protocol (openai-compatible), "
        "anthropic, or google (Gemini). echo and scripted are built in and need neither key nor network."
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
        description="Where the provider is reached, up to and with its /v1 (google: /v1beta). "
        "Needed for openai-compatible.",
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
    price: Price | None = Field(
        default=None, description="What its tokens cost. Without it, costs are unknown and cannot be limited."
    )

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
        *(_needs_key(provider) for provider in KEYED_PROVIDERS),
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
            message="the runtime sets model, system, messages, tools, n and stream itself, and temperature, top_p and "
            "the most tokens have fields of their own: remove them from extra",
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
    budget: str = Field(
        default="Sorry, I have used up what I may use today. Your message is kept; please try again tomorrow.",
        min_length=1,
        max_length=4000,
        description="Shown when a budget of the day is used up.",
    )
    busy: str = Field(
        default="I am still working on your last message. Please send this one again when it is answered.",
        min_length=1,
        max_length=4000,
        description="Said with the 429 where session.whenBusy is Reject.",
    )
    expired: str = Field(
        default="Sorry, your message waited too long and is not answered any more. Please send it again.",
        min_length=1,
        max_length=4000,
        description="Shown when a message was older than session.maxMessageAgeSeconds.",
    )
    waiting_approval: str = Field(
        default="I need somebody's approval before I can go on. The answer follows once it is given.",
        min_length=1,
        max_length=4000,
        description="Said with the 202 while a tool call waits for a person (tools[].approval).",
    )


class Compaction(Model):
    """Summaries of long conversations, written by the agent's own model in the background."""

    enabled: bool = Field(
        default=True,
        description="Have a summary take the place of messages that the model is not given any more; they stay stored. "
        "Built-in models write none.",
    )
    after_messages: int = Field(
        default=100, ge=2, le=100_000, description="Conversations with at most so many messages need no summary."
    )


class History(Model):
    """What the model sees of the conversation; the full record stays in Postgres."""

    limit: int = Field(default=50, ge=1, le=10000, description="Most messages given to the model, the newest kept.")
    max_tokens: int = Field(
        default=8000,
        ge=100,
        le=10_000_000,
        description="Most tokens of earlier messages given to the model, the newest kept, as estimated from their "
        "length. The system prompt and the message to answer come on top.",
    )
    compaction: Compaction = Field(default_factory=Compaction, description="Summaries of long conversations.")


MemoryTag = Annotated[
    str,
    Field(min_length=1, max_length=64),
    Matches(r"^[^ \t\r\n,]+$", "write one word without blanks and commas, for example opening-hours"),
]


class EmbeddingSpec(Model):
    """The model that turns texts into vectors, so that memories are found by meaning too."""

    provider: Literal["openai", "openai-compatible"] = Field(
        description="Who serves the model: openai, or any service that speaks the same protocol (openai-compatible)."
    )
    model: str = Field(
        min_length=1,
        max_length=253,
        description="The provider's name of the model, for example text-embedding-3-small.",
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
    dimensions: int | None = Field(
        default=None,
        ge=1,
        le=8192,
        description="Numbers of a vector, for models that let one choose. Default: as many as the model gives.",
    )

    rules = (
        Rule(
            field="baseURL",
            cel="self.provider != 'openai-compatible' || has(self.baseURL)",
            holds=lambda one: one.provider != "openai-compatible" or one.base_url is not None,
            message="provider openai-compatible needs the address of the service, for example "
            "baseURL: https://llm.example.com/v1",
        ),
        Rule(
            field="apiKeySecretRef",
            cel="self.provider != 'openai' || has(self.apiKeySecretRef)",
            holds=lambda one: one.provider != "openai" or one.api_key_secret_ref is not None,
            message="provider openai needs an API key, for example apiKeySecretRef: {name: llm, key: openai}",
        ),
    )


class InitialMemory(Model):
    """Something the agent knows from the start, of all its users."""

    content: str = Field(min_length=1, max_length=2000, description="What it remembers, in words a model understands.")
    type: Literal["general", "conversation", "task_result", "learning"] = Field(
        default="general", description="What it is about."
    )
    importance: int = Field(
        default=5,
        ge=1,
        le=10,
        description="1-3 low, 4-6 medium, 7-9 high, 10 critical: given to the model with every message.",
    )
    tags: list[MemoryTag] = Field(default_factory=list, max_length=16, description="Words to find it by.")


class Memories(Model):
    """What the agent remembers beyond a session."""

    enabled: bool = Field(
        default=False,
        description="Keep memories, and show the model those that fit each message. They are not encrypted, since they "
        "are searched.",
    )
    embedding: EmbeddingSpec | None = Field(
        default=None, description="Find memories by meaning too. Without it they are found by their words."
    )
    initial: list[InitialMemory] = Field(
        default_factory=list, max_length=64, description="What the agent knows from the start; written at each start."
    )

    rules = (
        Rule(
            field="enabled",
            cel="(has(self.enabled) && self.enabled) "
            "|| (!has(self.embedding) && (!has(self.initial) || size(self.initial) == 0))",
            holds=lambda one: one.enabled or (one.embedding is None and not one.initial),
            message="memories are described and not enabled: write enabled: true, or remove the rest",
        ),
    )


class BudgetLimit(Model):
    """How much may be used in one day."""

    amount: Annotated[str, AMOUNT] | None = Field(
        default=None, max_length=AMOUNT_MAX_LENGTH, description="Money, for example '20.00'. Unset: no limit."
    )
    currency: Annotated[str, CURRENCY] = Field(
        default="USD", max_length=3, description="Currency of amount; that of the models' prices."
    )
    tokens: int = Field(default=0, ge=0, le=10**15, description="Tokens sent and received, together. 0: no limit.")

    rules = (
        Rule(
            field="",
            cel="has(self.amount) || (has(self.tokens) && self.tokens > 0)",
            holds=lambda limit: limit.amount is not None or limit.tokens > 0,
            message="a budget without a limit: write amount, tokens, or both",
        ),
        Rule(
            field="amount",
            cel="!has(self.amount) || !self.amount.matches('^[0.]*$')",
            holds=lambda limit: limit.amount is None or re.fullmatch("[0.]*", limit.amount) is None,
            message="with an amount of 0 no turn would ever run: write more, or suspend the agent",
        ),
    )

    @property
    def display(self) -> str:
        """Return the limit in words: `20.00 USD, 100000 tokens`."""
        money = f"{self.amount} {self.currency}" if self.amount is not None else ""
        tokens = f"{self.tokens} tokens" if self.tokens else ""
        return ", ".join(part for part in (money, tokens) if part)


class Budget(Model):
    """What the agent may use before turns are refused until the next day."""

    per_day: BudgetLimit | None = Field(default=None, description="Limit of the whole agent.")
    per_user_day: BudgetLimit | None = Field(default=None, description="Limit of each of its users.")
    warn_percent: int = Field(
        default=80, ge=1, le=100, description="From this share of perDay on, an Event warns once a day."
    )
    time_zone: Annotated[str, TIME_ZONE] = Field(
        default="UTC", min_length=1, max_length=64, description="Where the day begins at midnight."
    )

    rules = (
        Rule(
            field="",
            cel="has(self.perDay) || has(self.perUserDay)",
            holds=lambda budget: budget.per_day is not None or budget.per_user_day is not None,
            message="an empty budget: write perDay, perUserDay, or both",
        ),
        Rule(
            field="perUserDay.currency",
            cel="!has(self.perDay) || !has(self.perUserDay) || !has(self.perDay.amount) "
            "|| !has(self.perUserDay.amount) || self.perDay.currency == self.perUserDay.currency",
            holds=lambda budget: len(budget.currencies) <= 1,
            message="two currencies: write the same one in perDay and perUserDay",
        ),
        Rule(
            field="timeZone",
            cel=None,  # CEL has no list of time zones
            holds=lambda budget: _is_time_zone(budget.time_zone),
            message="there is no such time zone: write UTC or a name of the time zone database, "
            "for example Europe/Berlin",
        ),
    )

    @property
    def limits(self) -> "tuple[BudgetLimit, ...]":
        """The limits that are set."""
        return tuple(limit for limit in (self.per_day, self.per_user_day) if limit is not None)

    @property
    def currencies(self) -> frozenset[str]:
        """The currencies in which money is limited."""
        return frozenset(limit.currency for limit in self.limits if limit.amount is not None)


def _is_time_zone(name: str) -> bool:
    """Whether the time zone exists, as far as this machine has the database of time zones."""
    if name == "UTC":
        return True
    from zoneinfo import TZPATH, ZoneInfo

    if not any(Path(folder).is_dir() for folder in TZPATH):
        return True  # Postgres has a database of its own
    try:
        ZoneInfo(name)
    except (LookupError, ValueError, OSError):
        return False
    return True


class Limits(Model):
    """Bounds of one turn, so that a loop ends."""

    max_steps: int = Field(default=20, ge=1, le=1000, description="Most model calls of one turn.")
    turn_seconds: int = Field(default=300, ge=1, le=86400, description="Longest time one turn may run, in seconds.")
    turn_tokens: int = Field(
        default=200_000,
        ge=0,
        le=1_000_000_000,
        description="Once the model calls of one turn used so many tokens, in and out, it calls no tool any more and "
        "fails. 0: no limit.",
    )
    requests_per_minute: int = Field(
        default=600,
        ge=0,
        le=1_000_000,
        description="Most requests of one caller and user in a minute, by each pod; more get 429. 0: no limit.",
    )


AccessRight = Literal["Chat", "Read", "Approve", "Operate"]
"""What a caller may do; in lower case these are the verbs of Kubernetes RBAC on agents."""
Rights = Annotated[list[AccessRight], Field(max_length=4, json_schema_extra={"x-kubernetes-list-type": "set"})]


def _chat_only() -> list[AccessRight]:
    return ["Chat"]


USER_NAME = Matches(
    r"^[A-Za-z0-9._:@-]*$", "use letters, digits, '.', '_', ':', '@' and '-' only, for example alice@example.com"
)
ACCESS_LIST: Final[dict[str, Any]] = {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]}


class AccessKey(Model):
    """An API key that somebody made, beside the generated one."""

    name: Annotated[str, DNS_LABEL] = Field(
        min_length=1, max_length=63, description="Name of the key, for records of who did what."
    )
    secret_key_ref: KeyRef = Field(description="Key of a Secret that holds the API key; read again when it changes.")
    rights: Rights = Field(
        default_factory=_chat_only, min_length=1, description="What its holder may do. Default: Chat."
    )
    user: Annotated[str, USER_NAME] = Field(
        default="",
        max_length=128,
        description="User its holder speaks as. Empty: the holder names the user in the header Abide-User.",
    )


class JwtAccess(Model):
    """Tokens (JWT) of an identity provider whose holders may call."""

    name: Annotated[str, DNS_LABEL] = Field(min_length=1, max_length=63, description="Name of the provider.")
    issuer: str = Field(min_length=1, max_length=512, description="Issuer (`iss`) that tokens must name, exactly.")
    audience: str = Field(min_length=1, max_length=512, description="Audience (`aud`) that tokens must be for.")
    jwks_url: Annotated[str, HTTP_URL] = Field(
        alias="jwksURL", max_length=2048, description="Where the provider publishes its keys (JWKS)."
    )
    user_claim: str = Field(
        default="sub", min_length=1, max_length=128, description="Claim that names the user. Default: sub."
    )
    user_prefix: Annotated[str, USER_NAME] = Field(
        default="",
        max_length=32,
        description="Put before the user, so that users of two providers never meet, for example acme:",
    )
    rights: Rights = Field(
        default_factory=_chat_only, description="What every holder of a valid token may do. Default: Chat."
    )
    rights_claim: str = Field(
        default="", max_length=128, description="Claim whose values, looked up in rightsMap, give further rights."
    )
    rights_map: dict[str, Rights] = Field(
        default_factory=dict,
        max_length=64,
        description="Further rights by value of rightsClaim, for example of a group.",
    )

    rules = (
        Rule(
            field="rightsClaim",
            cel="(has(self.rightsClaim) && size(self.rightsClaim) > 0) == "
            "(has(self.rightsMap) && size(self.rightsMap) > 0)",
            holds=lambda jwt: bool(jwt.rights_claim) == bool(jwt.rights_map),
            message="rightsClaim and rightsMap belong together: write both, for example rightsClaim: groups and "
            "rightsMap: {support: [Read, Approve]}, or none",
        ),
        Rule(
            field="rights",
            cel="!has(self.rights) || size(self.rights) > 0 || (has(self.rightsMap) && size(self.rightsMap) > 0)",
            holds=lambda jwt: bool(jwt.rights) or bool(jwt.rights_map),
            message="nobody would have any right: write rights, for example [Chat], or rightsClaim and rightsMap",
        ),
    )


class KubernetesAccess(Model):
    """Tokens of the cluster (ServiceAccounts and people) whose holders may call."""

    enabled: bool = Field(
        default=False,
        description="Ask the API server who holds a token, and which of the verbs chat, read, approve and operate "
        "RBAC gives them on this Agent.",
    )
    audiences: Annotated[list[Annotated[str, Field(min_length=1, max_length=256)]], Field(min_length=1)] = Field(
        default_factory=lambda: [KUBERNETES_AUDIENCE],
        max_length=8,
        description="Audiences of which a token must be for one. Default: abide.dev, so that a token for an agent is "
        "good for nothing else.",
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )


class Access(Model):
    """Who may call the agent, and what for; the generated key of Secret agent-NAME-api has every right besides."""

    keys: list[AccessKey] = Field(
        default_factory=list, max_length=64, description="Further API keys.", json_schema_extra=ACCESS_LIST
    )
    jwt: list[JwtAccess] = Field(
        default_factory=list, max_length=16, description="Identity providers.", json_schema_extra=ACCESS_LIST
    )
    kubernetes: KubernetesAccess = Field(default_factory=KubernetesAccess, description="Tokens of the cluster.")

    rules = (
        Rule(
            field="keys",
            cel=None,  # the API server knows it from the list's key
            holds=lambda access: len({one.name for one in access.keys}) == len(access.keys),
            message="a key stands there twice: give each a name of its own",
        ),
        Rule(
            field="jwt",
            cel=None,
            holds=lambda access: len({one.name for one in access.jwt}) == len(access.jwt),
            message="a provider stands there twice: give each a name of its own",
        ),
    )


TOOL_NAME = Matches(r"^[a-zA-Z0-9_-]+$", "use letters, digits, '_' and '-' only, for example order_status")
HEADER_NAME = Matches(r"^[A-Za-z0-9!#$%&*+.^_`|~-]+$", "write the name of an HTTP header, for example Authorization")
URL_TEMPLATE = Matches(
    r"^https?://[^\s/?#@{}]+(/[^\s#@]*)?$",
    "write http:// or https://, a host and a path, with {names} of parameters in path and query only, for example "
    "https://api.example.com/orders/{id}",
)
OWN_HEADERS: Final = (
    "accept-encoding", "connection", "content-length", "content-type", "host", "idempotency-key", "transfer-encoding",
    "upgrade",
)  # fmt: skip
"""Headers that the runtime sets itself."""
BUILT_IN_TOOLS: Final[Mapping[str, tuple[str, ...]]] = {
    "Clock": ("current_time",),
    "Memory": ("remember", "recall", "forget"),
}
"""What models may call of each built-in tool."""
_NAMED_LIST: Final[dict[str, Any]] = {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]}
_TOOL_NAMES: Final[dict[str, Any]] = {"x-kubernetes-list-type": "set"}
CalledName = Annotated[str, Field(min_length=1, max_length=128)]


class HeaderSource(Model):
    """An HTTP header whose value is in a Secret."""

    name: Annotated[str, HEADER_NAME] = Field(min_length=1, max_length=128, description="Name of the header.")
    secret_key_ref: KeyRef = Field(
        description="Key of a Secret that holds the whole value, for example `Bearer …`; read again when it changes."
    )

    rules = (
        Rule(
            field="name",
            cel=f"!(self.name.lowerAscii() in [{', '.join(repr(name) for name in OWN_HEADERS)}])",
            holds=lambda header: header.name.lower() not in OWN_HEADERS,
            message="the runtime sets this header itself: remove it",
        ),
    )


def _headers() -> Any:
    return Field(
        default_factory=list,
        max_length=16,
        description="Headers to send with each request, their values from Secrets.",
        json_schema_extra=_NAMED_LIST,
    )


def _allow_private() -> Any:
    return Field(
        default=False,
        description="Whether the host's name may lead to a private address. Names that are private by themselves "
        "(without a dot, below .svc, .local or .internal, or an address) may anyway.",
    )


class McpTool(Model):
    """A server that speaks MCP over streamable HTTP; its tools are discovered."""

    url: Annotated[str, HTTP_URL] = Field(max_length=2048, description="The server's endpoint.")
    headers_from: list[HeaderSource] = _headers()
    allow_private_addresses: bool = _allow_private()


class HttpTool(Model):
    """One HTTP request as a tool, called like its entry."""

    description: str = Field(
        min_length=1, max_length=1024, description="What it does and when to call it, for the model."
    )
    method: Literal["GET", "POST", "PUT", "PATCH", "DELETE"] = Field(
        default="GET", description="HTTP method. GET has no side effects; the others do."
    )
    url: Annotated[str, URL_TEMPLATE] = Field(
        max_length=2048,
        description="Address; {name} in path and query stands for an argument. Arguments that are not in it go into "
        "the query (GET, DELETE) or a JSON body.",
    )
    headers_from: list[HeaderSource] = _headers()
    parameters: Annotated[dict[str, Any], IsSchema(of_objects=True)] = Field(
        default_factory=lambda: {"type": "object", "properties": {}},
        description="JSON Schema of the arguments; arguments are checked before anything is sent.",
    )
    allow_private_addresses: bool = _allow_private()

    rules = (
        Rule(
            field="url",
            cel=None,  # CEL does not see fields whose values may be anything
            holds=lambda http: set(http.placeholders) <= set(http.parameters.get("required", ())),
            message="each {name} in it must be a required parameter: add it to parameters.properties and "
            "parameters.required",
        ),
    )

    @property
    def placeholders(self) -> tuple[str, ...]:
        """The arguments that stand in the address."""
        return tuple(re.findall(r"\{([^{}]*)\}", self.url))


class BuiltinTool(Model):
    """A tool of the runtime's own."""

    name: Literal["Clock", "Memory"] = Field(
        description="Clock: the present time in any time zone. Memory: remember, recall and forget for the user."
    )


class SideEffect(Model):
    """What calling a tool twice does."""

    idempotency_argument: str = Field(
        default="",
        max_length=128,
        description="Argument in which the tool takes a key that makes repeating safe; the runtime fills it in. For "
        "HTTP tools also Idempotency-Key, the header that is sent anyway.",
    )
    repeatable: bool = Field(
        default=False, description="Calling it again with the same arguments does no harm, as with a search."
    )


class ApprovalSpec(Model):
    """Which calls a person has to agree to first."""

    for_: Annotated[list[CalledName], Field(min_length=1)] = Field(
        alias="for", max_length=128, description="Names of tools.", json_schema_extra=_TOOL_NAMES
    )
    timeout_seconds: int = Field(default=86400, ge=1, le=2_592_000, description="How long is waited, in seconds.")
    on_timeout: Literal["Approve", "Reject"] = Field(default="Reject", description="What happens then.")


def _union_rule(kind: str, member: str, example: str) -> Rule:
    return Rule(
        field=member,
        cel=f"has(self.{member}) == (self.type == '{kind}')",
        holds=lambda tool: (getattr(tool, member) is not None) == (tool.type == kind),
        message=f"type {kind} and {member} belong together: write both, for example {example}, or none",
    )


class ToolEntry(Model):
    """One source of tools: an MCP server, an HTTP request, or a built-in one."""

    name: Annotated[str, TOOL_NAME] = Field(min_length=1, max_length=40, description="Name of this entry.")
    type: Literal["MCP", "HTTP", "Builtin"] = Field(description="What it is; the field of that name tells more.")
    mcp: McpTool | None = Field(default=None, description="For type MCP: the server.")
    http: HttpTool | None = Field(default=None, description="For type HTTP: the request.")
    builtin: BuiltinTool | None = Field(default=None, description="For type Builtin: which one.")
    allow: list[CalledName] = Field(
        default_factory=list,
        max_length=128,
        description="Names of the tools that models may call. Default: all.",
        json_schema_extra=_TOOL_NAMES,
    )
    timeout_seconds: int = Field(default=30, ge=1, le=3600, description="Longest time of one call, in seconds.")
    side_effects: dict[str, SideEffect] = Field(
        default_factory=dict,
        max_length=128,
        description="What calling each tool twice does, by name. Default: what an MCP server says (readOnlyHint), "
        "or the HTTP method. A call with side effects whose outcome is unknown is not repeated.",
    )
    approval: ApprovalSpec | None = Field(default=None, description="Which calls a person has to agree to first.")

    rules = (
        _union_rule("MCP", "mcp", "mcp: {url: https://mcp.example.com/mcp}"),
        _union_rule("HTTP", "http", "http: {url: https://api.example.com/status, description: …}"),
        _union_rule("Builtin", "builtin", "builtin: {name: Clock}"),
        Rule(
            field="allow",
            cel=None,  # its cost over all entries is more than the API server spends
            holds=lambda tool: tool.own_names is None or set(tool.allow) <= set(tool.own_names),
            message="an entry of this kind has no tool of that name: remove it, or correct it",
        ),
        Rule(
            field="sideEffects",
            cel=None,
            holds=lambda tool: tool.own_names is None or set(tool.side_effects) <= set(tool.own_names),
            message="an entry of this kind has no tool of that name: remove it, or correct it",
        ),
        Rule(
            field="approval.for",
            cel=None,
            holds=lambda tool: (
                tool.own_names is None or tool.approval is None or set(tool.approval.for_) <= set(tool.own_names)
            ),
            message="an entry of this kind has no tool of that name: remove it, or correct it",
        ),
    )

    @property
    def own_names(self) -> tuple[str, ...] | None:
        """Names of the entry's tools; None where they are discovered."""
        if self.http is not None:
            return (self.name,)
        return BUILT_IN_TOOLS[self.builtin.name] if self.builtin is not None else None

    @property
    def headers_from(self) -> Sequence[HeaderSource]:
        """Headers to send with each request."""
        found = self.mcp or self.http
        return found.headers_from if found is not None else ()


class ContentSchema(Model):
    """A JSON Schema for what goes in or comes out."""

    json_schema: Annotated[dict[str, Any], IsSchema()] = Field(
        alias="schema", description="JSON Schema (draft 2020-12) that the text, read as JSON, must fit."
    )


def find_tool_secrets(tools: Sequence[ToolEntry]) -> list[tuple[str, KeyRef]]:
    """Return every key of a Secret that tools refer to, with the path of the field."""
    return [
        (f"spec.tools[{index}].{tool.type.lower()}.headersFrom[{number}].secretKeyRef", header.secret_key_ref)
        for index, tool in enumerate(tools)
        for number, header in enumerate(tool.headers_from)
    ]


class SessionSpec(Model):
    """Behaviour of sessions."""

    evict_after_seconds: int = Field(
        default=900, ge=1, le=86400, description="An idle session leaves memory after this time; nothing is lost."
    )
    queue_limit: int = Field(
        default=20, ge=0, le=1000, description="Most messages that wait behind the running one; more get 429."
    )
    when_busy: Literal["Queue", "Reject", "Merge", "Interrupt"] = Field(
        default="Queue",
        description="What becomes of a message while another one is answered: it waits its turn (Queue), is refused "
        "with 429 (Reject), is answered together with all that wait (Merge), or ends the running turn and is answered "
        "next (Interrupt).",
    )
    max_message_age_seconds: int = Field(
        default=0,
        ge=0,
        le=2_592_000,
        description="A message that has waited longer before its turn begins is not answered any more; users read "
        "messages.expired. 0: no limit.",
    )
    retention_days: int = Field(
        default=0,
        ge=0,
        le=36_500,
        description="A session in which nothing happened for so many days is deleted with everything in it. 0: never.",
    )


class ObjectName(Model):
    """Names an object in the Agent's own namespace."""

    name: Annotated[str, DNS_SUBDOMAIN] = Field(min_length=1, max_length=253, description="Name of the object.")


class Encryption(Model):
    """Whether content is encrypted in Postgres, and with which keys."""

    enabled: bool = Field(
        default=True,
        description="Encrypt messages, tool calls and state with AES-256-GCM. "
        "What was written otherwise stays readable.",
    )
    keys_secret_ref: ObjectName | None = Field(
        default=None,
        description="Secret with the keys that wrap the agent's data keys: each of its keys is 32 bytes in base64. "
        "Default: one that the operator derives from the installation's root key.",
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
    encryption: Encryption = Field(
        default_factory=Encryption, description="Whether content is encrypted in Postgres, and with which keys."
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
    memories: Memories = Field(default_factory=Memories, description="What the agent remembers beyond a session.")
    history: History = Field(default_factory=History, description="What the model sees of the conversation.")
    budget: Budget | None = Field(default=None, description="What may be used in a day. Unset: no limit.")
    limits: Limits = Field(default_factory=Limits, description="Bounds of one turn.")
    session: SessionSpec = Field(default_factory=SessionSpec, description="Behaviour of sessions.")
    state: State = Field(default_factory=State, description="How a session's state is saved.")
    access: Access = Field(default_factory=Access, description="Who may call the agent, and what for.")
    tools: list[ToolEntry] = Field(
        default_factory=list,
        max_length=32,
        description="What the model may call: MCP servers, HTTP requests, built-in tools.",
        json_schema_extra=_NAMED_LIST,
    )
    input: ContentSchema | None = Field(default=None, description="What messages must be: JSON that fits, else 422.")
    output: ContentSchema | None = Field(
        default=None,
        description="What replies must be: JSON that fits. A model that gives something else is asked once more.",
    )
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
        Rule(
            field="tools",
            cel=None,  # the API server knows it from the list's key
            holds=lambda spec: len({tool.name for tool in spec.tools}) == len(spec.tools),
            message="two tools have the same name: give each entry a name of its own",
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


class ToolStatus(Model):
    """One entry of spec.tools, as pods last saw it."""

    name: str = Field(max_length=253, description="Name of the entry.")
    type: str = Field(max_length=63, description="MCP, HTTP or Builtin.")
    ready: bool = Field(description="Whether its tools can be called.")
    message: str = Field(default="", max_length=1000, description="What is wrong, without secrets.")
    tools: list[str] = Field(default_factory=list, max_length=128, description="What the model may call of it.")


class LastError(Model):
    """The newest error of the agent."""

    time: datetime = Field(description="When it happened.")
    type: str = Field(max_length=200, description="Kind of error.")
    message: str = Field(max_length=1000, description="What happened, without secrets.")


class BudgetStatus(Model):
    """Where one budget stands today."""

    scope: Literal["Agent", "User"] = Field(description="The whole agent, or its users one by one.")
    limit: str = Field(default="", max_length=100, description="The limit of a day.")
    used_percent: int = Field(default=0, ge=0, description="How much is used, of the user nearest to the limit.")
    warning: bool = Field(default=False, description="Whether warnPercent of it is used.")
    resets_at: datetime | None = Field(default=None, description="When the next day begins.")


class Usage(Model):
    """What the agent uses."""

    budgets: list[BudgetStatus] = Field(
        default_factory=list,
        max_length=2,
        description="One entry per limit of spec.budget.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["scope"]},
    )


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
    tools: list[ToolStatus] = Field(
        default_factory=list,
        max_length=32,
        description="What became of spec.tools; of MCP servers, the tools that were discovered.",
        json_schema_extra=_NAMED_LIST,
    )
    last_error: LastError | None = Field(default=None, description="The newest error.")
    usage: Usage = Field(default_factory=Usage, description="What the agent uses.")
    observed_at: datetime | None = Field(default=None, description="When counters and checks were last seen.")


class Agent(Model):
    """A durable AI agent: a conversation partner that forgets no acknowledged message and answers none twice."""

    api_version: Literal["abide.dev/v1alpha1"] = "abide.dev/v1alpha1"
    kind: Literal["Agent"] = "Agent"
    metadata: Metadata
    spec: AgentSpec
    status: AgentStatus = Field(default_factory=AgentStatus)
