"""What the environment tells the runtime. Read once, by the composition root.

| variable | default | meaning |
| --- | --- | --- |
| ABIDE_MANIFEST | /etc/abide/agent.json | file with the Agent manifest(s), JSON or YAML, complete |
| ABIDE_POSTGRES_URL | (required) | where state is kept |
| ABIDE_POSTGRES_CONNECTIONS | 5 | most connections to Postgres; more help a busy agent where commits are slow |
| ABIDE_AGENT_ID | (derived from namespace and name) | UUID of the agent's rows; only with one agent in the manifest |
| ABIDE_INSTANCE | (random) | identity over restarts: a restart with the same one takes over at once |
| ABIDE_POD_NAME | (host name) | name under which heartbeats are written |
| ABIDE_REVISION | (empty) | revision of the manifest |
| ABIDE_API_KEYS_DIR | /etc/abide/api-keys | each file holds one valid key; read again when it changes |
| ABIDE_AUTH | key | `key`, or `none` for development only |
| ABIDE_SECRETS_DIR | /etc/abide/secrets | files `<secret>/<key>` of the model providers |
| ABIDE_KUBERNETES_URL | (the cluster's own) | API server that reviews tokens, for spec.access.kubernetes |
| ABIDE_KUBERNETES_DIR | /etc/abide/kubernetes | files `token` and `ca.crt` to ask it with |
| ABIDE_ENCRYPTION_KEYS_DIR | (empty) | files with the keys that wrap data keys; empty: content is stored plainly |
| ABIDE_ENCRYPTION_SOURCE | (the folder) | how errors call that folder, for example `Secret shop/keys` |
| ABIDE_AGENT_CLASS | (empty) | own code, as `module:Class`: a subclass of abide.Agent on PYTHONPATH |
| ABIDE_HOST | 0.0.0.0 | address to listen on |
| ABIDE_PORT | 8080 | port to listen on; 0 takes a free one |
| ABIDE_LOG_FORMAT | json | `json` on stdout or `console` on stderr |
| ABIDE_LOG_LEVEL | info | `debug`, `info`, `warning` or `error` |
| ABIDE_DRAIN_SECONDS | 20 | how long running turns may take to finish after SIGTERM |
| ABIDE_MAX_RUNNING_TURNS | 512 | turns at once per agent; more are refused with 503 |
| ABIDE_MAX_WAITERS | 4096 | requests that may wait for an outcome at once |
| ABIDE_MAX_CACHED_SESSIONS | 10000 | sessions kept in memory per agent |
| ABIDE_FAILPOINTS | (empty) | tests only, see agent_store.failpoints |
| ABIDE_FAILPOINTS_TRACE | (empty) | tests only, see agent_store.failpoints |
"""

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit
from uuid import UUID, uuid4

from pydantic import ValidationError

from agent_api.v1alpha1 import Agent
from agent_runtime.errors import SettingsError
from agent_runtime.ids import default_agent_id

LEASE_TTL: Final = 8.0
RENEW_INTERVAL: Final = 2.0
"""Three renewals may fail before the lease (8 s) is gone; takeover after a kill stays within 8 s + one sweep."""


KUBERNETES_URL: Final = "https://kubernetes.default.svc"


class AuthMode(StrEnum):
    """Who may call the API."""

    KEY = "key"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Bounds:
    """What the process refuses to exceed."""

    running_turns: int = 512
    waiters: int = 4096
    cached_sessions: int = 10_000
    cached_chars: int = 8_000_000
    body_bytes: int = 2 * 1024 * 1024
    header_bytes: int = 32 * 1024


