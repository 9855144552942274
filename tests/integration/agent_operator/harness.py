"""A real API server, an operator against it, and hands that do what kubelets and users would do."""

import asyncio
import dataclasses
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from aiohttp import web

from agent_api.wire import CheckResult, HealthOut, ModelCheck
from agent_operator.app import Operator, build_context
from agent_operator.context import OperatorContext
from agent_operator.keys import AgentKey
from agent_operator.kube.client import JSON, MERGE, KubeCluster, load_configuration
from agent_operator.kube.port import AGENT, CHILD_KINDS, DEPLOYMENT, POD, Kind, resource_path
from agent_operator.migrations import Migrations
from agent_operator.settings import OperatorSettings
from agent_store.postgres.store import PostgresStore

T = TypeVar("T")

NO_POSTGRES = "postgresql://nobody:nothing@127.0.0.1:9/none"
JSON_PATCH = "application/json-patch+json"
RUNTIME_IP = "127.0.91.7"


async def eventually(check: Callable[[], Awaitable[T]], *, timeout: float = 10.0, what: str = "") -> T:
    """Wait until the check returns something true, and return it; an assertion in the check counts as false."""
    problem: object = None
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout
    while loop.time() < deadline:
        try:
            if result := await check():
                return result
            problem = result
        except AssertionError as exc:
            problem = exc
        await asyncio.sleep(0.05)
    raise AssertionError(f"not within {timeout:g} s: {what or check}: {problem}")


class Api(KubeCluster):
    """The API server as users, kubelets and other controllers use it."""

    @classmethod
    async def connect(cls, kubeconfig: Path) -> "Api":
        return cls(await load_configuration({"KUBECONFIG": str(kubeconfig)}))

    async def raw(self, method: str, path: str, body: Any = None, content_type: str = JSON) -> Any:
        return await self._request("test", AGENT, method, path, body=body, content_type=content_type)

    async def make_namespace(self, name: str) -> None:
        await self.raw("POST", "/api/v1/namespaces", {"metadata": {"name": name}})

    async def make(self, kind: Kind, namespace: str, name: str, **content: Any) -> Any:
        body = {"apiVersion": kind.api_version, "kind": kind.name, "metadata": {"name": name}, **content}
        return await self.raw("POST", resource_path(kind, namespace), body)

    async def make_agent(self, namespace: str, name: str = "bot", **spec: Any) -> Any:
        content = {"models": [{"provider": "echo"}], **spec}
        if "systemPromptFrom" not in content:
            content.setdefault("systemPrompt", "Be kind.")
        return await self.make(AGENT, namespace, name, spec=content)

    async def edit(self, kind: Kind, namespace: str, name: str, patch: Any, *, status: bool = False) -> Any:
        """Merge-patch an object as some other field manager."""
        path = resource_path(kind, namespace, name) + ("/status" if status else "")
        return await self.raw("PATCH", f"{path}?fieldManager=somebody", patch, MERGE)

    async def edit_json(self, kind: Kind, namespace: str, name: str, *operations: dict[str, Any]) -> Any:
        return await self.raw("PATCH", resource_path(kind, namespace, name), list(operations), JSON_PATCH)

    async def drop(self, kind: Kind, namespace: str, name: str, **options: Any) -> None:
        await self.raw("DELETE", resource_path(kind, namespace, name), options or None)

    async def all(self, kind: Kind, namespace: str, selector: str = "") -> list[Any]:
        return [body async for page in self.list_pages(kind, namespace=namespace, selector=selector) for body in page]

    async def conditions(self, namespace: str, name: str = "bot") -> dict[str, str]:
        """Return `type: status/reason` of an Agent."""
        agent = await self.get(AGENT, namespace, name)
        found = ((agent or {}).get("status") or {}).get("conditions") or ()
        return {one["type"]: f"{one['status']}/{one['reason']}" for one in found}

    async def message(self, namespace: str, condition: str = "Ready", name: str = "bot") -> str:
        agent = await self.get(AGENT, namespace, name)
        assert agent is not None
        return next(str(one["message"]) for one in agent["status"]["conditions"] if one["type"] == condition)

    async def wait_condition(
        self, namespace: str, condition: str, value: str, *, name: str = "bot", timeout: float = 10.0
    ) -> None:
        async def check() -> bool:
            found = await self.conditions(namespace, name)
            assert found.get(condition) == value, found
            return True

        await eventually(check, timeout=timeout, what=f"{condition} {value}")

    async def snapshot(self, namespace: str) -> dict[str, str]:
        """Return the resourceVersion of every Agent and child: any write moves one."""
        return {
            f"{kind.plural}/{body['metadata']['name']}": body["metadata"]["resourceVersion"]
            for kind in (AGENT, *CHILD_KINDS)
            for body in await self.all(kind, namespace)
            if kind is AGENT or "abide.dev/agent" in body["metadata"].get("labels", {})
        }

    async def the_pod(self, namespace: str, *, revision: str | None = None, timeout: float = 15.0) -> str:
        """Wait for the pod the Deployment makes (of a revision) and return its name."""
        selector = "abide.dev/agent" + (f",abide.dev/revision={revision}" if revision else "")

        async def check() -> str:
            pods = [
                pod for pod in await self.all(POD, namespace, selector) if "deletionTimestamp" not in pod["metadata"]
            ]
            return str(pods[0]["metadata"]["name"]) if pods else ""

        return await eventually(check, timeout=timeout, what="a pod")

    async def revision(self, namespace: str, name: str = "bot") -> str:
        """Return the revision that the Deployment has."""
        deployment = await self.get(DEPLOYMENT, namespace, f"agent-{name}")
        assert deployment is not None
        return str(deployment["spec"]["template"]["metadata"]["labels"]["abide.dev/revision"])

    async def set_pod(self, namespace: str, pod: str, **status: Any) -> None:
        """Report a pod's status as its kubelet would."""
        await self.edit(POD, namespace, pod, {"status": pod_status(**status)}, status=True)

    async def set_ready(self, namespace: str, pod: str, *, ip: str = RUNTIME_IP) -> None:
        await self.set_pod(namespace, pod, ready=True, running=True, ip=ip)


