"""The commands' arguments and help. What a command does is imported when it runs, so that help stays quick."""

from typing import Final

COMPLETE_VARIABLE: Final = "_ABIDE_COMPLETE"
"""Shells ask for completions by this variable, whatever name the command was called by."""