@dataclass(frozen=True, slots=True)
class RuntimeSettings:
    """Everything the composition root needs; see the module for the environment it comes from.

    `agents`, when given, are served instead of what `manifest` holds (dev mode, tests).
    """

    postgres_url: str
    postgres_connections: int = 5
    manifest: Path = Path("/etc/abide/agent.json")
    agent_id: UUID | None = None
    instance: str = field(default_factory=lambda: str(uuid4()))
    pod_name: str = field(default_factory=socket.gethostname)
    revision: str = ""
    api_keys_dir: Path = Path("/etc/abide/api-keys")
    auth: AuthMode = AuthMode.KEY
    secrets_dir: Path = Path("/etc/abide/secrets")
    kubernetes_url: str = KUBERNETES_URL
    kubernetes_dir: Path = Path("/etc/abide/kubernetes")
    encryption_keys_dir: Path | None = None
    encryption_source: str = ""
    agent_class: str = ""
    host: str = "0.0.0.0"  # noqa: S104 - a pod is reached through its own address
    port: int = 8080
    log_format: str = "json"
    log_level: str = "info"
    drain_seconds: float = 20.0
    bounds: Bounds = Bounds()
    failpoints: str = ""
    failpoints_trace: str = ""
    agents: tuple[Agent, ...] = ()

    @classmethod
    def from_environ(cls, environ: Mapping[str, str] = os.environ) -> "RuntimeSettings":
        """Read the environment. Raises SettingsError with one line per variable that cannot be used."""
        return _Reader(environ).settings()

    def load_agents(self) -> tuple[Agent, ...]:
        """Return the agents to serve. Raises SettingsError naming file, field and remedy."""
        agents = self.agents or tuple(_load(self.manifest))
        problems = _agent_problems(agents, self)
        if problems:
            raise SettingsError(problems)
        return agents

    def with_agents(self, agents: tuple[Agent, ...]) -> "RuntimeSettings":
        """Return settings that serve these agents, so that the manifest is not read again."""
        return replace(self, agents=agents)

    def id_of(self, agent: Agent) -> UUID:
        """Return the id under which the agent's rows are kept."""
        return self.agent_id or default_agent_id(agent.metadata.namespace, agent.metadata.name)


