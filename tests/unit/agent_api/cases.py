"""Manifests to accept and to refuse, with what a refusal says; for the loader here and a real API server elsewhere.

Every refused manifest has an accepted neighbour that differs in the one thing the refusal is about.
"""

import copy
import json
from dataclasses import dataclass
from typing import Any

Manifest = dict[str, Any]

BASE: Manifest = {
    "apiVersion": "abide.dev/v1alpha1",
    "kind": "Agent",
    "metadata": {"name": "assistant"},
    "spec": {"systemPrompt": "You are friendly.", "models": [{"provider": "echo"}]},
}
EMBEDDING: Manifest = {"provider": "openai-compatible", "model": "m", "baseURL": "http://embeddings:8080/v1"}
KEYED: Manifest = {"apiKeySecretRef": {"name": "llm", "key": "openai"}}


@dataclass(frozen=True)
class Case:
    """One law: what breaks it and what keeps it, each as (path, value) put into BASE; None removes the field.

    `message` is the remedy that API server and loader both give; where the API server has words of its own for the
    kind of error it is empty, and `server` and `loader` are what each says.
    """

    name: str
    refused: tuple[tuple[str, Any], ...]
    accepted: tuple[tuple[str, Any], ...]
    field: str
    message: str = ""
    server: str = ""
    loader: str = ""

    @property
    def refused_manifest(self) -> Manifest:
        return put(BASE, *self.refused)

    @property
    def accepted_manifest(self) -> Manifest:
        return put(BASE, *self.accepted)


def put(manifest: Manifest, *changes: tuple[str, Any]) -> Manifest:
    """Return a copy with values at dotted paths (`spec.models.0.name`), missing mappings made on the way."""
    changed = copy.deepcopy(manifest)
    for path, value in changes:
        *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
        target: Any = changed
        for part in parents:
            target = target[part] if isinstance(part, int) else target.setdefault(part, {})
        if value is None and isinstance(target, dict):
            target.pop(last, None)
        else:
            target[last] = value
    return changed


def as_json(manifest: Manifest) -> str:
    return json.dumps(manifest)


def scripted(*replies: Any) -> tuple[str, Any]:
    return ("spec.models", [{"provider": "scripted", "parameters": {"replies": list(replies)}}])


SUBDOMAIN = "use lower case letters, digits, '-' and '.', with a letter or digit at both ends, for example llm-keys"
CONFIG_KEY = "use letters, digits, '-', '_' and '.' only, for example api-key"
CPU = "write cores or thousandths of a core, for example 1, 0.5 or 250m"
MEMORY = "write bytes, or a number with a unit, for example 256Mi or 1Gi"
NEEDS_REPLIES = "provider scripted needs at least one reply, for example: parameters: {replies: [Hello]}"
RESOURCES = "spec.runtime.resources"

URL = (
    "write http:// or https://, a host and a path, without user, password, query and fragment, for example "
    "https://llm.example.com/v1"
)
OPENAI = {"provider": "openai", "model": "gpt-5-mini", "apiKeySecretRef": {"name": "llm", "key": "openai"}}
COMPATIBLE = {"provider": "openai-compatible", "model": "small", "baseURL": "http://llm.shop.svc:8000/v1"}
ANTHROPIC = {"provider": "anthropic", "model": "claude", "apiKeySecretRef": {"name": "llm", "key": "anthropic"}}
GOOGLE = {"provider": "google", "model": "gemini", "apiKeySecretRef": {"name": "llm", "key": "google"}}
PRICE = {"inputPerMillion": "0.25", "outputPerMillion": "2.00", "currency": "USD"}
PRICE_MESSAGE = "write a decimal number in quotes, with at most 6 decimals, for example '0.25'"
RUNTIME = "spec.runtime"
RESERVED = "keys below abide.dev/ belong to the operator: take another prefix"


def model(base: dict[str, Any], **changes: Any) -> tuple[str, Any]:
    """Return one model with some fields changed; None removes one."""
    merged = {name: value for name, value in {**base, **changes}.items() if value is not None}
    return ("spec.models", [merged])


CLOCK = {"name": "time", "type": "Builtin", "builtin": {"name": "Clock"}}
MCP = {"name": "github", "type": "MCP", "mcp": {"url": "https://mcp.example.com/mcp"}}
HTTP = {
    "name": "order",
    "type": "HTTP",
    "http": {
        "description": "Status of an order.",
        "url": "https://api.example.com/orders/{id}",
        "parameters": {"type": "object", "properties": {"id": {"type": "string"}}, "required": ["id"]},
    },
}


def tool(base: dict[str, Any], **changes: Any) -> tuple[str, Any]:
    """Return the change that makes this entry the only one of spec.tools."""
    return ("spec.tools", [{**base, **changes}])


