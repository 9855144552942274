"""What the tests of real models share: manifests, and what the runtime says of its models."""

from typing import Any

from tests.fakes.provider import MODEL, ModelProvider
from tests.integration.agent_runtime.harness import Serving, until

FALLBACK = "please come back later"


def compatible(served_by: ModelProvider, /, **fields: Any) -> dict[str, Any]:
    """Return a model served by the provider, with the key of Secret llm."""
    return {
        "provider": "openai-compatible",
        "model": MODEL,
        "baseURL": served_by.base_url,
        "apiKeySecretRef": {"name": "llm", "key": "key"},
        **fields,
    }


PROTOCOLS = ("openai-compatible", "anthropic", "google")


def model_of(served_by: ModelProvider, protocol: str, /, **fields: Any) -> dict[str, Any]:
    """Return a model served by the provider in a protocol, with the key of Secret llm."""
    return compatible(served_by, **{"provider": protocol, "baseURL": served_by.url_of(protocol), **fields})


async def models_of(served: Serving, path: str = "/readyz") -> list[dict[str, Any]]:
    """Return what the runtime says of its models."""
    response = await served.http.get(served.base + path)
    assert response.status_code == 200, response.text
    return list(response.json()["models"])


async def until_model(
    served: Serving, ok: bool | None, reason: str = "", *, index: int = 0, timeout: float = 15.0
) -> dict[str, Any]:
    """Wait until the runtime says this of a model, and return all it says."""

    async def said() -> dict[str, Any] | None:
        found = (await models_of(served))[index]
        return found if (found["ok"], found["reason"]) == (ok, reason) else None

    found = await until(said, f"model {index} is ok={ok} {reason}", timeout)
    assert found is not None
    return found
