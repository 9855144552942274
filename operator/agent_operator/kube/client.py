"""The adapter of the `Cluster` port over the official client's own asyncio package; nothing else imports a client.

The dynamic client is used without its discovery: the operator's kinds are fixed, and discovery would read every API
group at each start and keep a cache file in a shared temporary folder.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

import aiohttp
from kubernetes.aio import config as kube_config
from kubernetes.aio.client import ApiClient, Configuration
from kubernetes.aio.client.exceptions import ApiException
from kubernetes.aio.dynamic import DynamicClient, Resource

from agent_api.labels import FIELD_MANAGER, STATUS_FIELD_MANAGER
from agent_operator.kube.port import (
    AlreadyExists,
    ApiUnavailable,
    Conflict,
    Forbidden,
    Invalid,
    Kind,
    NotFound,
    Object,
)

REQUEST_TIMEOUT: Final = 10.0
LIST_TIMEOUT: Final = 30.0
PAGE_SIZE: Final = 500
CONNECTIONS: Final = 64
MESSAGE_LIMIT: Final = 1000

SERVICE_ACCOUNT_TOKEN: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")
_METADATA_ONLY: Final = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"

OnRequest = Callable[[str, str, str], None]
"""Told of each request: verb (get, list, create, apply, apply_status, patch, delete), kind, `ok` or what failed."""


async def load_configuration(environ: Mapping[str, str]) -> Configuration:
    """Return the credentials KUBECONFIG names, else the pod's service account, else ~/.kube/config.

    Raises: kubernetes' ConfigException when there are none.
    """
    configuration = Configuration()
    if path := kubeconfig_path(environ):
        await kube_config.load_kube_config(  # type: ignore[no-untyped-call]
            config_file=path, client_configuration=configuration, persist_config=False
        )
    else:
        kube_config.load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
    configuration.connection_pool_maxsize = CONNECTIONS
    return configuration


def kubeconfig_path(environ: Mapping[str, str]) -> str | None:
    """Return the kubeconfig to use, or None where the pod's service account is."""
    if path := environ.get("KUBECONFIG"):
        return path
    return None if SERVICE_ACCOUNT_TOKEN.exists() else str(Path.home() / ".kube" / "config")


class _NoDiscovery:
    """Stands where the dynamic client would discover resources."""

    def __init__(self, client: DynamicClient, cache_file: str | None) -> None:
        pass


