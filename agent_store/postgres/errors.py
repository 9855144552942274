"""What asyncpg and the operating system raise, translated to StoreUnavailable with a reason that status can show."""

import asyncio
import socket
import ssl
from typing import Final
from urllib.parse import parse_qs, urlsplit

import asyncpg

from agent_api.conditions import Reason
from agent_store.errors import StoreUnavailable

_REASONS_BY_SQLSTATE: Final[dict[str, Reason]] = {
    "53300": Reason.CONNECTION_LIMIT,
    "28000": Reason.AUTH_FAILED,
    "28P01": Reason.AUTH_FAILED,
    "42501": Reason.AUTH_FAILED,
    "25006": Reason.READ_ONLY,
    "53100": Reason.READ_ONLY,
    "3F000": Reason.SCHEMA_TOO_OLD,
    "42P01": Reason.SCHEMA_TOO_OLD,
    "42703": Reason.SCHEMA_TOO_OLD,
    "42704": Reason.SCHEMA_TOO_OLD,
    "42883": Reason.SCHEMA_TOO_OLD,
    "57014": Reason.TIMEOUT,
    "55P03": Reason.TIMEOUT,
    "3D000": Reason.CONNECTION_REFUSED,
}
_REASONS_BY_CLASS: Final[dict[str, Reason]] = {
    "08": Reason.CONNECTION_REFUSED,
    "57": Reason.CONNECTION_REFUSED,  # shutting down, crashed, starting up
}
_REMEDIES: Final[dict[Reason, str]] = {
    Reason.CONNECTION_REFUSED: "check that Postgres runs and that host and port are right",
    Reason.TIMEOUT: "check that Postgres is not overloaded and that no firewall drops its packets",
    Reason.AUTH_FAILED: "check user, password and rights in the connection URL's Secret",
    Reason.TLS_FAILED: "check sslmode and certificates",
    Reason.CONNECTION_LIMIT: "raise max_connections, or put a pooler in between",
    Reason.READ_ONLY: "check that this is the primary and that its disk is not full",
    Reason.SCHEMA_TOO_OLD: "run: abide migrate",
    Reason.UNKNOWN: "see the log of Postgres",
}

TRANSIENT: Final = (asyncpg.DeadlockDetectedError, asyncpg.SerializationError)
"""Nothing was done; the same statement may succeed at once."""

LOST: Final = (
    asyncpg.ConnectionDoesNotExistError,
    asyncpg.InterfaceError,
    # An idle connection that was told of a shutdown but not closed yet: "another operation is in progress".
    asyncpg.InternalClientError,
    ConnectionError,
    asyncpg.OperatorInterventionError,
)
"""The connection broke, so that a new one may work."""

TRANSLATED: Final = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,
    TimeoutError,
    asyncio.IncompleteReadError,
)


def describe_address(url: str) -> str:
    """Return host:port of a connection URL, never user or password."""
    try:
        parts = urlsplit(url)
        hosts = parts.netloc.rpartition("@")[2] or ",".join(parse_qs(parts.query).get("host", ["localhost"]))
    except ValueError:
        return "an unreadable URL"
    return ",".join(host if _has_port(host) else f"{host}:5432" for host in hosts.split(","))


def _has_port(host: str) -> bool:
    return ":" in host.rpartition("]")[2] or host.startswith("/")


def find_reason(error: BaseException) -> Reason:
    """Return the reason that stands for an error of asyncpg, of ssl or of the operating system."""
    if isinstance(error, asyncpg.PostgresError):
        state = error.sqlstate or ""
        return _REASONS_BY_SQLSTATE.get(state) or _REASONS_BY_CLASS.get(state[:2], Reason.UNKNOWN)
    if isinstance(error, ssl.SSLError) or "SSL" in str(error):
        return Reason.TLS_FAILED
    if isinstance(error, TimeoutError):
        return Reason.TIMEOUT
    if isinstance(error, OSError | asyncpg.InterfaceError | asyncpg.InternalClientError | asyncio.IncompleteReadError):
        return Reason.CONNECTION_REFUSED
    return Reason.UNKNOWN


def translate(error: BaseException, address: str, *, sent: bool) -> StoreUnavailable:
    """Return the StoreUnavailable for an error; its message says where, what and what to do, without secrets."""
    reason = find_reason(error)
    return StoreUnavailable(reason, f"Postgres at {address}: {_describe(error)}; {_REMEDIES[reason]}", sent=sent)


def _describe(error: BaseException) -> str:
    # Only Postgres' own one-line message: details quote rows, and other libraries' texts may quote the URL.
    if isinstance(error, asyncpg.PostgresError):
        return f"{str(error.args[0] if error.args else error).splitlines()[0][:300]} ({error.sqlstate})"
    if isinstance(error, socket.gaierror):
        return "its name cannot be resolved"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed ({getattr(error, 'reason', None) or 'handshake'})"
    if "SSL" in str(error):
        return "it does not speak TLS"
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    return f"connection lost ({type(error).__name__})"
