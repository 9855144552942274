"""The installation's root keys, from a mounted Secret: every agent's wrapping keys are derived from them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import structlog

from agent_store.codec_keys import (
    CURRENT,
    KeysUnusable,
    WrappingKeys,
    derive_wrapping_key,
    format_key,
    read_wrapping_keys,
)

log = structlog.get_logger(__name__)

SOURCE: Final = "the Secret of the root keys"


class RootKeys:
    """Reads the folder at each call, so that a key that is added there counts; what cannot be read changes nothing.

    Without a folder agents get no keys. Raises KeysUnusable when it is made and the folder cannot be used: an operator
    that went on would take the keys away from agents that have them.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._known = None if folder is None else read_wrapping_keys(folder, SOURCE)
        self._failing = False

    def wrapping_keys(self, state_id: str) -> Mapping[str, str]:
        """Return the content of the Secret with an agent's wrapping keys, derived for the id of its rows."""
        known = self._read()
        if known is None:
            return {}
        keys = {name: format_key(derive_wrapping_key(root, state_id)) for name, root in known.keys.items()}
        return {**keys, CURRENT: known.current}

    def _read(self) -> WrappingKeys | None:
        if self._folder is None:
            return None
        try:
            self._known = read_wrapping_keys(self._folder, SOURCE)
            self._failing = False
        except KeysUnusable as error:
            if not self._failing:
                log.warning("the root keys cannot be read; agents keep the keys they have", error=str(error))
            self._failing = True
        return self._known