class KubeCluster:
    """`Cluster` over HTTPS. One per process; close it with `aclose`."""

    def __init__(
        self, configuration: Configuration, *, on_request: OnRequest = lambda verb, kind, outcome: None
    ) -> None:
        self._api = ApiClient(configuration)
        self._client = DynamicClient(self._api, discoverer=_NoDiscovery)  # type: ignore[no-untyped-call]
        self._on_request = on_request
        self._resources: dict[Kind, Resource] = {}

    @property
    def server(self) -> str:
        """Return the API server's URL."""
        return str(self._api.configuration.host)

    def open_session(self, trace: aiohttp.TraceConfig) -> aiohttp.ClientSession:
        """Return a session for watches, with the same credentials; whoever asked for it closes it."""
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=self._api.rest_client.ssl_context),
            middlewares=(self._authorize,),
            trace_configs=[trace],
            # A watch event is one line; the largest object has 1.5 MiB.
            read_bufsize=2**21,
        )

    async def _authorize(
        self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        """Send the token as it is now: the kubelet replaces a service account's every hour."""
        token = await self._api.configuration.get_api_key_with_prefix("BearerToken", alias="authorization")
        if token:
            request.headers["Authorization"] = token
        return await handler(request)

    async def aclose(self) -> None:
        """Close all connections."""
        await self._api.close()  # type: ignore[no-untyped-call]

    async def get(self, kind: Kind, namespace: str, name: str) -> Object | None:
        return await self._get(kind, namespace, name, "application/json")

    async def get_metadata(self, kind: Kind, namespace: str, name: str) -> Object | None:
        return await self._get(kind, namespace, name, _METADATA_ONLY)

    async def _get(self, kind: Kind, namespace: str, name: str, accept: str) -> Object | None:
        path = self._path(kind, namespace, name)
        try:
            return await self._object("get", kind, "GET", path, header_params={"Accept": accept})
        except NotFound:
            return None

    async def list_pages(
        self, kind: Kind, *, namespace: str | None = None, selector: str = ""
    ) -> AsyncIterator[list[Object]]:
        path = self._path(kind, namespace)
        token: str | None = None
        while True:
            page = await self._request(
                "list", kind, "GET", path,
                label_selector=selector or None, limit=PAGE_SIZE, _continue=token, timeout=LIST_TIMEOUT,
            )  # fmt: skip
            # The items of a list carry neither apiVersion nor kind.
            yield [{"apiVersion": kind.api_version, "kind": kind.name, **item} for item in page["items"]]
            token = page["metadata"].get("continue")
            if not token:
                return

    async def create(self, kind: Kind, body: Object) -> Object:
        path = self._path(kind, body["metadata"]["namespace"])
        return await self._object("create", kind, "POST", path, body=body, field_manager=FIELD_MANAGER)

    async def apply(self, kind: Kind, body: Object) -> Object:
        path = self._path(kind, body["metadata"]["namespace"], body["metadata"]["name"])
        return await self._object(
            "apply", kind, "PATCH", path,
            body=body, content_type="application/apply-patch+yaml", field_manager=FIELD_MANAGER, force_conflicts=True,
        )  # fmt: skip

    async def apply_status(self, kind: Kind, body: Object) -> Object:
        path = self._path(kind, body["metadata"]["namespace"], body["metadata"]["name"]) + "/status"
        return await self._object(
            "apply_status", kind, "PATCH", path,
            body=body,
            content_type="application/apply-patch+yaml",
            field_manager=STATUS_FIELD_MANAGER,
            force_conflicts=True,
        )  # fmt: skip

    async def merge(self, kind: Kind, body: Object) -> Object:
        path = self._path(kind, body["metadata"]["namespace"], body["metadata"]["name"])
        return await self._object(
            "patch", kind, "PATCH", path,
            body=body, content_type="application/merge-patch+json", field_manager=FIELD_MANAGER,
        )  # fmt: skip

    async def delete(self, kind: Kind, namespace: str, name: str, *, uid: str) -> None:
        path = self._path(kind, namespace, name)
        try:
            await self._request("delete", kind, "DELETE", path, body={"preconditions": {"uid": uid}})
        except (NotFound, Conflict):
            return

    def _path(self, kind: Kind, namespace: str | None, name: str | None = None) -> str:
        resource = self._resources.get(kind)
        if resource is None:
            resource = self._resources[kind] = Resource(  # type: ignore[no-untyped-call]
                prefix="apis" if kind.group else "api",
                group=kind.group,
                api_version=kind.version,
                kind=kind.name,
                name=kind.plural,
                namespaced=True,
                client=self._client,
            )
        return str(resource.path(name=name, namespace=namespace))  # type: ignore[no-untyped-call]

    async def _object(self, *arguments: Any, **params: Any) -> Object:
        return dict(await self._request(*arguments, **params))

    async def _request(
        self, verb: str, kind: Kind, method: str, path: str, *, timeout: float = REQUEST_TIMEOUT, **params: Any
    ) -> Any:
        outcome = "ok"
        try:
            async with asyncio.timeout(timeout):
                # Not `_request_timeout`: it bounds the head of the response only, the body is read here.
                response = await self._client.request(method, path, serialize=False, **params)
                return json.loads(await response.read())
        except ApiException as exc:
            outcome = f"http_{exc.status}"
            raise _translate(exc, f"{method} {path}") from exc
        except (TimeoutError, aiohttp.ClientError, OSError, json.JSONDecodeError) as exc:
            outcome = "unreachable"
            what = str(exc) or type(exc).__name__
            raise ApiUnavailable("ApiUnreachable", f"{method} {path}: {what[:MESSAGE_LIMIT]}") from exc
        finally:
            self._on_request(verb, kind.key, outcome)


def _translate(exc: ApiException, request: str) -> Exception:
    """Return the port's error for an HTTP status other than 2xx."""
    status, body = int(exc.status or 0), _status_object(exc.body)
    message = str(body.get("message") or exc.reason or f"HTTP {status}")[:MESSAGE_LIMIT]
    if status == HTTPStatus.NOT_FOUND:
        return NotFound(message)
    if status == HTTPStatus.CONFLICT:
        return AlreadyExists(message) if body.get("reason") == "AlreadyExists" else Conflict(message)
    if status == HTTPStatus.FORBIDDEN:
        return Forbidden(message)
    if status in (HTTPStatus.BAD_REQUEST, HTTPStatus.UNPROCESSABLE_ENTITY):
        return Invalid(message)
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return ApiUnavailable("ApiThrottled", f"{request}: {message}", retry_after=_retry_after(exc))
    # 401 too: a rotated token is read again within a minute.
    return ApiUnavailable("ApiError", f"{request}: {status} {message}", retry_after=_retry_after(exc))


def _status_object(body: object) -> dict[str, Any]:
    """Return the metav1.Status of an error response, or {} where a proxy answered something else."""
    try:
        parsed = json.loads(body) if isinstance(body, str | bytes) else None
    except ValueError:
        return {}
    return parsed if isinstance(parsed, dict) else {}


def _retry_after(exc: ApiException) -> float:
    value = (exc.headers or {}).get("Retry-After", "")
    return float(value) if value.isdigit() else 0.0