def access_key(**changes: Any) -> tuple[tuple[str, Any], ...]:
    """Return the change that makes one API key."""
    return (("spec.access.keys", [{"name": "shop", "secretKeyRef": {"name": "callers", "key": "shop"}, **changes}]),)


def jwt_provider(**changes: Any) -> tuple[tuple[str, Any], ...]:
    """Return the change that makes one identity provider."""
    company = {
        "name": "company",
        "issuer": "https://login.example.com",
        "audience": "abide",
        "jwksURL": "https://login.example.com/jwks",
    }
    return (("spec.access.jwt", [{**company, **changes}]),)


def http_tool(**changes: Any) -> tuple[str, Any]:
    """Return the change that makes an HTTP request the only tool."""
    return tool(HTTP, http={**HTTP["http"], **changes})  # type: ignore[dict-item]


def header(name: str) -> list[dict[str, Any]]:
    """Return a header from a Secret."""
    return [{"name": name, "secretKeyRef": {"name": "shop", "key": "bearer"}}]


TOOL_RULES = (
    Case(
        "an MCP entry without a server",
        refused=(("spec.tools", [{"name": "github", "type": "MCP"}]),),
        accepted=(tool(MCP),),
        field="spec.tools[0].mcp",
        message="type MCP and mcp belong together: write both, for example mcp: {url: https://mcp.example.com/mcp}, or "
        "none",
    ),
    Case(
        "an HTTP request in a built-in entry",
        refused=(tool(CLOCK, http=HTTP["http"]),),
        accepted=(tool(HTTP),),
        field="spec.tools[0].http",
        message="type HTTP and http belong together: write both, for example http: {url: "
        "https://api.example.com/status, description: …}, or none",
    ),
    Case(
        "a built-in entry that does not say which",
        refused=(("spec.tools", [{"name": "time", "type": "Builtin"}]),),
        accepted=(tool(CLOCK),),
        field="spec.tools[0].builtin",
        message="type Builtin and builtin belong together: write both, for example builtin: {name: Clock}, or none",
    ),
    Case(
        "a tool's name with blanks",
        refused=(tool(CLOCK, name="the time"),),
        accepted=(tool(CLOCK, name="the_time"),),
        field="spec.tools[0].name",
        message="use letters, digits, '_' and '-' only, for example order_status",
    ),
    Case(
        "an argument in the host",
        refused=(http_tool(url="https://{id}.example.com/orders"),),
        accepted=(http_tool(url="https://api.example.com/orders?id={id}"),),
        field="spec.tools[0].http.url",
        message="write http:// or https://, a host and a path, with {names} of parameters in path and query only, for "
        "example https://api.example.com/orders/{id}",
    ),
    Case(
        "a header that is no name",
        refused=(http_tool(headersFrom=header("X Key")),),
        accepted=(http_tool(headersFrom=header("X-Key")),),
        field="spec.tools[0].http.headersFrom[0].name",
        message="write the name of an HTTP header, for example Authorization",
    ),
    Case(
        "a header of the runtime's own",
        refused=(http_tool(headersFrom=header("Host")),),
        accepted=(http_tool(headersFrom=header("Authorization")),),
        field="spec.tools[0].http.headersFrom[0].name",
        message="the runtime sets this header itself: remove it",
    ),
)