def pod_status(
    *,
    ready: bool = False,
    running: bool = False,
    started_ago: float = 60.0,
    waiting: tuple[str, str] | None = None,
    last: dict[str, Any] | None = None,
    restarts: int = 0,
    unschedulable: str | None = None,
    ip: str = RUNTIME_IP,
) -> dict[str, Any]:
    now = datetime.now(UTC)

    def stamp(seconds_ago: float = 0.0) -> str:
        return (now - timedelta(seconds=seconds_ago)).strftime("%Y-%m-%dT%H:%M:%SZ")

    scheduled: dict[str, Any] = {"type": "PodScheduled", "status": "True", "lastTransitionTime": stamp(60)}
    if unschedulable:
        scheduled |= {"status": "False", "reason": "Unschedulable", "message": unschedulable}
    state: dict[str, Any] = {"waiting": {"reason": "ContainerCreating"}}
    if waiting:
        state = {"waiting": {"reason": waiting[0], "message": waiting[1]}}
    elif running:
        state = {"running": {"startedAt": stamp(started_ago)}}
    ready_condition = {"type": "Ready", "status": "True" if ready else "False", "lastTransitionTime": stamp()}
    status: dict[str, Any] = {
        "phase": "Running" if running else "Pending",
        "conditions": [scheduled, ready_condition],
        "containerStatuses": []
        if unschedulable
        else [
            {
                "name": "runtime",
                "image": "abide/runtime",
                "imageID": "",
                "ready": ready,
                "started": running,
                "restartCount": restarts,
                "state": state,
                "lastState": {"terminated": last} if last else {},
            }
        ],
    }
    if running:
        status |= {"podIP": ip, "podIPs": [{"ip": ip}]}
    return status


def ended(reason: str, code: int, message: str = "") -> dict[str, Any]:
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {"reason": reason, "exitCode": code, "startedAt": now, "finishedAt": now, "message": message}


class RuntimeHealth:
    """The /readyz of a runtime, on an address that stands for a pod's."""

    def __init__(self) -> None:
        self.failed: tuple[str, str, str] | None = None
        self.models: list[ModelCheck] = []
        self.asked = 0
        self.port = 0

    async def _serve(self, _: web.Request) -> web.Response:
        self.asked += 1
        checks = [CheckResult(name=name, ok=True) for name in ("loop", "store", "lease")]
        if self.failed:
            name, reason, message = self.failed
            checks = [
                CheckResult(name=name, ok=False, reason=reason, message=message) if check.name == name else check
                for check in checks
            ]
        health = HealthOut(ok=self.failed is None, version="9.8.7", revision="r", checks=checks, models=self.models)
        return web.Response(
            text=health.model_dump_json(by_alias=True),
            content_type="application/json",
            status=200 if health.ok else 503,
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator["RuntimeHealth"]:
        application = web.Application()
        application.router.add_get("/readyz", self._serve)
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, RUNTIME_IP, 0)
        await site.start()
        assert site._server is not None
        self.port = site._server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]
        try:
            yield self
        finally:
            await runner.cleanup()


