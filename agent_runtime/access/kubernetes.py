"""Tokens of the cluster: the API server tells who holds one, and which verbs RBAC gives them on the Agent."""

import asyncio
import hashlib
from collections import OrderedDict
from pathlib import Path
from typing import Any, Final

from agent_api import labels
from agent_api.v1alpha1 import KubernetesAccess
from agent_runtime.access.errors import AccessUnavailable, NotIdentifiedError
from agent_runtime.access.names import user_of
from agent_runtime.access.principal import Principal, Right
from agent_runtime.clock import Clock
from agent_runtime.telemetry.logs import get_logger

_LOG = get_logger("access")
KNOWN_SECONDS: Final = 30.0
"""So long an answer counts: a token or a right that was withdrawn is believed for so long."""
MOST_KNOWN: Final = 4096
MOST_ASKING: Final = 8
MOST_WAITING: Final = 64
REVIEWS_PER_SECOND: Final = 20.0
"""Most new tokens reviewed in a second: strangers with made-up tokens must not wear out the API server."""
MOST_CHARS: Final = 16_384
_TOKEN_REVIEWS: Final = "/apis/authentication.k8s.io/v1/tokenreviews"
_ACCESS_REVIEWS: Final = "/apis/authorization.k8s.io/v1/subjectaccessreviews"

Known = tuple[float, Principal | None]


class TokenReviewer:
    """Reviews tokens for one agent.

    `folder` holds `token`, with which the API server is asked, and `ca.crt`; both are read again for each review. It
    is given by the operator and good for reviews only.
    """

    def __init__(
        self, access: KubernetesAccess, namespace: str, name: str, url: str, folder: Path, clock: Clock
    ) -> None:
        self._audiences = list(access.audiences)
        self._agent = (namespace, name)
        self._url = url.rstrip("/")
        self._folder = folder
        self._clock = clock
        self._client: Any = None
        self._authority = b""
        self._known: OrderedDict[bytes, Known] = OrderedDict()
        self._slots = asyncio.Semaphore(MOST_ASKING)
        self._waiting = 0
        self._budget = (REVIEWS_PER_SECOND, 0.0)

    async def identify(self, token: str) -> Principal | None:
        """Return who holds the token, with the rights RBAC gives; None if the API server does not know it.

        Raises NotIdentifiedError for what cannot be a token, AccessUnavailable.
        """
        if len(token) > MOST_CHARS or not token.isascii():
            raise NotIdentifiedError("This is no token.")
        digest = hashlib.sha256(token.encode()).digest()
        known = self._known.get(digest)
        if known is not None and self._clock.monotonic() - known[0] < KNOWN_SECONDS:
            return known[1]
        if self._waiting >= MOST_WAITING or not self._may_ask():
            raise AccessUnavailable("Too many new tokens came at once.", retry_after=1.0)
        self._waiting += 1
        try:
            async with self._slots:
                principal = await self._review(token)
        finally:
            self._waiting -= 1
        self._known.pop(digest, None)
        self._known[digest] = (self._clock.monotonic(), principal)
        if len(self._known) > MOST_KNOWN:
            self._known.popitem(last=False)
        return principal

    async def aclose(self) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.aclose()

    def _may_ask(self) -> bool:
        left, at = self._budget
        now = self._clock.monotonic()
        left = min(REVIEWS_PER_SECOND, left + (now - at) * REVIEWS_PER_SECOND)
        self._budget = (max(0.0, left - 1), now)
        return left >= 1

    async def _review(self, token: str) -> Principal | None:
        status = (
            await self._post(_TOKEN_REVIEWS, "TokenReview", "authentication.k8s.io/v1", self._token_spec(token))
        ).get("status") or {}
        audiences = set(status.get("audiences") or ())
        # An API server that knows nothing of audiences leaves them out, and then the token is for itself alone.
        if not status.get("authenticated") or not audiences & set(self._audiences):
            return None
        user = status.get("user") or {}
        name = str(user.get("username") or "")
        if not name:
            return None
        held = await asyncio.gather(*(self._is_allowed(user, right) for right in Right))
        rights = frozenset(right for right, allowed in zip(Right, held, strict=True) if allowed)
        return Principal(f"kubernetes:{name}", rights, user_of(name), frozenset(("/".join(self._agent),)))

    def _token_spec(self, token: str) -> dict[str, Any]:
        return {"token": token, "audiences": self._audiences}

    async def _is_allowed(self, user: dict[str, Any], right: Right) -> bool:
        namespace, name = self._agent
        spec = {
            "user": user.get("username"),
            "uid": user.get("uid") or "",
            "groups": list(user.get("groups") or ()),
            "extra": dict(user.get("extra") or {}),
            "resourceAttributes": {
                "group": labels.GROUP,
                "resource": labels.PLURAL,
                "namespace": namespace,
                "name": name,
                "verb": right.value,
            },
        }
        document = await self._post(_ACCESS_REVIEWS, "SubjectAccessReview", "authorization.k8s.io/v1", spec)
        status = document.get("status") or {}
        return bool(status.get("allowed")) and not status.get("denied")

    async def _post(self, path: str, kind: str, api_version: str, spec: dict[str, Any]) -> dict[str, Any]:
        from agent_runtime.access.http import AskError, RefusedError, ask

        body = {"apiVersion": api_version, "kind": kind, "metadata": {}, "spec": spec}
        try:
            own = (self._folder / "token").read_text(encoding="ascii").strip()
            client = await self._connect()
            headers = {"Authorization": f"Bearer {own}"}
            answer = await ask(client, "POST", f"{self._url}{path}", body=body, headers=headers)
        except (AskError, OSError, UnicodeDecodeError) as error:
            known = isinstance(error, RefusedError) and error.status in (401, 403)
            hint = "its token for reviews is not taken; see docs/access.md" if known else str(error)
            _LOG.error("token_review_failed", kind=kind, message=hint)
            raise AccessUnavailable("The cluster cannot be asked about tokens now.", retry_after=2.0) from error
        return answer if isinstance(answer, dict) else {}

    async def _connect(self) -> Any:
        """Return a client that trusts the cluster's present authority."""
        from agent_runtime.access.http import build_client

        path = self._folder / "ca.crt"
        authority = path.read_bytes() if self._url.startswith("https:") else b"-"
        if self._client is None or authority != self._authority:
            if self._client is not None:
                await self._client.aclose()
            self._client = build_client(path if self._url.startswith("https:") else None)
            self._authority = authority
        return self._client
