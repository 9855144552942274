"""Translation of errors: reason, address and text, never a secret."""

import ssl

import asyncpg
import pytest

from agent_api.conditions import Reason
from agent_store.postgres.errors import describe_address, find_reason, translate

SECRET = "pa-ss-wd"


@pytest.mark.parametrize(
    ("url", "address"),
    [
        (f"postgresql://user:{SECRET}@db.example:6543/name?sslmode=require", "db.example:6543"),
        (f"postgres://user:{SECRET}@db.example/name", "db.example:5432"),
        (f"postgres://user:p%40{SECRET}@[::1]:7000/name", "[::1]:7000"),
        ("postgres://[::1]/name", "[::1]:5432"),
        (f"postgres://user:{SECRET}@one:1,two/name", "one:1,two:5432"),
        (f"postgres:///name?host=/run/postgresql&password={SECRET}", "/run/postgresql"),
        ("postgres:///name", "localhost:5432"),
        (f"postgres://user:{SECRET}@[bad/name", "an unreadable URL"),
    ],
)
def test_address_has_host_and_port_only(url: str, address: str) -> None:
    assert describe_address(url) == address


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ConnectionRefusedError(111, "refused"), Reason.CONNECTION_REFUSED),
        (ConnectionResetError(104, "reset"), Reason.CONNECTION_REFUSED),
        (TimeoutError(), Reason.TIMEOUT),
        (ssl.SSLCertVerificationError(1, f"bad {SECRET}"), Reason.TLS_FAILED),
        (ConnectionError('PostgreSQL server at "db:5432" rejected SSL upgrade'), Reason.TLS_FAILED),
        (asyncpg.InvalidPasswordError("password authentication failed"), Reason.AUTH_FAILED),
        (asyncpg.InvalidAuthorizationSpecificationError("no pg_hba.conf entry"), Reason.AUTH_FAILED),
        (asyncpg.InsufficientPrivilegeError("permission denied"), Reason.AUTH_FAILED),
        (asyncpg.TooManyConnectionsError("sorry, too many clients already"), Reason.CONNECTION_LIMIT),
        (asyncpg.ReadOnlySQLTransactionError("cannot execute"), Reason.READ_ONLY),
        (asyncpg.DiskFullError("no space left on device"), Reason.READ_ONLY),
        (asyncpg.UndefinedTableError("relation does not exist"), Reason.SCHEMA_TOO_OLD),
        (asyncpg.UndefinedColumnError("column does not exist"), Reason.SCHEMA_TOO_OLD),
        (asyncpg.InvalidSchemaNameError("schema does not exist"), Reason.SCHEMA_TOO_OLD),
        (asyncpg.InvalidCatalogNameError("database does not exist"), Reason.CONNECTION_REFUSED),
        (asyncpg.QueryCanceledError("statement timeout"), Reason.TIMEOUT),
        (asyncpg.LockNotAvailableError("lock timeout"), Reason.TIMEOUT),
        (asyncpg.CannotConnectNowError("the database system is starting up"), Reason.CONNECTION_REFUSED),
        (asyncpg.AdminShutdownError("terminating connection"), Reason.CONNECTION_REFUSED),
        (asyncpg.ConnectionDoesNotExistError("connection was closed"), Reason.CONNECTION_REFUSED),
        (asyncpg.InterfaceError("connection is closed"), Reason.CONNECTION_REFUSED),
        (asyncpg.InternalClientError("another operation is in progress"), Reason.CONNECTION_REFUSED),
        (asyncpg.InternalServerError("odd"), Reason.UNKNOWN),
    ],
)
def test_reasons(error: Exception, reason: Reason) -> None:
    assert find_reason(error) is reason
    translated = translate(error, "db.example:5432", sent=True)
    assert translated.reason is reason
    assert translated.message.startswith("Postgres at db.example:5432: ")
    assert ";" in translated.message  # what to do about it
    assert SECRET not in translated.message


def test_details_that_quote_rows_are_left_out() -> None:
    error = asyncpg.PostgresError.new(
        {"C": "XX000", "M": "odd\nmore", "D": f"Failing row contains ({SECRET})", "S": "E"}
    )
    assert SECRET not in translate(error, "db:5432", sent=False).message
    assert "odd (XX000)" in translate(error, "db:5432", sent=False).message