async def _sockets_closed() -> None:
    """Wait until TLS connections have said goodbye: a loop that is closed earlier leaves them open."""
    selector = asyncio.get_running_loop()._selector  # type: ignore[attr-defined]

    async def only_the_loop_itself() -> bool:
        return len(selector.get_map()) <= 1

    await eventually(only_the_loop_itself, what="all sockets to be closed")


class OperatorThread:
    """An operator in a thread of its own: kopf takes every task of its event loop for its own, and ends them all."""

    def __init__(self, settings: OperatorSettings, *, migrate: bool) -> None:
        self._settings = settings
        self._migrate = migrate
        self._thread = threading.Thread(target=self._run, name="operator", daemon=True)
        self._built = threading.Event()
        self._failure: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop
        self._stop: asyncio.Event
        self.context: OperatorContext
        self.operator: Operator

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except BaseException as exc:
            self._failure = exc
        finally:
            self._built.set()

    async def _main(self) -> None:
        store = PostgresStore(self._settings.postgres_url)
        self.context = await build_context(self._settings, store)
        if not self._migrate:
            self.context = dataclasses.replace(self.context, migrations=Migrations({}, command=("true",)))
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self.operator = Operator(self.context, self._stop)
        self._built.set()
        try:
            await self.operator.run()
        finally:
            await self.context.fetch.aclose()
            await self.context.cluster.aclose()
            await store.aclose()
            await _sockets_closed()

    async def start(self) -> None:
        """Return when the operator has listed everything."""
        self._thread.start()
        await asyncio.to_thread(self._built.wait, 30)

        async def synced() -> bool:
            self.check()
            return self.context.sweeper.synced

        await eventually(synced, timeout=30, what="the operator to list everything")

    def check(self) -> None:
        """Raise what ended the operator."""
        if self._failure is not None:
            raise self._failure

    async def stop(self) -> None:
        """Stop the operator and wait until it has ended."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
        await asyncio.to_thread(self._thread.join, 40)
        assert not self._thread.is_alive()
        self.check()

    async def run(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run something in the operator's event loop."""
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work(), self._loop))

    async def sweep(self) -> set[AgentKey]:
        """Let the operator compare everything now, and look at every agent."""

        async def work() -> set[AgentKey]:
            touched = await self.context.sweeper.sweep()
            for key in self.context.cache.agents():
                self.context.queue.add(key)
            await self.context.queue.wait_idle()
            return touched

        return await self.run(work)

    async def settled_writes(self) -> dict[str, float]:
        """Return the writes made by the time everything was looked at once more and nothing is under way."""
        await self.sweep()
        return self.writes()

    def writes(self) -> dict[str, float]:
        """Return how many successful writes the operator made, by verb and kind, Events apart."""
        return {
            f"{sample.labels['verb']} {sample.labels['kind']}": sample.value
            for metric in self.context.metrics.writes.collect()
            for sample in metric.samples
            if sample.name.endswith("_total") and not sample.labels["kind"].startswith("events") and sample.value
        }


@asynccontextmanager
async def running_operator(
    kubeconfig: Path,
    *namespaces: str,
    postgres_url: str = NO_POSTGRES,
    environ: dict[str, str] | None = None,
    migrate: bool = False,
    **changes: Any,
) -> AsyncIterator[OperatorThread]:
    """Run an operator until the block ends; it has listed everything when the block begins."""
    settings = dataclasses.replace(
        OperatorSettings.from_environ(
            {"KUBECONFIG": str(kubeconfig), "ABIDE_POSTGRES_URL": postgres_url, **(environ or {})}
        ),
        watch_namespaces=namespaces,
        host="127.0.0.1",
        port=0,
        **{"workers": 4, **changes},
    )
    operator = OperatorThread(settings, migrate=migrate)
    try:
        await operator.start()
        yield operator
    finally:
        await operator.stop()
