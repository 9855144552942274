"""The version of this build."""

from importlib.metadata import version
from typing import Final

VERSION: Final = version("abide")
