"""Chat completions, of OpenAI and of whatever speaks its protocol. Importing this costs a second and 40 MB."""

from openai import AsyncOpenAI
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.profiles.openai import OpenAIModelProfile
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.settings import ModelSettings

from agent_api.v1alpha1 import ModelSpec
from agent_runtime.llm.client import ProviderClient
from agent_runtime.llm.dialects import Dialect
from agent_runtime.llm.direct import PLACEHOLDER, DirectChat, request_body, sent_parameters


class Chat(DirectChat):
    """One model behind one address."""

    def __init__(self, spec: ModelSpec, dialect: Dialect, base_url: str, client: ProviderClient) -> None:
        library = AsyncOpenAI(
            api_key=PLACEHOLDER, base_url=base_url, http_client=client, max_retries=0, timeout=client.timeout
        )
        model = OpenAIChatModel(
            spec.model or "",
            provider=OpenAIProvider(openai_client=library),
            # An answer without a reason for its end was cut off on the way.
            profile=OpenAIModelProfile(openai_chat_streaming_requires_finish_reason=True),
        )
        body = request_body(dialect, spec.parameters)
        super().__init__(model, ModelSettings(extra_body=body) if body else None, sent_parameters(dialect, body))
