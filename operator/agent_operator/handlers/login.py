"""kopf's way to the API server: the pod's service account, or a kubeconfig, on a session that shows signs of life."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import aiohttp
import kopf

from agent_operator.kube.client import SERVICE_ACCOUNT_TOKEN, kubeconfig_path
from agent_operator.watches import Watches


def register_login(registry: kopf.OperatorRegistry, watches: Watches, environ: Mapping[str, str]) -> None:
    """Let kopf log in with what the environment offers."""

    @kopf.on.login(registry=registry, id="login", errors=kopf.ErrorsMode.PERMANENT)
    async def login(settings: kopf.OperatorSettings, **_: Any) -> kopf.AiohttpSession:
        in_cluster = kubeconfig_path(environ) is None
        method = kopf.login_with_service_account if in_cluster else kopf.login_with_kubeconfig
        info = method(settings=settings)
        if info is None:
            raise kopf.PermanentError(
                "no way to the API server: run in a pod with a service account, or set KUBECONFIG"
            )
        return kopf.AiohttpSession(
            server=info.server,
            default_namespace=info.default_namespace,
            aiohttp_session=_build_session(info, watches, in_cluster=in_cluster),
        )


def _build_session(info: kopf.ConnectionInfo, watches: Watches, *, in_cluster: bool) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, ssl=info.as_ssl_context()),
        headers=info.as_http_headers(),
        middlewares=(_fresh_token,) if in_cluster else (),
        trace_configs=[_trace(watches)],
        # A watch event is one line; the largest object is 1.5 MiB.
        read_bufsize=2**21,
    )


async def _fresh_token(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    """Send the service account's token as it is now: the kubelet replaces it every hour."""
    request.headers["Authorization"] = f"Bearer {SERVICE_ACCOUNT_TOKEN.read_text().strip()}"
    return await handler(request)


def _trace(watches: Watches) -> aiohttp.TraceConfig:
    async def on_start(_: aiohttp.ClientSession, __: SimpleNamespace, params: aiohttp.TraceRequestStartParams) -> None:
        if "watch" in params.url.query:
            watches.asked(params.url.path)

    async def on_end(_: aiohttp.ClientSession, __: SimpleNamespace, params: aiohttp.TraceRequestEndParams) -> None:
        if "watch" in params.url.query and params.response.status == 200:
            watches.opened(params.url.path)

    trace = aiohttp.TraceConfig()
    trace.on_request_start.append(on_start)
    trace.on_request_end.append(on_end)
    return trace
