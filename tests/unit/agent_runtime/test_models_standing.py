"""What calls and checks make of what is known of a model."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_api.conditions import Reason
from agent_runtime.llm.port import FailureKind, ModelError
from agent_runtime.llm.standing import (
    GOOD_CHECKS,
    LONG_PAUSE,
    PASSING,
    PATIENCE,
    Standing,
    after_answer,
    after_check,
    after_failure,
    after_key_change,
    pause_before_check,
)

START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
GOOD = after_answer(Standing(), START)


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def error(kind: FailureKind, **more: bool) -> ModelError:
    return ModelError(kind, "did wrong", state="does wrong", **more)  # type: ignore[arg-type]


def test_nothing_is_known_at_first_and_an_answer_says_all() -> None:
    check = Standing().to_check("primary", "openai/x")
    assert (check.ok, check.reason, check.message, check.since) == (None, "", "", None)
    check = after_answer(Standing(), START).to_check("primary", "openai/x")
    assert (check.ok, check.since, check.checked_at) == (True, START, START)
    assert after_answer(GOOD, at(5)).since == START, "it is good since it began to be"


@pytest.mark.parametrize("kind", list(FailureKind))
def test_each_kind_counts_after_its_number_of_failures_in_a_row(kind: FailureKind) -> None:
    standing, needed = GOOD, PATIENCE.get(kind, 1)
    for number in range(1, needed + 1):
        assert standing.ok
        standing = after_failure(standing, error(kind), at(number), f"session {number}")
    assert not standing.ok
    assert standing.since == at(1), "since the first of them"
    check = standing.to_check("x", "y")
    assert (check.message, check.checked_at) == ("does wrong", at(needed))
    assert check.reason in {reason.value for reason in Reason}


def test_a_model_that_answered_is_not_blamed_for_what_it_refuses_to_one_session() -> None:
    standing = GOOD
    for number in range(9):
        standing = after_failure(standing, error(FailureKind.REFUSED), at(number), "one")
        assert standing.ok
    assert after_failure(standing, error(FailureKind.REFUSED), at(9), "another").ok is False
    never = after_check(Standing(), None, START)
    for number in range(PATIENCE[FailureKind.REFUSED]):
        assert never.ok
        never = after_failure(never, error(FailureKind.REFUSED), at(number), "one")
    assert never.ok is False, "one that never answered anybody is"


def test_a_success_in_between_starts_the_count_anew() -> None:
    standing = GOOD
    for _ in range(5):
        standing = after_answer(after_failure(standing, error(FailureKind.UNREACHABLE), START), START)
        assert standing.ok


def test_what_the_message_is_to_blame_for_does_not_count() -> None:
    standing = GOOD
    for _ in range(9):
        standing = after_failure(standing, error(FailureKind.REFUSED, about_message=True), at(1))
    assert (standing.ok, standing.streak, standing.checked_at) == (True, 0, at(1))


def test_a_failed_check_counts_at_once_and_a_rate_limit_at_the_second_time() -> None:
    for kind in set(FailureKind) - {FailureKind.RATE_LIMITED}:
        assert after_check(Standing(), error(kind), START).ok is False
    limited = after_check(Standing(), error(FailureKind.RATE_LIMITED), START)
    assert limited.ok is None
    assert after_check(limited, error(FailureKind.RATE_LIMITED), START).ok is False


def test_a_good_check_takes_back_what_a_check_found() -> None:
    failed = after_check(GOOD, error(FailureKind.AUTH_FAILED), at(1))
    assert after_check(failed, None, at(2)).ok


@pytest.mark.parametrize("kind", sorted(set(FailureKind) - PASSING))
def test_good_checks_alone_never_take_back_what_a_call_found(kind: FailureKind) -> None:
    standing = GOOD
    for number in range(PATIENCE.get(kind, 1)):
        standing = after_failure(standing, error(kind), at(1), f"session {number}")
    for _ in range(3 * GOOD_CHECKS):
        standing = after_check(standing, None, at(2))
        assert standing.ok is False
    assert after_check(after_key_change(standing), None, at(3)).ok, "another key is another matter"
    assert after_answer(standing, at(3)).ok


@pytest.mark.parametrize("kind", sorted(PASSING))
def test_several_good_checks_take_back_what_may_end_by_itself(kind: FailureKind) -> None:
    standing = after_failure(after_failure(GOOD, error(kind), at(1)), error(kind), at(1))
    for _ in range(GOOD_CHECKS - 1):
        standing = after_check(standing, None, at(2))
        assert standing.ok is False
    assert after_check(standing, None, at(3)).ok


def test_good_checks_that_calls_prove_wrong_count_less_each_time_until_a_call_succeeds() -> None:
    def checks_until_good(standing: Standing) -> tuple[int, Standing]:
        for _ in range(2):
            standing = after_failure(standing, error(FailureKind.UNREACHABLE), at(1))
        assert standing.ok is False
        number = 0
        while not standing.ok:
            standing, number = after_check(standing, None, at(2)), number + 1
        return number, standing

    standing, seen = GOOD, []
    for _ in range(6):
        number, standing = checks_until_good(standing)
        seen.append(number)
    assert seen == [GOOD_CHECKS * times for times in (1, 2, 4, 8, 8, 8)]
    assert checks_until_good(after_answer(standing, at(3)))[0] == GOOD_CHECKS


def test_a_failed_check_after_failed_calls_makes_the_next_good_one_count() -> None:
    down = error(FailureKind.UNREACHABLE)
    standing = after_check(after_failure(after_failure(GOOD, down, at(1)), down, at(2)), down, at(3))
    assert (standing.ok, standing.since) == (False, at(1))
    assert after_check(standing, None, at(4)).ok


def test_checks_come_soon_then_every_fifteen_seconds_and_rarely_where_somebody_must_act() -> None:
    assert pause_before_check(GOOD) is None
    standing, pauses = Standing(), []
    for number in range(6):
        standing = after_check(standing, error(FailureKind.UNREACHABLE), at(number))
        pauses.append(pause_before_check(standing))
    assert pauses == [2, 4, 8, 15, 15, 15]
    for kind in set(FailureKind) - PASSING:
        assert pause_before_check(replace(GOOD, ok=False, kind=kind)) == LONG_PAUSE


EVENTS = st.lists(
    st.one_of(
        st.just("answer"),
        st.just("good check"),
        st.just("new key"),
        st.tuples(st.just("call"), st.sampled_from(FailureKind)),
        st.tuples(st.just("check"), st.sampled_from(FailureKind)),
    ),
    max_size=40,
)


@given(EVENTS)
def test_whatever_happens_it_is_consistent_and_an_answer_mends_it(events: list[object]) -> None:
    standing = Standing()
    for number, event in enumerate(events):
        match event:
            case "answer":
                standing = after_answer(standing, at(number))
            case "good check":
                standing = after_check(standing, None, at(number))
            case "new key":
                standing = after_key_change(standing)
            case ("call", kind):
                standing = after_failure(standing, error(kind), at(number))
            case ("check", kind):
                standing = after_check(standing, error(kind), at(number))
        assert (standing.ok is False) == bool(standing.reason) == bool(standing.phrase)
        assert standing.ok is None or standing.since is not None
        assert (pause_before_check(standing) is None) == (standing.ok is True)
    assert after_answer(standing, at(99)).ok
