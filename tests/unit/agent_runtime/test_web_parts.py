"""Pure parts of the HTTP edge: problems, cursors, rendering."""

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import pytest

from agent_api.conditions import Reason
from agent_runtime.errors import Draining, InvalidState, NotFound, NotReady, Overloaded, SessionBusy
from agent_runtime.web import render
from agent_runtime.web.problems import BASE, field_errors, from_error, from_status
from agent_store.errors import IdempotencyMismatch, LeaseLost, QueueFull, StoreUnavailable
from agent_store.ports import ErrorRecord, SessionRecord


@pytest.mark.parametrize(
    ("error", "status", "kind", "retry"),
    [
        (NotFound("turn"), 404, "turn-not-found", False),
        (IdempotencyMismatch(), 409, "idempotency-mismatch", False),
        (SessionBusy("x"), 429, "session-busy", True),
        (QueueFull(), 429, "queue-full", True),
        (Draining("x"), 503, "draining", True),
        (Overloaded("x"), 503, "overloaded", True),
        (NotReady(Reason.STARTING, "x"), 503, "not-ready", True),
        (StoreUnavailable(Reason.CONNECTION_REFUSED, "x"), 503, "store-unavailable", True),
        (LeaseLost(), 503, "not-ready", True),
        (InvalidState([("cursor", "wrong")]), 422, "invalid-request", False),
    ],
)
def test_each_error_has_its_problem(error: Exception, status: int, kind: str, retry: bool) -> None:
    problem = from_error(error)
    assert problem is not None
    assert (problem.status, problem.kind) == (status, kind)
    assert ("Retry-After" in problem.headers) == retry
    if retry:
        assert int(problem.headers["Retry-After"]) >= 1
    body = problem.body("/path")
    assert body["type"] == BASE + kind
    assert (body["status"], body["instance"]) == (status, "/path")
    assert body["title"].endswith(".")


def test_a_defect_is_no_known_problem() -> None:
    assert from_error(KeyError("inside")) is None


def test_callers_are_not_told_where_postgres_is_nor_what_it_said() -> None:
    said = "Postgres at db.internal:5432: no pg_hba.conf entry"
    for error in (
        StoreUnavailable(Reason.AUTH_FAILED, said),
        NotReady(Reason.AUTH_FAILED, said),
    ):
        problem = from_error(error)
        assert problem is not None
        body = json.dumps(problem.body("/v1"))
        assert "db.internal" not in body
        assert "pg_hba" not in body
        assert problem.reason == "AuthFailed"


@pytest.mark.parametrize("status", [400, 404, 405, 406, 415])
def test_the_frameworks_own_refusals_are_problems_too(status: int) -> None:
    problem = from_status(status, {"Allow": "GET"})
    assert problem.status == status
    assert problem.headers == {"Allow": "GET"}
    assert " " not in problem.kind


def test_fields_are_named_as_callers_write_them() -> None:
    errors = [
        {"loc": ("query", "waitSeconds"), "msg": "too small"},
        {"loc": ("messages", 0, "role"), "msg": "unknown"},
        {"loc": (), "msg": "not JSON"},
    ]
    assert [error["field"] for error in field_errors(errors)] == ["waitSeconds", "messages.0.role", ""]


@pytest.mark.parametrize("seq", [0, 1, 2**31 - 1])
def test_message_cursors_are_opaque_and_come_back(seq: int) -> None:
    cursor = render.encode_seq_cursor(seq)
    assert str(seq) not in cursor or seq < 10
    assert render.decode_seq_cursor(cursor) == seq


def test_session_cursors_come_back() -> None:
    at = datetime(2026, 1, 1, 12, 0, 0, 123456, tzinfo=UTC)
    record = SessionRecord(UUID(int=5), "s", "u", at, at, 1)
    assert render.decode_session_cursor(render.encode_session_cursor(record)) == (at, UUID(int=5))


@pytest.mark.parametrize(
    "cursor", ["", "x", "1", "WyJtIiwtMV0", "WyJtIix0cnVlXQ", "é", "W10", "A" * 500, "WyJzIiwieCIsInkiXQ"]
)
def test_foreign_cursors_are_told_apart(cursor: str) -> None:
    assert render.decode_seq_cursor(cursor) is None
    assert render.decode_session_cursor(cursor) is None


def test_every_kind_of_problem_is_documented() -> None:
    root = Path(__file__).resolve().parents[3]
    page = (root / "docs" / "rest.md").read_text()
    files = (root / "agent_runtime" / "web" / name for name in ("problems.py", "protocol.py", "edge.py"))
    source = "".join(file.read_text() for file in files)
    kinds = set(re.findall(r"\d{3}(?:,|: \(|:) \"([a-z]+(?:-[a-z]+)+)\"", source))
    assert {"queue-full", "store-unavailable", "headers-too-large", "request-timeout"} <= kinds
    assert [kind for kind in sorted(kinds) if f"`{kind}`" not in page] == []


def test_an_error_is_shown_without_what_is_inside() -> None:
    at, turn = datetime(2026, 1, 31, tzinfo=UTC), UUID(int=7)
    record = ErrorRecord(UUID(int=1), "Failed", "no", "trace", {"turnId": str(turn), "sessionId": "s"}, at, UUID(int=2))
    assert render.error_out(record).model_dump() == {"time": at, "type": "Failed", "message": "no", "turn_id": turn}
    for odd in ("x", 5, None):
        written = ErrorRecord(UUID(int=1), "Own", "by a user", context={"turnId": odd}, occurred_at=at)
        assert render.error_out(written).turn_id is None


def test_cursors_of_one_list_are_none_of_another() -> None:
    at = datetime(2026, 1, 31, tzinfo=UTC)
    record = ErrorRecord(UUID(int=1), "Failed", "no", occurred_at=at, id=UUID(int=2))
    cursor = render.encode_error_cursor(record)
    assert render.decode_error_cursor(cursor) == (at, UUID(int=2))
    assert render.decode_session_cursor(cursor) is None
    assert render.decode_seq_cursor(cursor) is None
    assert render.decode_error_cursor("nonsense") is None
