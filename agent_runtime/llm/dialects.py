"""How each provider is addressed: its address, where its key goes, and how to ask without cost which models it has.

Light: what speaks the protocols of calls is loaded later, from the module that `chat` names.
"""

import json
import re
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

from agent_runtime.llm.port import FailureKind, ModelError

NO_LIST: Final = (404, 405, 501)
UNUSED: Final = ("aiohttp", "httpx", "rich")
"""What the libraries take along where it is installed, and never use here: 13 MB."""
LAZY: Final = ("anthropic.types", "anthropic.resources", "openai.types", "openai.resources")
"""Packages of the libraries with a thousand modules, of which calls need a few."""
HOLLOW: Final = ("anthropic.resources.beta.beta",)
"""What brings a hundred kinds of resources along: of these, anthropic_chat uses messages, and takes them itself."""
KEY_HEADERS: Final = ("authorization", "x-api-key", "x-goog-api-key")
_VERSION: Final = re.compile(r"v[0-9][0-9a-z]*")
_NOT_LISTED: Final = ModelError(
    FailureKind.NOT_FOUND, "was not in the provider's list of models", state="is not in the provider's list"
)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a provider answered to a check."""

    status: int
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Dialect:
    """One protocol.

    `url` is the provider's own address, `version` what every address ends with ("" where it may end in anything);
    `key_header` and `key_prefix` say where the key goes; `headers` go with every request; `longest` is the field for
    the most tokens of an answer; `lists`: one list of all models is asked for, else each model by its own address.
    """

    provider: str
    url: str
    chat: str
    version: str = ""
    key_header: str = "Authorization"
    key_prefix: str = "Bearer "
    headers: tuple[tuple[str, str], ...] = ()
    temperature: str = "temperature"
    top_p: str = "top_p"
    longest: str = "max_tokens"
    within: str = ""
    """The member of the request that holds these three; "": they stand in it themselves."""
    lists: bool = True

    def address(self, base_url: str | None) -> str:
        """Return the address up to and with its version."""
        url = (base_url or self.url).rstrip("/")
        if not self.version or _VERSION.fullmatch(url.rpartition("/")[2]):
            return url
        return f"{url}/{self.version}"

    def check_path(self, model: str) -> str:
        """Return what to GET, below the address, to learn whether the model can be used."""
        return "/models" if self.lists else f"/models/{quote(model, safe='-._~:@')}"

    def judge(self, answer: Answer, model: str) -> ModelError | None:
        """Return what the answer to a check says against a model, or None."""
        return _judge_list(self, answer, model) if self.lists else _judge_one(answer)


OPENAI: Final = Dialect(
    provider="openai",
    url="https://api.openai.com/v1",
    chat="agent_runtime.llm.openai_chat",
    longest="max_completion_tokens",
)
COMPATIBLE: Final = Dialect(provider="openai-compatible", url="", chat="agent_runtime.llm.openai_chat")
ANTHROPIC: Final = Dialect(
    provider="anthropic",
    url="https://api.anthropic.com/v1",
    version="v1",
    chat="agent_runtime.llm.anthropic_chat",
    key_header="x-api-key",
    key_prefix="",
    headers=(("anthropic-version", "2023-06-01"),),
    lists=False,  # its list has no aliases, which are valid names
)
GOOGLE: Final = Dialect(
    provider="google",
    url="https://generativelanguage.googleapis.com/v1beta",
    version="v1beta",
    chat="agent_runtime.llm.google_chat",
    key_header="x-goog-api-key",
    key_prefix="",
    top_p="topP",
    longest="maxOutputTokens",
    within="generationConfig",
    lists=False,  # its list comes in pages, and without tuned models
)
DIALECTS: Final = {dialect.provider: dialect for dialect in (OPENAI, COMPATIBLE, ANTHROPIC, GOOGLE)}


def read_ids(answer: Answer) -> frozenset[str] | None:
    """Read {"data": [{"id": …}, …]}; None where there is no complete list."""
    content = read_json(answer.body)
    with suppress(TypeError, KeyError):
        if answer.status == 200 and isinstance(content, dict) and not content.get("has_more"):
            return frozenset(str(item["id"]) for item in content["data"])
    return None


def read_json(body: bytes) -> Any:
    """Return what a body says, None if it is no JSON."""
    with suppress(ValueError, RecursionError):
        return json.loads(body)
    return None


def _judge_list(dialect: Dialect, answer: Answer, model: str) -> ModelError | None:
    """OpenAI itself lists every model a key may use. Services that speak its protocol need not have a list, and answer
    to names that are not on it."""
    strict = dialect.provider == "openai"
    if answer.status in NO_LIST and not strict:
        return None
    if (error := _from_status(answer.status)) is not None:
        return error
    ids = read_ids(answer) if strict else None
    return _NOT_LISTED if ids is not None and model not in ids else None


def _judge_one(answer: Answer) -> ModelError | None:
    """Only a provider that speaks of the model knows it not: a proxy in between may have no such page."""
    content = read_json(answer.body)
    error = content.get("error") if isinstance(content, dict) else None
    if answer.status in NO_LIST:
        return _NOT_LISTED if answer.status == 404 and names_nothing(error) else None
    if answer.status == 400 and key_is_invalid(error):
        return invalid_key(400)
    return _from_status(answer.status)


def names_nothing(error: object) -> bool:
    """Whether an error of Anthropic or Google says that there is no such thing."""
    return isinstance(error, dict) and (error.get("type"), error.get("status")) in (
        ("not_found_error", None),
        (None, "NOT_FOUND"),
    )


def key_is_invalid(error: object) -> bool:
    """Whether an error of Google says so: its status is 400."""
    details = error.get("details") if isinstance(error, dict) else None
    return isinstance(details, list) and any(
        isinstance(detail, dict) and detail.get("reason") == "API_KEY_INVALID" for detail in details
    )


def invalid_key(status: int) -> ModelError:
    """Return the error for a key that is refused with a status of another meaning."""
    words = f"{status} (API_KEY_INVALID)"
    return ModelError(
        FailureKind.AUTH_FAILED, f"answered {words}", state=f"answers {words}", status=status, key_refused=True
    )


def _from_status(status: int) -> ModelError | None:
    if status in (401, 403, 404, 408, 429) or status >= 500:
        return ModelError.from_status(status)
    return None
