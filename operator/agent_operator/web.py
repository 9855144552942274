"""The operator's own HTTP port: /livez, /readyz and /metrics."""

from collections.abc import Awaitable, Callable
from typing import Final

from aiohttp import web

from agent_api.version import VERSION
from agent_api.wire import CheckResult, HealthOut
from agent_operator.telemetry.metrics import Metrics

Checks = Callable[[], list[CheckResult]]

_METRICS_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_SHUTDOWN_TIMEOUT: Final = 1.0


class WebServer:
    """Serves health and metrics until closed. `live` and `ready` are asked at each request and must not block."""

    def __init__(self, host: str, port: int, *, live: Checks, ready: Checks, metrics: Metrics) -> None:
        self._host = host
        self._port = port
        self._metrics = metrics
        application = web.Application()
        application.router.add_get("/livez", _health_handler(live))
        application.router.add_get("/readyz", _health_handler(ready))
        application.router.add_get("/metrics", self._serve_metrics)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=_SHUTDOWN_TIMEOUT)

    async def start(self) -> None:
        """Bind the port. Raises: OSError."""
        await self._runner.setup()
        await web.TCPSite(self._runner, self._host, self._port).start()

    async def aclose(self) -> None:
        """Stop serving."""
        await self._runner.cleanup()

    async def _serve_metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=self._metrics.render(), headers={"Content-Type": _METRICS_TYPE})


def _health_handler(checks: Checks) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def handle(_: web.Request) -> web.Response:
        results = checks()
        health = HealthOut(ok=all(check.ok for check in results), version=VERSION, checks=results)
        return web.Response(
            text=health.model_dump_json(by_alias=True),
            content_type="application/json",
            status=200 if health.ok else 503,
        )

    return handle
