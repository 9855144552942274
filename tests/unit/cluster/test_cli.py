"""Arguments, the choice of a provider, and exit codes."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cluster import cli
from tests.cluster.errors import RequirementError
from tests.cluster.settings import Paths, paths_from_environment


def never() -> bool:
    raise AssertionError("Docker must not be asked when the provider is given")


@pytest.mark.parametrize(
    ("option", "environ", "has_docker", "expected"),
    [
        ("local", {"CLUSTER": "kind"}, never, "local"),
        (None, {"CLUSTER": "current"}, never, "current"),
        (None, {}, lambda: True, "kind"),
        (None, {}, lambda: False, "local"),
        (None, {"CLUSTER": ""}, lambda: False, "local"),
    ],
)
def test_provider_is_the_option_then_the_variable_then_what_docker_allows(
    option: str | None, environ: dict[str, str], has_docker: Callable[[], bool], expected: str
) -> None:
    assert cli.choose_provider(option, environ, has_docker) == expected


def test_unknown_provider_in_the_variable_is_refused_with_the_choices() -> None:
    with pytest.raises(RequirementError, match="CLUSTER=minikube is unknown: use one of current, kind, local"):
        cli.choose_provider(None, {"CLUSTER": "minikube"}, never)


def test_every_command_is_parsed() -> None:
    parse = cli.parser().parse_args
    assert parse(["up", "--provider", "current"]).provider == "current"
    assert parse(["images", "runtime", "postgres"]).targets == ["runtime", "postgres"]
    assert parse(["images"]).targets == []
    assert parse(["tool", "helm"]).name == "helm"
    for command in ("down", "status", "kubeconfig", "binaries"):
        assert callable(parse([command]).run)


@pytest.mark.parametrize("words", [[], ["up", "--provider", "minikube"], ["tool"], ["dance"]])
def test_wrong_arguments_end_with_exit_code_two(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert ended.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_unknown_program_is_one_sentence_with_exit_code_two(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ABIDE_CACHE_DIR", "/nowhere")
    assert cli.main(["tool", "minikube"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: there is no program minikube here: choose one of")


@pytest.mark.parametrize(
    ("text", "expected"),
    [('{"provider": "kind"}', "kind"), ('{"provider": "other"}', None), ("{}", None), ("", None), ("[]", None)],
)
def test_record_of_the_provider_is_read_or_ignored(text: str, expected: str | None) -> None:
    assert cli.read_record(text) == expected


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"ABIDE_CACHE_DIR": "/a", "XDG_CACHE_HOME": "/b"}, "/a"),
        ({"XDG_CACHE_HOME": "/b"}, "/b/abide"),
    ],
)
def test_cache_directory_comes_from_the_environment(environ: dict[str, str], expected: str) -> None:
    assert paths_from_environment(environ) == Paths(Path(expected))


def test_cache_directory_defaults_to_the_home_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    assert paths_from_environment({}).cache == Path("/home/someone/.cache/abide")


@pytest.mark.parametrize(("given", "said"), [("relative", "is relative"), ("/" + "x" * 60, "at most 43 characters")])
def test_cache_directory_that_cannot_work_is_refused(given: str, said: str) -> None:
    with pytest.raises(RequirementError, match=said):
        paths_from_environment({"ABIDE_CACHE_DIR": given})


def test_longest_allowed_cache_directory_leaves_room_for_every_socket() -> None:
    state = paths_from_environment({"ABIDE_CACHE_DIR": "/" + "x" * 42}).state
    longest = state / "kubelet" / "device-plugins" / "kubelet-0123456789.sock"
    assert len(str(longest)) <= 107
