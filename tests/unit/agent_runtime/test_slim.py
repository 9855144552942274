"""Ways to keep out of the process what a library takes along: nothing that is used may differ."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent_runtime.slim import hollow_modules, lazy_packages, read_names, without_modules

FILES = {
    "__init__.py": "from . import shapes\nCOUNT = 1\n",
    "shapes/__init__.py": "from __future__ import annotations\n\n"
    "from .circle import Circle as Circle\nfrom .square import (\n    Square,\n    side as edge,\n)\n",
    "shapes/circle.py": "class Circle: ...\n",
    "shapes/square.py": "class Square: ...\nside = 4\n",
    "shapes/unused.py": "SIZE = 9\n",
    "heavy.py": "class Thing: ...\n",
    "user.py": "from .heavy import Thing\n\nclass Mine(Thing): ...\n",
}


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a package that nobody has loaded."""
    name = "abide_test_library"
    for path, text in FILES.items():
        file = tmp_path / name / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield name
    for module in [module for module in sys.modules if module == name or module.startswith(f"{name}.")]:
        del sys.modules[module]


def loaded(library: str) -> set[str]:
    return {name.removeprefix(f"{library}.") for name in sys.modules if name.startswith(f"{library}.")}


def test_a_package_that_hands_on_names_loads_a_module_when_it_is_asked_for(library: str) -> None:
    with lazy_packages(f"{library}.shapes"):
        shapes = importlib.import_module(f"{library}.shapes")
        assert loaded(library) == {"shapes"}
        assert shapes.edge == 4
        assert loaded(library) == {"shapes", "shapes.square"}
    circle = shapes.Circle
    assert circle is importlib.import_module(f"{library}.shapes.circle").Circle
    assert shapes.Circle is circle
    assert shapes.unused.SIZE == 9
    with pytest.raises(AttributeError, match="has no attribute 'Triangle'"):
        _ = shapes.Triangle
    with pytest.raises(ImportError):
        exec(f"from {library}.shapes import Triangle")


def test_packages_that_do_more_and_others_are_loaded_as_they_are(library: str) -> None:
    with lazy_packages(library):
        assert importlib.import_module(library).COUNT == 1
    assert not [finder for finder in sys.meta_path if type(finder).__module__ == "agent_runtime.slim"]


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("from .a import B, c as d", {"B": (".a", "B"), "d": (".a", "c")}),
        ('"""Doc."""\nfrom ..a.b import C\n__all__ = ["C"]', {"C": ("..a.b", "C")}),
        ("from .a import *", None),
        ("from . import a", None),
        ("from a import B", None),
        ("import a", None),
        ("from .a import B\nB.x = 1", None),
        ("", {}),
    ],
)
def test_only_packages_that_do_nothing_else_are_made_lazy(
    source: str, names: dict[str, tuple[str, str]] | None
) -> None:
    assert read_names(source) == names


def test_a_hollow_module_has_empty_classes(library: str) -> None:
    with hollow_modules(f"{library}.heavy"):
        user = importlib.import_module(f"{library}.user")
    assert user.Mine.__mro__[1].__module__ == f"{library}.heavy"
    assert user.Thing is importlib.import_module(f"{library}.heavy").Thing
    assert not hasattr(user.Thing, "x")


def test_a_module_kept_out_is_there_again_afterwards(library: str) -> None:
    with without_modules(f"{library}.heavy"), pytest.raises(ImportError):
        importlib.import_module(f"{library}.heavy")
    assert importlib.import_module(f"{library}.heavy").Thing
