"""Names of users, rates, and which right each route needs."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_api.wire import USER_PATTERN
from agent_runtime.access.names import user_of
from agent_runtime.access.principal import Right
from agent_runtime.access.rates import MOST_CALLERS, Rates
from agent_runtime.access.routes import agent_of, audited_right, rights_for
from agent_runtime.clock import ManualClock
from agent_runtime.settings import RuntimeSettings
from agent_runtime.web import build_app


@given(st.text(min_size=1, max_size=300))
def test_every_subject_becomes_a_user(subject: str) -> None:
    assert re.fullmatch(USER_PATTERN, user_of(subject))


@given(st.text(max_size=200), st.text(max_size=200))
def test_two_subjects_are_never_one_user(one: str, other: str) -> None:
    assert (user_of(one) == user_of(other)) == (one == other)


def test_subjects_that_fit_stay_and_no_one_can_pose_as_a_changed_one() -> None:
    assert user_of("alice@example.com") == "alice@example.com"
    assert user_of("alice", "acme:") == "acme:alice"
    changed = user_of("auth0|alice")
    assert changed.startswith("auth0-alice.")
    assert user_of(changed) != changed


async def test_a_bucket_holds_a_minute_and_fills_evenly() -> None:
    clock = ManualClock()
    rates = Rates(60, clock)
    assert [rates.take("key", "alice") for _ in range(60)] == [0.0] * 60
    assert rates.take("key", "alice") == pytest.approx(1.0)
    assert rates.take("key", "bob") == 0.0
    await clock.advance(0.5)
    assert rates.take("key", "alice") == pytest.approx(0.5)
    await clock.advance(0.5)
    assert rates.take("key", "alice") == 0.0
    assert rates.take("key", "alice") > 0
    await clock.advance(3600)
    assert [rates.take("key", "alice") > 0 for _ in range(61)] == [False] * 60 + [True]


def test_no_limit_and_a_bounded_memory() -> None:
    free = Rates(0, ManualClock())
    assert {free.take("key", "alice") for _ in range(1000)} == {0.0}
    rates = Rates(1, ManualClock())
    for number in range(MOST_CALLERS + 10):
        assert rates.take("key", str(number)) == 0.0
    assert len(rates._callers) == MOST_CALLERS


OPERATED = {"users/{user}/export", "users/{user}", "metrics", "errors"}


def test_every_route_is_in_the_table_of_rights() -> None:
    """A route that is not falls to operate alone, which only those named here are meant to need."""
    app = build_app(RuntimeSettings(postgres_url="postgresql://localhost/x"))
    seen = 0
    for route in app.routes:
        path, methods = str(getattr(route, "path", "")), getattr(route, "methods", None) or ()
        if not path.startswith("/v1/agents/{namespace}/{name}/"):
            continue
        below = path.removeprefix("/v1/agents/{namespace}/{name}/")
        for method in methods:
            seen += 1
            needed = rights_for(method, path)
            state_change = below.endswith("/state") and method in ("PUT", "DELETE")
            operated = below in OPERATED or below.startswith("keys") or state_change
            assert (needed == {Right.OPERATE}) == (operated and (method, below) != ("GET", "errors")), (method, path)
    assert seen > 10


def test_paths() -> None:
    assert agent_of("/v1/agents/ns/name/sessions") == ("ns", "name")
    assert agent_of("/v1/agents/ns/name") == ("ns", "name")
    assert agent_of("/v1/models/ns/name") is None
    assert rights_for("POST", "/v1/agents/ns/name/anything/else") == {Right.OPERATE}
    assert rights_for("GET", "/v1/anything") == {Right.OPERATE}
    assert rights_for("POST", "/v1/agents/ns/name/turns/t/approvals/c") == {Right.APPROVE}
    assert audited_right("POST", "/v1/agents/ns/name/turns/t/approvals/c") is Right.APPROVE
    assert audited_right("GET", "/v1/agents/ns/name/users/u/export") is Right.OPERATE
    assert audited_right("POST", "/v1/agents/ns/name/sessions/s/messages") is None
    assert audited_right("GET", "/v1/agents/ns/name/errors") is None
