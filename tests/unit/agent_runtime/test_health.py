"""What the probes say."""

from datetime import UTC, datetime

from agent_api.conditions import Reason
from agent_runtime.health import AgentHealth, is_ok, liveness, readiness
from agent_runtime.loop.keeper import StoreContact

SINCE = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
UP = StoreContact(True, Reason.CONNECTED, "", SINCE)
DOWN = StoreContact(False, Reason.CONNECTION_REFUSED, "Postgres db:5432 refuses connections.", SINCE)


def agent(contact: StoreContact = UP, *, lease: bool = True, draining: bool = False) -> AgentHealth:
    return AgentHealth("a", contact, lease, draining)


def test_ready_names_its_three_checks() -> None:
    checks = readiness([], [agent()])
    assert [check.name for check in checks] == ["loop", "store", "lease"]
    assert is_ok(checks)


def test_a_refused_connection_is_named_with_its_instant_and_is_also_why_the_lease_is_missing() -> None:
    checks = {check.name: check for check in readiness([], [agent(DOWN, lease=False)])}
    assert not checks["store"].ok
    assert checks["store"].reason == "ConnectionRefused"
    assert checks["store"].message == "Postgres db:5432 refuses connections (since 2026-01-02T03:04:05Z)."
    assert checks["lease"].reason == "ConnectionRefused"
    assert checks["loop"].ok


def test_one_agent_without_a_lease_makes_the_process_unready_and_is_named() -> None:
    checks = readiness([], [agent(), AgentHealth("b", UP, lease_held=False, draining=False)])
    (bad,) = [check for check in checks if not check.ok]
    assert (bad.name, bad.reason) == ("lease", "Starting")
    assert " b" in bad.message


def test_a_process_being_stopped_is_unready_at_once() -> None:
    checks = readiness([], [agent(draining=True)])
    assert [check.name for check in checks if not check.ok] == ["intake"]


def test_live_depends_on_the_loops_alone() -> None:
    assert is_ok(liveness([]))
    (check,) = liveness(["sweep:default/a"])
    assert not check.ok
    assert "sweep:default/a" in check.message
