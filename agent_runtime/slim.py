"""Keeps modules out of the process that libraries import only because they are installed."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
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
