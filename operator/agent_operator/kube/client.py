"""The adapter of the `Cluster` port over the official client's own asyncio package; nothing else imports a client.

Credentials, TLS and transport are the official client's. Its dynamic client on top is left out, as measured: it formats
a traceback for every 404, which is the usual answer before something is created (3 ms each), copies every body twice,
and at each start reads all API groups into a cache file in a shared folder. The operator's kinds are fixed.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from datetime import datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

import aiohttp
from kubernetes.aio import config as kube_config
from kubernetes.aio.client import ApiClient, Configuration
from kubernetes.aio.config.config_exception import ConfigException

from agent_api.labels import FIELD_MANAGER, STATUS_FIELD_MANAGER
from agent_operator.errors import OperatorError
from agent_operator.kube.port import (
    SERVICE_ACCOUNT,
    AlreadyExists,
    ApiUnavailable,
    Conflict,
    Forbidden,
    Invalid,
    Kind,
    NotFound,
    Object,
    resource_path,
)

REQUEST_TIMEOUT: Final = 10.0
LIST_TIMEOUT: Final = 30.0
PAGE_SIZE: Final = 100
CONNECTIONS: Final = 64
MESSAGE_LIMIT: Final = 1000

JSON: Final = "application/json"
APPLY: Final = "application/apply-patch+yaml"
MERGE: Final = "application/merge-patch+json"
JSON_PATCH: Final = "application/json-patch+json"
SERVICE_ACCOUNT_TOKEN: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")
SERVICE_ACCOUNT_NAMESPACE: Final = SERVICE_ACCOUNT_TOKEN.with_name("namespace")
_METADATA_ONLY: Final = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"

OnRequest = Callable[[str, str, str], None]
"""Told of each request: verb (get, list, create, apply, apply_status, patch, delete, token), kind, and outcome: `ok`
or what failed."""


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


def find_own_namespace(environ: Mapping[str, str]) -> str:
    """Return the namespace this process works in: the pod's, or that of the kubeconfig's context, else `default`."""
    path = kubeconfig_path(environ)
    if path is None:
        return SERVICE_ACCOUNT_NAMESPACE.read_text().strip() or "default"
    try:
        _, active = kube_config.list_kube_config_contexts(path)  # type: ignore[no-untyped-call]
    except ConfigException:
        return "default"
    return str(active["context"].get("namespace") or "default")


class KubeCluster:
    """`Cluster` over HTTPS. One per process; close it with `aclose`."""

    def __init__(
        self, configuration: Configuration, *, on_request: OnRequest = lambda verb, kind, outcome: None
    ) -> None:
        self._configuration = configuration
        self._api = ApiClient(configuration)
        self._on_request = on_request

    @property
    def server(self) -> str:
        """Return the API server's URL."""
        return str(self._configuration.host)

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
        if token := await self._token():
            request.headers["Authorization"] = token
        return await handler(request)

    async def _token(self) -> str | None:
        """Return the token as it is now: the kubelet replaces a service account's every hour."""
        token = await self._configuration.get_api_key_with_prefix("BearerToken", alias="authorization")
        return None if token is None else str(token)

    async def aclose(self) -> None:
        """Close all connections."""
        await self._api.close()  # type: ignore[no-untyped-call]

    async def get(self, kind: Kind, namespace: str, name: str) -> Object | None:
        return await self._get(kind, namespace, name, JSON)

    async def get_metadata(self, kind: Kind, namespace: str, name: str) -> Object | None:
        return await self._get(kind, namespace, name, _METADATA_ONLY)

    async def _get(self, kind: Kind, namespace: str, name: str, accept: str) -> Object | None:
        try:
            return await self._request("get", kind, "GET", resource_path(kind, namespace, name), accept=accept)
        except NotFound:
            return None

    async def list_pages(
        self, kind: Kind, *, namespace: str | None = None, selector: str = ""
    ) -> AsyncIterator[list[Object]]:
        path = resource_path(kind, namespace)
        query = {"limit": str(PAGE_SIZE), **({"labelSelector": selector} if selector else {})}
        while True:
            page = await self._request("list", kind, "GET", path, query=query, timeout=LIST_TIMEOUT)
            # The items of a list carry neither apiVersion nor kind.
            yield [{"apiVersion": kind.api_version, "kind": kind.name, **item} for item in page["items"]]
            if not (token := page["metadata"].get("continue")):
                return
            query["continue"] = token

    async def create(self, kind: Kind, body: Object) -> Object:
        path = resource_path(kind, body["metadata"]["namespace"])
        return await self._request("create", kind, "POST", path, body=body, query={"fieldManager": FIELD_MANAGER})

    async def apply(self, kind: Kind, body: Object) -> Object:
        return await self._apply("apply", kind, body, "", FIELD_MANAGER)

    async def apply_status(self, kind: Kind, body: Object) -> Object:
        return await self._apply("apply_status", kind, body, "/status", STATUS_FIELD_MANAGER)

    async def _apply(self, verb: str, kind: Kind, body: Object, subresource: str, manager: str) -> Object:
        path = resource_path(kind, body["metadata"]["namespace"], body["metadata"]["name"]) + subresource
        query = {"fieldManager": manager, "force": "true"}
        return await self._request(verb, kind, "PATCH", path, body=body, query=query, content_type=APPLY)

    async def merge(self, kind: Kind, body: Object) -> Object:
        path = resource_path(kind, body["metadata"]["namespace"], body["metadata"]["name"])
        query = {"fieldManager": FIELD_MANAGER}
        return await self._request("patch", kind, "PATCH", path, body=body, query=query, content_type=MERGE)

    async def patch_json(self, kind: Kind, namespace: str, name: str, operations: Sequence[Object]) -> Object:
        path = resource_path(kind, namespace, name)
        query = {"fieldManager": FIELD_MANAGER}
        body = list(operations)
        return await self._request("patch", kind, "PATCH", path, body=body, query=query, content_type=JSON_PATCH)

    async def request_token(self, namespace: str, service_account: str, *, seconds: int) -> tuple[str, datetime]:
        path = f"{resource_path(SERVICE_ACCOUNT, namespace, service_account)}/token"
        spec = {"expirationSeconds": seconds}
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
        answer = await self._request("token", SERVICE_ACCOUNT, "POST", path, body=body)
        status = answer["status"]
        return str(status["token"]), datetime.fromisoformat(status["expirationTimestamp"])

    async def delete(self, kind: Kind, namespace: str, name: str, *, uid: str) -> None:
        path = resource_path(kind, namespace, name)
        try:
            await self._request("delete", kind, "DELETE", path, body={"preconditions": {"uid": uid}})
        except (NotFound, Conflict):
            return

    async def _request(
        self,
        verb: str,
        kind: Kind,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        accept: str = JSON,
        content_type: str = JSON,
        timeout: float = REQUEST_TIMEOUT,
    ) -> Object:
        outcome = "ok"
        headers = {"Accept": accept, "Content-Type": content_type}
        url = f"{self.server}{path}" + (f"?{urlencode(query)}" if query else "")
        try:
            async with asyncio.timeout(timeout):
                if token := await self._token():
                    headers["Authorization"] = token
                response = await self._api.rest_client.request(  # type: ignore[no-untyped-call]
                    method, url, headers=headers, body=body
                )
                content = await response.read()
            if not HTTPStatus.OK <= response.status < HTTPStatus.MULTIPLE_CHOICES:
                outcome = f"http_{response.status}"
                raise _to_error(response.status, content, response.headers, f"{method} {path}")
            return dict(json.loads(content))
        except (TimeoutError, aiohttp.ClientError, OSError, json.JSONDecodeError) as exc:
            outcome = "unreachable"
            what = str(exc) or type(exc).__name__
            raise ApiUnavailable("ApiUnreachable", f"{method} {path}: {what[:MESSAGE_LIMIT]}") from exc
        finally:
            self._on_request(verb, kind.key, outcome)


