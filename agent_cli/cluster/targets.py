"""Ways in to an agent: a known address, or a port forwarded by kubectl with the key from the agent's Secret."""

import base64
import binascii
from collections.abc import Callable
from typing import Any, Final

from agent_api.conditions import Reason
from agent_api.labels import api_secret_name, child_name
from agent_cli.cluster.kubectl import (
    FORWARD_TIMEOUT,
    Cluster,
    ForwardFailed,
    ObjectNotFound,
    PortForward,
    get_object,
    open_port_forward,
)
from agent_cli.errors import CliError
from agent_cli.talk.client import AgentRef, Clock, Connection

RESOURCE: Final = "agents.abide.dev"
API_PORT: Final = 8080
RETRY_PAUSE: Final = 1.0
HOPELESS: Final = frozenset(
    {
        Reason.SUSPENDED,
        Reason.SCALED_TO_ZERO,
        Reason.INVALID_SPEC,
        Reason.SECRET_MISSING,
        Reason.CONFIG_MAP_MISSING,
        Reason.NAME_CONFLICT,
    }
)
"""Reasons for not being ready that no waiting mends: somebody has to change something."""


class UrlTarget:
    """An agent at an address the user gave, or that this process serves."""

    def __init__(self, url: str, agent: AgentRef, *, key: str | None = None, trust_env: bool = True) -> None:
        self._way = Connection(base_url=url.rstrip("/"), api_key=key, trust_env=trust_env)
        self._agent = agent

    def connect(self, deadline: float) -> Connection:
        """Return the address."""
        return self._way

    def drop(self) -> None:
        """Do nothing: an address stays."""

    def unreachable(self, reason: str) -> CliError:
        """Return the sentence for an address that does not answer."""
        return CliError(f"Agent {self._agent} does not answer at {self._way.base_url}: {reason}.")

    def unauthorized(self) -> CliError:
        """Return the sentence for a refused or missing API key."""
        hint = "is not valid there" if self._way.api_key else "is needed"
        return CliError(
            f"Agent {self._agent} at {self._way.base_url} answered 401: an API key {hint}; give it by --key."
        )


class ClusterTarget:
    """An agent in a cluster, reached by a forwarded port. Close it to end kubectl."""

    def __init__(
        self, cluster: Cluster, name: str, *, note: Callable[[str], None] = lambda _: None, clock: Clock | None = None
    ) -> None:
        self._cluster = cluster
        self._name = name
        self._note = note
        self._clock = clock or Clock()
        self._forward: PortForward | None = None
        self._key: str | None = None

    def find(self) -> AgentRef:
        """Return which agent this is, with the namespace kubectl chose. Raises CliError when there is none."""
        found = get_agent(self._cluster, self._name)
        return AgentRef(str(found.get("metadata", {}).get("namespace", "default")), self._name)

    def connect(self, deadline: float) -> Connection:
        """Return the forwarded port, opened anew if it broke; wait for a pod that is starting or being replaced."""
        waiting = False
        while self._forward is None or not self._forward.is_alive:
            self.drop()
            agent = get_agent(self._cluster, self._name)
            if ready_reason(agent) in HOPELESS:
                raise not_ready(agent)
            try:
                self._key = self._read_key(agent)
                left = max(1.0, deadline - self._clock.monotonic())
                self._forward = open_port_forward(
                    self._cluster, f"service/{child_name(self._name)}", API_PORT, timeout=min(FORWARD_TIMEOUT, left)
                )
            except (ForwardFailed, ObjectNotFound) as error:
                if self._clock.monotonic() + RETRY_PAUSE >= deadline:
                    raise not_ready(agent, error) from error
                if not waiting:
                    self._note(f"{str(not_ready(agent, error)).rstrip('.')}; waiting …")
                    waiting = True
                self._clock.sleep(RETRY_PAUSE)
        return Connection(base_url=f"http://127.0.0.1:{self._forward.port}", api_key=self._key, trust_env=False)

    def drop(self) -> None:
        """End the forwarded port; the key is read again too."""
        forward, self._forward = self._forward, None
        if forward is not None:
            forward.close()

    def unreachable(self, reason: str) -> CliError:
        """Return the sentence for an agent whose pods do not answer: what its status says, else what was seen."""
        return not_ready(get_agent(self._cluster, self._name), CliError(reason))

    def unauthorized(self) -> CliError:
        """Return the sentence for a key that the agent refuses although it is the one in its Secret."""
        return CliError(
            f"Agent {self._name} refuses the key in Secret {api_secret_name(self._name)}; "
            "if it was just replaced, try again in a minute."
        )

    def _read_key(self, agent: dict[str, Any]) -> str:
        name = api_secret_name(self._name)
        data = get_object(self._cluster, "secret", name).get("data") or {}
        try:
            return base64.b64decode(data["key"], validate=True).decode("ascii").strip()
        except (KeyError, TypeError, binascii.Error, UnicodeDecodeError) as error:
            raise CliError(f"Secret {agent_label(agent).split('/')[0]}/{name} has no usable key `key`.") from error


def get_agent(cluster: Cluster, name: str) -> dict[str, Any]:
    """Return the Agent as JSON. Raises CliError with what to do when it does not exist."""
    try:
        # The managed fields tell when the spec was last changed.
        return get_object(cluster, RESOURCE, name, "--show-managed-fields")
    except ObjectNotFound as error:
        where = f"in namespace {cluster.namespace}" if cluster.namespace else "in kubectl's current namespace"
        raise CliError(f"There is no agent {name!r} {where}; `abide status -A` lists all.") from error


def agent_label(agent: dict[str, Any]) -> str:
    """Return `namespace/name` of an Agent."""
    metadata = agent.get("metadata", {})
    return f"{metadata.get('namespace', 'default')}/{metadata.get('name', '')}"


def find_condition(agent: dict[str, Any], kind: str) -> dict[str, Any]:
    """Return one condition of an Agent, {} if status does not have it."""
    conditions = (agent.get("status") or {}).get("conditions") or []
    return next((condition for condition in conditions if condition.get("type") == kind), {})


def ready_reason(agent: dict[str, Any]) -> str:
    """Return the reason of Ready when it is not True, else ""."""
    ready = find_condition(agent, "Ready")
    return "" if ready.get("status") == "True" else str(ready.get("reason", ""))


def not_ready(agent: dict[str, Any], seen: CliError | None = None) -> CliError:
    """Return why an agent cannot be talked to: its own status if that says so, else what was seen."""
    reason = ready_reason(agent)
    message = str(find_condition(agent, "Ready").get("message", ""))
    if reason:
        return CliError(f"Agent {agent_label(agent)} is not ready: {reason}: {message}".rstrip(": "))
    detail = f": {seen.lines[0].rstrip('.')}" if seen else ""
    if not find_condition(agent, "Ready"):
        return CliError(
            f"Agent {agent_label(agent)} has no status yet; `abide doctor` tells whether the operator runs."
        )
    return CliError(f"Agent {agent_label(agent)} cannot be reached{detail}.")
