"""What an image is built from, and the archives made without a container tool."""

import hashlib
import io
import json
import tarfile
from pathlib import Path

import pytest

from tests.cluster.archive import write_image, write_program_image
from tests.cluster.errors import RequirementError
from tests.cluster.images import (
    DEFAULT_TARGETS,
    ImageBuilder,
    copied_paths,
    digest_of_files,
    pip_settings,
    project_version,
)
from tests.cluster.progress import Progress
from tests.cluster.settings import REPOSITORY, Paths

DOCKERFILE = """\
ARG BASE=debian:trixie-slim
FROM ${BASE} AS python
RUN apt-get update \\
 && apt-get install python3  # COPY nothing
FROM python AS wheel
COPY --chown=1:1 pyproject.toml \\
     agent_api/*.py /src/
ADD extra /extra
FROM python as runtime
COPY --from=wheel /wheel /
COPY run.sh /
FROM ${BASE} AS postgres
COPY docker/postgres/ /usr/share/
"""


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("python", []),
        ("wheel", ["agent_api", "extra", "pyproject.toml"]),
        ("runtime", ["agent_api", "extra", "pyproject.toml", "run.sh"]),
        ("postgres", ["docker/postgres"]),
        ("console", None),
    ],
)
def test_target_needs_what_its_stages_copy(target: str, expected: list[str] | None) -> None:
    assert copied_paths(DOCKERFILE, target) == expected


@pytest.mark.parametrize("target", DEFAULT_TARGETS)
def test_default_targets_exist_and_copy_files_that_exist(target: str) -> None:
    paths = copied_paths((REPOSITORY / "Dockerfile").read_text(), target)
    assert paths
    assert [path for path in paths if not (REPOSITORY / path).exists()] == []


def test_digest_changes_with_content_name_and_executable_bit(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    (tmp_path / "b").write_text("2")
    digests = {digest_of_files(tmp_path, ["a", "b"])}
    assert digest_of_files(tmp_path, ["b", "a", "a", "missing"]) in digests
    (tmp_path / "a").write_text("3")
    digests.add(digest_of_files(tmp_path, ["a", "b"]))
    (tmp_path / "a").chmod(0o755)
    digests.add(digest_of_files(tmp_path, ["a", "b"]))
    (tmp_path / "a").rename(tmp_path / "c")
    digests.add(digest_of_files(tmp_path, ["c", "b"]))
    assert len(digests) == 4


def repository(root: Path) -> ImageBuilder:
    root.mkdir()
    (root / "pyproject.toml").write_text('[project]\nname = "x"\nversion = "1.2.3"\n')
    (root / "Dockerfile").write_text(DOCKERFILE)
    (root / "run.sh").write_text("true\n")
    (root / "docker" / "postgres").mkdir(parents=True)
    (root / "docker" / "postgres" / "start").write_text("postgres\n")
    return ImageBuilder(Paths(root.parent / "cache"), Progress(), root)


def test_image_is_named_by_target_and_project_version(tmp_path: Path) -> None:
    assert repository(tmp_path / "r").reference("runtime") == "abide/runtime:1.2.3"
    assert project_version('[project]\nversion = "2.0.0rc1"\n') == "2.0.0rc1"


def test_inputs_of_a_target_change_only_with_its_own_files(tmp_path: Path) -> None:
    builder = repository(tmp_path / "r")
    runtime, postgres = builder.inputs("runtime"), builder.inputs("postgres")
    (tmp_path / "r" / "run.sh").write_text("false\n")
    (tmp_path / "r" / "notes.txt").write_text("not copied\n")
    assert builder.inputs("postgres") == postgres
    assert builder.inputs("runtime") != runtime


def test_unknown_target_and_missing_dockerfile_are_refused(tmp_path: Path) -> None:
    builder = repository(tmp_path / "r")
    with pytest.raises(RequirementError, match="no target console"):
        builder.inputs("console")
    (tmp_path / "r" / "Dockerfile").unlink()
    with pytest.raises(RequirementError, match="there is no Dockerfile"):
        builder.inputs("runtime")


def test_pip_inside_a_build_gets_the_callers_settings() -> None:
    environ = {"PIP_INDEX_URL": "https://mirror.example/simple", "PIP_DEFAULT_TIMEOUT": "99", "OTHER": "x"}
    assert pip_settings(environ, "/root/ca.crt").splitlines() == [
        "[global]",
        "cert = /root/ca.crt",
        "index-url = https://mirror.example/simple",
        "timeout = 99",
    ]


def read_archive(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        return {member.name: file.read() for member in tar if (file := tar.extractfile(member))}


def test_archive_holds_the_layer_its_digest_and_the_name(tmp_path: Path) -> None:
    layer = tmp_path / "layer.tar"
    layer.write_bytes(b"not really a tar")
    write_image(tmp_path / "image.tar", "docker.io/abide/x:1", layer, {"Cmd": ["x"]})
    content = read_archive(tmp_path / "image.tar")
    (manifest,) = json.loads(content["manifest.json"])
    config = json.loads(content[manifest["Config"]])
    digest = hashlib.sha256(b"not really a tar").hexdigest()
    assert manifest["RepoTags"] == ["docker.io/abide/x:1"]
    assert content[manifest["Layers"][0]] == b"not really a tar"
    assert config["rootfs"]["diff_ids"] == [f"sha256:{digest}"]
    # Builders count layers by the history and refuse an image whose numbers differ.
    assert len(config["history"]) == len(config["rootfs"]["diff_ids"])
    assert config["config"] == {"Cmd": ["x"]}


def test_program_image_runs_the_program_as_an_ordinary_user(tmp_path: Path) -> None:
    program = tmp_path / "pause"
    program.write_bytes(b"program")
    write_program_image(tmp_path / "image.tar", "docker.io/abide/pause:local", program)
    content = read_archive(tmp_path / "image.tar")
    (manifest,) = json.loads(content["manifest.json"])
    config = json.loads(content[manifest["Config"]])
    with tarfile.open(fileobj=io.BytesIO(content[manifest["Layers"][0]])) as layer:
        (entry,) = layer.getmembers()
    assert config["config"] == {"Entrypoint": ["/pause"], "User": "65535:65535"}
    assert (entry.name, entry.mode, entry.size) == ("pause", 0o555, 7)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["image.tar", "pause"]
