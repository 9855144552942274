"""Texts into vectors, by the embeddings protocol that OpenAI and compatible services speak."""

import asyncio
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from agent_api.v1alpha1 import EmbeddingSpec
from agent_runtime.llm.keys import KeyFile

if TYPE_CHECKING:
    from agent_runtime.llm.client import ProviderClient

OPENAI_URL: Final = "https://api.openai.com/v1"
TIMEOUT: Final = 20.0
MOST_TEXTS: Final = 32
"""Texts of one request."""
MOST_DIMENSIONS: Final = 8192

Vector = Sequence[float]


class EmbeddingError(Exception):
    """No vector could be had; the text says what the model did, as a phrase: `answers 401`."""


class Embedder(Protocol):
    """What makes vectors."""

    @property
    def name(self) -> str:
        """Names the model, with whatever makes its vectors unlike those of others: vectors compare within a name."""
        ...

    async def embed(self, texts: Sequence[str]) -> list[Vector]:
        """Return a vector of length 1 for each of at most MOST_TEXTS texts. Raises EmbeddingError within TIMEOUT."""
        ...

    async def aclose(self) -> None:
        """Close its connections."""
        ...


class HttpEmbedder:
    """The model of `spec.memories.embedding`; its library is loaded with the first call."""

    def __init__(self, spec: EmbeddingSpec, secrets: Path) -> None:
        self._spec = spec
        self._url = (spec.base_url or OPENAI_URL).rstrip("/")
        self._key = KeyFile(secrets, spec.api_key_secret_ref) if spec.api_key_secret_ref else None
        self._client: ProviderClient | None = None
        size = f":{spec.dimensions}" if spec.dimensions else ""
        self.name = f"{spec.provider}/{spec.model}{size}"

    async def embed(self, texts: Sequence[str]) -> list[Vector]:
        """See Embedder.embed."""
        if self._key is not None:
            self._key.reload()
            if self._key.problem:
                raise EmbeddingError(self._key.problem)
        client = await self._connect()
        from agent_runtime.llm.client import from_transport

        body: dict[str, Any] = {"model": self._spec.model, "input": list(texts), "encoding_format": "float"}
        if self._spec.dimensions:
            body["dimensions"] = self._spec.dimensions
        try:
            async with asyncio.timeout(TIMEOUT):
                response = await client.post(f"{self._url}/embeddings", json=body)
        except TimeoutError:
            raise EmbeddingError(f"does not answer within {TIMEOUT:g} s") from None
        except Exception as error:  # a client's exceptions are many, and all mean that there is no answer
            raise EmbeddingError(from_transport(error).state) from None
        if response.status_code != 200:
            raise EmbeddingError(f"answers {response.status_code}")
        return read_vectors(response.content, len(texts))

    async def _connect(self) -> "ProviderClient":
        if self._client is None:
            await asyncio.to_thread(_load)
            from agent_runtime.llm.client import ProviderClient

            self._client = self._client or ProviderClient(lambda: self._key.value if self._key else "", TIMEOUT)
        return self._client

    async def aclose(self) -> None:
        """See Embedder.aclose."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()


def _load() -> None:
    import agent_runtime.llm.client  # noqa: F401


def read_vectors(body: bytes, count: int) -> list[Vector]:
    """Read {"data": [{"index": 0, "embedding": [...]}, ...]}, scaled to length 1. Raises EmbeddingError."""
    try:
        items = sorted(json.loads(body)["data"], key=lambda item: item["index"])
        vectors = [[float(number) for number in item["embedding"]] for item in items]
        places = [item["index"] for item in items]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise EmbeddingError("answers with something else than vectors") from None
    sizes = {len(vector) for vector in vectors}
    if places != list(range(count)) or len(sizes) != 1 or not 0 < max(sizes) <= MOST_DIMENSIONS:
        raise EmbeddingError(f"answers with other vectors than the {count} asked for")
    return [_scaled(vector) for vector in vectors]


def _scaled(vector: Sequence[float]) -> Vector:
    length = math.sqrt(math.fsum(number * number for number in vector))
    if not math.isfinite(length) or length == 0.0:
        raise EmbeddingError("answers with vectors that have no direction")
    return [number / length for number in vector]
