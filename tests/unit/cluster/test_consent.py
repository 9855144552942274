"""Nothing changes on the machine before somebody said yes."""

import pytest

from tests.cluster.consent import ask
from tests.cluster.errors import RequirementError

CHANGES = ["install the Debian packages runc", "add an address"]


def unasked(prompt: str) -> str:
    raise AssertionError(f"asked: {prompt}")


@pytest.mark.parametrize("environ", [{"YES": "1"}, {"CI": "true"}, {"CI": "True"}])
def test_environment_answers_yes(environ: dict[str, str]) -> None:
    ask(CHANGES, environ=environ, is_terminal=lambda: False, read=unasked)


@pytest.mark.parametrize("environ", [{}, {"YES": "0"}, {"YES": ""}, {"CI": "false"}])
def test_without_a_terminal_and_an_answer_it_is_refused_with_the_remedy(environ: dict[str, str]) -> None:
    with pytest.raises(
        RequirementError, match=r"install the Debian packages runc; add an address\): set YES=1"
    ) as error:
        ask(CHANGES, environ=environ, is_terminal=lambda: False, read=unasked)
    assert error.value.exit_code == 2


def test_terminal_is_asked_with_the_changes_named() -> None:
    prompts: list[str] = []

    def read(prompt: str) -> str:
        prompts.append(prompt)
        return "y"

    ask(CHANGES, environ={}, is_terminal=lambda: True, read=read)
    assert len(prompts) == 1
    assert all(change in prompts[0] for change in CHANGES)


@pytest.mark.parametrize("answer", ["", "n", "no", "what"])
def test_any_other_answer_is_a_no(answer: str) -> None:
    with pytest.raises(RequirementError, match="nothing was changed"):
        ask(CHANGES, environ={}, is_terminal=lambda: True, read=lambda _: answer)


def test_end_of_input_is_a_no() -> None:
    def read(_: str) -> str:
        raise EOFError

    with pytest.raises(RequirementError, match="nothing was changed"):
        ask(CHANGES, environ={}, is_terminal=lambda: True, read=read)


def test_no_changes_need_no_answer() -> None:
    ask([], environ={}, is_terminal=lambda: False, read=unasked)
