"""Start and end of the operator's own tasks, inside kopf's: they begin before the watches and end after them."""

from collections.abc import Awaitable, Callable
from typing import Any

import kopf


def register_lifecycle(
    registry: kopf.OperatorRegistry, start: Callable[[], Awaitable[None]], stop: Callable[[], Awaitable[None]]
) -> None:
    """Call `start` before kopf watches anything, and `stop` after it has stopped watching (it may take 20 s)."""

    @kopf.on.startup(registry=registry, id="start", errors=kopf.ErrorsMode.PERMANENT, retries=1)
    async def on_startup(**_: Any) -> None:
        await start()

    @kopf.on.cleanup(registry=registry, id="stop", errors=kopf.ErrorsMode.PERMANENT, retries=1)
    async def on_cleanup(**_: Any) -> None:
        await stop()
