"""kopf's way to the API server: the operator's own credentials, on a session that shows signs of life."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import aiohttp
import kopf

from agent_operator.watches import Watches

OpenSession = Callable[[aiohttp.TraceConfig], aiohttp.ClientSession]


def register_login(registry: kopf.OperatorRegistry, watches: Watches, server: str, open_session: OpenSession) -> None:
    """Let kopf use sessions that `open_session` makes; kopf closes them."""

    @kopf.on.login(registry=registry, id="login", errors=kopf.ErrorsMode.PERMANENT)
    async def login(**_: Any) -> kopf.AiohttpSession:
        return kopf.AiohttpSession(server=server, aiohttp_session=open_session(_trace(watches)))


def _trace(watches: Watches) -> aiohttp.TraceConfig:
    async def on_start(_: aiohttp.ClientSession, __: SimpleNamespace, params: aiohttp.TraceRequestStartParams) -> None:
        # Listing counts, too: it is how a watcher begins, and begins anew.
        watches.asked(params.url.path)

    async def on_end(_: aiohttp.ClientSession, __: SimpleNamespace, params: aiohttp.TraceRequestEndParams) -> None:
        if "watch" in params.url.query and params.response.ok:
            watches.opened(params.url.path)

    trace = aiohttp.TraceConfig()
    trace.on_request_start.append(on_start)
    trace.on_request_end.append(on_end)
    return trace
