"""Keys of built programs, the go.mod files, and the Go toolchain's version."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.binaries import (
    BINARIES,
    LOCAL,
    SOURCES,
    Binaries,
    Binary,
    build_environment,
    link_flags,
    module_key,
    parse_go_version,
)
from tests.cluster.errors import RequirementError
from tests.cluster.progress import Progress
from tests.cluster.settings import Paths


@pytest.fixture
def module(tmp_path: Path) -> Path:
    (tmp_path / "m" / "command").mkdir(parents=True)
    (tmp_path / "m" / "go.mod").write_text("module m\n")
    (tmp_path / "m" / "command" / "main.go").write_text("package main\n")
    return tmp_path / "m"


def test_key_is_the_same_for_the_same_sources(module: Path) -> None:
    assert module_key(module, "Linux-x86_64") == module_key(module, "Linux-x86_64")


def test_key_changes_with_content_name_and_platform(module: Path) -> None:
    keys = {module_key(module, "Linux-x86_64"), module_key(module, "Linux-aarch64")}
    (module / "command" / "main.go").write_text("package main // changed\n")
    keys.add(module_key(module, "Linux-x86_64"))
    (module / "command" / "main.go").rename(module / "command" / "other.go")
    keys.add(module_key(module, "Linux-x86_64"))
    (module / "go.sum").write_text("")
    keys.add(module_key(module, "Linux-x86_64"))
    assert len(keys) == 5


def test_only_whole_programs_count_as_built(tmp_path: Path) -> None:
    binaries = Binaries(Paths(tmp_path), Progress())
    assert {binary.name for binary in binaries.missing(LOCAL)} == set(LOCAL)
    place = binaries.path("kubectl")
    scratch = place.parent / ".build-killed"
    scratch.mkdir(parents=True)
    (scratch / "kubectl").touch()
    assert [binary.name for binary in binaries.missing(["kubectl"])] == ["kubectl"]
    place.touch()
    assert binaries.missing(["kubectl"]) == []


def test_unknown_program_is_refused_before_anything_is_built(tmp_path: Path) -> None:
    with pytest.raises(RequirementError, match="there is no program minikube here"):
        Binaries(Paths(tmp_path), Progress()).ensure(["kubectl", "minikube"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("binary", BINARIES.values(), ids=lambda binary: binary.name)
def test_every_program_is_named_by_its_module(binary: Binary) -> None:
    folder = SOURCES / binary.module
    if binary.package.startswith("./"):
        assert (folder / binary.package / "main.go").is_file()
    else:
        assert re.search(rf"^(tool )?\s*{re.escape(binary.package)}$", (folder / "go.mod").read_text(), re.MULTILINE)
    assert (folder / "go.sum").is_file()


def test_kubernetes_says_the_version_it_is_built_from() -> None:
    flags = link_flags((SOURCES / "kubernetes" / "go.mod").read_text())
    assert re.search(r"-X k8s\.io/component-base/version\.gitVersion=v1\.\d+\.\d+\b", flags)
    assert re.search(r"-X k8s\.io/component-base/version\.gitMinor=\d+\b", flags)
    assert link_flags("module m\n") == "-s -w"


def test_staging_modules_belong_to_the_kubernetes_version() -> None:
    text = (SOURCES / "kubernetes" / "go.mod").read_text()
    version = re.search(r"k8s\.io/kubernetes v1\.(\S+)", text)
    assert version
    replaced = re.findall(r"^\t(\S+) => (\S+) (\S+)$", text, re.MULTILINE)
    assert len(replaced) > 30
    assert {(name == target, number) for name, target, number in replaced} == {(True, f"v0.{version[1]}")}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("go version go1.26.8 linux/amd64", (1, 26)),
        ("go version go1.27rc1 linux/arm64", (1, 27)),
        ("go version devel go1.28-abc Mon linux/amd64", (1, 28)),
        ("command not found", None),
    ],
)
def test_go_version_is_read(text: str, expected: tuple[int, int] | None) -> None:
    assert parse_go_version(text) == expected


def test_build_keeps_caches_and_certificates_but_not_another_target() -> None:
    environ = build_environment({"GOCACHE": "/c", "SSL_CERT_FILE": "/ca", "GOARCH": "arm", "GOFLAGS": "-mod=mod"})
    assert environ["GOCACHE"] == "/c"
    assert environ["SSL_CERT_FILE"] == "/ca"
    assert "GOARCH" not in environ
    assert "-mod=readonly" in environ["GOFLAGS"]


def test_tool_runs_on_the_standard_library_alone() -> None:
    """It must work before any virtual environment exists: isolated, without site-packages."""
    command = "import sys; sys.path.insert(0, sys.argv[1]); import tests.cluster.cli, tests.cluster.controlplane"
    root = str(Path(__file__).resolve().parents[3])
    subprocess.run([sys.executable, "-I", "-S", "-c", command, root], check=True, timeout=20)
