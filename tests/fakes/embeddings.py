"""A service that turns texts into vectors, over HTTP as OpenAI's does: words with a common meaning point the same way.

Deterministic, so that tests know what is near to what: each group of words has a direction of its own.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from aiohttp import web

MEANINGS: Final = (
    {"dog", "puppy", "hound", "pet"},
    {"car", "vehicle", "automobile", "drives"},
    {"tea", "coffee", "beverage", "drinks"},
    {"rain", "weather", "storm"},
)


@dataclass
class Embeddings:
    """What was asked, and how to answer: `status` other than 200 fails, `hang` never answers, `body` is sent as is."""

    url: str = ""
    status: int = 200
    hang: bool = False
    body: Any = None
    asked: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)

    async def serve(self, request: web.Request) -> web.Response:
        asked = await request.json()
        self.asked.append(asked)
        self.keys.append(request.headers.get("Authorization", ""))
        if self.hang:
            await asyncio.sleep(600)
        if self.status != 200:
            return web.json_response({"error": {"message": "sk-secret is wrong"}}, status=self.status)
        if self.body is not None:
            return web.json_response(self.body)
        size = asked.get("dimensions", len(MEANINGS) + 1)
        data = [
            {"object": "embedding", "index": index, "embedding": vector_of(text)[:size]}
            for index, text in enumerate(asked["input"])
        ]
        return web.json_response({"object": "list", "data": list(reversed(data)), "model": asked["model"]})


def vector_of(text: str) -> list[float]:
    """Return how much of each meaning is in a text, not scaled; the last number keeps it from being nothing."""
    words = set(text.lower().replace("?", "").replace(".", "").split())
    return [3.0 * len(words & meaning) for meaning in MEANINGS] + [0.1]


@asynccontextmanager
async def embeddings() -> AsyncIterator[Embeddings]:
    """Serve on a loopback port until the block ends."""
    service = Embeddings()
    app = web.Application()
    app.router.add_post("/v1/embeddings", service.serve)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    service.url = f"http://{host}:{port}/v1"
    try:
        yield service
    finally:
        await runner.cleanup()