RULES = (
    *TOOL_RULES,
    Case(
        "a real provider without a model",
        refused=(model(OPENAI, model=None),),
        accepted=(model(OPENAI),),
        field="spec.models[0].model",
        message="this provider needs the name of a model, for example model: gpt-5-mini",
    ),
    Case(
        "a compatible provider without an address",
        refused=(model(COMPATIBLE, baseURL=None),),
        accepted=(model(COMPATIBLE),),
        field="spec.models[0].baseURL",
        message="provider openai-compatible needs the address of the service, for example "
        "baseURL: https://llm.example.com/v1",
    ),
    Case(
        "a built-in model with an address",
        refused=(("spec.models.0.baseURL", "http://llm.shop.svc/v1"),),
        accepted=(model(OPENAI, baseURL="http://llm.shop.svc/v1"),),
        field="spec.models[0].baseURL",
        message="a built-in model has no address: remove baseURL, or name another provider",
    ),
    Case(
        "an address with a password",
        refused=(model(COMPATIBLE, baseURL="https://me:secret@llm.example.com/v1"),),
        accepted=(model(COMPATIBLE, baseURL="https://llm.example.com:8443/v1"),),
        field="spec.models[0].baseURL",
        message=URL,
    ),
    Case(
        "an address of another protocol",
        refused=(model(COMPATIBLE, baseURL="ftp://llm.example.com/v1"),),
        accepted=(model(COMPATIBLE, baseURL="https://llm.example.com"),),
        field="spec.models[0].baseURL",
        message=URL,
    ),
    Case(
        "openai without a key",
        refused=(model(OPENAI, apiKeySecretRef=None),),
        accepted=(model(COMPATIBLE),),
        field="spec.models[0].apiKeySecretRef",
        message="provider openai needs an API key, for example apiKeySecretRef: {name: llm, key: openai}",
    ),
    Case(
        "anthropic without a key",
        refused=(model(ANTHROPIC, apiKeySecretRef=None),),
        accepted=(model(ANTHROPIC),),
        field="spec.models[0].apiKeySecretRef",
        message="provider anthropic needs an API key, for example apiKeySecretRef: {name: llm, key: anthropic}",
    ),
    Case(
        "google without a key",
        refused=(model(GOOGLE, apiKeySecretRef=None),),
        accepted=(model(GOOGLE),),
        field="spec.models[0].apiKeySecretRef",
        message="provider google needs an API key, for example apiKeySecretRef: {name: llm, key: google}",
    ),
    Case(
        "a price with a comma",
        refused=(model(OPENAI, price={**PRICE, "inputPerMillion": "0,25"}),),
        accepted=(model(OPENAI, price={**PRICE, "inputPerMillion": "0"}),),
        field="spec.models[0].price.inputPerMillion",
        message=PRICE_MESSAGE,
    ),
    Case(
        "a price finer than a millionth",
        refused=(model(OPENAI, price={**PRICE, "outputPerMillion": "2.0000001"}),),
        accepted=(model(OPENAI, price={**PRICE, "outputPerMillion": "2.000001"}),),
        field="spec.models[0].price.outputPerMillion",
        message=PRICE_MESSAGE,
    ),
    Case(
        "a currency in small letters",
        refused=(model(OPENAI, price={**PRICE, "currency": "usd"}),),
        accepted=(model(OPENAI, price=PRICE),),
        field="spec.models[0].price.currency",
        message="write a currency as three capital letters, for example USD",
    ),
    Case(
        "a real model that waits",
        refused=(model(OPENAI, parameters={"delaySeconds": 1}),),
        accepted=(model(OPENAI, parameters={"delaySeconds": 0}),),
        field="spec.models[0].parameters.delaySeconds",
        message="only built-in models wait before a reply: remove delaySeconds",
    ),
    Case(
        "a built-in model with a temperature",
        refused=(("spec.models.0.parameters.temperature", 1),),
        accepted=(
            model(OPENAI, parameters={"temperature": 1, "topP": 0.5, "maxOutputTokens": 5, "extra": {"seed": 1}}),
        ),
        field="spec.models[0].parameters",
        message="built-in models take none of temperature, topP and maxOutputTokens: remove them",
    ),
    Case(
        "a variable of the runtime's own",
        refused=((f"{RUNTIME}.env", [{"name": "ABIDE_PORT", "value": "1"}]),),
        accepted=((f"{RUNTIME}.env", [{"name": "PORT", "value": "1"}]),),
        field=f"{RUNTIME}.env[0].name",
        message="names that start with ABIDE_ belong to the runtime: take another name",
    ),
    Case(
        "a variable with two values",
        refused=(
            (
                f"{RUNTIME}.env",
                [{"name": "TOKEN", "value": "", "valueFrom": {"secretKeyRef": {"name": "a", "key": "b"}}}],
            ),
        ),
        accepted=((f"{RUNTIME}.env", [{"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "a", "key": "b"}}}]),),
        field=f"{RUNTIME}.env[0]",
        message="write exactly one of value and valueFrom",
    ),
    Case(
        "a variable with a strange name",
        refused=((f"{RUNTIME}.env", [{"name": "MY-PROXY", "value": "x"}]),),
        accepted=((f"{RUNTIME}.env", [{"name": "MY_PROXY", "value": ""}]),),
        field=f"{RUNTIME}.env[0].name",
        message="use letters, digits and '_', with no digit at the start, for example HTTPS_PROXY",
    ),
    Case(
        "a label of the operator's own",
        refused=((f"{RUNTIME}.podLabels", {"abide.dev/agent": "other"}),),
        accepted=((f"{RUNTIME}.podLabels", {"team": "shop"}),),
        field=f"{RUNTIME}.podLabels",
        message=RESERVED,
    ),
    Case(
        "an annotation of the operator's own",
        refused=((f"{RUNTIME}.podAnnotations", {"x.abide.dev/y": "z"}),),
        accepted=((f"{RUNTIME}.podAnnotations", {"example.com/y": "z"}),),
        field=f"{RUNTIME}.podAnnotations",
        message=RESERVED,
    ),
    Case(
        "two prompts",
        refused=(("spec.systemPromptFrom", {"configMapKeyRef": {"name": "prompts", "key": "support"}}),),
        accepted=(
            ("spec.systemPromptFrom", {"configMapKeyRef": {"name": "prompts", "key": "support"}}),
            ("spec.systemPrompt", None),
        ),
        field="spec.systemPromptFrom",
        message="two system prompts: keep exactly one of systemPrompt and systemPromptFrom",
    ),
    Case(
        "no prompt",
        refused=(("spec.systemPrompt", None),),
        accepted=(),
        field="spec",
        message="a system prompt is missing: write systemPrompt, or systemPromptFrom.configMapKeyRef",
    ),
    Case(
        "two models without names of their own",
        refused=(("spec.models", [{"provider": "echo"}, {"provider": "echo"}]),),
        accepted=(("spec.models", [{"provider": "echo"}, {"provider": "echo", "name": "second"}]),),
        field="spec.models",
        message="two models have the same name: give each a name of its own in models[].name "
        "(without one, an entry is called like its model, or else like its provider)",
    ),
    Case(
        "a model called like another's default name",
        refused=(("spec.models", [{"provider": "echo", "model": "a"}, {"provider": "echo", "name": "a"}]),),
        accepted=(
            ("spec.models", [{"provider": "echo", "model": "a"}, {"provider": "echo", "name": "b", "model": "a"}]),
        ),
        field="spec.models",
        message="two models have the same name: give each a name of its own in models[].name "
        "(without one, an entry is called like its model, or else like its provider)",
    ),
    Case(
        "scripted without replies",
        refused=(("spec.models.0.provider", "scripted"),),
        accepted=(scripted("Hello"),),
        field="spec.models[0].parameters.replies",
        message=NEEDS_REPLIES,
    ),
    Case(
        "scripted with an empty script",
        refused=(scripted(),),
        accepted=(scripted({"error": 503}),),
        field="spec.models[0].parameters.replies",
        message=NEEDS_REPLIES,
    ),
    Case(
        "echo with replies",
        refused=(("spec.models.0.parameters.replies", ["Hello"]),),
        accepted=(("spec.models.0.parameters.delaySeconds", 1),),
        field="spec.models[0].parameters.replies",
        message="only provider scripted gives replies: write provider: scripted, or remove the replies",
    ),
    Case(
        "name with a dot",
        refused=(("metadata.name", "shop.support"),),
        accepted=(("metadata.name", "shop-support"),),
        field="metadata.name",
        message="an agent's name may not contain '.': write '-' instead, for example shop-support",
    ),
    Case(
        "name of 51 characters",
        refused=(("metadata.name", "a" * 51),),
        accepted=(("metadata.name", "a" * 50),),
        field="metadata.name",
        message="an agent's name has at most 50 characters, since other names are made from it: shorten it",
    ),
    Case(
        "name of a Secret",
        refused=(("spec.models.0.apiKeySecretRef", {"name": "LLM_keys", "key": "openai"}),),
        accepted=(("spec.models.0.apiKeySecretRef", {"name": "llm.keys", "key": "openai"}),),
        field="spec.models[0].apiKeySecretRef.name",
        message=SUBDOMAIN,
    ),
    Case(
        "key of a Secret",
        refused=(("spec.models.0.apiKeySecretRef", {"name": "llm", "key": "open ai"}),),
        accepted=(("spec.models.0.apiKeySecretRef", {"name": "llm", "key": "OPEN_AI.key-1"}),),
        field="spec.models[0].apiKeySecretRef.key",
        message=CONFIG_KEY,
    ),
    Case(
        "key that ends in a line break",
        refused=(("spec.models.0.apiKeySecretRef", {"name": "llm", "key": "openai\n"}),),
        accepted=(("spec.models.0.apiKeySecretRef", {"name": "llm", "key": "openai"}),),
        field="spec.models[0].apiKeySecretRef.key",
        message=CONFIG_KEY,
    ),
    Case(
        "name and key of a ConfigMap",
        refused=(
            ("spec.systemPrompt", None),
            ("spec.systemPromptFrom.configMapKeyRef", {"name": "-prompts", "key": "support"}),
        ),
        accepted=(
            ("spec.systemPrompt", None),
            ("spec.systemPromptFrom.configMapKeyRef", {"name": "prompts", "key": "support.txt"}),
        ),
        field="spec.systemPromptFrom.configMapKeyRef.name",
        message=SUBDOMAIN,
    ),
    Case(
        "CPU in words",
        refused=((f"{RESOURCES}.requests", {"cpu": "1 core"}),),
        accepted=((f"{RESOURCES}.requests", {"cpu": "0.5"}),),
        field=f"{RESOURCES}.requests.cpu",
        message=CPU,
    ),
    Case(
        "CPU limit with a memory unit",
        refused=((f"{RESOURCES}.limits", {"cpu": "1Gi"}),),
        accepted=((f"{RESOURCES}.limits", {"cpu": "250m"}),),
        field=f"{RESOURCES}.limits.cpu",
        message=CPU,
    ),
    Case(
        "memory in MB",
        refused=((f"{RESOURCES}.requests", {"memory": "100MB"}),),
        accepted=((f"{RESOURCES}.requests", {"memory": "100M"}),),
        field=f"{RESOURCES}.requests.memory",
        message=MEMORY,
    ),
    Case(
        "negative memory limit",
        refused=((f"{RESOURCES}.limits", {"memory": "-1Gi"}),),
        accepted=((f"{RESOURCES}.limits", {"memory": "1.5Gi"}),),
        field=f"{RESOURCES}.limits.memory",
        message=MEMORY,
    ),
    Case(
        "memory limit below the default request",
        refused=((f"{RESOURCES}.limits", {"memory": "64Mi"}),),
        accepted=((f"{RESOURCES}.limits", {"memory": "96Mi"}),),
        field=f"{RESOURCES}.requests.memory",
        message="a request may not exceed its limit: lower requests.memory or raise limits.memory",
    ),
    Case(
        "CPU request above the limit",
        refused=((RESOURCES, {"requests": {"cpu": "1.1"}, "limits": {"cpu": "1000m"}}),),
        accepted=((RESOURCES, {"requests": {"cpu": "1000m"}, "limits": {"cpu": "1"}}),),
        field=f"{RESOURCES}.requests.cpu",
        message="a request may not exceed its limit: lower requests.cpu or raise limits.cpu",
    ),
    Case(
        "a budget without a limit",
        refused=(("spec.budget.perDay", {}),),
        accepted=(("spec.budget.perDay", {"tokens": 1000}),),
        field="spec.budget.perDay",
        message="a budget without a limit: write amount, tokens, or both",
    ),
    Case(
        "a budget of nothing",
        refused=(("spec.budget.perUserDay", {"amount": "0.00"}),),
        accepted=(("spec.budget.perUserDay", {"amount": "0.01"}),),
        field="spec.budget.perUserDay.amount",
        message="with an amount of 0 no turn would ever run: write more, or suspend the agent",
    ),
    Case(
        "an empty budget",
        refused=(("spec.budget", {"warnPercent": 50}),),
        accepted=(("spec.budget", {"warnPercent": 50, "perDay": {"amount": "20"}}),),
        field="spec.budget",
        message="an empty budget: write perDay, perUserDay, or both",
    ),
    Case(
        "budgets in two currencies",
        refused=(("spec.budget", {"perDay": {"amount": "20"}, "perUserDay": {"amount": "1", "currency": "EUR"}}),),
        accepted=(("spec.budget", {"perDay": {"amount": "20"}, "perUserDay": {"tokens": 1, "currency": "EUR"}}),),
        field="spec.budget.perUserDay.currency",
        message="two currencies: write the same one in perDay and perUserDay",
    ),
    Case(
        "an amount that is no number",
        refused=(("spec.budget.perDay", {"amount": "1,50"}),),
        accepted=(("spec.budget.perDay", {"amount": "1.50"}),),
        field="spec.budget.perDay.amount",
        message=PRICE_MESSAGE,
    ),
    Case(
        "a time zone in words",
        refused=(("spec.budget", {"perDay": {"tokens": 1}, "timeZone": "Berlin time"}),),
        accepted=(("spec.budget", {"perDay": {"tokens": 1}, "timeZone": "Europe/Berlin"}),),
        field="spec.budget.timeZone",
        message="write UTC or a name of the time zone database, for example Europe/Berlin",
    ),
    Case(
        "a key with a capital in its name",
        refused=access_key(name="Shop"),
        accepted=access_key(name="shop-2"),
        field="spec.access.keys[0].name",
        message="use lower case letters, digits and '-', with a letter or digit at both ends, for example shop-support",
    ),
    Case(
        "a user with a blank",
        refused=access_key(user="alice smith"),
        accepted=access_key(user="alice@example.com"),
        field="spec.access.keys[0].user",
        message="use letters, digits, '.', '_', ':', '@' and '-' only, for example alice@example.com",
    ),
    Case(
        "a claim of rights without a map",
        refused=jwt_provider(rightsClaim="groups"),
        accepted=jwt_provider(rightsClaim="groups", rightsMap={"support": ["Read"]}),
        field="spec.access.jwt[0].rightsClaim",
        message="rightsClaim and rightsMap belong together: write both, for example rightsClaim: groups and "
        "rightsMap: {support: [Read, Approve]}, or none",
    ),
    Case(
        "a provider whose holders may do nothing",
        refused=jwt_provider(rights=[]),
        accepted=jwt_provider(rights=[], rightsClaim="groups", rightsMap={"support": ["Chat"]}),
        field="spec.access.jwt[0].rights",
        message="nobody would have any right: write rights, for example [Chat], or rightsClaim and rightsMap",
    ),
    Case(
        "memories that are described and not enabled",
        refused=(("spec.memories.initial", [{"content": "We open at nine."}]),),
        accepted=(("spec.memories", {"enabled": True, "initial": [{"content": "We open at nine."}]}),),
        field="spec.memories.enabled",
        message="memories are described and not enabled: write enabled: true, or remove the rest",
    ),
    Case(
        "an embedding service without an address",
        refused=(("spec.memories", {"enabled": True, "embedding": {"provider": "openai-compatible", "model": "m"}}),),
        accepted=(("spec.memories", {"enabled": True, "embedding": EMBEDDING}),),
        field="spec.memories.embedding.baseURL",
        message="provider openai-compatible needs the address of the service, for example "
        "baseURL: https://llm.example.com/v1",
    ),
    Case(
        "embeddings of openai without a key",
        refused=(("spec.memories", {"enabled": True, "embedding": {"provider": "openai", "model": "m"}}),),
        accepted=(("spec.memories", {"enabled": True, "embedding": {**EMBEDDING, "provider": "openai", **KEYED}}),),
        field="spec.memories.embedding.apiKeySecretRef",
        message="provider openai needs an API key, for example apiKeySecretRef: {name: llm, key: openai}",
    ),
    Case(
        "a tag of two words",
        refused=(("spec.memories", {"enabled": True, "initial": [{"content": "x", "tags": ["two words"]}]}),),
        accepted=(("spec.memories", {"enabled": True, "initial": [{"content": "x", "tags": ["two-words"]}]}),),
        field="spec.memories.initial[0].tags[0]",
        message="write one word without blanks and commas, for example opening-hours",
    ),
)

FIELDS = (
    Case(
        "unknown provider",
        refused=(("spec.models.0.provider", "oracle"),),
        accepted=(("spec.models.0.provider", "echo"),),
        field="spec.models[0].provider",
        server='Unsupported value: "oracle": supported values: "openai", "openai-compatible", "anthropic", "google", '
        '"echo", "scripted"',
        loader='"oracle" is not supported; write one of: openai, openai-compatible, anthropic, google, echo, scripted',
    ),
    Case(
        "no provider",
        refused=(("spec.models", [{"name": "main"}]),),
        accepted=(("spec.models", [{"name": "main", "provider": "echo"}]),),
        field="spec.models[0].provider",
        server="Required value",
        loader="required but missing",
    ),
    Case(
        "no models",
        refused=(("spec.models", None),),
        accepted=(),
        field="spec.models",
        server="Required value",
        loader="required but missing. The primary model first, then the fallback chain, in order.",
    ),
    Case(
        "empty list of models",
        refused=(("spec.models", []),),
        accepted=(("spec.models", [{"provider": "echo"}]),),
        field="spec.models",
        server="should have at least 1 items",
        loader="too few; write at least 1 entry",
    ),
    Case(
        "17 models",
        refused=(("spec.models", [{"provider": "echo", "name": f"m{n}"} for n in range(17)]),),
        accepted=(("spec.models", [{"provider": "echo", "name": f"m{n}"} for n in range(16)]),),
        field="spec.models",
        server="must have at most 16 items",
        loader="too many; write at most 16 entries",
    ),
    Case(
        "negative history limit",
        refused=(("spec.history.limit", -1),),
        accepted=(("spec.history.limit", 1),),
        field="spec.history.limit",
        server="should be greater than or equal to 1",
        loader="-1 is too small; write 1 or more",
    ),
    Case(
        "history limit in quotes",
        refused=(("spec.history.limit", "5"),),
        accepted=(("spec.history.limit", 5),),
        field="spec.history.limit",
        server='must be of type integer: "string"',
        loader='must be a whole number, not the text "5"; write it without quotes',
    ),
    Case(
        "half a step",
        refused=(("spec.limits.maxSteps", 1.5),),
        accepted=(("spec.limits.maxSteps", 2.0),),
        field="spec.limits.maxSteps",
        server="must be of type integer",
        loader="must be a whole number, not the number 1.5",
    ),
    Case(
        "no turn time",
        refused=(("spec.limits.turnSeconds", 0),),
        accepted=(("spec.limits.turnSeconds", 86400),),
        field="spec.limits.turnSeconds",
        server="should be greater than or equal to 1",
        loader="0 is too small; write 1 or more",
    ),
    Case(
        "a queue without end",
        refused=(("spec.session.queueLimit", 1001),),
        accepted=(("spec.session.queueLimit", 0),),
        field="spec.session.queueLimit",
        server="should be less than or equal to 1000",
        loader="1001 is too large; write 1000 or less",
    ),
    Case(
        "an unknown way of being busy",
        refused=(("spec.session.whenBusy", "Drop"),),
        accepted=(("spec.session.whenBusy", "Merge"),),
        field="spec.session.whenBusy",
        server='Unsupported value: "Drop": supported values: "Queue", "Reject", "Merge", "Interrupt"',
        loader='"Drop" is not supported; write one of: Queue, Reject, Merge, Interrupt',
    ),
    Case(
        "a message that is younger than nothing",
        refused=(("spec.session.maxMessageAgeSeconds", -1),),
        accepted=(("spec.session.maxMessageAgeSeconds", 60),),
        field="spec.session.maxMessageAgeSeconds",
        server="should be greater than or equal to 0",
        loader="-1 is too small; write 0 or more",
    ),
    Case(
        "retention for more than a century",
        refused=(("spec.session.retentionDays", 36_501),),
        accepted=(("spec.session.retentionDays", 30),),
        field="spec.session.retentionDays",
        server="should be less than or equal to 36500",
        loader="36501 is too large; write 36500 or less",
    ),
    Case(
        "busy without words",
        refused=(("spec.messages.busy", ""),),
        accepted=(("spec.messages.busy", "One moment."),),
        field="spec.messages.busy",
        server="should be at least 1 chars long",
        loader="too short; write at least 1 character",
    ),
    Case(
        "expired without words",
        refused=(("spec.messages.expired", ""),),
        accepted=(("spec.messages.expired", "Too late."),),
        field="spec.messages.expired",
        server="should be at least 1 chars long",
        loader="too short; write at least 1 character",
    ),
    Case(
        "eviction at once",
        refused=(("spec.session.evictAfterSeconds", 0),),
        accepted=(("spec.session.evictAfterSeconds", 1),),
        field="spec.session.evictAfterSeconds",
        server="should be greater than or equal to 1",
        loader="0 is too small; write 1 or more",
    ),
    Case(
        "never saved",
        refused=(("spec.state.autoSaveEveryMessages", 0),),
        accepted=(("spec.state.autoSaveEveryMessages", 1),),
        field="spec.state.autoSaveEveryMessages",
        server="should be greater than or equal to 1",
        loader="0 is too small; write 1 or more",
    ),
    Case(
        "too many replicas",
        refused=(("spec.replicas", 101),),
        accepted=(("spec.replicas", 100),),
        field="spec.replicas",
        server="should be less than or equal to 100",
        loader="101 is too large; write 100 or less",
    ),
    Case(
        "a policy that does not exist",
        refused=(("spec.state", {"deletionPolicy": "Keep"}),),
        accepted=(("spec.state", {"deletionPolicy": "Delete"}),),
        field="spec.state.deletionPolicy",
        server='Unsupported value: "Keep": supported values: "Retain", "Delete"',
        loader='"Keep" is not supported; write one of: Retain, Delete',
    ),
    Case(
        "encryption keys of an impossible name",
        refused=(("spec.state", {"encryption": {"keysSecretRef": {"name": "My_Keys"}}}),),
        accepted=(("spec.state", {"encryption": {"enabled": True, "keysSecretRef": {"name": "my-keys"}}}),),
        field="spec.state.encryption.keysSecretRef.name",
        message="use lower case letters, digits, '-' and '.', with a letter or digit at both ends, "
        "for example llm-keys",
    ),
    Case(
        "a variable twice",
        refused=((f"{RUNTIME}.env", [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]),),
        accepted=((f"{RUNTIME}.env", [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}]),),
        field=f"{RUNTIME}.env",
        server="Duplicate value",
        loader="a variable stands there twice: keep one",
    ),
    Case(
        "suspend in words",
        refused=(("spec.suspend", "never"),),
        accepted=(("spec.suspend", True),),
        field="spec.suspend",
        server='must be of type boolean: "string"',
        loader='must be true or false, not the text "never"; write it without quotes',
    ),
    Case(
        "a model timeout of an hour and a second",
        refused=(("spec.models.0.timeoutSeconds", 3601),),
        accepted=(("spec.models.0.timeoutSeconds", 3600),),
        field="spec.models[0].timeoutSeconds",
        server="should be less than or equal to 3600",
        loader="3601 is too large; write 3600 or less",
    ),
    Case(
        "a delay backwards",
        refused=(("spec.models.0.parameters.delaySeconds", -0.5),),
        accepted=(("spec.models.0.parameters.delaySeconds", 0.5),),
        field="spec.models[0].parameters.delaySeconds",
        server="should be greater than or equal to 0",
        loader="-0.5 is too small; write 0 or more",
    ),
    Case(
        "a scripted error that is none",
        refused=(scripted("Hello", {"error": 200}),),
        accepted=(scripted("Hello", {"error": 429}),),
        field="spec.models[0].parameters.replies[1].error",
        server="should be greater than or equal to 400",
        loader="200 is too small; write 400 or more",
    ),
    Case(
        "a scripted tool call without name",
        refused=(scripted({"toolCalls": [{"arguments": {}}]}),),
        accepted=(scripted({"toolCalls": [{"name": "clock", "arguments": {"zone": {"city": None}}}]}),),
        field="spec.models[0].parameters.replies[0].toolCalls[0].name",
        server="Required value",
        loader="required but missing. Name of the tool.",
    ),
    Case(
        "an empty fallback message",
        refused=(("spec.messages.fallback", ""),),
        accepted=(("spec.messages.fallback", "Später wieder. ✓"),),
        field="spec.messages.fallback",
        server="should be at least 1 chars long",
        loader="too short; write at least 1 character",
    ),
    Case(
        "a number as text",
        refused=(("spec.displayName", 5),),
        accepted=(("spec.displayName", "5"),),
        field="spec.displayName",
        server='must be of type string: "integer"',
        loader="must be a text, not the number 5; put it in quotes",
    ),
    Case(
        "a display name that is too long",
        refused=(("spec.displayName", "ä" * 201),),
        accepted=(("spec.displayName", "ä" * 200),),
        field="spec.displayName",
        server="may not be more than 200",
        loader="too long; write at most 200 characters",
    ),
    Case(
        "a list where a mapping belongs",
        refused=(("spec.history", [1]),),
        accepted=(("spec.history", {}),),
        field="spec.history",
        server='must be of type object: "array"',
        loader="must be a mapping, not a list",
    ),
    Case(
        "a right that there is not",
        refused=access_key(rights=["Write"]),
        accepted=access_key(rights=["Read"]),
        field="spec.access.keys[0].rights[0]",
        server='Unsupported value: "Write"',
        loader='"Write" is not supported; write one of: Chat, Read, Approve, Operate',
    ),
    Case(
        "an API key without its Secret",
        refused=(("spec.access.keys", [{"name": "shop"}]),),
        accepted=access_key(),
        field="spec.access.keys[0].secretKeyRef",
        server="Required value",
        loader="required but missing",
    ),
    Case(
        "a negative number of requests",
        refused=(("spec.limits.requestsPerMinute", -1),),
        accepted=(("spec.limits.requestsPerMinute", 0),),
        field="spec.limits.requestsPerMinute",
        server="should be greater than or equal to 0",
        loader="-1 is too small; write 0 or more",
    ),
    Case(
        "an image name of 513 characters",
        refused=(("spec.runtime.image", "a" * 513),),
        accepted=(("spec.runtime.image", "a" * 512),),
        field="spec.runtime.image",
        server="may not be more than 512",
        loader="too long; write at most 512 characters",
    ),
)

UNKNOWN_FIELDS = (
    Case(
        "a misspelt field",
        refused=(("spec.systemPromt", "Hi"),),
        accepted=(),
        field="spec.systemPromt",
        server='unknown field "spec.systemPromt"',
        loader="unknown field; did you mean systemPrompt?",
    ),
    Case(
        "a Python name",
        refused=(("spec.system_prompt", "Hi"), ("spec.systemPrompt", None)),
        accepted=(),
        field="spec.system_prompt",
        server='unknown field "spec.system_prompt"',
        loader="unknown field; did you mean systemPrompt?",
    ),
    Case(
        "a field of a later version",
        refused=(("spec.channels", []),),
        accepted=(),
        field="spec.channels",
        server='unknown field "spec.channels"',
        loader="unknown field; ",
    ),
    Case(
        "a field in the wrong place",
        refused=(("spec.models.0.temperature", 1),),
        accepted=(),
        field="spec.models[0].temperature",
        server='unknown field "spec.models[0].temperature"',
        loader="unknown field; known here: apiKeySecretRef, baseURL, model, name, parameters, price, provider, "
        "streamIdleSeconds, timeoutSeconds",
    ),
    Case(
        "a misspelt label list",
        refused=(("metadata.lables", {"a": "b"}),),
        accepted=(("metadata.labels", {"a": "b"}),),
        field="metadata.lables",
        server='unknown field "metadata.lables"',
        loader="unknown field; did you mean labels?",
    ),
)

CASES = RULES + FIELDS + UNKNOWN_FIELDS