class _Reader:
    """Collects every problem before giving up, so that one start shows them all."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self._problems: list[str] = []

    def settings(self) -> RuntimeSettings:
        bounds = Bounds(
            running_turns=self._number("ABIDE_MAX_RUNNING_TURNS", 512, 1, 100_000),
            waiters=self._number("ABIDE_MAX_WAITERS", 4096, 1, 1_000_000),
            cached_sessions=self._number("ABIDE_MAX_CACHED_SESSIONS", 10_000, 1, 10_000_000),
        )
        settings = RuntimeSettings(
            postgres_url=self._postgres_url(),
            postgres_connections=self._number("ABIDE_POSTGRES_CONNECTIONS", 5, 1, 100),
            manifest=Path(self._text("ABIDE_MANIFEST", "/etc/abide/agent.json")),
            agent_id=self._uuid("ABIDE_AGENT_ID"),
            instance=self._text("ABIDE_INSTANCE", "") or str(uuid4()),
            pod_name=self._text("ABIDE_POD_NAME", "") or socket.gethostname(),
            revision=self._text("ABIDE_REVISION", ""),
            api_keys_dir=Path(self._text("ABIDE_API_KEYS_DIR", "/etc/abide/api-keys")),
            auth=AuthMode(self._choice("ABIDE_AUTH", "key", ("key", "none"))),
            secrets_dir=Path(self._text("ABIDE_SECRETS_DIR", "/etc/abide/secrets")),
            kubernetes_url=self._kubernetes_url(),
            kubernetes_dir=Path(self._text("ABIDE_KUBERNETES_DIR", "/etc/abide/kubernetes")),
            encryption_keys_dir=Path(text) if (text := self._text("ABIDE_ENCRYPTION_KEYS_DIR", "")) else None,
            encryption_source=self._text("ABIDE_ENCRYPTION_SOURCE", ""),
            agent_class=self._text("ABIDE_AGENT_CLASS", ""),
            host=self._text("ABIDE_HOST", "0.0.0.0"),  # noqa: S104
            port=self._number("ABIDE_PORT", 8080, 0, 65_535),
            log_format=self._choice("ABIDE_LOG_FORMAT", "json", ("json", "console")),
            log_level=self._choice("ABIDE_LOG_LEVEL", "info", ("debug", "info", "warning", "error")),
            drain_seconds=float(self._number("ABIDE_DRAIN_SECONDS", 20, 0, 3600)),
            bounds=bounds,
            failpoints=self._text("ABIDE_FAILPOINTS", ""),
            failpoints_trace=self._text("ABIDE_FAILPOINTS_TRACE", ""),
        )
        if self._problems:
            raise SettingsError(self._problems)
        return settings

    def _text(self, name: str, default: str) -> str:
        return self._environ.get(name, "").strip() or default

    def _postgres_url(self) -> str:
        url = self._text("ABIDE_POSTGRES_URL", "")
        if not url:
            self._problems.append("ABIDE_POSTGRES_URL is not set: write postgresql://user:password@host:5432/database")
        elif urlsplit(url).scheme not in ("postgresql", "postgres"):
            self._problems.append("ABIDE_POSTGRES_URL does not start with postgresql://")
        return url

    def _kubernetes_url(self) -> str:
        url = self._text("ABIDE_KUBERNETES_URL", "")
        if url:
            return url
        # What Kubernetes tells every container; without it (tests, other ways to run) the name says the same.
        host, port = self._text("KUBERNETES_SERVICE_HOST", ""), self._text("KUBERNETES_SERVICE_PORT", "443")
        return f"https://{f'[{host}]' if ':' in host else host}:{port}" if host else KUBERNETES_URL

    def _number(self, name: str, default: int, low: int, high: int) -> int:
        text = self._text(name, str(default))
        if text.isascii() and text.isdigit() and low <= int(text) <= high:
            return int(text)
        self._problems.append(f"{name}={text!r}: write a whole number from {low} to {high}")
        return default

    def _choice(self, name: str, default: str, allowed: tuple[str, ...]) -> str:
        text = self._text(name, default).lower()
        if text in allowed:
            return text
        self._problems.append(f"{name}={text!r}: write one of {', '.join(allowed)}")
        return default

    def _uuid(self, name: str) -> UUID | None:
        text = self._text(name, "")
        if not text:
            return None
        try:
            return UUID(text)
        except ValueError:
            self._problems.append(f"{name}={text!r}: write a UUID, or leave it out")
            return None


def _load(path: Path) -> list[Agent]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise SettingsError([f"ABIDE_MANIFEST {path} cannot be read: {error.strerror}"]) from error
    except UnicodeDecodeError as error:
        raise SettingsError([f"ABIDE_MANIFEST {path} is not UTF-8 text"]) from error
    if text.lstrip().startswith("{"):
        try:
            return [Agent.model_validate_json(text)]
        except ValidationError:
            pass  # the full reader says what is wrong, or takes what only looks like one JSON object
    return _load_documents(text, str(path))


def _load_documents(text: str, source: str) -> list[Agent]:
    # The YAML reader costs memory that a pod, whose manifest is one JSON object, need not pay.
    from agent_api.manifest import ManifestError, load_documents

    try:
        documents = load_documents(text, source=source)
    except ManifestError as error:
        raise SettingsError(list(error.problems)) from error
    prompts = {
        (found.namespace, found.name, key): value.decode("utf-8", errors="replace")
        for found in documents.config_maps
        for key, value in found.values.items()
    }
    return [_with_prompt(agent, prompts) for agent in documents.agents]


def _with_prompt(agent: Agent, prompts: Mapping[tuple[str, str, str], str]) -> Agent:
    """Return the agent with `systemPromptFrom` resolved, or as it is where the ConfigMap is not in the file."""
    source = agent.spec.system_prompt_from
    if source is None:
        return agent
    ref = source.config_map_key_ref
    prompt = prompts.get((agent.metadata.namespace, ref.name, ref.key))
    if prompt is None:
        return agent
    spec = agent.spec.model_copy(update={"system_prompt": prompt, "system_prompt_from": None})
    return agent.model_copy(update={"spec": spec})


def _agent_problems(agents: tuple[Agent, ...], settings: RuntimeSettings) -> list[str]:
    problems = [] if agents else [f"{settings.manifest}: no Agent in it; write one with kind: Agent"]
    names = [(agent.metadata.namespace, agent.metadata.name) for agent in agents]
    twice = sorted({name for name in names if names.count(name) > 1})
    problems += [f"agent {namespace}/{name} is there twice; rename one" for namespace, name in twice]
    problems += [
        f"agent {agent.metadata.name}: spec.systemPromptFrom is not resolved; put the ConfigMap into the file, "
        "or write spec.systemPrompt"
        for agent in agents
        if agent.spec.system_prompt is None
    ]
    if settings.agent_id is not None and len(agents) > 1:
        problems.append("ABIDE_AGENT_ID is set but the manifest has several agents; leave it out")
    return problems