def _to_error(status: int, content: bytes, headers: Mapping[str, str], request: str) -> OperatorError:
    """Return the port's error for an HTTP status other than 2xx."""
    body = _status_object(content)
    message = str(body.get("message") or f"HTTP {status}")[:MESSAGE_LIMIT]
    if status == HTTPStatus.NOT_FOUND:
        return NotFound(message)
    if status == HTTPStatus.CONFLICT:
        return AlreadyExists(message) if body.get("reason") == "AlreadyExists" else Conflict(message)
    if status == HTTPStatus.FORBIDDEN:
        return Forbidden(message)
    if status in (HTTPStatus.BAD_REQUEST, HTTPStatus.UNPROCESSABLE_ENTITY):
        return Invalid(message)
    pause = headers.get("Retry-After", "")
    retry_after = float(pause) if pause.isdigit() else 0.0
    reason = "ApiThrottled" if status == HTTPStatus.TOO_MANY_REQUESTS else "ApiError"
    # 401 too: a rotated token is read again within a minute.
    return ApiUnavailable(reason, f"{request}: {status} {message}", retry_after=retry_after)


def _status_object(content: bytes) -> dict[str, Any]:
    """Return the metav1.Status of an error response, or {} where a proxy answered something else."""
    try:
        parsed = json.loads(content)
    except ValueError:
        return {}
    return parsed if isinstance(parsed, dict) else {}
