"""The operator's settings, read from the environment once, by the composition root.

| variable | default | meaning |
| --- | --- | --- |
| ABIDE_POSTGRES_URL | (required) | where state is kept, as the operator reaches it |
| ABIDE_POSTGRES_DIRECT_URL | ABIDE_POSTGRES_URL | the same past a connection pooler, for schema migrations |
| ABIDE_AGENT_POSTGRES_URL | ABIDE_POSTGRES_URL | what agents get; its host must be known in every namespace |
| ABIDE_RUNTIME_IMAGE | (the runtime of the same version) | image of agents that name none |
| ABIDE_NAMESPACE | (empty) | namespace the operator runs in, where it keeps its own objects |
| ABIDE_WATCH_NAMESPACES | (all) | namespaces looked after, separated by commas |
| ABIDE_ENCRYPTION_ROOT_DIR | (empty) | files with the root keys, 32 bytes in base64 each; empty: agents get no keys |
| ABIDE_REVIEWER_ACCOUNT | (empty) | ServiceAccount in its namespace that may review tokens; empty: agents take none |
| ABIDE_DOCS_URL | docs | where links in status lead: a folder with reasons/, as URL; the default is the source's |
| ABIDE_PORT | 8080 | port of probes and metrics |
| ABIDE_LOG_FORMAT | json | `json` or `console` |
| ABIDE_LOG_LEVEL | INFO | `DEBUG`, `INFO`, `WARNING` or `ERROR` |
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from agent_api.version import VERSION
from agent_operator.resources.inputs import PORT
from agent_operator.status.observed import DOCS

DEFAULT_RUNTIME_IMAGE: Final = f"abide/runtime:{VERSION}"


class SettingsError(Exception):
    """A setting is missing or wrong; the text names the variable and what to write."""


@dataclass(frozen=True, slots=True)
class OperatorSettings:
    """Everything that can be set from outside. Times are seconds.

    `postgres_url` is used by the operator; `agent_postgres_url` is handed to agents and must name a host that other
    namespaces can resolve. `namespace` is the operator's own, "" to find out. An empty `watch_namespaces` means
    the whole cluster. `environ` is what subprocesses get.
    """

    postgres_url: str = field(repr=False)
    agent_postgres_url: str = field(repr=False)
    runtime_image: str = DEFAULT_RUNTIME_IMAGE
    namespace: str = ""
    watch_namespaces: tuple[str, ...] = ()
    encryption_root_dir: Path | None = None
    reviewer_account: str = ""
    docs_url: str = DOCS
    host: str = "0.0.0.0"  # noqa: S104 - probes and scrapes come from outside the pod
    port: int = 8080
    log_format: str = "json"
    log_level: str = "INFO"
    agent_port: int = PORT
    workers: int = 32
    sync_timeout: float = 60.0
    sweep_interval: float = 600.0
    health_interval: float = 2.0
    counters_interval: float = 60.0
    reference_missing_interval: float = 2.0
    reference_present_interval: float = 30.0
    environ: Mapping[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> "OperatorSettings":
        """Read `ABIDE_*`. Raises: SettingsError."""
        url = environ.get("ABIDE_POSTGRES_URL", "")
        if not url:
            raise SettingsError("ABIDE_POSTGRES_URL is not set: write the URL of the Postgres that keeps agents' state")
        return cls(
            postgres_url=url,
            agent_postgres_url=environ.get("ABIDE_AGENT_POSTGRES_URL") or url,
            runtime_image=environ.get("ABIDE_RUNTIME_IMAGE") or DEFAULT_RUNTIME_IMAGE,
            namespace=environ.get("ABIDE_NAMESPACE", ""),
            watch_namespaces=tuple(
                sorted({name.strip() for name in environ.get("ABIDE_WATCH_NAMESPACES", "").split(",")} - {""})
            ),
            encryption_root_dir=Path(root) if (root := environ.get("ABIDE_ENCRYPTION_ROOT_DIR", "")) else None,
            reviewer_account=environ.get("ABIDE_REVIEWER_ACCOUNT", ""),
            docs_url=environ.get("ABIDE_DOCS_URL", "").rstrip("/") or DOCS,
            port=_integer(environ, "ABIDE_PORT", 8080, low=1, high=65535),
            log_format=_choice(environ, "ABIDE_LOG_FORMAT", ("json", "console")),
            log_level=_choice(environ, "ABIDE_LOG_LEVEL", ("INFO", "DEBUG", "WARNING", "ERROR")),
            environ=dict(environ),
        )


def _integer(environ: Mapping[str, str], name: str, default: int, *, low: int, high: int) -> int:
    text = environ.get(name, "")
    if not text:
        return default
    if not text.isdecimal() or not low <= int(text) <= high:
        raise SettingsError(f"{name} is {text!r}: write a whole number from {low} to {high}")
    return int(text)


def _choice(environ: Mapping[str, str], name: str, allowed: tuple[str, ...]) -> str:
    text = environ.get(name, "") or allowed[0]
    for choice in allowed:
        if text.lower() == choice.lower():
            return choice
    raise SettingsError(f"{name} is {text!r}: write one of {', '.join(allowed)}")
