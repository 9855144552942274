"""What the operator needs from the Kubernetes API, and no more.

Objects are plain dicts as the API server's JSON has them. Every call has a deadline of its own. Errors are the ones
below; each says what the caller may do next.
"""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Protocol

from agent_api import labels
from agent_operator.errors import OperatorError, Transient

Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of namespaced object: `group` is "" for the core group, `plural` is its name in URLs."""

    group: str
    version: str
    name: str
    plural: str

    @property
    def api_version(self) -> str:
        """Return `group/version`, or `version` in the core group."""
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def key(self) -> str:
        """Return `plural` or `plural.group`, as `kubectl` and metrics name the kind."""
        return f"{self.plural}.{self.group}" if self.group else self.plural


AGENT: Final = Kind(labels.GROUP, labels.VERSION, labels.KIND, labels.PLURAL)
DEPLOYMENT: Final = Kind("apps", "v1", "Deployment", "deployments")
REPLICA_SET: Final = Kind("apps", "v1", "ReplicaSet", "replicasets")
SERVICE: Final = Kind("", "v1", "Service", "services")
CONFIG_MAP: Final = Kind("", "v1", "ConfigMap", "configmaps")
SECRET: Final = Kind("", "v1", "Secret", "secrets")
SERVICE_ACCOUNT: Final = Kind("", "v1", "ServiceAccount", "serviceaccounts")
POD: Final = Kind("", "v1", "Pod", "pods")
DISRUPTION_BUDGET: Final = Kind("policy", "v1", "PodDisruptionBudget", "poddisruptionbudgets")
EVENT: Final = Kind("events.k8s.io", "v1", "Event", "events")

CHILD_KINDS: Final = (SERVICE_ACCOUNT, SECRET, CONFIG_MAP, SERVICE, DISRUPTION_BUDGET, DEPLOYMENT)
"""What the operator makes, in the order in which a Deployment needs them."""

WATCHED_KINDS: Final = (AGENT, *CHILD_KINDS, POD)


def resource_path(kind: Kind, namespace: str | None, name: str = "") -> str:
    """Return the URL's path of an object, or of all objects of a kind (in a namespace, None: in the cluster)."""
    root = f"/apis/{kind.group}/{kind.version}" if kind.group else f"/api/{kind.version}"
    collection = f"{root}/namespaces/{namespace}/{kind.plural}" if namespace else f"{root}/{kind.plural}"
    return f"{collection}/{name}" if name else collection


class KubeError(OperatorError):
    """Base of the errors of this port that no retry can cure."""


class NotFound(KubeError):  # noqa: N818
    """The object (or, for a write below it, its parent) does not exist."""


class AlreadyExists(KubeError):  # noqa: N818
    """An object of that name exists; nothing was written. Observe again."""


class Conflict(KubeError):  # noqa: N818
    """The object is not the one that was seen (other uid or version); nothing was written. Observe again."""


class Forbidden(KubeError):  # noqa: N818
    """Not allowed: by RBAC, by a quota or by an admission rule; the text says which."""


class Invalid(KubeError):  # noqa: N818
    """The API server refused the object as wrong; the text names the field."""


class ApiUnavailable(Transient):
    """The API server cannot be reached, is overloaded or does not accept our credentials now; retry later."""


class Cluster(Protocol):
    """Reading and writing objects. Every method may raise ApiUnavailable and Forbidden."""

    async def get(self, kind: Kind, namespace: str, name: str) -> Object | None:
        """Return the live object, or None."""
        ...

    async def get_metadata(self, kind: Kind, namespace: str, name: str) -> Object | None:
        """Return the live object's `metadata` (inside an object without content), or None."""
        ...

    def list_pages(
        self, kind: Kind, *, namespace: str | None = None, selector: str = ""
    ) -> AsyncIterator[list[Object]]:
        """Yield the live objects in pages; `apiVersion` and `kind` are filled in.

        `namespace` None means the whole cluster. An exception in the middle leaves the listing incomplete: the caller
        must not conclude anything about what is absent.
        """
        ...

    async def create(self, kind: Kind, body: Object) -> Object:
        """Create the object and return it. Raises AlreadyExists, Invalid."""
        ...

    async def apply(self, kind: Kind, body: Object) -> Object:
        """Server-side apply with the operator's field manager, taking over disputed fields; return the live object.

        With `metadata.uid` in the body an object that is gone or another one is not (re-)created: raises Conflict.
        Raises Invalid. Idempotent.
        """
        ...

    async def apply_status(self, kind: Kind, body: Object) -> Object:
        """The same for the status subresource, with a field manager of its own. Raises NotFound, Conflict, Invalid."""
        ...

    async def merge(self, kind: Kind, body: Object) -> Object:
        """Merge-patch the object; `metadata.uid` in the body guards it. Raises NotFound, Conflict, Invalid."""
        ...

    async def patch_json(self, kind: Kind, namespace: str, name: str, operations: Sequence[Object]) -> Object:
        """JSON-patch the object (RFC 6902); a failed `test` operation raises Invalid. Raises NotFound, Conflict."""
        ...

    async def request_token(self, namespace: str, service_account: str, *, seconds: int) -> tuple[str, datetime]:
        """Return a new token of a ServiceAccount for the API server, and when it ends. Raises NotFound."""
        ...

    async def delete(self, kind: Kind, namespace: str, name: str, *, uid: str) -> None:
        """Delete the object if it still has that uid. Idempotent: raises nothing if it is gone or another one."""
        ...
