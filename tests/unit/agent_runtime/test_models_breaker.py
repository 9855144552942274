"""When a model is left alone, and the laws that hold whatever happens."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_runtime.llm.breaker import (
    MOST_RETRY_AFTER,
    MOST_SLOW_PAUSE,
    THRESHOLD,
    Breaker,
    after_failure,
    after_good_check,
    after_success,
    begin_probe,
    end_probe,
)
from agent_runtime.llm.port import FailureKind, ModelError

FAILED = ModelError(FailureKind.UNREACHABLE, "answered 500", retryable=True, status=500)
HANGS = ModelError(FailureKind.TIMEOUT, "gave no token")


def failed(times: int, error: ModelError = FAILED, seconds: float = 0.1, now: float = 100.0) -> Breaker:
    breaker = Breaker()
    for _ in range(times):
        breaker = after_failure(breaker, error, seconds, now)
    return breaker


def test_quick_failures_open_it_after_some_and_slow_ones_after_two() -> None:
    assert failed(THRESHOLD - 1).shut(100) == 0
    assert failed(THRESHOLD).shut(100) == 1
    assert failed(1, HANGS, 30).shut(100) == 0
    assert failed(2, HANGS, 30).shut(100) == 30


@pytest.mark.parametrize(
    "error",
    [
        ModelError(FailureKind.REFUSED, "answered 400"),
        ModelError(FailureKind.NOT_FOUND, "answered 404"),
        ModelError(FailureKind.AUTH_FAILED, "answered 401", status=401),
        ModelError(FailureKind.BROKEN, "x", about_message=True),
    ],
)
def test_what_may_be_about_one_conversation_or_has_its_own_rule_opens_nothing(error: ModelError) -> None:
    assert failed(10, error).shut(100) == 0


def test_it_stays_open_for_longer_with_each_probe_that_fails() -> None:
    breaker, now, pauses = failed(2, HANGS, 10), 100.0, []
    for _ in range(5):
        pauses.append(breaker.shut(now))
        now += pauses[-1]
        breaker = end_probe(begin_probe(breaker, now, 40))
        breaker = after_failure(breaker, HANGS, 10, now)
    assert pauses == [10, 20, 40, MOST_SLOW_PAUSE, MOST_SLOW_PAUSE]


def test_calls_that_began_before_it_opened_say_nothing_new() -> None:
    breaker = failed(2, HANGS, 30)
    assert after_failure(breaker, HANGS, 30, 101).shut(101) == 29


def test_one_call_probes_while_the_others_pass_over() -> None:
    breaker = begin_probe(failed(THRESHOLD), 101, 60)
    assert breaker.shut(101) == 60
    assert end_probe(breaker).shut(101) == 0
    assert breaker.shut(162) == 0, "a probe that never ended holds nobody up for ever"


def test_a_success_closes_it_and_a_good_check_lets_one_probe() -> None:
    assert after_success(failed(9)) == Breaker()
    checked = after_good_check(failed(THRESHOLD))
    assert checked.shut(100) == 0
    assert begin_probe(checked, 100, 5).shut(100) == 5
    assert after_good_check(Breaker()) == Breaker()


def test_a_provider_is_believed_for_a_minute() -> None:
    breaker = failed(1, ModelError(FailureKind.RATE_LIMITED, "answered 429", retry_after=86_400))
    assert breaker.resting(100) == MOST_RETRY_AFTER
    assert breaker.shut(100) == 0
    assert after_success(breaker).resting(100) == MOST_RETRY_AFTER, "a call that began before says nothing of it"


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["fail", "hang", "limit", "good", "check", "probe", "end"]),
        st.floats(0, 120, allow_nan=False),
        st.floats(0, 3600, allow_nan=False),
    ),
    max_size=40,
)


@given(EVENTS)
def test_whatever_happens_a_call_is_made_again_within_the_longest_pause(
    events: list[tuple[str, float, float]],
) -> None:
    breaker, now, patience = Breaker(), 0.0, 90.0
    for what, pause, seconds in events:
        now += pause
        match what:
            case "fail" | "hang":
                breaker = after_failure(breaker, FAILED if what == "fail" else HANGS, seconds, now)
            case "limit":
                limited = ModelError(FailureKind.RATE_LIMITED, "x", retry_after=seconds)
                breaker = after_failure(breaker, limited, 0.1, now)
            case "good":
                breaker = after_success(breaker)
                assert breaker.shut(now) == 0
            case "check":
                breaker = after_good_check(breaker)
            case "probe":
                breaker = begin_probe(breaker, now, patience)
            case "end":
                breaker = end_probe(breaker)
        assert breaker.shut(now) <= max(MOST_SLOW_PAUSE, patience) + 1e-6
        assert breaker.resting(now) <= MOST_RETRY_AFTER + 1e-6
