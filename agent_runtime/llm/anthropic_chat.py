"""Messages of Anthropic. Importing this costs two seconds and 45 MB."""

from functools import cached_property
from typing import TYPE_CHECKING, Any

from anthropic import AsyncAnthropic
from anthropic.resources.beta.messages import AsyncMessages
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.settings import ModelSettings

from agent_api.v1alpha1 import ModelSpec
from agent_runtime.llm.client import ProviderClient
from agent_runtime.llm.dialects import Dialect
from agent_runtime.llm.direct import PLACEHOLDER, DirectChat, request_body, sent_parameters


class _OnlyMessages:
    """The one part of the library's `beta` that is used; all of it costs 15 MB."""

    def __init__(self, client: AsyncAnthropic) -> None:
        self.messages = AsyncMessages(client)


class _Client(AsyncAnthropic):
    if not TYPE_CHECKING:

        @cached_property
        def beta(self) -> Any:
            """Return the part that is used."""
            return _OnlyMessages(self)


class Chat(DirectChat):
    """One model behind one address."""

    begins_with_user = True

    def __init__(self, spec: ModelSpec, dialect: Dialect, base_url: str, client: ProviderClient) -> None:
        library = _Client(
            api_key=PLACEHOLDER,
            base_url=base_url.rpartition("/")[0],  # the library adds the version
            http_client=client,
            max_retries=0,
            timeout=client.timeout,
        )
        model = AnthropicModel(spec.model or "", provider=AnthropicProvider(anthropic_client=library))
        body = request_body(dialect, spec.parameters)
        super().__init__(model, ModelSettings(extra_body=body) if body else None, sent_parameters(dialect, body))
