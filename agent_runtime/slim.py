"""Keeps modules out of the process that libraries import only because they are installed."""

import ast
import importlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.util import find_spec
from types import ModuleType
from typing import Any, cast


@contextmanager
def without_modules(*names: str) -> Iterator[None]:
    """Make imports of these modules fail with ImportError inside the block; without effect on modules already loaded.

    Only for libraries that handle the ImportError.
    """
    blocked = [name for name in names if name not in sys.modules]
    for name in blocked:
        sys.modules[name] = cast(Any, None)
    try:
        yield
    finally:
        for name in blocked:
            sys.modules.pop(name, None)


@contextmanager
def lazy_packages(*names: str) -> Iterator[None]:
    """Have packages of these names and below, if they only hand on names of their modules, load a module when one of
    its names is first asked for; without effect on packages already loaded, and on those that do more.

    For packages with a thousand small modules, of which few are asked for. Nothing is missing: what is asked for is the
    same object as without.
    """
    finder = _LazyFinder(names)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


class _LazyFinder(MetaPathFinder):
    def __init__(self, names: Sequence[str]) -> None:
        self._names = names

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> Any:
        if not any(fullname == name or fullname.startswith(f"{name}.") for name in self._names):
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.submodule_search_locations and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _LazyLoader(spec.loader)
        return spec


class _LazyLoader(Loader):
    """Runs a package as it is, unless all it does is to hand on names."""

    def __init__(self, inner: SourceFileLoader) -> None:
        self._inner = inner

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._inner.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        handed_on = read_names(self._inner.get_source(module.__name__) or "")
        if handed_on is None:
            self._inner.exec_module(module)
            return

        def load(name: str) -> Any:
            if name in handed_on:
                source, its_name = handed_on[name]
                found = getattr(importlib.import_module(source, module.__name__), its_name)
            elif name.startswith("_") or find_spec(f"{module.__name__}.{name}") is None:
                raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")
            else:  # a module of the package, which would be there if the package had asked for its names
                found = importlib.import_module(f"{module.__name__}.{name}")
            setattr(module, name, found)
            return found

        module.__dict__["__getattr__"] = load


def read_names(source: str) -> dict[str, tuple[str, str]] | None:
    """Return for each name that a package hands on where it is from, as (relative module, name there).

    None if the package does anything else.
    """
    names: dict[str, tuple[str, str]] = {}
    for statement in ast.parse(source).body:
        match statement:
            case ast.ImportFrom(module="__future__") | ast.Expr(value=ast.Constant()):
                pass
            case ast.ImportFrom(module=str(module), names=aliases, level=level) if level > 0 and aliases[0].name != "*":
                names |= {one.asname or one.name: ("." * level + module, one.name) for one in aliases}
            case ast.Assign(targets=[ast.Name(id="__all__")]):
                pass
            case _:
                return None
    return names


@contextmanager
def hollow_modules(*names: str) -> Iterator[None]:
    """Have modules of these names hold nothing but empty classes, one for whatever name is asked for; they stay so.

    Only for modules that the process surely never uses, and that a library imports all the same.
    """
    finder = _HollowFinder(names)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


class _HollowFinder(MetaPathFinder, Loader):
    def __init__(self, names: Sequence[str]) -> None:
        self._names = names

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> Any:
        return ModuleSpec(fullname, self) if fullname in self._names else None

    def exec_module(self, module: ModuleType) -> None:
        def make(name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")
            made = type(name, (), {"__module__": module.__name__})
            setattr(module, name, made)
            return made

        module.__dict__["__getattr__"] = make
