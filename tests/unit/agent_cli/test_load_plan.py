"""What a load run does and what its figures mean."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_cli.errors import UsageError
from agent_cli.load.places import build_agent
from agent_cli.load.plan import (
    MOST_AGENTS,
    Growth,
    Row,
    Spread,
    fit_exponent,
    growth_of,
    is_loopback,
    make_plan,
    parse_counts,
)
from agent_cli.load.run import existing_endpoints
from agent_cli.load.talk import Endpoint


def test_counts() -> None:
    assert parse_counts("5,10, 20,5") == (5, 10, 20)
    for text in ("", "0", "-1", "5,", "x", str(MOST_AGENTS + 1), "²"):
        with pytest.raises(UsageError, match="--agents"):
            parse_counts(text)


def test_every_session_of_every_agent_gets_its_messages_in_turn() -> None:
    plan = make_plan((2, 3), sessions=2, rate=10.0, messages=4, timeout=60)
    assert (plan.total(3), plan.seconds(3)) == (24, 2.4)
    order = plan.order(3)
    assert set(Counter(order).values()) == {4}
    assert order[:6] == [(0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (2, 1)]


@pytest.mark.parametrize(
    ("change", "option"),
    [
        ({"sessions": 0}, "--sessions"),
        ({"rate": 0.0}, "--rate"),
        ({"rate": float("nan")}, "--rate"),
        ({"rate": 1e9}, "--rate"),
        ({"messages": 100_000}, "--messages"),
        ({"timeout": 10.0, "messages": 100}, "--timeout"),
    ],
)
def test_bounds(change: dict[str, float], option: str) -> None:
    options = {"sessions": 2, "rate": 10.0, "messages": 4, "timeout": 60.0, **change}
    with pytest.raises(UsageError, match=option):
        make_plan((2,), **options)  # type: ignore[arg-type]


@given(st.lists(st.floats(0, 1e6), min_size=1))
def test_percentiles_are_values_that_were_seen(values: list[float]) -> None:
    spread = Spread(values)
    found = [spread.percentile(share) for share in (0.0, 0.5, 0.99, 1.0)]
    assert found == sorted(found)  # type: ignore[type-var]
    assert set(found) <= set(values)
    assert found[-1] == max(values)
    assert sum(value <= found[1] for value in values) * 2 >= len(values)  # type: ignore[operator]


def test_nothing_timed_has_no_percentile() -> None:
    assert Spread(()).as_json() == {"count": 0, "p50": None, "p99": None, "max": None}


@given(st.floats(0.1, 100), st.floats(-0.5, 3), st.lists(st.integers(1, 100), min_size=2, unique=True))
def test_the_fit_finds_the_power(factor: float, power: float, counts: list[int]) -> None:
    points = [(count, factor * count**power) for count in counts]
    assert fit_exponent(points) == pytest.approx(power, abs=1e-6)


def test_growth_needs_two_counts_and_tells_linear_from_worse() -> None:
    rows = [
        Row(count, start_seconds=0.1 * count, stop_seconds=0.1 * count**2, save=Spread([1.0] * count))
        for count in (5, 10, 20)
    ]
    found = {one.what: one for one in growth_of(rows)}
    assert list(found) == ["start", "save", "stop"]
    assert (found["start"].is_linear, found["save"].is_linear, found["stop"].is_linear) == (True, True, False)
    assert "worse than linear" in found["stop"].text()
    assert growth_of(rows[:1]) == []
    assert Growth("start", 1.1).is_linear


def test_which_addresses_are_this_machine() -> None:
    for url in ("http://127.0.0.1:8080", "http://localhost", "https://[::1]:1", "http://127.9.9.9"):
        assert is_loopback(url)
    for url in ("http://192.0.2.1", "http://agents.example", "http://localhost.example", "http://0.0.0.0:1"):
        assert not is_loopback(url)
    with pytest.raises(UsageError, match="--url"):
        is_loopback("127.0.0.1:8080")


def test_existing_agents_are_named() -> None:
    assert existing_endpoints("http://127.0.0.1:1/", ["a/b"], "k", yes=False) == [
        Endpoint("a", "b", "http://127.0.0.1:1", "k")
    ]
    for names in ([], ["b"], ["/b"], ["a/"]):
        with pytest.raises(UsageError, match="--name"):
            existing_endpoints("http://127.0.0.1:1", names, None, yes=False)


def test_the_key_is_sent_only_where_there_is_one() -> None:
    assert Endpoint("n", "a", "http://x", "secret").headers()["Authorization"] == "Bearer secret"
    assert "Authorization" not in Endpoint("n", "a", "http://x").headers()
    assert Endpoint("n", "a", "http://x").session("s 1") == "http://x/v1/agents/n/a/sessions/s%201"


def test_agents_of_a_run_are_valid_and_take_their_rows_along() -> None:
    from agent_api.v1alpha1 import Agent

    agent = Agent.model_validate(build_agent("load-1-0", "default", {"abide-load": "1"}))
    assert agent.spec.state.deletion_policy == "Delete"
